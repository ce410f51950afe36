"""What measurements of speed say: the rows of their tables, and why a cell is empty.

An interval of one variant spans the intervals of its processes. A ratio is paired by repeat, whose processes ran close
to each other, and its interval is of the pairs: the unit that repeats is a process, not a step.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.experiment import AnyTrial, Experiment, Trial
from bench.interval import Interval, ratio_interval
from bench.result import Estimate, ThroughputResult
from bench.steadiness import Finding, findings
from bench.summary import rate_text

EMPTY = "–"
UNSTABLE = 0.05  # half an interval's width, in parts of its value, that a page warns of


@dataclass(frozen=True)
class Ratio:
    """A quotient of speeds, the geometric mean over pairs; `interval` is None for one pair."""

    value: float
    interval: Interval | None
    pairs: int


@dataclass(frozen=True)
class SpeedRow:
    """A variant's speed; images per second of all its ranks together."""

    variant: str
    baseline: bool
    repeats: int
    world_size: int
    batch_size: int  # of all ranks together
    speed: Interval
    ratio: Ratio | None  # to the baseline; None for itself, and without a repeat that both finished
    gain: Ratio | None  # to the row above, where that has the same batch and ranks
    input_alone: Interval
    resident: Interval
    input_share: Interval
    first_step: float  # seconds from the start of the process, median over repeats
    first_step_from_stepper: float
    warmup: float  # seconds of the steps after the first one and before the windows
    memory: int  # bytes: what torch's allocator held on the GPU, or what the process held
    utilisation: float | None
    floor_share: float | None


@dataclass(frozen=True)
class ScalingRow:
    """How well more ranks do: their speed in parts of so many times the speed of one."""

    variant: str
    alone: str  # the variant with one rank
    kind: Literal["weak", "strong"]  # as many faces per rank as alone, or as many in all
    world_size: int
    batch_size: int
    speed: Interval
    efficiency: Ratio


@dataclass(frozen=True)
class TimeRow:
    """How long a variant trained until its NMEs were reached; seconds from the start of the process."""

    variant: str
    caches: str  # "cold" or "warm"
    batch_size: int
    trials: int
    seconds: tuple[float | None, ...]  # for each NME the median over trials; None where a trial did not reach it
    reached: tuple[int, ...]  # trials that did
    total: float  # of the whole process, median


def speed_rows(experiment: Experiment) -> list[SpeedRow]:
    """A row for each variant with a result, in the config's order."""
    rows: list[SpeedRow] = []
    for variant in experiment.variants:
        found = [trial.result for trial in experiment.timed_of(variant)]
        if not found:
            continue
        rows.append(
            SpeedRow(
                variant=variant,
                baseline=variant == experiment.baseline,
                repeats=len(found),
                world_size=found[0].world_size,
                batch_size=found[0].batch_size,
                speed=_speed(found),
                ratio=None if variant == experiment.baseline else ratio_of(experiment, variant, experiment.baseline),
                gain=_gain(experiment, variant, found[0], rows[-1] if rows else None),
                input_alone=_together([one.input_alone.images_per_second for one in found], statistics.geometric_mean),
                resident=_together([one.resident.images_per_second for one in found], statistics.geometric_mean),
                input_share=_together([one.input_share for one in found], statistics.fmean),
                first_step=statistics.median(one.first_step_from_process for one in found),
                first_step_from_stepper=statistics.median(one.first_step_from_stepper for one in found),
                warmup=statistics.median(one.training.warmup_seconds for one in found),
                memory=max(one.memory.reserved or one.memory.allocated for one in found),
                utilisation=_mean([one.model_flops_utilisation for one in found]),
                floor_share=_mean([one.floor_share for one in found]),
            )
        )
    return rows


def headline(experiment: Experiment) -> str:
    """The baseline and the fastest variant in one sentence; without a GPU only how they compare."""
    rows = speed_rows(experiment)
    base = next((row for row in rows if row.baseline), None)
    fastest = max(rows, key=lambda row: row.speed.value, default=None)
    if fastest is None:
        return ""
    gpu = machine(experiment)
    ratio = f"{fastest.variant} is {ratio_text(fastest.ratio)} times as fast as {experiment.baseline}"
    if gpu is None:
        if base is None or fastest is base or fastest.ratio is None:
            return ""
        if fastest.ratio.interval is not None and fastest.ratio.interval.low <= 1:
            return f"No variant is measurably faster than {experiment.baseline}: {ratio}."
        return f"Fastest: {ratio}."
    text = f"On {gpu}: {fastest.variant} {rate_text(fastest.speed.value)} images per second, batch {fastest.batch_size}"
    if base is not None and fastest is not base and fastest.ratio is not None:
        text += f"; {experiment.baseline} {rate_text(base.speed.value)}, batch {base.batch_size}; {ratio}"
    return f"{text}."


