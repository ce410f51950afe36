"""The losses as modules: parameters at construction, checked there; forward(pred, target, weight=None)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kernels import losses


class _Loss(nn.Module):
    def __init__(self, reduction: str, weighting: str, impl: str, **parameters: float) -> None:
        losses.check_options(reduction, weighting, impl, **parameters)
        super().__init__()
        self.options: dict[str, Any] = {**parameters, "reduction": reduction, "weighting": weighting, "impl": impl}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class WingLoss(_Loss):
    """`kernels.wing_loss` as a module."""

    def __init__(
        self,
        omega: float = 10.0,
        epsilon: float = 2.0,
        *,
        reduction: str = "batchmean",
        weighting: str = "input",
        impl: str = "auto",
    ) -> None:
        super().__init__(reduction, weighting, impl, omega=omega, epsilon=epsilon)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return losses.wing_loss(pred, target, weight, **self.options)


class SoftWingLoss(_Loss):
    """`kernels.soft_wing_loss` as a module."""

    def __init__(
        self,
        omega1: float = 2.0,
        omega2: float = 20.0,
        epsilon: float = 0.5,
        *,
        reduction: str = "batchmean",
        weighting: str = "input",
        impl: str = "auto",
    ) -> None:
        super().__init__(reduction, weighting, impl, omega1=omega1, omega2=omega2, epsilon=epsilon)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return losses.soft_wing_loss(pred, target, weight, **self.options)


class SmoothL1Loss(_Loss):
    """`kernels.smooth_l1_loss` as a module."""

    def __init__(
        self,
        beta: float = 1.0,
        *,
        reduction: str = "mean",
        weighting: str = "input",
        impl: str = "auto",
    ) -> None:
        super().__init__(reduction, weighting, impl, beta=beta)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return losses.smooth_l1_loss(pred, target, weight, **self.options)


class AdaptiveWingLoss(_Loss):
    """`kernels.adaptive_wing_loss` as a module."""

    def __init__(
        self,
        omega: float = 14.0,
        theta: float = 0.5,
        epsilon: float = 1.0,
        alpha: float = 2.1,
        *,
        reduction: str = "mean",
        weighting: str = "input",
        impl: str = "auto",
    ) -> None:
        super().__init__(reduction, weighting, impl, omega=omega, theta=theta, epsilon=epsilon, alpha=alpha)

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return losses.adaptive_wing_loss(pred, target, weight, **self.options)
