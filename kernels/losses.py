"""The public losses: one check at the door, weights, reduction, and the choice of implementation.

Units are the caller's. On crop fractions (0 to 1) the default wing loss never leaves its logarithm and is close to
5 |d|, on pixels it is a true wing: the parameters mean something only together with the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from kernels import reference

_REDUCTIONS = ("none", "sum", "mean", "batchmean")
_WEIGHTINGS = ("input", "loss")
_IMPLS = ("auto", "triton", "reference")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 10.0,
    epsilon: float = 2.0,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Wing loss (arXiv 1711.06753): omega ln(1 + |d| / epsilon) if |d| < omega, else |d| - C; d = pred - target.

    pred, target: equal shapes, any of float16, bfloat16, float32, float64, dtypes may differ. The loss is computed and
    returned in float32, or float64 if pred or target is float64; gradients have their tensor's dtype.
    weight: floating, broadcasts to pred. weighting "input" multiplies pred and target by it before the loss,
    "loss" multiplies the loss. Neither changes the reduction's denominator.
    reduction: "none", "sum", "mean" (over all elements), "batchmean" (sum over the size of the first dimension).
    An empty tensor gives 0, so that an empty batch adds nothing.
    impl: "auto", "reference" (plain torch) or "triton" (not written yet: NotImplementedError).
    Raises TypeError for tensors that are not floating, ValueError for wrong shapes, devices, parameters or options.
    """
    _check(pred, target, weight, reduction, weighting, impl, omega=omega, epsilon=epsilon)
    return _reduced(lambda d, _: reference.wing(d, omega, epsilon), pred, target, weight, reduction, weighting)


def soft_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega1: float = 2.0,
    omega2: float = 20.0,
    epsilon: float = 0.5,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Soft wing loss: |d| if |d| < omega1, else omega2 ln(1 + |d| / epsilon) + B. The rest as in `wing_loss`."""
    _check(pred, target, weight, reduction, weighting, impl, omega1=omega1, omega2=omega2, epsilon=epsilon)
    return _reduced(
        lambda d, _: reference.soft_wing(d, omega1, omega2, epsilon), pred, target, weight, reduction, weighting
    )


def smooth_l1_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    beta: float = 1.0,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Smooth L1 loss: d^2 / (2 beta) if |d| < beta, else |d| - beta / 2. The rest as in `wing_loss`."""
    _check(pred, target, weight, reduction, weighting, impl, beta=beta)
    return _reduced(lambda d, _: reference.smooth_l1(d, beta), pred, target, weight, reduction, weighting)


def adaptive_wing_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    omega: float = 14.0,
    theta: float = 0.5,
    epsilon: float = 1.0,
    alpha: float = 2.1,
    reduction: str = "mean",
    weighting: str = "input",
    impl: str = "auto",
) -> Tensor:
    """Adaptive wing loss (arXiv 1904.07399), whose exponent is alpha - target. The rest as in `wing_loss`.

    Made for heatmaps: the target in 0 to 1. The paper's weighted loss map is weighting="loss"; "input" changes the
    target in the exponent too.
    """
    _check(pred, target, weight, reduction, weighting, impl, omega=omega, theta=theta, epsilon=epsilon, alpha=alpha)
    return _reduced(
        lambda d, y: reference.adaptive_wing(d, y, omega, theta, epsilon, alpha),
        pred,
        target,
        weight,
        reduction,
        weighting,
    )


