"""What a loss is, apart from its tensors: a member of the family, its parameters, weighting and reduction."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PARAMETERS = {
    "wing": ("omega", "epsilon"),
    "soft_wing": ("omega1", "omega2", "epsilon"),
    "smooth_l1": ("beta",),
    "adaptive_wing": ("omega", "theta", "epsilon", "alpha"),
}
REDUCTIONS = ("none", "sum", "mean", "batchmean")
WEIGHTINGS = ("input", "loss")
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
