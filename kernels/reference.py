"""The losses in plain torch: the oracle for every other implementation.

The formulas are elementwise, on the difference d = pred - target. What all of them keep to: log1p, since log(1 + x)
loses up to 11 % of a small loss in float32; gradient 0 at d = 0 and, exactly at a threshold, the outer branch's; a NaN
stays NaN in loss and gradient; an infinite d has the gradient of a large one. A slope is the derivative by d.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, where

from kernels.family import Loss, dtype_of_loss


def loss_of(loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The loss, reduced, by formulas that autograd differentiates as often as it likes."""
    d, w, y = _weighted(loss, pred, target, weight)
    value = _FORMULAS[loss.kind][0](d, y, *loss.parameters)
    return _reduced(loss, pred, value, w)


def loss_and_gradient(
    loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None, scale: float | Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss, and `scale` times its gradient for pred in pred's dtype, rounded once."""
    d, w, y = _weighted(loss, pred, target, weight)
    formula, slope = _FORMULAS[loss.kind]
    gradient = slope(d, y, *loss.parameters)
    if w is not None:
        gradient = gradient * w
    gradient = gradient / loss.denominator(pred)
    if scale is not None:
        gradient = gradient * scale
    return _reduced(loss, pred, formula(d, y, *loss.parameters), w), gradient.to(pred.dtype)


def _weighted(loss: Loss, pred: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """(difference, weight, target) in the dtype of the loss, weighted already for weighting "input"."""
    dtype = dtype_of_loss(pred, target)
    y = target.to(dtype)
    d = pred.to(dtype) - y
    if weight is None:
        return d, None, y
    w = weight.to(dtype)
    # w (pred - target), not w pred - w target: the same number without the cancellation
    return (d * w, w, y * w) if loss.weighting == "input" else (d, w, y)


def _reduced(loss: Loss, pred: Tensor, value: Tensor, w: Tensor | None) -> Tensor:
    if w is not None and loss.weighting == "loss":
        value = value * w
    return value if loss.reduction == "none" else value.sum() / loss.denominator(pred)


def wing(d: Tensor, omega: float, epsilon: float) -> Tensor:
    """omega ln(1 + |d| / epsilon) if |d| < omega, else |d| - C (arXiv 1711.06753, eq. 5)."""
    a = _absolute(d)
    inside = a < omega
    c = omega - omega * math.log1p(omega / epsilon)
    return where(inside, omega * (where(inside, a, 0.0) / epsilon).log1p(), a - c)


def wing_slope(d: Tensor, omega: float, epsilon: float) -> Tensor:
    """Derivative of `wing`: +-omega / (epsilon + |d|) if |d| < omega, else +-1."""
    a = d.abs()
    return where(a < omega, omega / (epsilon + a), 1.0) * _sign(d)


def soft_wing(d: Tensor, omega1: float, omega2: float, epsilon: float) -> Tensor:
    """|d| if |d| < omega1, else omega2 ln(1 + |d| / epsilon) + B, continuous at omega1."""
    a = _absolute(d)
    b = omega1 - omega2 * math.log1p(omega1 / epsilon)
    return where(a < omega1, a, omega2 * (a / epsilon).log1p() + b)


def soft_wing_slope(d: Tensor, omega1: float, omega2: float, epsilon: float) -> Tensor:
    """Derivative of `soft_wing`: +-1 if |d| < omega1, else +-omega2 / (epsilon + |d|)."""
    a = d.abs()
    return where(a < omega1, 1.0, omega2 / (epsilon + a)) * _sign(d)


def smooth_l1(d: Tensor, beta: float) -> Tensor:
    """d^2 / (2 beta) if |d| < beta, else |d| - beta / 2."""
    a = _absolute(d)
    inside = a < beta
    return where(inside, where(inside, d, 0.0).square() * (0.5 / beta), a - 0.5 * beta)


def smooth_l1_slope(d: Tensor, beta: float) -> Tensor:
    """Derivative of `smooth_l1`: d / beta if |d| < beta, else +-1."""
    return where(d.abs() < beta, d / beta, _sign(d))


def adaptive_wing(d: Tensor, target: Tensor, omega: float, theta: float, epsilon: float, alpha: float) -> Tensor:
    """omega ln(1 + |d / epsilon|^p) if |d| < theta, else A |d| - C, with p = alpha - target (arXiv 1904.07399, eq. 3).

    A = omega p (theta / epsilon)^(p - 1) / (epsilon (1 + (theta / epsilon)^p)), C makes it continuous at theta: with
    b = min(|d|, theta) both branches are f(b) + f'(b) (|d| - b), which takes one power in place of four.
    The target's gradient includes the part through p.
    """
    a, b, power, slope = _adaptive_wing(d, target, omega, theta, epsilon, alpha)
    return where(a == 0, 0.0, omega * power.log1p() + slope * (a - b))


def adaptive_wing_slope(d: Tensor, target: Tensor, omega: float, theta: float, epsilon: float, alpha: float) -> Tensor:
    """Derivative of `adaptive_wing` by d."""
    a, _, _, slope = _adaptive_wing(d, target, omega, theta, epsilon, alpha)
    return where(a == 0, 0.0, slope * _sign(d))


def _adaptive_wing(
    d: Tensor, target: Tensor, omega: float, theta: float, epsilon: float, alpha: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b, (b / epsilon)^p, f'(b)), where b is theta also for a = 0: a power of 0 need not have a finite gradient."""
    p = alpha - target
    a = _absolute(d)
    b = where((a > 0) & (a < theta), a, theta)
    power = (b / epsilon) ** p
    return a, b, power, omega * p * power / (b * (1 + power))


def _sign(d: Tensor) -> Tensor:
    """-1, 0 or 1; NaN for NaN, which torch.sign makes 0, so that a bad value would leave the gradient clean."""
    return where(d.isnan(), d, d.sign())


def _absolute(d: Tensor) -> Tensor:
    """|d| whose gradient is `_sign`."""
    return d * _sign(d.detach())


_FORMULAS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "wing": (lambda d, _, *p: wing(d, *p), lambda d, _, *p: wing_slope(d, *p)),
    "soft_wing": (lambda d, _, *p: soft_wing(d, *p), lambda d, _, *p: soft_wing_slope(d, *p)),
    "smooth_l1": (lambda d, _, *p: smooth_l1(d, *p), lambda d, _, *p: smooth_l1_slope(d, *p)),
    "adaptive_wing": (adaptive_wing, adaptive_wing_slope),
}
