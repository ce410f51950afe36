"""The kernel under autograd, and as an operator for whatever traces.

Eager code goes through an `autograd.Function` that launches directly. torch.compile, torch.export and dispatch modes
see registered operators instead, which they need not look into:

    wingbench::fused_loss            the loss; its backward is the next one
    wingbench::fused_loss_gradient   the gradient for pred, given the loss's
    wingbench::fused_loss_and_grad   both at once, scaled
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from kernels import loss_launch, reference
from kernels.family import Loss, in_memory, transformed


class FusedLoss(torch.autograd.Function):
    """The forward pass computes the gradient too, where it can be stored without loss; backward scales it in place.

    float16 would lose gradients divided by a large batch before they meet the loss scale: they are computed in
    backward, from pred and target, with the upstream gradient folded in. bfloat16 ones are kept, but computed again
    where the upstream gradient is not 1, rather than rounded twice.
    """

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, weight: Tensor | None, loss: Loss) -> Tensor:
        if loss.reduction == "none" or pred.dtype == torch.float16:
            value, ctx.gradient = loss_launch.loss_of(loss, pred, target, weight), None
        else:
            value, ctx.gradient = loss_launch.loss_and_gradient(loss, pred, target, weight)
        ctx.save_for_backward(pred, _savable(target), _savable(weight))
        ctx.loss = loss
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        if torch.compiler.is_compiling():  # compiled autograd traces this
            return torch.ops.wingbench.fused_loss_gradient(*ctx.saved_tensors, upstream, *ctx.loss), None, None, None
        # The buffer is handed out once. A second backward (retain_graph) computes its gradient anew
        stored, ctx.gradient = ctx.gradient, None
        by_formulas = torch.is_grad_enabled() or transformed() or not in_memory(upstream)
        if not by_formulas and stored is not None and stored.dtype.itemsize > 2:
            loss_launch.scale_(stored, upstream)
            return stored, None, None, None
        pred, target, weight = ctx.saved_tensors
        if by_formulas:
            gradient = _gradient_of_formulas(ctx.loss, pred, target, weight, upstream)
        else:
            gradient = loss_launch.gradient(ctx.loss, pred, target, weight, upstream, stored)
        return gradient, None, None, None


def _gradient_of_formulas(loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None, upstream: Tensor) -> Tensor:
    """What the kernel has not: a gradient that has a gradient, or one for a batch of upstream ones."""
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        value = reference.loss_of(loss, pred, target, weight)
        (gradient,) = torch.autograd.grad(value, pred, upstream, create_graph=differentiable)
    return gradient


def _savable(tensor: Tensor | None) -> Tensor | None:
    """Autograd does not save what inference mode made; a copy it does."""
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


_OPTIONS = "str kind, float[] parameters, str reduction, str weighting"
_INPUTS = "Tensor pred, Tensor target, Tensor? weight"
for _name, _schema in (
    ("fused_loss", f"({_INPUTS}, {_OPTIONS}) -> Tensor"),
    ("fused_loss_gradient", f"({_INPUTS}, Tensor upstream, {_OPTIONS}) -> Tensor"),
    ("fused_loss_and_grad", f"({_INPUTS}, Tensor? factor, float scale, {_OPTIONS}) -> (Tensor, Tensor)"),
):
    torch.library.define(f"wingbench::{_name}", _schema, tags=(torch.Tag.pt2_compliant_tag,))


def _loss(options: tuple[Any, ...]) -> Loss:
    kind, parameters, reduction, weighting = options
    return Loss(kind, tuple(parameters), reduction, weighting)


@torch.library.impl("wingbench::fused_loss", ("cpu", "cuda"))
def _fused_loss(pred: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    return loss_launch.loss_of(_loss(options), pred, target, weight)


@torch.library.impl("wingbench::fused_loss_gradient", ("cpu", "cuda"))
def _fused_loss_gradient(
    pred: Tensor, target: Tensor, weight: Tensor | None, upstream: Tensor, *options: Any
) -> Tensor:
    return loss_launch.gradient(_loss(options), pred, target, weight, upstream)


@torch.library.impl("wingbench::fused_loss_and_grad", ("cpu", "cuda"))
def _fused_loss_and_grad(
    pred: Tensor, target: Tensor, weight: Tensor | None, factor: Tensor | None, scale: float, *options: Any
) -> tuple[Tensor, Tensor]:
    return loss_launch.loss_and_gradient(_loss(options), pred, target, weight, factor, scale)


@torch.library.register_fake("wingbench::fused_loss")
def _fake_loss(pred: Tensor, target: Tensor, weight: Tensor | None, *options: Any) -> Tensor:
    with _disable_current_modes():  # before a compiled graph runs: its memory pool must not hold what launches keep
        loss_launch.prepare(pred.device)
    return loss_launch.empty_loss(_loss(options), pred, target)


@torch.library.register_fake("wingbench::fused_loss_gradient")
def _fake_gradient(pred: Tensor, target: Tensor, weight: Tensor | None, upstream: Tensor, *options: Any) -> Tensor:
    return torch.empty_like(pred)


@torch.library.register_fake("wingbench::fused_loss_and_grad")
def _fake_loss_and_grad(
    pred: Tensor, target: Tensor, weight: Tensor | None, factor: Tensor | None, scale: float, *options: Any
) -> tuple[Tensor, Tensor]:
    return _fake_loss(pred, target, weight, *options), torch.empty_like(pred)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pred, target, weight, *ctx.options = inputs
    ctx.save_for_backward(pred, _savable(target), _savable(weight))


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    if any(ctx.needs_input_grad[1:3]):
        raise RuntimeError("fused_loss has no gradient for target and weight; trace it with impl='reference'")
    pred, target, weight = ctx.saved_tensors
    if torch.is_grad_enabled():
        gradient = _gradient_of_formulas(_loss(tuple(ctx.options)), pred, target, weight, upstream)
    else:
        gradient = torch.ops.wingbench.fused_loss_gradient(pred, target, weight, upstream, *ctx.options)
    return gradient, *(None,) * (2 + len(ctx.options))


torch.library.register_autograd("wingbench::fused_loss", _backward, setup_context=_setup)
