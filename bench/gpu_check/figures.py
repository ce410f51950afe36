"""The figures of a GPU check beside what they should be and what they must not miss, on one NVIDIA H200.

The losses' own table is `bench.kernels.bars`; here are what goes before it, and the table of training.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from bench.experiment import Experiment
from bench.gpu_check.evidence import Evidence
from bench.gpu_check.memory_check import TOOLS
from bench.gpu_check.result import Stage
from bench.kernels.result import Check, judged
from bench.nme_verdicts import compare, experiment_rule
from bench.speed_summary import (
    SpeedRow,
    interval_text,
    ratio_of,
    ratio_text,
    share_text,
    speed_rows,
    thresholds,
    time_rows,
)

LOADER, SMALL_EAGER, SMALL_GRAPH = "loader", "small_eager", "small_graph"  # variants of configs/gpu_throughput.yaml
BATCH = 256
MOST_NAMED = 5

Why = Callable[[str], str]  # of a task: why there is nothing


def figures(found: Evidence, why: Why) -> dict[Stage, list[Check]]:
    """All figures, by stage. why: what is said of those that a task was to measure and has not."""
    return {
        "kernels": [*_correctness(found, why), *_losses(found, why)],
        "throughput": [*_training(found.throughput, why("throughput")), *_crops(found, why("crops"))],
        "epochs": [*_epochs(found.time_to_nme, why("time_to_nme")), *_parity(found.parity, why("parity"))],
    }


def _correctness(found: Evidence, why: Why) -> list[Check]:
    checks = []
    failed, how = None, why("tests")
    if found.tests is not None:
        failed = len(found.tests.failed)
        how = f"{found.tests.passed} pass, {found.tests.skipped} are skipped{_named(found.tests.failed)}"
    checks.append(_none_of("GPU tests that fail", failed, how))
    beyond, how = None, why("numerics")
    if found.numerics is not None:
        wrong = [check.name for check in found.numerics.checks if check.verdict != "PASS"]
        beyond = len(wrong)
        how = f"of {len(found.numerics.checks)} figures on random inputs of seed {found.numerics.seed}{_named(wrong)}"
    checks.append(_none_of("kernels on fresh inputs, figures beyond their limit", beyond, how))
    by_tool = {one.tool: one for one in found.memory}
    for tool in TOOLS:
        one = by_tool.get(tool)
        how = why(tool) if one is None else one.why or f"and {one.planted} in a kernel with a planted one"
        checks.append(_none_of(f"errors that {tool} finds", one.found if one is not None else None, how))
    return checks


def _losses(found: Evidence, why: Why) -> list[Check]:
    if found.kernels is None:
        return [_none_of("losses, figures of the kernel table that miss their limit", None, why("losses"))]
    return list(found.kernels.checks)


def _training(experiment: Experiment | None, why: str) -> list[Check]:
    rows = {row.variant: row for row in speed_rows(experiment)} if experiment is not None else {}
    large = [row for row in rows.values() if row.batch_size == BATCH and row.variant != LOADER]
    fast = max(large, key=lambda row: row.speed.value, default=None)
    loader, eager, graph = (rows.get(name) for name in (LOADER, SMALL_EAGER, SMALL_GRAPH))
    what = f"{fast.variant}, batch {BATCH}" if fast is not None else why
    over = experiment and fast and loader and ratio_of(experiment, fast.variant, LOADER)
    small = experiment and eager and graph and ratio_of(experiment, SMALL_GRAPH, SMALL_EAGER)
    return [
        _figure(
            "training, bf16, batch 256, augmentation in the loop",
            fast.speed.value if fast is not None else None,
            ("img/s", 4500, 3400),
            f"{what}: {interval_text(fast.speed)}; stretch 5,200" if fast is not None else why,
        ),
        _figure(
            "the same against a 16-worker DataLoader on 1024-px progressive JPEGs",
            over.value if over else None,
            ("x", 3, 2),
            f"{what} against {LOADER}: {ratio_text(over)}" if over else why,
        ),
        _figure(
            "its input alone: draws, crop, targets",
            fast.input_alone.value if fast is not None else None,
            ("img/s", 300_000, 150_000),
            f"{what}, host included: {interval_text(fast.input_alone)}" if fast is not None else why,
        ),
        _figure(
            "its time on real input beyond that on resident noise",
            100 * fast.input_share.value if fast is not None else None,
            ("%", 1.5, 3),
            f"{what}: {share_text(fast.input_share)}" if fast is not None else why,
            higher_is_better=False,
        ),
        _figure(
            "batch 64, whole-step graph against none",
            small.value if small else None,
            ("x", 1.4, 1.2),
            f"{SMALL_GRAPH} against {SMALL_EAGER}: {ratio_text(small)}; {_speeds(graph, eager)}" if small else why,
        ),
    ]


def _crops(found: Evidence, why: str) -> list[Check]:
    crops = found.crops
    rates = {row.name: crops.batch_size / statistics.median(row.seconds) for row in crops.rows} if crops else {}
    name = next((row.name for row in crops.rows if row.judged), None) if crops else None
    beside = "; ".join(f"{other}: {rate:,.0f}" for other, rate in rates.items() if other != name)
    how = f"GPU time of {name}, batch {crops.batch_size}. Not judged: {beside}" if crops and name else why
    return [_figure("crop kernel alone", rates[name] if name else None, ("img/s", 1_000_000, 500_000), how)]


def _epochs(experiment: Experiment | None, why: str) -> list[Check]:
    rows = {row.caches: row for row in time_rows(experiment)} if experiment is not None else {}
    warm, cold = rows.get("warm"), rows.get("cold")
    how = why
    if experiment is not None and warm is not None:
        reached = [
            f"NME {nme:g} after {seconds:.0f} s" if seconds is not None else f"NME {nme:g} not reached"
            for nme, seconds in zip(thresholds(experiment), warm.seconds, strict=True)
        ]
        before = f"; with cold ones {cold.total / 60:.2f} min" if cold is not None else ""
        how = f"the whole process, batch {warm.batch_size}: {', '.join(reached)}{before}"
    elif cold is not None:
        how = f"{why}; with cold caches {cold.total / 60:.2f} min"
    minutes = warm.total / 60 if warm is not None else None
    return [
        _figure(
            "210 epochs of 7500 faces, flip-test evaluation every 10, warm caches",
            minutes,
            ("min", 6.5, 8.5),
            how,
            higher_is_better=False,
        )
    ]


def _parity(experiment: Experiment | None, why: str) -> list[Check]:
    """EQUIVALENT is an interval within the margin, so its farther end is the figure.

    It is unmeasured while seeds are missing, unless it is DIFFERENT already, and where they are too few to tell.
    """
    checks = []
    missing = experiment is not None and bool(experiment.missing or experiment.failures)
    margin = experiment_rule(experiment).margin if experiment is not None else 0.0
    for one in compare(experiment) if experiment is not None else []:
        if not one.gating:
            continue
        far = max(abs(one.test.low), abs(one.test.high)) if one.test is not None else math.inf
        open_ = one.state == "INCONCLUSIVE" and (missing or far <= margin or one.test is None)
        checks.append(
            _figure(
                f"NME x 100, {one.variant} less {one.reference}, farther end of the 90 % interval, {one.subset}",
                None if open_ else far,
                ("", margin, margin),
                f"{one.state}: {one.sentence}",
                higher_is_better=False,
            )
        )
    empty = _figure("NME of the fast path less the reference's", None, ("", 0.05, 0.05), why, higher_is_better=False)
    return checks or [empty]


def _speeds(*rows: SpeedRow | None) -> str:
    return " and ".join(f"{row.speed.value:,.0f} img/s" for row in rows if row is not None)


def _figure(
    name: str,
    figure: float | None,
    bounds: tuple[str, float, float],
    how: str,
    *,
    higher_is_better: bool = True,
) -> Check:
    unit, target, limit = bounds
    return judged(name, figure, unit, target, limit, higher_is_better=higher_is_better, how=how)


def _none_of(name: str, count: int | None, how: str) -> Check:
    """A count that has to be 0."""
    return judged(name, count, "", 0, 0, higher_is_better=False, how=how)


def _named(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f"; and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f": {'; '.join(names[:MOST_NAMED])}{more}"


def counts(checks: Mapping[Stage, Sequence[Check]]) -> dict[str, int]:
    """How many figures have each verdict."""
    verdicts = [check.verdict for stage in checks.values() for check in stage]
    return {verdict: verdicts.count(verdict) for verdict in ("PASS", "SHORT", "FAIL", "unmeasured")}
