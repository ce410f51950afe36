"""Crops of random images, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kernels import RaggedImages, crop_faces


def similarity(center: ArrayLike, side: float, degrees: float, size: int) -> np.ndarray:
    """Image -> crop: the centre to size / 2, the side to size, content turned counter-clockwise."""
    angle = np.deg2rad(degrees)
    linear = size / side * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, size / 2 - linear @ np.asarray(center, dtype=np.float64)])


def random_cases(
    count: int, seed: int, size: int, limit: float = 60
) -> tuple[list[np.ndarray], list[np.ndarray], list[bool]]:
    """Images of odd sizes; crops inside, across and outside their border, enlarged, reduced, turned and flipped."""
    rng = np.random.default_rng(seed)
    images, matrices, flips = [], [], []
    for i in range(count):
        height, width = rng.integers(20, 400, 2)
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        center = rng.uniform(-0.2, 1.2, 2) * (width, height)
        side = np.exp(rng.uniform(np.log(8), np.log(900)))
        matrices.append(similarity(center, side, rng.uniform(-limit, limit) * (i % 3 > 0), size))
        flips.append(bool(i % 2))
    return images, matrices, flips


def ragged(images: list[np.ndarray]) -> RaggedImages:
    return RaggedImages.from_images([torch.from_numpy(image) for image in images])


def crop(
    images: RaggedImages,
    index: Iterable[int],
    matrices: list[np.ndarray],
    flips: list[bool],
    device: torch.device | str = "cpu",
    **options: Any,
) -> Tensor:
    return crop_faces(
        images.to(device),
        torch.tensor(list(index), device=device),
        torch.as_tensor(np.stack(matrices), device=device),
        torch.tensor(flips, device=device),
        **options,
    )


def levels(batch: Tensor) -> np.ndarray:
    """(B, 3, S, S) tensor -> (B, S, S, 3) array."""
    return batch.permute(0, 2, 3, 1).cpu().numpy()


def warp(image: np.ndarray, matrix: np.ndarray, size: int, flip: bool) -> np.ndarray:
    """OpenCV 4's crop of the image, mirrored first with `flip`."""
    source = np.ascontiguousarray(image[:, ::-1]) if flip else image
    return cv2.warpAffine(
        source, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0
    )


def bilinear(image: np.ndarray, matrix: np.ndarray, size: int, flip: bool) -> np.ndarray:
    """Real-valued interpolation in float64, zero outside."""
    source = image[:, ::-1] if flip else image
    height, width, _ = source.shape
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    jj, ii = np.meshgrid(np.arange(size), np.arange(size))
    x, y = (inverse[k, 0] * jj + inverse[k, 1] * ii + inverse[k, 2] for k in (0, 1))
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    out = np.zeros((size, size, 3))
    for dy in (0, 1):
        for dx in (0, 1):
            tx, ty = x0 + dx, y0 + dy
            weight = (1 - abs(x - tx)) * (1 - abs(y - ty)) * ((tx >= 0) & (tx < width) & (ty >= 0) & (ty < height))
            out += weight[..., None] * source[ty.clip(0, height - 1), tx.clip(0, width - 1)]
    return out
