"""Launching `loss_kernel`: how tensors become flat memory, how tiles are cut, and where partial sums go.

Knows nothing of autograd. The tensors have passed `losses`' checks; they are on a CUDA device, or on the CPU with
Triton's interpreter on.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

from kernels import loss_kernel as code
from kernels.family import Loss, dtype_of_loss

INTERPRETED = bool(knobs.runtime.interpret)

_ALIGNED = 16  # bytes of the widest load; what lies otherwise is copied, so that there is one compiled variant of each
_LARGEST_INDEX = 2**30  # in 32-bit lanes, with room for a tile
_LARGEST_PRODUCT = 1e38  # of factors 1 + z in float32
_LARGEST_DIVISOR = 2.0**126  # beyond it, reciprocals are 0 to the hardware's instruction
_LARGEST_POWER = 60  # log2; what it is multiplied with must stay in range, too
_SCALED, _SCALING_PROGRAMS = 4096 if INTERPRETED else 1024, 1024  # few CTAs: most launches find nothing to do
_WARPS = 4


def loss_of(loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """One launch: the loss."""
    value = empty_loss(loss, pred, target)
    _launch(loss, pred, target, weight, value=value)
    return value


def loss_and_gradient(
    loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None, factor: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One launch: the loss, and `scale` *factor times its gradient for pred, laid out like pred."""
    value, grad = empty_loss(loss, pred, target), torch.empty_like(pred)
    _launch(loss, pred, target, weight, factor, scale, value=value, grad=grad)
    return value, grad


