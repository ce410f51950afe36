"""What the sampling of a batch is told and what it gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class FaceColumns(NamedTuple):
    """What is known of N faces.

    points: (N, K, 2) float32, pixels of the image. center: (N, 2) float64, of the face's square, pixels of the image.
    side: (N,) float64, of that square as it is cropped, padding included. full_width: (N,) int64, the image's, about
    which a flip mirrors.
    """

    points: Tensor
    center: Tensor
    side: Tensor
    full_width: Tensor

    def to(self, device: torch.device | str) -> FaceColumns:
        """The same columns on `device`."""
        return FaceColumns(*(column.to(device) for column in self))


@dataclass(frozen=True)
class Sampling:
    """What may be drawn; the defaults are the published ones, all zeros mean none.

    flip: probability. scale: sigma of the factor on the side, clipped at 1 sigma. rotation: sigma in degrees, clipped
    at 2 sigma, applied with probability `rotation_probability`. Raises ValueError for values out of range.
    """

    flip: float = 0.5
    scale: float = 0.25
    rotation: float = 30.0
    rotation_probability: float = 0.6

    def __post_init__(self) -> None:
        for name, limit in (("flip", 1.0), ("scale", 1.0), ("rotation", math.inf), ("rotation_probability", 1.0)):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= limit) or (name == "scale" and value == 1):
                raise ValueError(f"{name} is {value}; wanted 0 to {limit:g}{' (excluded)' if name == 'scale' else ''}")


class Sampled(NamedTuple):
    """matrix: (B, 2, 3) float64, image -> crop in pixels, of the mirrored image where flip, (B,) bool, is set.
    target: (B, K, 2) float32, crop pixels / size, not clipped. weight: the same shape, 1 inside the crop, else 0."""

    matrix: Tensor
    flip: Tensor
    target: Tensor
    weight: Tensor
