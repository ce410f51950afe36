"""Reference values of a system, kept in YAML: what a measurement of another day is compared with.

Each figure has bounds, in percent of its value as ReFrame has them (for an NME in its own unit): beyond the one on the
bad side it has got worse. They may be edited by hand, and stay when the values are written anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bench.experiment import Experiment, LevelsTrial
from bench.figures import MARGINS, SYSTEM, Figure, Source, fingerprint, together
from bench.interval import Interval
from bench.noise import UNKNOWN, NoiseFloor, own_noise_floor
from pose.errors import InputError
from pose.files import write_atomically
from pose.yaml_layers import dump_yaml, read_layers

BASELINES = Path(__file__).parent / "baselines"
SCHEMA_VERSION = 1

Bounds = tuple[float | None, float | None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Provenance(_Strict):
    source: str  # the folder or file that the values are from
    commit: str | None
    dirty: bool | None
    host: str | None
    measured: str | None  # ISO 8601
    written: str  # ISO 8601, UTC
    command: str


class ReferenceFigure(_Strict):
    value: float
    interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None  # 95 %
    unit: str
    better: Literal["higher", "lower"]
    samples: int
    workload: dict[str, str] = {}
    bounds: Annotated[list[float | None], Field(min_length=2, max_length=2)]  # lower and upper; null: none
    bounds_in: Literal["percent", "unit"]
    one_process: bool = False  # `bench.figures.Figure`

    @model_validator(mode="after")
    def _possible(self) -> Self:
        lower, upper = self.bounds
        if (lower is not None and lower > 0) or (upper is not None and upper < 0):
            raise ValueError(f"bounds: {lower} and {upper}: the lower one is at most 0, the upper one at least 0")
        if self.bounds_in == "percent" and lower is not None and lower <= -100:
            raise ValueError(f"bounds: {lower} %: nothing falls so far")
        if self.interval is not None and not self.interval[0] <= self.value <= self.interval[1]:
            raise ValueError(f"interval: {self.interval} does not hold the value {self.value}")
        return self


class StoredNoise(_Strict):
    """An A/A experiment on the system: `bench.noise.NoiseFloor`."""

    pairs: int
    deviation: float
    ratio: Annotated[list[float], Field(min_length=3, max_length=3)]  # value, low, high
    provenance: Provenance | None = None  # None: the file's


class Reference(_Strict):
    schema_version: Literal[1]
    provenance: Provenance
    system: dict[str, str]
    noise_floor: StoredNoise | None = None
    figures: dict[str, ReferenceFigure]


def read_reference(path: Path) -> Reference:
    """Read a reference file; anything else is an `InputError` naming the file and key."""
    try:
        layers = read_layers(path)  # names lines, and refuses a key that is set twice
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    if any(not place.startswith(f"{path}:") for place in layers.origins.values()):
        raise InputError(f"{path}: extends: a file of reference values stands alone")
    content = layers.values
    version = content.get("schema_version")
    if type(version) is not int:
        raise InputError(f"{path}: not a file of reference values (it has no schema_version)")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, this program reads version {SCHEMA_VERSION}")
    try:
        return Reference.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        keys = tuple(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{layers.origin(keys)}: {'.'.join(keys)}: {message}") from None


def figures_of(reference: Reference) -> dict[str, tuple[Figure, Bounds, bool]]:
    """Each figure by name, its bounds, and whether these are in percent."""
    return {
        name: (
            Figure(
                name,
                one.value,
                Interval(one.value, *one.interval) if one.interval is not None else None,
                one.unit,
                one.better,
                one.samples,
                {**reference.system, **one.workload},
                one.one_process,
            ),
            (one.bounds[0], one.bounds[1]),
            one.bounds_in == "percent",
        )
        for name, one in reference.figures.items()
    }


def default_bounds(figure: Figure, tolerance: float, margin: float) -> tuple[Bounds, bool]:
    """Bounds on the bad side alone, and whether they are in percent; `margin` is an NME's."""
    percent = figure.unit not in MARGINS
    room = tolerance if percent else margin * MARGINS[figure.unit]
    return ((None, room) if figure.better == "lower" else (-room, None)), percent


