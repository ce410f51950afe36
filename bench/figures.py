"""Figures that can be compared with those of another day: named, with a unit, an interval, and where they are from."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from bench.interval import FEWEST_SAMPLES, Interval, mean_interval, median_interval
from bench.result import SUBSETS, Record, valid
from pose.errors import InputError

if TYPE_CHECKING:
    from bench.experiment import Experiment, Trial
    from bench.result import Environment

SYSTEM = ("GPU", "driver", "torch", "CUDA", "triton", "CPU")
WORKLOAD = ("batch", "precision", "world size")
NME_UNIT, FR_UNIT, AUC_UNIT = "NME x 100", "% of faces", "%"
# Compared by their difference, for an FR may be 0. An NME that is 0.01 higher under the threshold of 0.10 lowers the
# AUC by 0.1, so of an AUC ten times an NME's margin is as much
MARGINS = {NME_UNIT: 1.0, FR_UNIT: 1.0, AUC_UNIT: 10.0}
_FEWEST = 5  # samples whose least and greatest hold the median with 94 %
_NOTCH = 1.57  # times the interquartile range over the root of the count: McGill, Tukey, Larsen, Am. Stat. 32, 1978


@dataclass(frozen=True)
class Figure:
    """`interval` is None for a single sample; a `value` that does not exist is NaN."""

    name: str
    value: float
    interval: Interval | None  # 95 %
    unit: str
    better: Literal["higher", "lower"]
    samples: int
    fingerprint: Mapping[str, str]  # keys of SYSTEM and WORKLOAD, as far as they apply
    one_process: bool = False  # the interval is of what one process timed, and processes differ by more


@dataclass(frozen=True)
class Source:
    """What a path gave. commit, dirty, host, started: None where they are not known, or differ between trials."""

    path: Path
    figures: tuple[Figure, ...]
    problems: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()  # of the problems those of trials that are done and cannot be read
    commit: str | None = None
    dirty: bool | None = None
    host: str | None = None
    started: str | None = None
    experiment: Experiment | None = None


def read_source(path: Path) -> Source:
    """The figures of an experiment's folder, a `kernels.json`, or a pytest-benchmark JSON.

    Raises `InputError`, naming the file, for anything else.
    """
    from bench.kernels.report import kernel_file

    file = kernel_file(path)
    if file is None:
        return _of_experiment(path)
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("benchmarks"), list):
        return _of_pytest_benchmark(file, content)
    return _of_kernels(file)


def _of_experiment(path: Path) -> Source:
    from bench.experiment import TRIALS, read_experiment

    experiment = read_experiment(path)
    figures = [*_of_trainings(experiment), *_of_speeds(experiment)]
    environments = [trial.environment for trial in experiment.everything]
    damaged = [
        problem for problem in experiment.problems if any(f"{TRIALS}/{name}/" in problem for name in experiment.missing)
    ]
    if not figures:
        raise InputError(f"{path}: has no result to compare" + (f" ({damaged[0]})" if damaged else ""))
    return Source(
        path,
        tuple(figures),
        problems=tuple(
            [*experiment.problems, *(f"{name} has no result" for name in experiment.missing)]
            + [f"{one.folder.name} failed: {one.failure.message}" for one in experiment.failures]
        ),
        damaged=tuple(damaged),
        commit=_same([one.commit for one in environments]),
        dirty=None if all(one.dirty is None for one in environments) else any(one.dirty for one in environments),
        host=_same([one.host for one in environments]),
        started=min((trial.result.started for trial in experiment.everything), default=None),
        experiment=experiment,
    )


def _of_trainings(experiment: Experiment) -> Iterator[Figure]:
    for variant in experiment.variants:
        trials = experiment.of_variant(variant)
        if not trials or experiment.measure == "time_to_nme":
            continue
        print_ = together([fingerprint(one.environment, one.result.config) for one in trials])
        for subset in SUBSETS:
            rows = [trial.result.metrics[subset] for trial in trials if subset in trial.result.metrics]
            rows = [row for row in rows if row.count]
            columns: list[tuple[str, Literal["higher", "lower"], str, list[float | None]]] = [
                (NME_UNIT, "lower", NME_UNIT, [row.nme for row in rows]),
                ("FR@10", "lower", FR_UNIT, [row.failure_rate for row in rows]),
                ("AUC@10", "higher", AUC_UNIT, [row.auc for row in rows]),
            ]
            for name, better, unit, values in columns if rows else ():
                numbers = [math.nan if value is None else 100 * value for value in values]
                yield _mean(f"{variant}: {name}, {subset}", numbers, unit, better, print_)
        yield from _training_speed(variant, trials, print_)


def _training_speed(variant: str, trials: Sequence[Trial], print_: Mapping[str, str]) -> Iterator[Figure]:
    from bench.summary import INTERPRETER

    found = [trial.result.throughput for trial in trials if trial.result.throughput is not None]
    interpreted = _mapping(trials[0].result.config.get("loss")).get("impl") == "triton" and any(
        INTERPRETER in trial.environment.variables for trial in trials
    )
    if not found or interpreted:  # an interpreted kernel's speed says nothing
        return
    alone = len(found) == 1 and len(found[0].windows) >= FEWEST_SAMPLES
    yield _geometric(
        f"{variant}: training",
        [one.images_per_second for one in found],
        "images/s",
        "higher",
        print_,
        median_interval(found[0].windows) if alone else None,
    )


def _of_speeds(experiment: Experiment) -> Iterator[Figure]:
    for variant in experiment.variants:
        found = [trial.result for trial in experiment.timed_of(variant)]
        if not found:
            continue
        print_ = together([fingerprint(one.environment, one.config) for one in found])
        for name in ("training", "input_alone", "resident"):
            estimates = [getattr(one, name).images_per_second for one in found]
            alone = Interval(estimates[0].value, estimates[0].low, estimates[0].high) if len(found) == 1 else None
            title, values = f"{variant}: {name.replace('_', ' ')}", [e.value for e in estimates]
            yield _geometric(title, values, "images/s", "higher", print_, alone)
        memory = [float(one.memory.reserved or one.memory.allocated) for one in found]
        yield _geometric(f"{variant}: memory", memory, "bytes", "lower", print_)


def _of_kernels(file: Path) -> Source:
    from bench.kernels.report import read_timed

    result = read_timed(file)
    figures = []
    for m in result.measurements:
        if m.variant == "triton_interpreted":  # says nothing about speed
            continue
        shape = "x".join(map(str, m.shape))
        name = (
            f"{m.loss} {m.mode} {m.variant} {m.pred_dtype}/{m.target_dtype} {shape}, weight {m.weight}, {m.clock} time"
        )
        name += "" if m.upstream == "one" else f", upstream {m.upstream}"
        system = _system(result.environment)
        figures.append(
            Figure(name, m.median, _around_median(m.seconds), "s", "lower", len(m.seconds), system, one_process=True)
        )
    if not figures:
        raise InputError(f"{file}: holds no measurement of speed")
    where = result.environment
    return Source(file, tuple(figures), (), (), where.commit, where.dirty, where.host, result.started)


class _Stats(Record):
    model_config = ConfigDict(
        strict=True, allow_inf_nan=True
    )  # a figure that is no number fails; the file is none less

    median: float
    iqr: float
    rounds: Annotated[int, Field(ge=1)]
    data: list[float] | None = None

    @property
    def interval(self) -> Interval | None:
        if not math.isfinite(self.median):
            return None
        if self.data is not None and len(self.data) == self.rounds and all(map(math.isfinite, self.data)):
            return _around_median(self.data)
        if self.rounds < _FEWEST or not (math.isfinite(self.iqr) and self.iqr >= 0):
            return None
        half = _NOTCH * self.iqr / math.sqrt(self.rounds)
        return Interval(self.median, self.median - half, self.median + half)


def _of_pytest_benchmark(file: Path, content: dict[str, Any]) -> Source:
    machine: dict[str, Any] = _mapping(content.get("machine_info"))
    commit: dict[str, Any] = _mapping(content.get("commit_info"))
    brand = _mapping(machine.get("cpu")).get("brand_raw")
    figures: dict[str, Figure] = {}
    for place, one in enumerate(content["benchmarks"]):
        if not isinstance(one, dict) or not isinstance(one.get("stats"), dict):
            raise InputError(f"{file}: benchmarks.{place}: has no stats")
        name = str(one.get("fullname", one.get("name")))
        if name in figures:
            raise InputError(f"{file}: benchmarks.{place}: {name} is there twice")
        stats = valid(_Stats, one["stats"], f"{file}: benchmarks.{place}.stats")
        known = _plain_system(_mapping(_mapping(one.get("extra_info")).get("environment")))
        if brand and "GPU" not in known:
            known.setdefault("CPU", str(brand))
        figures[name] = Figure(name, stats.median, stats.interval, "s", "lower", stats.rounds, known, one_process=True)
    if not figures:
        raise InputError(f"{file}: holds no benchmark")
    dirty = commit.get("dirty")
    return Source(
        file,
        tuple(figures.values()),
        commit=_text(commit.get("id")),
        dirty=dirty if isinstance(dirty, bool) else None,
        host=_text(machine.get("node")),
        started=_text(content.get("datetime")),
    )


def fingerprint(environment: Environment, config: Mapping[str, Any]) -> dict[str, str]:
    """What has to be equal for two speeds to be comparable."""
    train = _mapping(config.get("train"))
    world_size = _mapping(train.get("parallel")).get("world_size", 1)
    workload = zip(WORKLOAD, (train.get("batch_size"), train.get("precision", "fp32"), world_size), strict=True)
    on_gpu = train.get("device") != "cpu"
    return _system(environment, on_gpu=on_gpu) | {key: str(value) for key, value in workload if value is not None}


def _system(environment: Environment, *, on_gpu: bool = True) -> dict[str, str]:
    return _plain_system(environment.model_dump(), on_gpu=on_gpu)


def _plain_system(environment: Mapping[str, Any], *, on_gpu: bool = True) -> dict[str, str]:
    packages = _mapping(environment.get("packages"))
    gpu = environment.get("gpu") if on_gpu else None
    cpu = environment.get("cpu")
    values = {
        "GPU": gpu,
        "driver": environment.get("driver") if gpu else None,
        "torch": packages.get("torch"),
        "CUDA": environment.get("cuda") if gpu else None,
        "triton": packages.get("triton"),
        "CPU": f"{cpu}, {environment.get('cpus')} logical" if cpu and not gpu else None,
    }
    return {key: str(value) for key, value in values.items() if value}


def together(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The fingerprint of a figure from several trials; where they differ it has all of their values."""
    keys = dict.fromkeys(key for one in found for key in one)
    return {key: " / ".join(sorted({one.get(key, "not known") for one in found})) for key in keys}


def _mean(
    name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"], print_: Mapping[str, str]
) -> Figure:
    interval = mean_interval(values) if all(map(math.isfinite, values)) else None
    return Figure(name, statistics.fmean(values), interval, unit, better, len(values), print_)


def _geometric(
    name: str,
    values: Sequence[float],
    unit: str,
    better: Literal["higher", "lower"],
    print_: Mapping[str, str],
    alone: Interval | None = None,
) -> Figure:
    """Of speeds of processes: the unit that repeats is a process, not a step. alone: the interval of a single one."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return Figure(name, math.nan, None, unit, better, len(values), print_)
    if alone is not None:
        return Figure(name, values[0], alone, unit, better, 1, print_, one_process=True)
    logs = [math.log(value) for value in values]
    found = mean_interval(logs)
    interval = found and Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))
    return Figure(name, math.exp(statistics.fmean(logs)), interval, unit, better, len(values), print_)


def _around_median(samples: Sequence[float]) -> Interval | None:
    """The median's interval from samples in the order they were taken; None for too few."""
    if len(samples) >= FEWEST_SAMPLES:
        return median_interval(samples)
    return Interval(statistics.median(samples), min(samples), max(samples)) if len(samples) >= _FEWEST else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _same(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