def scaling_rows(experiment: Experiment) -> list[ScalingRow]:
    """Variants of several ranks beside the one that differs only in the number of ranks, and the batch."""
    results = {v: [trial.result for trial in experiment.timed_of(v)] for v in experiment.variants}
    alone = {v: found[0] for v, found in results.items() if found and found[0].world_size == 1}
    rows = []
    for variant, found in results.items():
        if not found or found[0].world_size == 1:
            continue
        one = found[0]
        same = {v: other for v, other in alone.items() if _but_for_ranks(other) == _but_for_ranks(one)}
        # As many faces per rank as alone if there is such a variant: that is what more GPUs are for
        weak = next((v for v, other in same.items() if other.batch_size * one.world_size == one.batch_size), None)
        strong = next((v for v, other in same.items() if other.batch_size == one.batch_size), None)
        base = weak or strong
        both = pairs(experiment, variant, base) if base is not None else []
        efficiency = _ratio([(speed / one.world_size, single) for speed, single in both])
        if base is not None and efficiency is not None:
            kind: Literal["weak", "strong"] = "weak" if weak is not None else "strong"
            rows.append(ScalingRow(variant, base, kind, one.world_size, one.batch_size, _speed(found), efficiency))
    return rows


def time_rows(experiment: Experiment) -> list[TimeRow]:
    """A row for each variant with cold, then with warm caches."""
    wanted = thresholds(experiment)
    rows = []
    for variant in experiment.variants:
        for caches in ("cold", "warm"):
            trials = [t for t in experiment.results if (t.result.variant, t.result.caches) == (variant, caches)]
            if not trials:
                continue
            times = [[seconds_to(trial, nme) for trial in trials] for nme in wanted]
            reached = [[seconds for seconds in column if seconds is not None] for column in times]
            rows.append(
                TimeRow(
                    variant=variant,
                    caches=caches,
                    batch_size=_batch_size(trials[0].result.config),
                    trials=len(trials),
                    seconds=tuple(
                        statistics.median(column) if len(column) == len(trials) else None for column in reached
                    ),
                    reached=tuple(len(column) for column in reached),
                    total=statistics.median(
                        t.result.process_seconds if t.result.process_seconds is not None else t.result.timings.total
                        for t in trials
                    ),
                )
            )
    return rows


def thresholds(experiment: Experiment) -> list[float]:
    """The NMEs x 100 that a time to NME looks for."""
    section = experiment.config.get("time_to_nme")
    wanted = section.get("nme_x100") if isinstance(section, dict) else None
    return [float(nme) for nme in wanted] if isinstance(wanted, list) else []


def seconds_to(trial: Trial, nme_x100: float) -> float | None:
    """Seconds until the first evaluation at or under an NME x 100; None where there was none."""
    return next((m.seconds for m in trial.result.milestones if m.nme is not None and 100 * m.nme <= nme_x100), None)


def machine(experiment: Experiment) -> str | None:
    """The GPU that all measurements ran on; None without one, or on several kinds: then only ratios count."""
    names = {trial.environment.gpu if _on_gpu(trial) else None for trial in experiment.everything}
    return names.pop() if len(names) == 1 else None


def speed_notes(experiment: Experiment) -> list[str]:
    """Why cells of the table are empty, a sentence each."""
    found = experiment.timed
    notes = []
    if any(trial.result.model_flops_utilisation is None for trial in found):
        unknown = sorted({str(t.environment.gpu) for t in found if t.result.peak_flops is None and _on_gpu(t)})
        notes.append(
            f"The utilisation of {', '.join(unknown)} is not known: its peak at that precision is in no table here."
            if unknown
            else "On a CPU neither the utilisation nor the share of the bandwidth floor is known."
        )
    if any(trial.result.floor_share is None and _on_gpu(trial) for trial in found):
        notes.append("Where the bandwidth floor is missing, the GPU had no room left for a copy that measures it.")
    if any(row.ratio is not None and row.ratio.interval is None for row in speed_rows(experiment)):
        notes.append("One repeat: no interval around a ratio.")
    return notes


