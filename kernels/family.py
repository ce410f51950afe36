"""What a loss is, apart from its tensors: a member of the family, its parameters, weighting and reduction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

PARAMETERS = {
    "wing": ("omega", "epsilon"),
    "soft_wing": ("omega1", "omega2", "epsilon"),
    "smooth_l1": ("beta",),
    "adaptive_wing": ("omega", "theta", "epsilon", "alpha"),
}
REDUCTIONS = ("none", "sum", "mean", "batchmean")
WEIGHTINGS = ("input", "loss")
PLAIN = (Tensor, nn.Parameter)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Loss(NamedTuple):
    kind: str  # a key of PARAMETERS
    parameters: tuple[float, ...]  # in the order of PARAMETERS
    reduction: str
    weighting: str

    def denominator(self, pred: Tensor) -> int:
        """What the sum of the elements' losses is divided by; 1 for an empty tensor."""
        if self.reduction in ("none", "sum"):
            return 1
        count = pred.numel() if self.reduction == "mean" or pred.dim() == 0 else pred.shape[0]
        return max(count, 1)


def dtype_of_loss(pred: Tensor, target: Tensor) -> torch.dtype:
    """dtype of the arithmetic and of the loss: float64 if one of the two is, else float32."""
    return torch.float64 if torch.float64 in (pred.dtype, target.dtype) else torch.float32


def transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def in_memory(tensor: Tensor) -> bool:
    """Whether a kernel can be handed `tensor`: no subclass, no batch of tensors in disguise, no view that negates."""
    return (
        type(tensor) in PLAIN
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)
    )
