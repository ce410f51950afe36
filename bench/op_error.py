"""Parity level 0: how far a variant's loss and gradient are from float64, before anything is trained."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.result import OpError
from pose.criterion import LossConfig, backward, loss_function
from pose.precision import autocast

FACES, LANDMARKS = 16, 98

# Loss: relative. Gradient: units in the last place of its dtype; 16-bit ones are rounded once, from float32.
LIMITS = {
    torch.float64: (1e-12, 4096.0),  # 4096 ulp = 9e-13
    torch.float32: (3e-7, 4.0),
    torch.bfloat16: (3e-7, 1.0),
    torch.float16: (3e-7, 1.0),
}


def op_error(config: LossConfig, precision: str, device: torch.device, seed: int = 0, faces: int = FACES) -> OpError:
    """Compare the loss of `faces` faces as `config` computes it in `precision` with the reference formula in float64.

    The landmarks are as in training: fractions of the crop, errors from 1e-7 to 1, some of weight 0. The same
    inputs, rounded to the precision's dtypes, go to both.
    """
    pred_dtype = _output_dtype(precision, device)
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(faces, LANDMARKS, 2, generator=generator, dtype=torch.float64)
    size = 10 ** (torch.rand(target.shape, generator=generator, dtype=torch.float64) * 7 - 7)
    sign = torch.randint(0, 2, target.shape, generator=generator) * 2.0 - 1
    weight = (torch.rand(faces, LANDMARKS, 1, generator=generator) > 0.1).double().expand_as(target)
    target_dtype = torch.float64 if pred_dtype == torch.float64 else torch.float32
    target = target.to(device, target_dtype)
    pred = (target.double() + (size * sign).to(device)).to(pred_dtype).requires_grad_()
    weight = weight.to(device, target_dtype)

    one = torch.ones((), device=device, dtype=torch.promote_types(target_dtype, torch.float32))
    loss = backward(config, pred, target, weight, one)
    exact_pred = pred.detach().double().requires_grad_()
    exact = loss_function(config.model_copy(update={"impl": "reference"}))(exact_pred, target.double(), weight.double())
    exact.backward()
    exact = exact.detach()

    assert pred.grad is not None
    assert exact_pred.grad is not None
    loss_limit, ulp_limit = LIMITS[pred_dtype]
    return OpError(
        dtype=str(pred_dtype).removeprefix("torch."),
        elements=pred.numel(),
        loss_relative=float(((loss.double() - exact) / exact).abs()),
        gradient_ulp=float(ulp_distance(pred.grad, exact_pred.grad).max()),
        loss_relative_limit=loss_limit,
        gradient_ulp_limit=ulp_limit,
    )


def ulp_distance(value: Tensor, exact: Tensor) -> Tensor:
    """|value - exact| in units in the last place of `value`'s dtype at `exact` (float64); NaN counts as infinite."""
    info = torch.finfo(value.dtype)
    exponent = torch.frexp(exact.abs().clamp_min(info.tiny)).exponent - 1
    ulp = torch.ldexp(torch.full_like(exact, info.eps), exponent)
    return ((value.double() - exact).abs() / ulp).nan_to_num(nan=float("inf"))


def _output_dtype(precision: str, device: torch.device) -> torch.dtype:
    """dtype of the model's output: what autocast makes of a linear layer's."""
    if precision == "fp64":
        return torch.float64
    layer = torch.nn.Linear(1, 1, device=device)
    with torch.no_grad(), autocast(precision, device):
        return layer(torch.zeros(1, 1, device=device)).dtype