def speed_cautions(experiment: Experiment) -> list[str]:
    """What makes the measured speeds less sure than they look."""
    found = []
    unstable = [
        f"{row.variant} (± {100 * _half(row.speed):.0f} %)"
        for row in speed_rows(experiment)
        if _half(row.speed) > UNSTABLE
    ]
    if unstable:
        found.append(
            f"The speed varied between windows or processes: {', '.join(unstable)}. Other load on the machine does "
            "that; so do windows of too few steps."
        )
    apart = []
    for repeat in sorted({trial.result.repeat for trial in experiment.timed}):
        jobs: dict[tuple[int, str], set[str | None]] = {}
        for trial in experiment.timed:
            one = trial.result
            if one.repeat == repeat:
                jobs.setdefault((one.world_size, one.environment.host), set()).add(one.environment.job)
        apart += [str(repeat)] if any(len(ids) > 1 for ids in jobs.values()) else []
    if apart:
        found.append(
            f"Measurements of {'repeat' if len(apart) == 1 else 'repeats'} {', '.join(apart)} ran in several "
            "allocations: their ratios hold whatever differed between these."
        )
    groups: dict[str, list[tuple[str, Finding]]] = {}
    for trial in experiment.timed:
        for what in findings(trial.result):
            groups.setdefault(what.kind, []).append((trial.label, what))
    for group in groups.values():
        named = [f"{label}: {what.sentence}" for label, what in group[:3]]
        more = f"; and {len(group) - 3} more trials" if len(group) > 3 else ""
        found.append(f"{'; '.join(named)}{more}. What helps: {group[0][1].advice}.")
    return found


def interval_text(interval: Interval, text: Callable[[float], str] = rate_text) -> str:
    return f"{text(interval.value)} [{text(interval.low)}, {text(interval.high)}]"


def ratio_text(ratio: Ratio | None) -> str:
    """ "1.52 [1.47, 1.58]", without the interval where there is none."""
    if ratio is None:
        return EMPTY
    return f"{ratio.value:.2f}" if ratio.interval is None else interval_text(ratio.interval, "{:.2f}".format)


def percent_text(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:.1f} %"


def share_text(share: Interval) -> str:
    """ "1.4 % [0.9, 1.9]"."""
    return interval_text(share, lambda value: f"{100 * value:.1f}").replace(" [", " % [")


def memory_text(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def _speed(found: Sequence[ThroughputResult]) -> Interval:
    return _together([one.training.images_per_second for one in found], statistics.geometric_mean)


def _together(estimates: Sequence[Estimate], mean: Callable[[Sequence[float]], float]) -> Interval:
    return Interval(
        mean([one.value for one in estimates]),
        min(one.low for one in estimates),
        max(one.high for one in estimates),
    )


def pairs(experiment: Experiment, variant: str, base: str) -> list[tuple[float, float]]:
    """Images per second of both in every repeat that both finished."""
    speeds = [
        {trial.result.repeat: trial.result.training.images_per_second.value for trial in experiment.timed_of(name)}
        for name in (variant, base)
    ]
    return [(speeds[0][repeat], speeds[1][repeat]) for repeat in sorted(speeds[0].keys() & speeds[1].keys())]


def ratio_of(experiment: Experiment, variant: str, base: str) -> Ratio | None:
    """How many times as fast as `base` a variant is; None without a repeat that both finished."""
    return _ratio(pairs(experiment, variant, base))


def _gain(experiment: Experiment, variant: str, one: ThroughputResult, above: SpeedRow | None) -> Ratio | None:
    if above is None or (above.batch_size, above.world_size) != (one.batch_size, one.world_size):
        return None
    return ratio_of(experiment, variant, above.variant)


def _ratio(both: Sequence[tuple[float, float]]) -> Ratio | None:
    if not both:
        return None
    value = math.exp(statistics.fmean(math.log(a / b) for a, b in both))
    return Ratio(value, ratio_interval(both), len(both))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _but_for_ranks(result: ThroughputResult) -> dict[str, Any]:
    """The config without what differs between numbers of ranks."""
    config = {key: value for key, value in result.config.items() if key not in ("name", "description")}
    train = {k: v for k, v in config.get("train", {}).items() if k not in ("batch_size", "micro_batch")}
    parallel = {k: v for k, v in train.get("parallel", {}).items() if k != "world_size"}
    return {**config, "train": {**train, "parallel": parallel}}


def _batch_size(config: dict[str, Any]) -> int:
    return int(config.get("train", {}).get("batch_size", 0))


def _on_gpu(trial: AnyTrial) -> bool:
    return trial.environment.gpu is not None and trial.result.config.get("train", {}).get("device") != "cpu"


def _half(interval: Interval) -> float:
    return (interval.high - interval.low) / 2 / interval.value
