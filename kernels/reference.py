"""The losses as formulas in plain torch: the oracle for every other implementation.

Elementwise, on the difference d = pred - target; no checks, no weights, no reduction. What all of them keep to:
log1p, since log(1 + x) loses up to 11 % of a small loss in float32; gradient 0 at d = 0 and, exactly at a threshold,
the outer branch's; a NaN stays NaN in loss and gradient; an infinite d has the gradient of a large one.
"""

from __future__ import annotations

import math

from torch import Tensor, where


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


def smooth_l1(d: Tensor, beta: float) -> Tensor:
    """d^2 / (2 beta) if |d| < beta, else |d| - beta / 2."""
    a = _absolute(d)
    inside = a < beta
    return where(inside, where(inside, d, 0.0).square() * (0.5 / beta), a - 0.5 * beta)


def adaptive_wing(d: Tensor, target: Tensor, omega: float, theta: float, epsilon: float, alpha: float) -> Tensor:
    """omega ln(1 + |d / epsilon|^p) if |d| < theta, else A |d| - C, with p = alpha - target (arXiv 1904.07399, eq. 3).

    A = omega p (theta / epsilon)^(p - 1) / (epsilon (1 + (theta / epsilon)^p)), C makes it continuous at theta.
    The target's gradient includes the part through p.
    """
    p = alpha - target
    a = _absolute(d)
    inside = a < theta
    # A power of 0 has no finite gradient where p <= 1: the base is moved away from 0 and its value put back after
    inner = omega * (where(inside & (a > 0), a, theta) / epsilon).pow(p).log1p()
    power = (theta / epsilon) ** p
    slope = omega * p * ((theta / epsilon) ** (p - 1)) / (epsilon * (1 + power))
    outer = slope * where(inside, theta, a) - (theta * slope - omega * power.log1p())
    return where(inside, where(a > 0, inner, 0.0), outer)


def _sign(d: Tensor) -> Tensor:
    """-1, 0 or 1; NaN for NaN, which torch.sign makes 0, so that a bad value would leave the gradient clean."""
    return where(d.isnan(), d, d.sign())


def _absolute(d: Tensor) -> Tensor:
    """|d| whose gradient is `_sign`."""
    return d * _sign(d.detach())
