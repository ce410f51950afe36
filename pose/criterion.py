"""The training loss that a recipe asks for, and its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import kernels
from kernels.losses import triton_problem
from pose.errors import InputError
from pose.recipe import SmoothL1Loss, SoftWingLoss, WingLoss

LossConfig = WingLoss | SoftWingLoss | SmoothL1Loss
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LossAndGrad = Callable[..., tuple[Tensor, Tensor]]


def refuse_unavailable(config: LossConfig, device: torch.device) -> None:
    """Raise `InputError` where the implementation that the recipe names does not run on `device`."""
    problem = triton_problem(device) if config.impl == "triton" else None
    if problem is not None:
        raise InputError(f"loss.impl: triton: {problem}")


def loss_function(config: LossConfig) -> Loss:
    """(pred, target, weight) -> scalar loss, reduced as published: over faces the mean, smooth L1 over everything."""
    parameters = config.model_dump(exclude={"kind", "gradient"})
    return partial(getattr(kernels, f"{config.kind}_loss"), **parameters)


def loss_and_grad_function(config: LossConfig) -> LossAndGrad | None:
    """(pred, target, weight, scale=) -> (loss, scaled gradient) where the recipe asks for it, else None."""
    if config.gradient != "direct":
        return None
    parameters = config.model_dump(exclude={"kind", "gradient"})
    return partial(getattr(kernels, f"{config.kind}_loss_and_grad"), **parameters)


def backward(config: LossConfig, pred: Tensor, target: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Add `scale` times the loss's gradient to the gradients of what `pred` depends on; returns the loss, unscaled.

    scale: 0-dimensional, on pred's device (the loss scale of fp16 over the number of micro-batches).
    """
    direct = loss_and_grad_function(config)
    if direct is not None:
        loss, gradient = direct(pred.detach(), target, weight, scale=scale)
        pred.backward(gradient)
        return loss
    loss = loss_function(config)(pred, target, weight)
    (loss * scale).backward()
    return loss.detach()
