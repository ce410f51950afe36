"""Batches as the model sees them: normalised crops, and for training their targets and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels import crop_faces
from pose.augment import Augmentation, draw
from pose.data.faces import Faces
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.loader import Loader, PixelBatch
from pose.recipe import Augment, Input
from pose.targets import targets_and_weights


@dataclass(frozen=True)
class TrainingBatch:
    """faces: (B,) numbers; pixels: (B, 3, S, S) normalised; target, weight: (B, 98, 2), target as fractions of S."""

    faces: np.ndarray
    pixels: Tensor
    target: Tensor
    weight: Tensor


def training_batch(
    pixels: PixelBatch,
    faces: Faces,
    *,
    config: Input,
    augment: Augment,
    seed: int,
    epoch: int,
    device: torch.device,
    dtype: torch.dtype,
) -> TrainingBatch:
    """Crop `pixels` with the random draws of (seed, epoch, face), and make targets and weights."""
    numbers = pixels.faces
    draws = draw(seed, epoch, torch.from_numpy(numbers), augmentation=Augmentation(**augment.model_dump()))
    flip = draws.flip
    full_width = pixels.widths
    center = np.where(
        flip.numpy()[:, None], mirrored_center(faces.center[numbers], full_width.numpy()), faces.center[numbers]
    )
    side = faces.side[numbers] * PADDING * draws.scale.numpy()
    matrix = torch.from_numpy(crop_matrix(center, side, draws.rotation.numpy(), config.size))
    target, weight = targets_and_weights(torch.from_numpy(faces.points[numbers]), matrix, flip, full_width, config.size)
    crops = _crops(pixels, matrix, flip, config, device, dtype)
    return TrainingBatch(numbers, crops, target.to(device, dtype), weight.to(device, dtype))


def upright_batches(
    loader: Loader, faces: Faces, *, config: Input, batch_size: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Tensor]:
    """The upright crops of all `faces`, in order: (B, 3, S, S) normalised."""
    numbers = np.arange(len(faces))
    orders: Iterable[np.ndarray] = (numbers[i : i + batch_size] for i in range(0, len(faces), batch_size))
    for pixels in loader.batches(orders):
        chosen = pixels.faces
        matrix = torch.from_numpy(
            crop_matrix(faces.center[chosen], faces.side[chosen] * PADDING, np.zeros(len(chosen)), config.size)
        )
        yield _crops(pixels, matrix, torch.zeros(len(chosen), dtype=torch.bool), config, device, dtype)


def _crops(
    pixels: PixelBatch, matrix: Tensor, flip: Tensor, config: Input, device: torch.device, dtype: torch.dtype
) -> Tensor:
    images, index = pixels.images.to(device), pixels.index.to(device)
    return crop_faces(
        images, index, matrix.to(device), flip.to(device), size=config.size, mode=config.crop, dtype=dtype
    )
