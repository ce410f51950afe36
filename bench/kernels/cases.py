"""The cases of the kernel benchmarks: which loss, on what, in which variant, and the call that does it.

A mode is "forward" (the loss alone, as in evaluation), "forward_backward" (the loss, then its gradient for pred through
autograd) or "loss_and_grad" (both from one call). A variant is "eager" (the formula in plain torch), "compile"
(torch.compile of the same), "triton" (the fused kernel) or "triton_interpreted" (its code in Triton's interpreter).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import kernels
from bench.kernels.clock import Call

LOSSES = ("wing", "soft_wing", "smooth_l1", "adaptive_wing")
PUBLISHED = "adaptive_wing_published"
MODES = ("forward", "forward_backward", "loss_and_grad")
WEIGHTS = ("none", "landmark", "sample_landmark", "element")
UPSTREAM = 0.37  # the upstream gradient "other"; no power of two, so nothing is exact by luck


@dataclass(frozen=True)
class Case:
    """What is asked of a variant. shape: (batch, landmarks, ...), the same for pred and target."""

    loss: str
    mode: str
    pred_dtype: str
    target_dtype: str
    shape: tuple[int, ...]
    weight: str = "none"  # "landmark": (landmarks, 1...), "sample_landmark": (batch, landmarks, 1...), "element": shape
    upstream: str = "one"  # the gradient from above in forward_backward: "one", as of loss.backward(), or "other"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def weight_shape(self) -> tuple[int, ...] | None:
        ones = (1,) * (len(self.shape) - 2)
        return {
            "none": None,
            "landmark": (*self.shape[1:2], *ones),
            "sample_landmark": (*self.shape[:2], *ones),
            "element": self.shape,
        }[self.weight]

    @property
    def model_bytes(self) -> int:
        """Bytes that must move: pred, target and weight read once, the gradient written once. A loss is 4 more."""
        pred, target = dtype(self.pred_dtype).itemsize, dtype(self.target_dtype).itemsize
        gradient = 0 if self.mode == "forward" else pred
        weights = math.prod(self.weight_shape) if self.weight_shape is not None else 0
        return self.elements * (pred + target + gradient) + weights * target

    @property
    def smallest_rotated_bytes(self) -> int:
        """What the least of the subjects beside this case touches: the model's bytes, or a copy of the wider tensor."""
        wide = max(dtype(self.pred_dtype).itemsize, dtype(self.target_dtype).itemsize)
        return min(self.model_bytes, 2 * wide * self.elements)

    def __str__(self) -> str:
        dtypes = self.pred_dtype if self.pred_dtype == self.target_dtype else f"{self.pred_dtype}/{self.target_dtype}"
        more = [f"weight per {self.weight}"] * (self.weight != "none") + ["upstream other"] * (self.upstream != "one")
        return " ".join([self.loss, self.mode, dtypes, "x".join(map(str, self.shape)), *more])


def dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


@dataclass(frozen=True)
class Inputs:
    """Sets of inputs that cases of one shape, of the same dtypes and kind of weight can share; nothing has a graph."""

    pred: list[Tensor]
    target: list[Tensor]
    weight: list[Tensor | None]


def make_inputs(case: Case, sets: int, device: torch.device, seed: int = 0) -> Inputs:
    """`sets` sets of random inputs, all drawn alike.

    Targets are in 0 to 1. Errors of the wing family are spread evenly over the orders of magnitude from 1e-4 to 30,
    so that both branches are used (one in ten is beyond omega = 10); those of heatmaps have a deviation of 0.4, so that
    a fifth is beyond theta = 0.5. Weights are in 0.5 to 1.5.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def uniform(shape: tuple[int, ...]) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    inputs = Inputs([], [], [])
    for _ in range(sets):
        target = uniform(case.shape)
        if case.loss.startswith("adaptive"):
            error = torch.randn(case.shape, generator=generator, device=device) * 0.4
        else:
            size = 10 ** (uniform(case.shape) * (math.log10(30) + 4) - 4)
            error = torch.where(uniform(case.shape) < 0.5, -size, size)
        pred = (target + error).to(dtype(case.pred_dtype))
        weight = None if case.weight_shape is None else uniform(case.weight_shape) + 0.5
        inputs.pred.append(pred)
        inputs.target.append(target.to(dtype(case.target_dtype)))
        inputs.weight.append(None if weight is None else weight.to(dtype(case.target_dtype)))
    return inputs


Loss = Callable[[Tensor, Tensor, Tensor | None], Any]  # of pred, target, weight


def build(case: Case, variant: str, inputs: Inputs, upstream: Tensor | None = None) -> Call:
    """The call of `variant` on a set of `inputs`: returns the loss, or (loss, gradient for pred).

    upstream: the 0-dimensional gradient from above that forward_backward is given; None leaves it to the case, where
    "one" means that autograd makes its own, a launch like any other.
    """
    loss = _function(case, variant)
    pred, target, weight = inputs.pred, inputs.target, inputs.weight
    if case.mode != "forward_backward":
        return lambda i: loss(pred[i], target[i], weight[i])
    pred = [leaf.detach().requires_grad_() for leaf in pred]
    if upstream is None and case.upstream == "other":
        upstream = torch.tensor(UPSTREAM, device=pred[0].device)

    def forward_backward(index: int) -> tuple[Tensor, Tensor]:
        value = loss(pred[index], target[index], weight[index])
        (gradient,) = torch.autograd.grad(value, pred[index], upstream)
        return value.detach(), gradient

    return forward_backward


def _function(case: Case, variant: str) -> Loss:
    if case.loss == PUBLISHED:
        if case.mode == "loss_and_grad" or case.weight != "none" or variant not in ("eager", "compile"):
            raise ValueError(
                f"{case} as {variant}: the published formula has eager and compile, no weight, and autograd"
            )
        plain: Loss = adaptive_wing_published
    else:
        name = f"{case.loss}_loss_and_grad" if case.mode == "loss_and_grad" else f"{case.loss}_loss"
        function: Callable[..., Any] = getattr(kernels, name)
        impl = "reference" if variant in ("eager", "compile") else "triton"

        def plain(pred: Tensor, target: Tensor, weight: Tensor | None) -> Any:
            return function(pred, target, weight, impl=impl)

    # dynamic=False: a second size would be compiled for all sizes, and slower
    return torch.compile(plain, fullgraph=True, dynamic=False) if variant == "compile" else plain


def adaptive_wing_published(pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Adaptive wing loss as public code evaluates it (arXiv 1904.07399, eq. 3): both branches, four powers, mean.

    omega 14, theta 0.5, epsilon 1, alpha 2.1. The exponent is written out in each place, as it is there. No weight.
    """
    omega, theta, epsilon, alpha = 14.0, 0.5, 1.0, 2.1
    error = (target - pred).abs()
    falling = 1 / (1 + torch.pow(theta / epsilon, alpha - target))
    slope = omega * falling * (alpha - target) * torch.pow(theta / epsilon, alpha - target - 1) / epsilon
    shift = theta * slope - omega * torch.log(1 + torch.pow(theta / epsilon, alpha - target))
    near = omega * torch.log(1 + torch.pow(error / epsilon, alpha - target))
    return torch.where(error < theta, near, slope * error - shift).mean()


def triton_variant() -> str:
    """What the fused kernels of this process are: compiled, or interpreted because TRITON_INTERPRET said so."""
    import triton

    return "triton_interpreted" if triton.knobs.runtime.interpret else "triton"
