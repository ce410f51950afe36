"""The training loss that a recipe asks for, and its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

import kernels
from pose.recipe import SmoothL1Loss, SoftWingLoss, WingLoss

LossConfig = WingLoss | SoftWingLoss | SmoothL1Loss
Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
LossAndGrad = Callable[..., tuple[Tensor, Tensor]]


def loss_function(config: LossConfig) -> Loss:
    """(pred, target, weight) -> scalar loss, reduced as published: over faces the mean, smooth L1 over everything."""
    parameters = config.model_dump(exclude={"kind", "gradient"})
    return partial(getattr(kernels, f"{config.kind}_loss"), **parameters)


def loss_and_grad_function(config: LossConfig) -> LossAndGrad | None:
    """(pred, target, weight, scale=) -> (loss, scaled gradient) where the recipe asks for it, else None."""
    if getattr(config, "gradient", "autograd") != "direct":
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