def make_reference(
    source: Source, before: Reference | None, *, tolerance: float, margin: float, written: str, command: str
) -> Reference:
    """Reference values from `source`; bounds are those of `before` for figures that it has.

    Raises `InputError` for figures without a value, and for several systems.
    """
    lost = [figure.name for figure in source.figures if not math.isfinite(figure.value)]
    if lost:
        raise InputError(f"{source.path}: {lost[0]} is not a number, and no reference for others")
    if source.problems:
        raise InputError(f"{source.path}: is not complete, and no reference for others: {source.problems[0]}")
    systems = {tuple(_part(figure.fingerprint, SYSTEM).items()) for figure in source.figures}
    if len(systems) > 1:
        raise InputError(f"{source.path}: was measured on several systems, and a reference is of one")
    system = dict(next(iter(systems)))
    provenance = Provenance(
        source=shown(source.path),
        commit=source.commit,
        dirty=source.dirty,
        host=source.host,
        measured=source.started,
        written=written,
        command=command,
    )
    floor = own_noise_floor(source.experiment) if source.experiment is not None else None
    stored = None
    if floor is not None:
        ratio = [floor.ratio.value, floor.ratio.low, floor.ratio.high]
        stored = StoredNoise(pairs=floor.pairs, deviation=floor.deviation, ratio=ratio, provenance=provenance)
    elif before is not None and before.system == system and before.noise_floor is not None:
        known_from = before.noise_floor.provenance or before.provenance
        stored = before.noise_floor.model_copy(update={"provenance": known_from})
    figures = {}
    for figure in source.figures:
        known = before.figures.get(figure.name) if before is not None else None
        bounds, percent = default_bounds(figure, tolerance, margin)
        figures[figure.name] = ReferenceFigure(
            value=figure.value,
            interval=[figure.interval.low, figure.interval.high] if figure.interval is not None else None,
            unit=figure.unit,
            better=figure.better,
            samples=figure.samples,
            workload={key: value for key, value in figure.fingerprint.items() if key not in SYSTEM},
            bounds=known.bounds if known is not None else list(bounds),
            bounds_in=known.bounds_in if known is not None else "percent" if percent else "unit",
            one_process=figure.one_process,
        )
    return Reference(
        schema_version=1,
        provenance=provenance,
        system=system,
        noise_floor=stored,
        figures=figures,
    )


def write_reference(reference: Reference, path: Path) -> None:
    """Write it so that readers see the whole file or the one before."""
    write_atomically(path, dump_yaml(reference.model_dump(mode="json")).encode())


def noise_floor(experiment: Experiment, folder: Path = BASELINES) -> NoiseFloor | None:
    """The experiment's own noise floor, or that of its system among the references in `folder`."""
    own = own_noise_floor(experiment)
    trials = [trial for trial in experiment.everything if not isinstance(trial, LevelsTrial)]
    if own is not None or not trials:
        return own
    system = _part(together([fingerprint(one.environment, one.result.config) for one in trials]), SYSTEM)
    for path in sorted(folder.glob("*.yaml")):
        try:
            reference = read_reference(path)
        except InputError:
            continue  # `bench.compare` names what is wrong with it
        stored = reference.noise_floor
        if stored is not None and reference.system == system:
            value, low, high = stored.ratio
            return NoiseFloor(
                stored.pairs, stored.deviation, Interval(value, low, high), f"bench/baselines/{path.name}"
            )
    return None


def noise_sentence(experiment: Experiment) -> str:
    """The noise floor in words, or that it is not known and what to do about it."""
    found = noise_floor(experiment)
    return found.sentence if found is not None else UNKNOWN


def _part(found: Any, keys: Iterable[str]) -> dict[str, str]:
    return {key: found[key] for key in keys if key in found}


def shown(path: Path) -> str:
    """Without what is of this machine alone."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return path.name