def gradient(
    loss: Loss,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    upstream: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """One launch: the gradient for pred, given the loss's. `out` holds it already for an upstream gradient of 1:
    nothing is read or written then."""
    grad = torch.empty_like(pred) if out is None else out
    _launch(loss, pred, target, weight, upstream, grad=grad, skip=out is not None)
    return grad


def scale_(grad: Tensor, factor: Tensor) -> None:
    """One launch: grad *= factor, a number on grad's device; nothing is read or written where it is 1."""
    count = grad.numel()
    if count:
        programs = min(-(-count // _SCALED), _SCALING_PROGRAMS)
        with on_device(grad.device):
            _run(code.scale_kernel, _scaling(grad.dtype, factor.dtype), grad.device, programs, (grad, factor, count))


def empty_loss(loss: Loss, pred: Tensor, target: Tensor) -> Tensor:
    """Memory for the loss: a number, or one for each element, laid out like pred."""
    dtype = dtype_of_loss(pred, target)
    return torch.empty_like(pred, dtype=dtype) if loss.reduction == "none" else pred.new_empty((), dtype=dtype)


def prepare(device: torch.device) -> None:
    """Allocate now what launches on `device` keep; done by the first one otherwise."""
    if device.type == "cuda" and torch.cuda.is_available():
        with on_device(device):
            if not torch.cuda.is_current_stream_capturing():
                _workspace(device)


def _launch(
    loss: Loss,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    factor: Tensor | None = None,
    scale: float = 1.0,
    *,
    value: Tensor | None = None,
    grad: Tensor | None = None,
    skip: bool = False,
) -> None:
    count = pred.numel()
    if count == 0:
        if value is not None:
            value.zero_()
        return
    each = loss.reduction == "none"
    denominator = loss.denominator(pred)
    if not pred.is_contiguous():
        pred, target, weight, factor, value, grad = _in_memory_order(pred, target, weight, factor, value, grad, each)
    pred, target = _aligned(pred), _aligned(target)
    inner, period = 1, 0
    if weight is not None:
        weight, inner, period = _flat_weight(weight, pred)
    if factor is not None and each:
        factor = _aligned(factor)
    case = _Case(
        loss,
        pred.dtype,
        target.dtype,
        None if weight is None else weight.dtype,
        None if factor is None else factor.dtype,
        value is not None,
        grad is not None,
        skip,
        inner,
        period,
        pred.is_cuda and torch.version.hip is None and not INTERPRETED,
    )
    variant = _variant(case)
    programs = min(-(-count // variant.block), code.MAX_PROGRAMS)
    numbers = (count, 1.0 / denominator, scale / denominator)
    with on_device(pred.device):
        partials = ticket = None
        if value is not None and not each:
            partials, ticket = _partials_and_ticket(pred.device, programs)
        arguments = (pred, target, weight, factor, value, grad, partials, ticket, *numbers)
        _run(code.loss_kernel, variant, pred.device, programs, arguments)


def _in_memory_order(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    factor: Tensor | None,
    value: Tensor | None,
    grad: Tensor | None,
    each: bool,
) -> tuple[Any, ...]:
    """The same elements, dimensions permuted so that the outputs are contiguous: a dense pred is read where it lies."""
    like = grad if grad is not None else value if value is not None and each else pred
    order = sorted(range(pred.dim()), key=like.stride, reverse=True)

    def permuted(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.expand(pred.shape).permute(order)

    outputs = (permuted(value) if each else value, permuted(grad))
    return permuted(pred), permuted(target), permuted(weight), permuted(factor) if each else factor, *outputs


def _aligned(tensor: Tensor) -> Tensor:
    """`tensor` in contiguous memory that can be read 128 bits at a time; a copy where it is not."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % _ALIGNED else tensor


def _flat_weight(weight: Tensor, pred: Tensor) -> tuple[Tensor, int, int]:
    """(weight, inner, period): element i of `pred` has weight[i // inner % period]; inner 0: one weight for all."""
    if weight.data_ptr() % _ALIGNED and weight.numel() > 1:
        weight = weight.clone()
    if weight.shape != pred.shape:
        weight = weight.expand(pred.shape)
    pattern = _pattern(tuple(pred.shape), weight.stride())
    return (_aligned(weight), 1, 0) if pattern is None else (weight, *pattern)


@lru_cache(maxsize=1024)
def _pattern(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int] | None:
    """(inner, period) of a broadcast weight, or None where it has to be written out."""
    runs: list[tuple[int, int]] = []  # (size, stride) of dimensions that are one in memory, outermost first
    for size, stride in zip(shape, strides, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == stride * size:
            runs[-1] = (runs[-1][0] * size, stride)
        else:
            runs.append((size, stride))
    sizes, steps = [size for size, _ in runs], [stride for _, stride in runs]
    found = {
        (): (0, 0),
        (0,): (0, 0),
        (1,): (1, 0),
        (1, 0): (sizes[-1] if sizes else 1, 0),
        (0, 1): (1, sizes[-1] if sizes else 1),
        (0, 1, 0): (sizes[-1] if sizes else 1, sizes[-2] if len(sizes) > 1 else 1),
    }.get(tuple(steps))
    return found if found is not None and max(found) <= _LARGEST_INDEX else None


class _Case(NamedTuple):
    """All that a compiled kernel depends on, alignment apart, which is always the same."""

    loss: Loss
    pred: torch.dtype
    target: torch.dtype
    weight: torch.dtype | None
    factor: torch.dtype | None
    value: bool
    grad: bool
    skip: bool
    inner: int
    period: int
    cuda: bool


class Variant:
    """A kernel's constants, and what each device made of it."""

    def __init__(self, block: int, constants: code.Constants | int) -> None:
        self.block = block
        self.constants = constants
        self.compiled: dict[int | None, Any] = {}  # by device index


@lru_cache(maxsize=1024)
def _variant(case: _Case) -> Variant:
    block, width, group = _tiling(case)
    kind, parameters, reduction, weighting = case.loss
    each = reduction == "none"
    wide = torch.float64 in (case.pred, case.target)
    narrow = case.pred.itemsize == 2
    alpha = ctypes.c_float(parameters[-1]).value
    constants = code.Constants(
        kind,
        parameters,
        log=_log(kind, parameters),
        largest=float(min(math.log2(_LARGEST_PRODUCT) // group, _LARGEST_POWER)),
        weighting="no" if case.weight is None else weighting,
        inner=case.inner,
        period=case.period,
        pairs=narrow and case.inner == 2 and case.period == 0,
        loss=("each" if each else "sum") if case.value else "no",
        grad=case.grad,
        factor="no" if case.factor is None else "each" if each else "one",
        skip=case.skip,
        wide=wide,
        width=width,
        group=group,
        fast=case.cuda and not wide and (narrow or kind == "adaptive_wing"),
        refined=case.cuda
        and not wide
        and not narrow
        and (kind == "soft_wing" or (kind == "wing" and sum(parameters) < _LARGEST_DIVISOR)),
        narrow=case.cuda and narrow and not wide and not each,
        alpha=alpha,
        alpha_error=parameters[-1] - alpha,
        block=block,
    )
    return Variant(block, constants)


def _log(kind: str, parameters: tuple[float, ...]) -> float:
    """The factor of a loss's logarithm: omega, or omega2."""
    if kind == "smooth_l1":
        return 0.0
    return parameters[1] if kind == "soft_wing" else parameters[0]


def _tiling(case: _Case) -> tuple[int, int, int]:
    """(block, width, group) for 128-bit loads by four warps, no spills and at most 64 registers a thread."""
    kind, parameters, reduction, weighting = case.loss
    # Unbounded factors, or a place or a weight for each loss: no logarithm can be shared
    alone = kind == "soft_wing" or reduction == "none" or (case.weight is not None and weighting == "loss")
    if torch.float64 in (case.pred, case.target):
        block, width = 256, 2
    elif case.pred.itemsize == 2:
        # With a logarithm and a power for each, 8 elements are more than 64 registers hold
        block, width = (512, 4) if kind == "adaptive_wing" and alone else (1024, 8)
    else:
        # A 16-bit target would have a thread read 8 elements and pass 4 of them on; the adaptive wing needs registers
        block, width = 512 if case.target.itemsize == 2 or kind == "adaptive_wing" else 1024, 4
    # Powers are cut off at 2^31 for groups of 4, where log1p is the logarithm; at 2^15 it is not yet
    group = 1 if alone else min(width, 4) if kind == "adaptive_wing" else width
    if kind == "wing":
        omega, epsilon = parameters
        while group > 1 and group * math.log1p(omega / epsilon) > math.log(_LARGEST_PRODUCT):
            group //= 2
    if INTERPRETED:
        block = 4096  # it takes time by the tile, whatever the tile's size
    return block, width, group


@lru_cache(maxsize=64)
def _scaling(grad: torch.dtype, factor: torch.dtype) -> Variant:
    return Variant(_SCALED, _SCALED)


def _run(kernel: Any, variant: Variant, device: torch.device, programs: int, arguments: tuple[Any, ...]) -> None:
    if INTERPRETED:
        _interpret(kernel, programs, (*arguments, variant.constants))
        return
    compiled = variant.compiled.get(device.index)
    if compiled is None:
        # Nothing else is specialised on: tensors are aligned, and `n` and the scalars are declared indifferent
        variant.compiled[device.index] = kernel[(programs,)](*arguments, variant.constants, num_warps=_WARPS)
    else:
        compiled[(programs, 1, 1)](*arguments, variant.constants)


def _interpret(kernel: Any, programs: int, arguments: tuple[Any, ...]) -> None:
    with warnings.catch_warnings():  # of numpy's: lanes that are not taken may divide by 0
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[(programs,)](*arguments)


class _Workspace:
    """Partial sums and tickets on one device. Launches that can overlap must not share them: each stream has its own,
    and so has each launch in a CUDA graph, since graphs captured on one stream may be replayed on several."""

    STREAMS, TICKETS = 32, 8192

    def __init__(self, device: torch.device) -> None:
        self._partials = torch.empty(self.STREAMS, code.MAX_PROGRAMS, dtype=torch.float64, device=device)
        self._tickets = torch.zeros(self.TICKETS, dtype=torch.int32, device=device)
        self._rows, self._places = itertools.count(), itertools.count()  # next() is atomic: threads may meet here
        self._of_stream: dict[int, tuple[Tensor, Tensor]] = {}
        torch.cuda.current_stream(device).synchronize()  # once: every stream must find the zeros

    def ticket(self) -> Tensor:
        place = next(self._places)
        if place < self.TICKETS:
            return self._tickets[place : place + 1]
        return torch.zeros(1, dtype=torch.int32, device=self._tickets.device)

    def of_stream(self, stream: int) -> tuple[Tensor, Tensor]:
        pair = self._of_stream.get(stream)
        if pair is None:
            row = next(self._rows)
            partials = self._partials[row] if row < self.STREAMS else torch.empty_like(self._partials[0])
            pair = self._of_stream.setdefault(stream, (partials, self.ticket()))
        return pair


_workspaces: dict[int | None, _Workspace] = {}


def _workspace(device: torch.device) -> _Workspace:
    workspace = _workspaces.get(device.index)
    if workspace is None:
        workspace = _workspaces.setdefault(device.index, _Workspace(device))
    return workspace


def _partials_and_ticket(device: torch.device, programs: int) -> tuple[Tensor, Tensor]:
    """float64 of at least `programs`, with anything in them, and an int32 of 0, for a launch on the current stream."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        return _workspace(device).of_stream(torch.cuda.current_stream(device).cuda_stream)
    partials = torch.empty(programs, dtype=torch.float64, device=device)
    if device.type == "cuda" and device.index in _workspaces:
        return partials, _workspaces[device.index].ticket()
    return partials, torch.zeros(1, dtype=torch.int32, device=device)  # in a graph, a node that runs at every replay


def on_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, wherever the tensors are."""
    if device.type == "cpu" or torch.cuda.current_device() == device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(device)
