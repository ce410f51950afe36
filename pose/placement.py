"""Where random draws put the crops of faces, and with them their targets; on the host.

`kernels.sample_faces` does the same on the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pose.augment import Draws
from pose.data.faces import Faces
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.targets import targets_and_weights


def place(
    faces: Faces, numbers: np.ndarray, draws: Draws, full_width: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Crop matrices (B, 2, 3) float64 of the faces `numbers` (B,), and their targets and weights, (B, 98, 2) float32.

    draws: of these faces; full_width: (B,), of their pictures. A flipped face's matrix is that of the mirrored picture.
    """
    flip = draws.flip.numpy()[:, None]
    center = np.where(flip, mirrored_center(faces.center[numbers], full_width.numpy()), faces.center[numbers])
    side = faces.side[numbers] * PADDING * draws.scale.numpy()
    matrix = torch.from_numpy(crop_matrix(center, side, draws.rotation.numpy(), size))
    points = torch.from_numpy(faces.points[numbers])
    return matrix, *targets_and_weights(points, matrix, draws.flip, full_width, size)
