"""An experiment's folder as it lies on disk: what ran, how it ended, and which files cannot be believed.

    experiment.yaml           the resolved experiment, and the ids of its trials
    trials/VARIANT-sSEED-ID/  one folder per trial; its files are described in `bench.result`. A time to NME has
                              VARIANT-sSEED-coldREPEAT-ID and -warmREPEAT-, a throughput VARIANT-rREPEAT-ID, the levels
                              of parity VARIANT-levels-ID
    parity.json               the rules of parity it has had (`bench.rule`)
    gates.json                [{"gate", "variant", "passed", "detail"}, ...]
    contact_sheet.png         faces of the data set, where the runner drew them

Nothing but these files is read, and nothing written but an index of large experiments (`bench.index`).
"""

from __future__ import annotations

import csv
import gc
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from bench.index import Index
from bench.result import (
    FAILURE,
    LEVELS,
    RESULT,
    THROUGHPUT,
    Environment,
    Failure,
    LevelsResult,
    Result,
    ThroughputResult,
    read_failure,
    read_record,
)
from bench.rule import Noted, read_rules
from pose.errors import InputError
from pose.landmarks import ATTRIBUTES, NUM_LANDMARKS

# The same as yaml.safe_load, in C where that is there: 10,000 ids are a second's work in Python
_SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
CONFIG = "experiment.yaml"
TRIALS = "trials"
GATES = "gates.json"
CONTACT_SHEET = "contact_sheet.png"


@dataclass(frozen=True)
class Trial:
    """A trial that is done."""

    folder: Path
    result: Result
    file = RESULT

    @property
    def label(self) -> str:
        return f"{self.result.variant} (seed {self.result.seed}{', warm' if self.result.caches == 'warm' else ''})"

    @property
    def environment(self) -> Environment:
        return self.result.environment


@dataclass(frozen=True)
class TimedTrial:
    """A trial that measured speed and is done."""

    folder: Path
    result: ThroughputResult
    file = THROUGHPUT

    @property
    def label(self) -> str:
        return f"{self.result.variant} (repeat {self.result.repeat})"

    @property
    def environment(self) -> Environment:
        return self.result.environment


@dataclass(frozen=True)
class LevelsTrial:
    """A trial of the levels of parity that is done."""

    folder: Path
    result: LevelsResult
    file = LEVELS

    @property
    def label(self) -> str:
        return f"{self.result.variant} (levels of parity)"

    @property
    def environment(self) -> Environment:
        return self.result.environment


AnyTrial = Trial | TimedTrial | LevelsTrial


@dataclass(frozen=True)
class FailedTrial:
    """A trial that ended without a result; `seed` is None when the folder's name does not tell, as a throughput's."""

    folder: Path
    variant: str
    seed: int | None
    failure: Failure


class Gate(BaseModel):
    """One verdict of `gates.json`."""

    gate: str
    variant: str
    passed: bool
    detail: str = ""
    inconclusive: bool = False  # not passed, for want of results that could tell


@dataclass(frozen=True)
class Experiment:
    """What lies in an experiment's folder; results in the config's order of variants, then of seeds."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    results: tuple[Trial, ...]
    timed: tuple[TimedTrial, ...]  # of an experiment that measures throughput, which has no `results`
    levels: tuple[LevelsTrial, ...]
    failures: tuple[FailedTrial, ...]
    missing: tuple[str, ...]  # ids of trials with neither a result nor a failure that can be read
    gates: tuple[Gate, ...]
    problems: tuple[str, ...]  # files that were left out, one sentence each
    rules: tuple[Noted, ...] = ()  # of parity, as they were noted, oldest first

    @property
    def name(self) -> str:
        return str(self.config["name"])

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(self.config["variants"])

    @property
    def baseline(self) -> str:
        return str(self.config["baseline"])

    @property
    def measure(self) -> str:
        return str(self.config.get("measure", "training"))

    @property
    def done(self) -> int:
        """Trials that have a result."""
        return len(self.everything)

    @property
    def everything(self) -> tuple[AnyTrial, ...]:
        """All trials that have a result."""
        return (*self.results, *self.timed, *self.levels)

    def of_variant(self, variant: str) -> list[Trial]:
        """The variant's finished trials, in the order of their seeds; of those that only repeat another the first."""
        return [
            trial
            for trial in self.results
            if trial.result.variant == variant and trial.result.caches != "warm" and trial.result.repeat == 0
        ]

    def timed_of(self, variant: str) -> list[TimedTrial]:
        """The variant's finished measurements, in the order of their repeats."""
        return [trial for trial in self.timed if trial.result.variant == variant]


def read_experiment(folder: Path | str) -> Experiment:
    """Read an experiment's folder.

    Raises `InputError` when it is no experiment. A trial's file that cannot be read, or that belongs elsewhere,
    is named in `problems` and counts nowhere.
    """
    collecting = gc.isenabled()
    gc.disable()  # millions of objects that stay, and no cycles: looking for some took two thirds of the time
    try:
        return _read_experiment(Path(folder))
    finally:
        if collecting:
            gc.enable()