@torch.no_grad()
def wing_loss_and_grad(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    scale: float | Tensor | None = None,
    omega: float = 10.0,
    epsilon: float = 2.0,
    reduction: str = "batchmean",
    weighting: str = "input",
    impl: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`wing_loss` and its gradient for pred, without autograd: `pred.backward(grad)` does the rest.

    scale: a number or a 0-dimensional tensor, read on its device; multiplies the gradient, not the loss, before the
    gradient is rounded to pred's dtype (a loss scale, or 1 / accumulation steps).
    Returns (loss, grad), neither attached to a graph. The rest as in `wing_loss`; reduction "none" is a ValueError.
    """
    _check(pred, target, weight, reduction, weighting, impl, omega=omega, epsilon=epsilon)
    if reduction == "none":
        raise ValueError("reduction is 'none'; wanted 'sum', 'mean' or 'batchmean', since one gradient is returned")
    if isinstance(scale, Tensor) and (scale.dim() != 0 or not scale.is_floating_point()):
        raise ValueError(f"scale is a {scale.dtype} tensor of shape {tuple(scale.shape)}; wanted a 0-dim floating one")
    d, w, _ = _weighted(pred, target, weight, weighting)
    loss = reference.wing(d, omega, epsilon)
    grad = reference.wing_slope(d, omega, epsilon)
    if w is not None:
        loss = loss * w if weighting == "loss" else loss
        grad = grad * w
    grad = grad / _denominator(pred, reduction)
    if scale is not None:
        grad = grad * scale
    return _reduce(loss, pred, reduction), grad.to(pred.dtype)


def _reduced(
    formula: Callable[[Tensor, Tensor], Tensor],
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    weighting: str,
) -> Tensor:
    d, w, y = _weighted(pred, target, weight, weighting)
    loss = formula(d, y)
    if w is not None and weighting == "loss":
        loss = loss * w
    return _reduce(loss, pred, reduction)


def _weighted(
    pred: Tensor, target: Tensor, weight: Tensor | None, weighting: str
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(difference, weight, target) in the dtype of the computation, weighted already for weighting "input"."""
    dtype = torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32
    y = target.to(dtype)
    d = pred.to(dtype) - y
    if weight is None:
        return d, None, y
    w = weight.to(dtype)
    # w (pred - target), not w pred - w target: the same number without the cancellation
    return (d * w, w, y * w) if weighting == "input" else (d, w, y)


def _reduce(loss: Tensor, pred: Tensor, reduction: str) -> Tensor:
    return loss if reduction == "none" else loss.sum() / _denominator(pred, reduction)


def _denominator(pred: Tensor, reduction: str) -> int:
    if reduction == "sum":
        return 1
    count = pred.numel() if reduction == "mean" or pred.dim() == 0 else pred.shape[0]
    return max(count, 1)


def _check(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    weighting: str,
    impl: str,
    **parameters: float,
) -> None:
    check_options(reduction, weighting, impl, **parameters)
    for name, tensor in (("pred", pred), ("target", target), ("weight", weight)):
        if tensor is None and name == "weight":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; wanted a tensor")
        if tensor.dtype not in _DTYPES:
            raise TypeError(f"{name} is {tensor.dtype}; wanted float16, bfloat16, float32 or float64")
        if tensor.device != pred.device:
            raise ValueError(f"{name} is on {tensor.device}, pred on {pred.device}; wanted one device")
    if pred.shape != target.shape:
        raise ValueError(f"pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; wanted equal shapes")
    if weight is not None and not _broadcasts(weight, pred):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, which does not broadcast to pred's {tuple(pred.shape)}; "
            "a weight per landmark of (N, K, 2) is (N, K, 1)"
        )


def check_options(reduction: str, weighting: str, impl: str, **parameters: float) -> None:
    """Refuse options and parameters that no loss takes. Raises ValueError, NotImplementedError for impl "triton"."""
    for name, given, allowed in (
        ("reduction", reduction, _REDUCTIONS),
        ("weighting", weighting, _WEIGHTINGS),
        ("impl", impl, _IMPLS),
    ):
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}; wanted one of {', '.join(map(repr, allowed))}")
    for name, value in parameters.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; wanted a finite number greater than 0")
    if impl == "triton":
        raise NotImplementedError("the Triton losses are not written yet: use impl='auto' or impl='reference'")


def _broadcasts(weight: Tensor, pred: Tensor) -> bool:
    sizes = zip(reversed(weight.shape), reversed(pred.shape), strict=False)
    return weight.dim() <= pred.dim() and all(w in (1, p) for w, p in sizes)
