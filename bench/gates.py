"""Conditions on an experiment's results: what makes it pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from bench.config import Gates
from bench.experiment import GATES, Experiment, Gate
from bench.level_verdicts import level_verdicts, within
from bench.nme_verdicts import Comparison, compare
from bench.result import Result
from bench.speed_gate import at_least
from bench.speed_summary import pairs
from pose.files import write_atomically

_BESIDE = {"EQUIVALENT": "to", "DIFFERENT": "from", "INCONCLUSIVE": "beside"}


def judge(gates: Gates, experiment: Experiment) -> list[Gate]:
    """The verdicts on an experiment's results; a number that is missing or not finite fails.

    One per trial for the gates on a trial, one per variant and gating subset for parity, one per variant for the levels
    below it and for speed.
    """
    verdicts = []
    for trial in experiment.results:
        result = trial.result
        label = f"seed {result.seed}" + (f", {result.caches}" if result.caches else "")
        if gates.op_error:
            verdicts.append(_op_error(result, label))
        if gates.mean_shape_ratio is not None:
            verdicts.append(_mean_shape(result, label, gates.mean_shape_ratio))
    wanted = {"op": gates.op_error, "trajectory": gates.trajectory, "evaluation": gates.evaluation}
    for level in (one for trial in experiment.levels for one in level_verdicts(trial.result)):
        if wanted[level.level]:
            verdicts.append(
                Gate(
                    gate=f"level {level.level}",
                    variant=level.variant,
                    passed=level.state == "SAME",
                    inconclusive=level.state == "not measured",
                    detail=level.sentence,
                )
            )
    if experiment.measure == "training":
        verdicts += [_parity(one) for one in compare(experiment) if one.gating]
    for variant, factor in gates.speedup.items():
        verdicts.append(_speedup(experiment, variant, factor))
    return verdicts


def _parity(one: Comparison) -> Gate:
    return Gate(
        gate=f"NME parity, {one.subset}",
        variant=one.variant,
        passed=one.state == "EQUIVALENT",
        inconclusive=one.state == "INCONCLUSIVE",
        detail=f"{one.state} {_BESIDE[one.state]} {one.reference}: {one.sentence}",
    )


def _speedup(experiment: Experiment, variant: str, factor: float) -> Gate:
    verdict = at_least(pairs(experiment, variant, experiment.baseline), factor)
    return Gate(
        gate=f"at least {factor:g} times as fast",
        variant=variant,
        passed=verdict.state == "PASSED",
        inconclusive=verdict.state == "INCONCLUSIVE",
        detail=f"{verdict.state} against {experiment.baseline}: {verdict.sentence}",
    )


def _op_error(result: Result, label: str) -> Gate:
    error = result.op_error
    if error.loss_relative is None or error.gradient_ulp is None:
        return Gate(gate="op error", variant=result.variant, passed=False, detail=f"{label}: not a finite number")
    detail = (
        f"{label}: {error.dtype} loss {error.loss_relative:.1e} of {error.loss_relative_limit:.0e}, "
        f"gradient {error.gradient_ulp:.2f} of {error.gradient_ulp_limit:g} ulp"
    )
    return Gate(gate="op error", variant=result.variant, passed=within(error), detail=detail)


def _mean_shape(result: Result, label: str, ratio: float) -> Gate:
    trained, mean_shape = result.metrics["test"].nme, result.mean_shape["test"].nme
    known = trained is not None and mean_shape is not None and math.isfinite(trained) and math.isfinite(mean_shape)
    detail = f"{label}: the test NME is not a number"
    passed = False
    if known and trained is not None and mean_shape is not None:
        passed = trained <= ratio * mean_shape
        detail = f"{label}: NME {100 * trained:.2f}, wanted at most {ratio:g} x {100 * mean_shape:.2f}"
    return Gate(gate="beats the mean shape", variant=result.variant, passed=passed, detail=detail)


def write_gates(gates: Sequence[Gate], out: Path) -> None:
    """Leave the verdicts in an experiment's folder, where the report reads them."""
    write_atomically(out / GATES, json.dumps([gate.model_dump() for gate in gates], indent=1).encode() + b"\n")
