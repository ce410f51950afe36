"""Batches as the model sees them: normalised crops, and for training their targets and weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels import crop_faces
from kernels.crop_reference import normalised
from pose.augment import Augmentation, draw
from pose.data.faces import Faces
from pose.geometry import PADDING, crop_matrix
from pose.loader import DiskLoader, MemoryLoader, PixelBatch
from pose.placement import place
from pose.recipe import Augment, Input


@dataclass(frozen=True)
class TrainingBatch:
    """pixels: (B, 3 or 4, S, S) normalised; target, weight: (B, 98, 2), target as fractions of S."""

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
    pixel_dtype: torch.dtype,
    dtype: torch.dtype,
) -> TrainingBatch:
    """Crop `pixels` with the random draws of (seed, epoch, face), and make targets and weights, these in `dtype`."""
    numbers = pixels.faces
    draws = draw(seed, epoch, torch.from_numpy(numbers), augmentation=Augmentation(**augment.model_dump()))
    matrix, target, weight = place(faces, numbers, draws, pixels.widths, config.size)
    crops = _crops(pixels, matrix, draws.flip, config, device, pixel_dtype)
    return TrainingBatch(crops, target.to(device, dtype), weight.to(device, dtype))


def upright_batches(
    loader: DiskLoader | MemoryLoader,
    faces: Faces,
    *,
    config: Input,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
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
        images,
        index,
        matrix.to(device),
        flip.to(device),
        size=config.size,
        mode=config.crop,
        channels=config.channels,
        dtype=dtype,
        impl=config.impl,
    )


def normalised_batch(levels: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Levels 0 to 255, (B, 3, S, S) uint8, as `crop_faces` normalises them: (B, channels, S, S), channels last."""
    count, _, height, width = levels.shape
    shape = (count, channels, height, width)
    out = torch.empty(shape, dtype=dtype, device=levels.device, memory_format=torch.channels_last)
    out[:, 3:] = 0
    for channel in range(3):
        out[:, channel] = normalised(levels[:, channel], channel)
    return out
