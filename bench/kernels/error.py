"""How far a loss and its gradient are from float64, on a benchmark's inputs of any size, and how far they may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import kernels
from bench.kernels.cases import UPSTREAM, Case, Inputs, build, dtype
from bench.kernels.result import Check, judged
from bench.op_error import ulp_distance

CHUNK = 2**24  # elements that are held in float64 at a time

# Where the slope of a default loss jumps, from 0.83 to 1 (wing) or from 1 to 8 (soft wing). float32 may find a
# difference on the other side than float64 does, by its roundings (of pred - target, and of the weights), and is right
# there. Of 2^24 random elements of the benchmarks about one lies so close
KINKS = {"wing": 10.0, "soft_wing": 2.0}
AT_KINK = 2.0**-22


@dataclass(frozen=True)
class KernelError:
    loss_relative: float
    gradient_ulp: float  # largest, in units in the last place of the gradient's dtype
    repeats: bool  # a second run gives the same bits
    poisoned: bool  # the gradient was written where NaNs had been put before
    at_kink: int = 0  # elements so close to a kink that which side they are on is a matter of rounding: left out


def kernel_error(case: Case, variant: str, inputs: Inputs) -> KernelError:
    """The errors of `variant` on the first set of `inputs`. NaN where there should be a number is an infinite error.

    The oracle is the reference formula in float64 on the same, rounded inputs.
    """
    if case.mode == "forward":
        raise ValueError(f"{case}: there is no gradient to compare")
    call = build(case, variant, inputs)
    first = call(0)
    # Freed blocks are handed out again: an element that the next run does not write is then a NaN
    poison = [torch.full_like(first[1], torch.nan) for _ in range(3)]
    addresses = {block.data_ptr() for block in poison}
    del poison
    loss, gradient = again = call(0)
    poisoned = gradient.data_ptr() in addresses
    repeats = all(_same_bits(one, other) for one, other in zip(first, again, strict=True))

    exact_loss = torch.zeros((), dtype=torch.float64, device=loss.device)
    worst = torch.zeros((), dtype=torch.float64, device=loss.device)
    at_kink = torch.zeros((), dtype=torch.int64, device=loss.device)
    for rows in _chunks(case):
        chunk = replace(case, shape=(rows.stop - rows.start, *case.shape[1:]))
        value, exact, kink = _exact(case, chunk, rows, inputs)
        exact_loss += value
        at_kink += kink.sum()
        worst = torch.maximum(worst, ulp_distance(gradient[rows], exact).masked_fill_(kink, 0.0).max())
    relative = ((loss.double() - exact_loss) / exact_loss).abs().nan_to_num(nan=float("inf"))
    return KernelError(float(relative), float(worst), repeats, poisoned, int(at_kink))


def _chunks(case: Case) -> list[slice]:
    batch = case.shape[0]
    step = max(1, CHUNK // (case.elements // batch))
    return [slice(start, min(start + step, batch)) for start in range(0, batch, step)]


def _exact(case: Case, chunk: Case, rows: slice, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradient that a part of the batch adds to the whole, in float64, and which elements lie at a kink."""
    function = getattr(kernels, f"{case.loss}_loss")
    pred = inputs.pred[0].detach()[rows].double().requires_grad_()
    weight = inputs.weight[0]
    if weight is not None:
        weight = (weight if case.weight == "landmark" else weight[rows]).double()
    target = inputs.target[0][rows].double()
    loss = function(pred, target, weight, impl="reference")
    # Each loss is averaged over the batch or over all elements, so a part counts by its share of the batch
    share = chunk.shape[0] / case.shape[0]
    other = case.mode == "forward_backward" and case.upstream == "other"
    upstream = float(torch.tensor(UPSTREAM, dtype=dtype("float32"))) if other else 1.0
    (gradient,) = torch.autograd.grad(loss, pred, torch.full_like(loss, share * upstream))
    return loss.detach() * share, gradient, _at_kink(case.loss, pred.detach() - target, weight)


def _at_kink(loss: str, difference: Tensor, weight: Tensor | None) -> Tensor:
    if loss not in KINKS:
        return torch.zeros_like(difference, dtype=torch.bool)
    size = (difference if weight is None else difference * weight).abs()
    return (size - KINKS[loss]).abs() <= AT_KINK * KINKS[loss]


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return torch.equal(first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8))


@dataclass(frozen=True)
class ErrorBar:
    """Cases of the fused kernel whose worst error counts."""

    name: str
    cases: tuple[Case, ...]
    gradient_ulp: float
    no_worse_than_eager: bool = False  # that is then the target, and gradient_ulp the limit
    loss_relative: float = 3e-7


def error_checks(
    bars: Sequence[ErrorBar],
    errors: Mapping[Case, KernelError],
    eager: Mapping[Case, KernelError],
    how: str,
    reason: str,
) -> list[Check]:
    """The checks of loss and gradient of each bar, and of the bits of two runs.

    errors, eager: of the fused kernel and of the eager formula, as far as they are known. A bar that lacks a case is
    unmeasured, because of `reason`.
    """
    checks = []
    for bar in bars:
        known = [errors[case] for case in bar.cases if case in errors]
        others = [eager[case] for case in bar.cases if case in eager] if bar.no_worse_than_eager else []
        complete = len(known) == len(bar.cases) and (len(others) == len(bar.cases) or not bar.no_worse_than_eager)
        loss, ulp, target, text = None, None, bar.gradient_ulp, reason
        if complete:
            loss = max(error.loss_relative for error in known)
            ulp = max(error.gradient_ulp for error in known)
            text = f"{how}; {len(known)} cases, {sum(error.poisoned for error in known)} of them written over NaNs"
            left_out = sum(error.at_kink for error in known)
            text += f", {left_out} elements left out that lie at a kink to the last digits" * (left_out > 0)
        if complete and bar.no_worse_than_eager:
            target = min(target, max(error.gradient_ulp for error in others))
            text += "; target: what eager shows"
        bound = bar.loss_relative
        checks += [
            judged(f"{bar.name}: loss", loss, "relative", bound, bound, higher_is_better=False, how=text),
            judged(f"{bar.name}: gradient", ulp, "ulp", target, bar.gradient_ulp, higher_is_better=False, how=text),
        ]
    complete = all(case in errors for bar in bars for case in bar.cases)
    differ = sum(not error.repeats for error in errors.values()) if complete else None
    text = "cases of which a second run gives other bits" if complete else reason
    return [*checks, judged("two runs, cases that differ", differ, "", 0, 0, higher_is_better=False, how=text)]
