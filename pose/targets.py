"""What the network is trained towards: landmarks in crop coordinates, and which of them count."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels import sample_reference as reference
from pose.landmarks import FLIP_INDEX, NUM_LANDMARKS


def targets_and_weights(
    points: Tensor, matrix: Tensor, flip: Tensor, full_width: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Targets and weights of a batch of faces, each (B, 98, 2) float32.

    points: (B, 98, 2), pixels of the image. matrix: (B, 2, 3) float64, image -> crop; flip: (B,) bool, whose faces have
    their points mirrored in the image's width, full_width (B,), and renamed first (the matrix is that of the mirrored
    centre). size: the crop's side in pixels.
    target: crop pixels / size, not clipped. weight: 1 where 0 <= x <= size - 1 and 0 <= y <= size - 1, else 0, the same
    for x and y. As published: float32 points, the product in float64, its result float32 before the test and division.
    Raises ValueError for other shapes.
    """
    count = len(points)
    for name, tensor, shape in (
        ("points", points, (count, NUM_LANDMARKS, 2)),
        ("matrix", matrix, (count, 2, 3)),
        ("flip", flip, (count,)),
        ("full_width", full_width, (count,)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {shape}")
    return reference.targets_and_weights(points, matrix, flip, full_width, size, flip_index(points.device))


@functools.cache
def flip_index(device: torch.device) -> Tensor:
    """`FLIP_INDEX` on `device`."""
    return torch.from_numpy(FLIP_INDEX).to(device)
