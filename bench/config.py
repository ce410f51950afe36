"""An experiment: a recipe, the variants of it that are compared, and what the comparison must show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.interval import FEWEST_SAMPLES
from bench.resources import Resources
from pose.errors import InputError
from pose.recipe import NAME, Positive, PositiveFloat, Recipe, Section, Seed, validate
from pose.yaml_layers import Layers, merge, read_layers

# What a variant may change. The data is the experiment's: faces are compared one by one.
VARIABLE = ("input", "model", "loss", "train", "evaluate")

Measure = Literal["training", "throughput", "time_to_nme"]
Subset = Literal["test", "pose", "expression", "illumination", "makeup", "occlusion", "blur"]

VariantName = Annotated[str, Field(pattern=NAME)]


class Gates(Section):
    """Conditions on the results; one that does not hold makes `bench.run` exit with 1."""

    op_error: bool = True  # every variant's loss and gradient are within their limits of float64
    mean_shape_ratio: PositiveFloat | None = None  # test NME at most this multiple of the mean shape's
    trajectory: bool = False  # the levels of parity below the NME: see `bench.levels`
    evaluation: bool = False
    # Of a throughput: variant -> so many times as fast as the baseline at least, by the lower end of the interval
    speedup: dict[VariantName, PositiveFloat] = Field(default={})


class Parity(Section):
    """What "the same NME" means, fixed before any trial runs. An experiment with this section gates on it."""

    margin: PositiveFloat = 0.05  # NME x 100: differences within it do not matter
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05  # of each one-sided test
    gating: list[Subset] = Field(default=["test"])  # the other subsets inform
    # variant -> what it is compared with, and no others are; by default every variant is, with the baseline
    against: dict[VariantName, VariantName] = Field(default={})
    levels: bool = True  # also measure the levels below: op, trajectory, evaluation
    trajectory_steps: Annotated[int, Field(ge=3)] = 20


class ThroughputOptions(Section):
    """How `measure: throughput` times each variant. Steps are the recipe's, without their number."""

    warmup_steps: Positive = 50  # after the first, and again before each other kind of work
    window_steps: Positive = 20
    windows: Annotated[int, Field(ge=FEWEST_SAMPLES)] = 20
    repeats: Positive = 2  # fresh processes per variant


class TimeToNme(Section):
    """What `measure: time_to_nme` looks for. Every variant trains twice for each seed and repeat: cold, then warm."""

    nme_x100: Annotated[list[PositiveFloat], Field(min_length=1)]  # NMEs to reach on the test set, as reports show them
    repeats: Positive = 1


class Experiment(Recipe):
    measure: Measure = "training"
    throughput: ThroughputOptions | None = None
    time_to_nme: TimeToNme | None = None
    variants: Annotated[dict[VariantName, dict[str, Any]], Field(min_length=1)] = Field({"baseline": {}})
    baseline: str = ""  # by default the first variant
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field([0])
    gates: Gates = Gates()
    parity: Parity | None = None
    resources: Resources = Resources()  # what a trial asks of a cluster

    @property
    def compared(self) -> dict[str, str]:
        """Every variant that is compared with another, and with which."""
        return compared(self.variants, self.baseline, self.parity.against if self.parity is not None else {})

    def recipe(self) -> dict[str, Any]:
        """The part that is a recipe, as plain values."""
        return self.model_dump(mode="json", include=set(Recipe.model_fields))


def compared(variants: Iterable[str], baseline: str, against: Mapping[str, str]) -> dict[str, str]:
    """Every variant that is compared with another, and with which: as `against` says, or all with the baseline."""
    return {
        name: against.get(name, baseline) for name in variants if (name in against if against else name != baseline)
    }


