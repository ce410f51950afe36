"""What the levels of parity below the NME say: the same, or different, and by how much.

Limits are what rounding was seen to do, with room. Which of them a mistake in one variant alone trips is tested
(tests/bench/test_planted_defects.py):

    mistake                                         op  trajectory  evaluation  NME
    1 % in the fused gradient                       x
    one wrong flip pair                                 x           x
    half a pixel in decode                                          x
    one grey level in 1 % of the pixels evaluated                   x
    the loss off by a factor                            x                       (no: Adam divides it out)
    the learning rate 20 % lower                        x                       x
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.result import LevelsResult, OpError, Trajectory

LEVELS = ("op", "trajectory", "evaluation")
Level = Literal["op", "trajectory", "evaluation"]
JUDGED_STEPS = 3  # after that rounding alone has grown to anything


@dataclass(frozen=True)
class TrajectoryLimits:
    """Of the first step the relative distances of loss, weights and length; of the next two those of loss and length.

    Adam's first step moves every weight by the learning rate whatever its gradient, so that rounding turns a few of
    them around (`update`) and leaves the length as it is. Tiny network and ResNet-50 on a CPU, against the same in
    another memory order, with other threads, another Adam: fp32 1e-7, 2e-2, 3e-7, then 5e-4, 1e-5; bf16 against fp32
    2e-4, 0.4, 3e-7, then 1e-2, 3e-3.
    """

    loss: float
    update: float
    length: float
    later_loss: float
    later_length: float


_FINE = TrajectoryLimits(loss=1e-5, update=0.1, length=1e-3, later_loss=1e-2, later_length=1e-2)
_COARSE = TrajectoryLimits(loss=2e-3, update=0.7, length=1e-3, later_loss=5e-2, later_length=1e-2)
TRAJECTORY_LIMITS = {"fp64": _FINE, "fp32": _FINE, "tf32": _COARSE, "fp16": _COARSE, "bf16": _COARSE}

# Times what moving every weight by one unit in the last place does. fp32: other batches, the fused crop and float64
# were 1 time as far off at most; one grey level in 1 % of the pixels 2,000 times. 16-bit autocast rounds weights by
# half of that at most: bf16 against fp32 was a quarter as far off.
EVALUATION_FACTOR = {"fp64": 16.0, "fp32": 16.0, "tf32": 1.0, "fp16": 1.0, "bf16": 1.0}


@dataclass(frozen=True)
class LevelVerdict:
    level: Level
    variant: str
    state: Literal["SAME", "DIFFERENT", "not measured"]
    sentence: str


def level_verdicts(result: LevelsResult) -> list[LevelVerdict]:
    """One verdict per level, in the order of `LEVELS`."""
    return [_op(result), _trajectory(result), _evaluation(result)]


def within(error: OpError) -> bool:
    """Whether loss and gradient are numbers within their limits."""
    return (
        error.loss_relative is not None
        and error.gradient_ulp is not None
        and error.loss_relative <= error.loss_relative_limit
        and error.gradient_ulp <= error.gradient_ulp_limit
    )


def _op(result: LevelsResult) -> LevelVerdict:
    wrong = [error for error in result.op_errors if not within(error)]
    if wrong:
        one = wrong[0]
        sentence = (
            f"{len(wrong)} of {len(result.op_errors)} dtypes and sizes are beyond their limits of float64: "
            f"{one.dtype}, {one.elements:,} elements: loss {_number(one.loss_relative)} of "
            f"{one.loss_relative_limit:.0e}, gradient {_number(one.gradient_ulp)} of {one.gradient_ulp_limit:g} ulp"
        )
        return LevelVerdict("op", result.variant, "DIFFERENT", sentence)
    loss = max(error.loss_relative or 0.0 for error in result.op_errors)
    ulp = max(error.gradient_ulp or 0.0 for error in result.op_errors)
    sentence = (
        f"loss and gradient within their limits of float64 in {len(result.op_errors)} dtypes and sizes: at most "
        f"{loss:.0e} and {ulp:.2g} ulp"
    )
    return LevelVerdict("op", result.variant, "SAME", sentence)


def _trajectory(result: LevelsResult) -> LevelVerdict:
    found = result.trajectory
    if found is None:
        sentence = "the two train on other numbers of ranks, or networks of other shapes"
        return LevelVerdict("trajectory", result.variant, "not measured", sentence)
    limits = TRAJECTORY_LIMITS[result.precision]
    wrong = _first_beyond(found, limits)
    if wrong is not None:
        return LevelVerdict("trajectory", result.variant, "DIFFERENT", wrong)
    if not any(value != 0 for values in (found.loss, found.update) for value in values):
        sentence = f"equal to the last bit for {len(found.loss)} steps"
    elif found.loss[0] == 0 and found.update[0] == 0:
        sentence = "equal to the last bit after the first step"
    else:
        sentence = (
            f"after the first step the losses are {_number(found.loss[0])} apart, the weights "
            f"{_number(found.update[0])} of the way gone"
        )
    if found.growth is not None:
        sentence += f"; the distance grows {found.growth:.2g} times a step"
    twin = result.twin
    if twin is not None and twin.update and found.update:
        last = len(found.update)
        gone = _number(found.update[-1]), _number(twin.update[-1])
        sentence += f"; after {last} steps {gone[0]}, and {gone[1]} from one ulp of one weight"
    return LevelVerdict("trajectory", result.variant, "SAME", sentence)


def _first_beyond(found: Trajectory, limits: TrajectoryLimits) -> str | None:
    for place in range(min(JUDGED_STEPS, len(found.loss))):
        first = place == 0
        figures: Sequence[tuple[str, float | None, float]] = [
            ("losses are {} apart", found.loss[place], limits.loss if first else limits.later_loss),
            *([("weights are {} of the way gone apart", found.update[place], limits.update)] if first else []),
            ("ways gone differ by {}", found.length[place], limits.length if first else limits.later_length),
        ]
        for what, value, limit in figures:
            if value is None or not abs(value) <= limit:
                at = "the first step" if first else f"step {place + 1}"
                return f"after {at} the {what.format(_number(value))}, rounding explains {limit:.0e}"
    return None


def _evaluation(result: LevelsResult) -> LevelVerdict:
    found, yardstick = result.evaluation, result.yardstick
    rounding = _evaluation_precision(result)
    factor = EVALUATION_FACTOR[rounding]
    pairs = [(found.largest, yardstick.largest), (found.mean, yardstick.mean)]
    same = all(
        value is not None and (value == 0 or (unit is not None and value <= factor * unit)) for value, unit in pairs
    )
    nme = f"{100 * found.nme:+.4f}".replace("-", "−") if found.nme is not None else "unknown"
    sentence = (
        f"points at most {_number(found.largest)} and on average {_number(found.mean)} px of the crop apart, NME x 100 "
        f"{nme}; moving every weight by one ulp of {rounding}: {_number(yardstick.largest)} and "
        f"{_number(yardstick.mean)} px"
    )
    if found.largest == 0:
        sentence = f"equal to the last bit on {found.faces} faces"
    return LevelVerdict("evaluation", result.variant, "SAME" if same else "DIFFERENT", sentence)


def _evaluation_precision(result: LevelsResult) -> str:
    """The coarser precision of the two evaluations."""
    found = []
    for config in (result.config, result.reference):
        section = config.get("evaluate")
        precision = section.get("precision", "fp32") if isinstance(section, dict) else "fp32"
        found.append(str(precision) if precision in EVALUATION_FACTOR else "fp32")
    order = list(EVALUATION_FACTOR)
    return max(found, key=order.index)


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not a number"
    return f"{value:.1e}" if value and abs(value) < 0.01 else f"{value:.3g}"
