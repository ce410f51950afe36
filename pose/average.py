"""A moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from pose.model import DeepPose


class Average:
    """average <- decay x average + (1 - decay) x weights, after every step, beginning with the first weights.

    Running statistics are not averaged but copied: they are averages themselves. No step waits for the device.
    """

    def __init__(self, model: DeepPose, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._weights: tuple[list[Tensor], list[Tensor]] = [*self.model.parameters()], [*model.parameters()]
        self._buffers: tuple[list[Tensor], list[Tensor]] = [*self.model.buffers()], [*model.buffers()]

    @torch.no_grad()
    def update(self) -> None:
        average, weights = self._weights
        torch._foreach_lerp_(average, weights, 1 - self.decay)
        torch._foreach_copy_(*self._buffers)

    def tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.model.buffers()