def _read_experiment(folder: Path) -> Experiment:
    text, config = _read_config(folder)
    problems: list[str] = []
    results: list[Trial] = []
    timed: list[TimedTrial] = []
    levels: list[LevelsTrial] = []
    record = THROUGHPUT if config.get("measure") == "throughput" else RESULT
    failures: list[FailedTrial] = []
    missing: list[str] = []
    index = Index(folder, len(config["trials"]))
    variants = {name: place for place, name in enumerate(config["variants"])}
    seeds = {seed: place for place, seed in enumerate(config["seeds"])}
    belonging = _Belonging(config["name"], variants, seeds)

    for name in config["trials"]:
        trial = folder / TRIALS / name
        path = trial / record
        try:
            if path.exists() and record == THROUGHPUT:
                measured = read_record(path, ThroughputResult, index.content)
                belonging.refuse_foreign(measured, path)
                timed.append(TimedTrial(trial, measured))
            elif path.exists():
                result = read_record(path, Result, index.content)
                belonging.refuse_foreign(result, path)
                results.append(Trial(trial, result))
            elif (trial / LEVELS).exists():
                found = read_record(trial / LEVELS, LevelsResult, index.content)
                belonging.refuse_foreign(found, trial / LEVELS)
                levels.append(LevelsTrial(trial, found))
            elif (trial / FAILURE).exists():
                failures.append(FailedTrial(trial, *_variant_and_seed(name), read_failure(trial / FAILURE)))
            else:
                missing.append(name)
                problems += [f"{TRIALS}/{name}/{text}; not counted" for text in _remains(trial, (record, LEVELS))]
        except (InputError, OSError) as error:
            problems.append(f"{_reason(error).replace(f'{folder}/', '')}; not counted")
            missing.append(name)

    index.save()
    strangers = sorted(
        {path.name for path in (folder / TRIALS).glob("*/") if (path / record).exists()} - {*config["trials"]}
    )
    if strangers:
        listed = ", ".join(strangers[:4]) + (f" and {len(strangers) - 4} more" if len(strangers) > 4 else "")
        problems.append(f"{TRIALS}/ also holds results of other settings; not counted: {listed}")

    results.sort(
        key=lambda trial: (
            variants[trial.result.variant],
            seeds[trial.result.seed],
            trial.result.repeat,
            trial.result.caches or "",
        )
    )
    levels.sort(key=lambda trial: variants[trial.result.variant])
    timed.sort(key=lambda trial: (variants[trial.result.variant], trial.result.repeat))
    return Experiment(
        folder=folder,
        config=config,
        config_text=text,
        results=tuple(results),
        timed=tuple(timed),
        levels=tuple(levels),
        failures=tuple(failures),
        missing=tuple(missing),
        gates=_read_gates(folder / GATES, problems),
        rules=tuple(read_rules(folder, problems)),
        problems=tuple(problems),
    )


@dataclass(frozen=True, eq=False)
class Curve:
    """A trial's training curve: columns of equal length, rising in `step`."""

    step: np.ndarray
    loss: np.ndarray


def read_curve(trial: Path) -> Curve:
    """Read `curve.csv`; of a step logged twice (a resumed trial) the later line counts. Raises `InputError`."""
    path = trial / "curve.csv"
    rows: dict[int, float] = {}
    try:
        with path.open(newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                try:
                    rows[int(row["step"])] = float(row["loss"])
                except (KeyError, TypeError, ValueError, OverflowError):
                    raise InputError(f"{path}: line {number} has no step and loss") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error})") from None
    steps = sorted(step for step, loss in rows.items() if math.isfinite(loss))
    return Curve(np.array(steps, dtype=np.int64), np.array([rows[step] for step in steps], dtype=np.float64))


@dataclass(frozen=True, eq=False)
class FaceErrors:
    """A trial's `faces.npz`: one row per test face; `mean_shape_nme` where the trial wrote it."""

    nme: np.ndarray  # (N,), fraction of the inter-ocular distance
    predicted: np.ndarray  # (N, 98, 2), pixels of the image
    true: np.ndarray  # (N, 98, 2)
    center: np.ndarray  # (N, 2)
    side: np.ndarray  # (N,), before padding
    image: np.ndarray  # (N,), paths
    mean_shape_nme: np.ndarray | None
    attributes: np.ndarray | None = None  # (N, 6) bool, columns as in `pose.landmarks.ATTRIBUTES`; None: not known
    attributes_known: np.ndarray | None = None  # (6,) bool


