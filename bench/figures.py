"""Figures that can be compared with those of another day: named, with a unit, an interval, and where they are from."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.interval import Interval, mean_interval
from bench.parity import SUBSETS
from pose.errors import InputError

if TYPE_CHECKING:
    from bench.experiment import Experiment
    from bench.result import Environment

SYSTEM = ("GPU", "driver", "torch", "CUDA", "triton", "CPU")
WORKLOAD = ("batch", "precision", "world size")
NME_UNIT = "NME x 100"
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


@dataclass(frozen=True)
class Source:
    """What a path gave. commit, dirty, host, started: None where they are not known, or differ between trials."""

    path: Path
    figures: tuple[Figure, ...]
    problems: tuple[str, ...] = ()
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
    from bench.experiment import read_experiment

    experiment = read_experiment(path)
    figures = [*_of_trainings(experiment), *_of_speeds(experiment)]
    environments = [trial.environment for trial in experiment.everything]
    if not figures:
        raise InputError(f"{path}: has no result to compare")
    return Source(
        path,
        tuple(figures),
        problems=tuple(
            [*experiment.problems, *(f"{name} has no result" for name in experiment.missing)]
            + [f"{one.folder.name} failed: {one.failure.message}" for one in experiment.failures]
        ),
        commit=_same([one.commit for one in environments]),
        dirty=any(one.dirty for one in environments),
        host=_same([one.host for one in environments]),
        started=min((trial.result.started for trial in experiment.everything), default=None),
        experiment=experiment,
    )


def _of_trainings(experiment: Experiment) -> Iterator[Figure]:
    for variant in experiment.variants:
        trials = experiment.of_variant(variant)
        if not trials or experiment.measure == "time_to_nme":
            continue
        print_ = fingerprint(trials[0].environment, trials[0].result.config)
        for subset in SUBSETS:
            rows = [trial.result.metrics[subset] for trial in trials if subset in trial.result.metrics]
            rows = [row for row in rows if row.count]
            columns: list[tuple[str, Literal["higher", "lower"], str, list[float | None]]] = [
                (NME_UNIT, "lower", NME_UNIT, [row.nme for row in rows]),
                ("FR@10", "lower", "% of faces", [row.failure_rate for row in rows]),
                ("AUC@10", "higher", "%", [row.auc for row in rows]),
            ]
            for name, better, unit, values in columns if rows else ():
                numbers = [math.nan if value is None else 100 * value for value in values]
                yield _mean(f"{variant}: {name}, {subset}", numbers, unit, better, print_)
        speeds = [t.result.throughput.images_per_second for t in trials if t.result.throughput is not None]
        if speeds:
            yield _geometric(f"{variant}: training", speeds, "images/s", "higher", print_)


def _of_speeds(experiment: Experiment) -> Iterator[Figure]:
    for variant in experiment.variants:
        found = [trial.result for trial in experiment.timed_of(variant)]
        if not found:
            continue
        print_ = fingerprint(found[0].environment, found[0].config)
        for name in ("training", "input_alone", "resident"):
            estimates = [getattr(one, name).images_per_second for one in found]
            figure = _geometric(
                f"{variant}: {name.replace('_', ' ')}", [e.value for e in estimates], "images/s", "higher", print_
            )
            yield figure
        memory = [float(one.memory.reserved or one.memory.allocated) for one in found]
        yield Figure(f"{variant}: memory", max(memory), None, "bytes", "lower", len(memory), print_)


def _of_kernels(file: Path) -> Source:
    from bench.kernels.report import read_timed

    result = read_timed(file)
    figures = []
    for m in result.measurements:
        shape = "x".join(map(str, m.shape))
        name = (
            f"{m.loss} {m.mode} {m.variant} {m.pred_dtype}/{m.target_dtype} {shape}, weight {m.weight}, {m.clock} time"
        )
        name += "" if m.upstream == "one" else f", upstream {m.upstream}"
        interval = _notch(m.median, m.seconds)
        system = _system(result.environment)
        figures.append(Figure(name, m.median, interval, "s", "lower", len(m.seconds), system))
    where = result.environment
    return Source(file, tuple(figures), (), where.commit, where.dirty, where.host, result.started)


def _of_pytest_benchmark(file: Path, content: dict[str, Any]) -> Source:
    machine: dict[str, Any] = _mapping(content.get("machine_info"))
    commit: dict[str, Any] = _mapping(content.get("commit_info"))
    brand = _mapping(machine.get("cpu")).get("brand_raw")
    figures = []
    for place, one in enumerate(content["benchmarks"]):
        stats = one.get("stats") if isinstance(one, dict) else None
        if not isinstance(stats, dict):
            raise InputError(f"{file}: benchmarks.{place}: has no stats")
        name = str(one.get("fullname", one.get("name")))
        try:
            median, spread, rounds = float(stats["median"]), float(stats["iqr"]), int(stats["rounds"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: benchmarks.{place}.stats: no median, iqr and rounds") from None
        half = _NOTCH * spread / math.sqrt(rounds) if rounds > 3 else None
        known = _plain_system(_mapping(_mapping(one.get("extra_info")).get("environment")))
        if brand and "GPU" not in known:
            known.setdefault("CPU", str(brand))
        interval = Interval(median, median - half, median + half) if half is not None else None
        figures.append(Figure(name, median, interval, "s", "lower", rounds, known))
    if not figures:
        raise InputError(f"{file}: holds no benchmark")
    dirty = commit.get("dirty")
    return Source(
        file, tuple(figures), (), commit.get("id"), dirty if isinstance(dirty, bool) else None, machine.get("node"),
        content.get("datetime"),
    )  # fmt: skip


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
    values = {
        "GPU": gpu,
        "driver": environment.get("driver") if gpu else None,
        "torch": packages.get("torch"),
        "CUDA": environment.get("cuda") if gpu else None,
        "triton": packages.get("triton"),
        "CPU": None if gpu else environment.get("cpu"),
    }
    return {key: str(value) for key, value in values.items() if value}


def _mean(
    name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"], print_: Mapping[str, str]
) -> Figure:
    interval = mean_interval(values) if all(map(math.isfinite, values)) else None
    return Figure(name, statistics.fmean(values), interval, unit, better, len(values), print_)


def _geometric(
    name: str, values: Sequence[float], unit: str, better: Literal["higher", "lower"], print_: Mapping[str, str]
) -> Figure:
    """Of speeds of processes: the unit that repeats is a process, not a step."""
    if not all(math.isfinite(value) and value > 0 for value in values):
        return Figure(name, math.nan, None, unit, better, len(values), print_)
    logs = [math.log(value) for value in values]
    found = mean_interval(logs)
    interval = found and Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high))
    return Figure(name, math.exp(statistics.fmean(logs)), interval, unit, better, len(values), print_)


def _notch(median: float, samples: Sequence[float]) -> Interval | None:
    if len(samples) < 4:
        return None
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    half = _NOTCH * (high - low) / math.sqrt(len(samples))
    return Interval(median, median - half, median + half)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _same(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