def load_experiment(path: Path | str, settings: Sequence[str] = ()) -> tuple[Experiment, dict[str, Recipe]]:
    """Read an experiment from YAML, with `settings` ("key.path=value") over it; returns it and each variant's recipe.

    Raises `InputError` naming the file, line and key of everything that is wrong, in any variant.
    """
    layers = read_layers(path, settings)
    layers.values.pop("trials", None)  # the record of an experiment that ran is a config, too, and lists its trials
    experiment = validate(Experiment, layers.values, layers)
    baseline = experiment.baseline or next(iter(experiment.variants))
    if baseline not in experiment.variants:
        raise InputError(
            f"{layers.origin(('baseline',))}: baseline: no variant is called {baseline!r} "
            f"(variants: {', '.join(experiment.variants)})"
        )
    if len(set(experiment.seeds)) < len(experiment.seeds):
        raise InputError(f"{layers.origin(('seeds',))}: seeds: {experiment.seeds} names one twice")
    experiment = experiment.model_copy(update={"baseline": baseline})
    recipes = {name: _variant(name, layers) for name in experiment.variants}
    return _fitted_to_measure(experiment, recipes, layers), recipes


def _fitted_to_measure(experiment: Experiment, recipes: dict[str, Recipe], layers: Layers) -> Experiment:
    """`experiment` with the section of what it measures; refuses what does not go with that."""
    measure = experiment.measure
    if experiment.parity is not None:
        _refuse_odd_pairs(experiment, layers)
    for name in experiment.gates.speedup:
        if measure != "throughput" or name not in experiment.variants or name == experiment.baseline:
            raise InputError(
                f"{layers.origin(('gates', 'speedup', name))}: gates.speedup.{name}: wanted a variant "
                "beside the baseline, of an experiment with measure: throughput"
            )
    for key in ("throughput", "time_to_nme"):
        if key != measure and getattr(experiment, key) is not None:
            raise InputError(f"{layers.origin((key,))}: {key}: goes with measure: {key}, and measure is {measure}")
    if measure == "throughput":
        if len(experiment.seeds) > 1:
            raise InputError(
                f"{layers.origin(('seeds',))}: seeds: speed is measured with one seed, in throughput.repeats processes "
                f"per variant; {len(experiment.seeds)} are given"
            )
        return experiment.model_copy(update={"throughput": experiment.throughput or ThroughputOptions()})
    if measure == "time_to_nme":
        if experiment.time_to_nme is None:
            raise InputError(f"{layers.origin(('measure',))}: time_to_nme.nme_x100: is missing, the NMEs to reach")
        for name, recipe in recipes.items():
            if recipe.train.evaluate_every is None:
                raise InputError(
                    f"{layers.origin(('train', 'evaluate_every'))}: variant {name}: train.evaluate_every: is null, and "
                    "time_to_nme looks at the evaluations during training"
                )
    return experiment


def _refuse_odd_pairs(experiment: Experiment, layers: Layers) -> None:
    assert experiment.parity is not None
    if experiment.measure != "training":
        raise InputError(
            f"{layers.origin(('parity',))}: parity: goes with measure: training, and measure is {experiment.measure}"
        )
    known = ", ".join(experiment.variants)
    for name, other in experiment.parity.against.items():
        where = f"{layers.origin(('parity', 'against', name))}: parity.against.{name}"
        for one in (name, other):
            if one not in experiment.variants:
                raise InputError(f"{where}: no variant is called {one!r} (variants: {known})")
        if name == other:
            raise InputError(f"{where}: a variant is not compared with itself")
    if len(set(experiment.parity.gating)) < len(experiment.parity.gating):
        raise InputError(
            f"{layers.origin(('parity', 'gating'))}: parity.gating: {experiment.parity.gating} names one twice"
        )


def _variant(name: str, layers: Layers) -> Recipe:
    base = {key: value for key, value in layers.values.items() if key in Recipe.model_fields}
    overrides = layers.values.get("variants", {"baseline": {}})[name] or {}
    for key in overrides:
        if key not in VARIABLE:
            raise InputError(
                f"{layers.origin(('variants', name, key))}: variants.{name}.{key}: a variant may change "
                f"{', '.join(VARIABLE)}; all variants share the rest"
            )
    return validate(Recipe, merge(base, overrides), layers, under=("variants", name))