def read_faces(trial: Path) -> FaceErrors:
    """Read `faces.npz`. Raises `InputError` naming the file."""
    path = trial / "faces.npz"
    try:
        # Opened here: of a file that is no archive, numpy forgets to close what it opened
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            columns = {name: file[name] for name in ("nme", "predicted", "true", "center", "side", "image")}
            mean_shape = file.get("mean_shape_nme")
            flags = {name: file.get(name) for name in ("attributes", "attributes_known")}
    except KeyError as error:
        raise InputError(f"{path}: {error.args[0]}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):  # TypeError: one bare array
        raise InputError(f"{path}: not a readable .npz file of plain columns") from None
    rows = len(columns["nme"]) if columns["nme"].ndim else 0
    points = (rows, NUM_LANDMARKS, 2)
    shapes = {
        "nme": (rows,),
        "predicted": points,
        "true": points,
        "center": (rows, 2),
        "side": (rows,),
        "image": (rows,),
    }
    for name, shape in shapes.items():
        column, kind = columns[name], "U" if name == "image" else "f"
        if column.shape != shape or column.dtype.kind != kind:
            wanted = "text" if kind == "U" else "floating point"
            raise InputError(f"{path}: {name} is {column.dtype} {column.shape}, wanted {wanted} {shape}")
    if (
        not np.isfinite(columns["center"]).all()
        or not np.isfinite(columns["side"]).all()
        or (columns["side"] <= 0).any()
    ):
        raise InputError(f"{path}: center and side must be finite, and side positive")
    if mean_shape is not None and mean_shape.shape != (rows,):
        raise InputError(f"{path}: mean_shape_nme has shape {mean_shape.shape}, wanted {(rows,)}")
    for name, shape in (("attributes", (rows, len(ATTRIBUTES))), ("attributes_known", (len(ATTRIBUTES),))):
        column = flags[name]
        if column is not None and (column.shape != shape or column.dtype != bool):
            raise InputError(f"{path}: {name} is {column.dtype} {column.shape}, wanted bool {shape}")
    return FaceErrors(**columns, mean_shape_nme=mean_shape, **flags)


def _read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    path = folder / CONFIG
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{folder}: not the folder of an experiment (it has no {CONFIG})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file") from None
    try:
        config = yaml.load(text, Loader=_SAFE)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: not an experiment (a mapping is wanted)")
    wanted = {"name": str, "variants": dict, "baseline": str, "seeds": list, "trials": list}
    for key, kind in wanted.items():
        if not isinstance(config.get(key), kind):
            raise InputError(f"{path}: {key}: missing or not a {kind.__name__}")
    if config.get("measure") == "throughput" and not isinstance(config.get("throughput"), dict):
        raise InputError(f"{path}: throughput: missing or not a dict")
    items: dict[str, type] = {"seeds": int, "variants": str}
    for key, wanted_item in items.items():
        if not all(isinstance(item, wanted_item) for item in config[key]):
            raise InputError(f"{path}: {key}: not all of them are {'numbers' if wanted_item is int else 'names'}")
    if not all(isinstance(name, str) and Path(name).name == name for name in config["trials"]):
        raise InputError(f"{path}: trials: not a list of folder names")
    if len(set(config["trials"])) < len(config["trials"]):
        twice = next(name for name in config["trials"] if config["trials"].count(name) > 1)
        raise InputError(f"{path}: trials: {twice} is there twice")
    return text, config


def _remains(trial: Path, records: Sequence[str]) -> Iterator[str]:
    """Of a trial without a record: what there is in its place."""
    for record in records:
        if (trial / record).is_symlink():
            yield f"{record}: a link to nothing"
        for half in sorted(trial.glob(f".{record}.*.tmp")):
            yield f"{half.name}: half written"


def _read_gates(path: Path, problems: list[str]) -> tuple[Gate, ...]:
    try:
        return tuple(TypeAdapter(list[Gate]).validate_json(path.read_bytes()))
    except FileNotFoundError:
        return ()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        problems.append(f"{path.name}: {where + ': ' if where else ''}{first['msg']}; no gate is shown")
    except OSError as error:
        problems.append(f"{path.name}: {_reason(error)}; no gate is shown")
    return ()


@dataclass(frozen=True)
class _Belonging:
    """What results must name to be of this experiment."""

    experiment: str
    variants: Mapping[str, int]
    seeds: Mapping[int, int]

    def refuse_foreign(self, result: Result | ThroughputResult | LevelsResult, path: Path) -> None:
        """A file copied from elsewhere must not pass for a trial of this experiment."""
        if result.experiment != self.experiment:
            raise InputError(f"{path}: belongs to the experiment {json.dumps(result.experiment)}")
        if result.trial != path.parent.name:
            raise InputError(f"{path}: belongs to the trial {json.dumps(result.trial)}")
        if result.variant not in self.variants or result.seed not in self.seeds:
            raise InputError(f"{path}: {CONFIG} has no {json.dumps(result.variant)} with seed {result.seed}")


def _variant_and_seed(name: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+)-(?:s(\d+)(?:-(?:cold|warm)\d+)?|r\d+|levels)-[0-9a-f]+", name)
    if match is None:
        return name, None
    return match[1], int(match[2]) if match[2] is not None else None


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
