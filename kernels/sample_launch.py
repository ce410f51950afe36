"""Launching `sample_kernel` on tensors that have passed `sample`'s checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from kernels.loss_launch import on_device
from kernels.sample_kernel import sample_kernel

if TYPE_CHECKING:
    from kernels.sampling import FaceColumns, Sampling


def launch_sample(
    faces: FaceColumns,
    number: Tensor,
    epoch: Tensor,
    seed: int,
    sampling: Sampling,
    flip_index: Tensor,
    quantiles: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One launch: (matrix, flip, target, weight)."""
    batch, landmarks = len(number), faces.points.shape[1]
    matrix = torch.empty(batch, 2, 3, dtype=torch.float64, device=number.device)
    flip = torch.empty(batch, dtype=torch.bool, device=number.device)
    target = torch.empty(batch, landmarks, 2, device=number.device)
    weight = torch.empty_like(target)
    if batch:
        with on_device(number.device):
            sample_kernel[(batch,)](
                *(column.contiguous() for column in faces),
                len(faces.points),
                number.contiguous(),
                epoch,
                seed - (seed >> 63 << 64),  # 64 bits, which Triton takes for a signed number
                flip_index.contiguous(),
                quantiles.contiguous(),
                matrix,
                flip,
                target,
                weight,
                **constants(sampling, len(quantiles), size, landmarks),
            )
    return matrix, flip, target, weight


def constants(sampling: Sampling, quantiles: int, size: int, landmarks: int) -> dict[str, object]:
    """The compile-time arguments of `sample_kernel`."""
    return {
        "FLIP": sampling.flip,
        "SCALE": sampling.scale,
        "ROTATION": sampling.rotation,
        "ROTATE": sampling.rotation_probability,
        "INTERVALS": quantiles - 1,
        "SIZE": size,
        "POINTS": landmarks,
        "LANES": triton.next_power_of_2(landmarks),
        "num_warps": 1,
        "enable_fp_fusion": False,  # a fused multiply-add rounds once where the reference rounds twice
    }
