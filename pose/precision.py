"""Number formats of the forward and backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from pose.errors import InputError

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str) -> torch.device:
    """The device for "auto" (a GPU where there is one), "cpu" or "cuda". Raises `InputError` if it is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: this machine has no GPU that torch can use; choose cpu or auto")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def parameter_dtype(precision: str) -> torch.dtype:
    """dtype of weights, inputs and statistics; 16-bit formats are autocast's and keep float32 weights."""
    return torch.float64 if precision == "fp64" else torch.float32


def pixel_dtype(precision: str) -> torch.dtype:
    """dtype of the crops that the network reads: autocast would round them to its own at the first convolution."""
    return _AUTOCAST.get(precision, parameter_dtype(precision))


@contextmanager
def tf32(precision: str) -> Iterator[None]:
    """While the block runs, let float32 products on a GPU round their operands to TF32, or forbid it.

    torch permits TF32 in convolutions unless told otherwise, so "fp32" has to forbid it.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision in ("tf32", "bf16", "fp16")
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """The autocast context of `precision`; does nothing for fp64, fp32 and tf32."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
