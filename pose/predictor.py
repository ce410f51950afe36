"""Prediction: crops to points, and faces of one picture to points in its pixels."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from kernels import RaggedImages, crop_faces
from pose.geometry import crop_matrix
from pose.model import DeepPose, decode, flip_back


@torch.inference_mode()
def predict_batch(model: torch.nn.Module, pixels: Tensor, flip_test: bool = True, shift: float = 0.0) -> Tensor:
    """Points of normalised crops: (B, 3, S, S) -> (B, 98, 2) fractions of the crop's side, float32 or wider.

    With `flip_test`, the mean of what the model says of the crop and, by `flip_back`, of its mirror image; `shift` is
    that function's, 0 as published. Autocast is the caller's. Raises ValueError for a model in training mode, whose
    batch norms would let each face change the others.
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    output = _wide(model(pixels))
    if not flip_test:
        return output
    return (output + flip_back(_wide(model(pixels.flip(3))), shift)) / 2


def predict_faces(
    model: DeepPose,
    image: np.ndarray,
    centers: ArrayLike,
    sides: ArrayLike,
    size: int = 256,
    mode: str = "opencv4",
    *,
    flip_test: bool = True,
    shift: float = 0.0,
    batch_size: int = 64,
) -> np.ndarray:
    """Points of the faces of one picture, (N, 98, 2) float64 pixels of the picture, on the model's device.

    image: (H, W, 3) uint8 RGB; centers: (N, 2) and sides: (N,) pixels of the picture, sides *padded*, the squares that
    are cropped; size: side of the crop in pixels; mode: "opencv4" (as the published models saw it) or "exact".
    """
    centers = np.asarray(centers, dtype=np.float64).reshape(-1, 2)
    sides = np.asarray(sides, dtype=np.float64).reshape(-1)
    device = model.head.weight.device
    pixels = torch.from_numpy(np.array(image))  # a copy: decoded pictures may be read-only
    images = RaggedImages.from_images([pixels.to(device)])
    points = [np.empty((0, model.num_landmarks, 2))]
    for first in range(0, len(sides), batch_size):
        center, side = centers[first : first + batch_size], sides[first : first + batch_size]
        crops = crop_faces(
            images,
            torch.zeros(len(side), dtype=torch.int64, device=device),
            torch.as_tensor(crop_matrix(center, side, size=size), device=device),
            torch.zeros(len(side), dtype=torch.bool, device=device),
            size=size,
            mode=mode,
            dtype=model.head.weight.dtype,
        )
        points.append(decode(predict_batch(model, crops, flip_test, shift).cpu().numpy(), center, side))
    return np.concatenate(points)


def _wide(output: Tensor) -> Tensor:
    """float32 at least: the mean of two half-precision predictions would round once more."""
    return output.to(torch.promote_types(output.dtype, torch.float32))
