"""What the network is trained towards: landmarks in crop coordinates, and which of them count."""

from __future__ import annotations

import torch
from torch import Tensor

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
    x, y = points.float().unbind(-1)
    rename = torch.from_numpy(FLIP_INDEX).to(points.device)
    mirrored = (full_width - 1).float()[:, None] - x[:, rename]
    turned = flip[:, None]
    x = torch.where(turned, mirrored, x).double()
    y = torch.where(turned, y[:, rename], y).double()
    m = matrix.double()[..., None]
    crop = torch.stack([m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] for i in (0, 1)], dim=-1).float()
    inside = ((crop >= 0) & (crop <= size - 1)).all(dim=-1, keepdim=True)
    return crop / torch.full((), float(size), device=crop.device), inside.float().repeat(1, 1, 2)
