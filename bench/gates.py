"""Conditions on finished trials: what makes an experiment pass."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from bench.config import Gates
from bench.experiment import GATES, Gate
from bench.result import Result
from pose.files import write_atomically


def judge(gates: Gates, results: Sequence[Result]) -> list[Gate]:
    """One verdict per gate and trial. A number that is missing or not finite fails."""
    verdicts = []
    for result in results:
        label = f"seed {result.seed}" + (f", {result.caches}" if result.caches else "")
        if gates.op_error:
            verdicts.append(_op_error(result, label))
        if gates.mean_shape_ratio is not None:
            verdicts.append(_mean_shape(result, label, gates.mean_shape_ratio))
    return verdicts


def _op_error(result: Result, label: str) -> Gate:
    error = result.op_error
    if error.loss_relative is None or error.gradient_ulp is None:
        return Gate(gate="op error", variant=result.variant, passed=False, detail=f"{label}: not a finite number")
    passed = error.loss_relative <= error.loss_relative_limit and error.gradient_ulp <= error.gradient_ulp_limit
    detail = (
        f"{label}: {error.dtype} loss {error.loss_relative:.1e} of {error.loss_relative_limit:.0e}, "
        f"gradient {error.gradient_ulp:.2f} of {error.gradient_ulp_limit:g} ulp"
    )
    return Gate(gate="op error", variant=result.variant, passed=passed, detail=detail)


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
