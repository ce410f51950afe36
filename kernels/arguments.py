"""What the crop and the sampling ask of their arguments alike."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kernels.losses import triton_problem


def takes_triton(impl: str, device: torch.device) -> bool:
    """Whether the fused kernel computes on `device`; a RuntimeError says why `impl` "triton" cannot."""
    if impl != "triton" and not (impl == "auto" and device.type == "cuda"):
        return False  # asked first: Triton takes a second to import
    problem = triton_problem(device)
    if impl == "triton" and problem is not None:
        raise RuntimeError(problem)
    return problem is None


def check_tensors(wanted: Mapping[str, tuple[Tensor, torch.dtype, tuple[int, ...]]]) -> None:
    """Raise TypeError or ValueError for the first that has another dtype or shape, or another device than the first."""
    first = next(iter(wanted))
    device = wanted[first][0].device
    for name, (tensor, dtype, shape) in wanted.items():
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}; wanted {dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {shape}")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, {first} on {device}; wanted one device")
