"""The trials of an experiment: every variant with every seed, or every variant in every repeat."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.config import Experiment, Measure, ThroughputOptions
from bench.result import LEVELS, RESULT, SCHEMA_VERSION, THROUGHPUT
from pose.recipe import Recipe

# Keys of a recipe that change neither the weights nor the metrics nor what a timing means
_WITHOUT_EFFECT: Any = {"name": True, "description": True, "train": {"checkpoint_every"}}
_WITHOUT_EFFECT_ON_TIME: Any = {"name", "description"}


@dataclass(frozen=True)
class Trial:
    """One process, or one per rank. `id` is its folder's name and changes with all that can change its result."""

    id: str
    experiment: str
    variant: str
    seed: int
    recipe: Recipe
    measure: Measure | Literal["levels"] = "training"
    repeat: int = 0
    caches: Literal["cold", "warm"] | None = None  # of a time to NME
    shared: str | None = None  # name of the folder of caches that a cold trial fills and its warm one uses
    options: ThroughputOptions | None = None  # of a throughput
    block: int | None = None  # of a throughput: those of equal number alternate within one allocation
    needs: tuple[str, ...] = ()  # ids of trials that have to be over before it starts
    reference: Recipe | None = None  # of levels: what the variant is compared with
    weights: str | None = None  # of levels: the trial whose last checkpoint both evaluate
    steps: int | None = None  # of levels: how many of the trajectory

    def folder(self, out: Path) -> Path:
        return out / "trials" / self.id

    def record(self, out: Path) -> Path:
        """The file that exists if and only if the trial is done."""
        return self.folder(out) / {"throughput": THROUGHPUT, "levels": LEVELS}.get(self.measure, RESULT)

    @property
    def label(self) -> str:
        """What tells it from the variant's other trials."""
        if self.measure == "throughput":
            return f"repeat {self.repeat}"
        if self.measure == "levels":
            return "levels of parity"
        return f"seed {self.seed}" + (f", {self.caches}, repeat {self.repeat}" if self.caches else "")


def plan(
    experiment: Experiment, recipes: Mapping[str, Recipe], faces: str, placements: Mapping[str, Any] | None = None
) -> list[Trial]:
    """Trials in the order they run.

    Training goes seed by seed, so that an early stop leaves whole pairs. Throughput goes repeat by repeat, every other
    one backwards (A B, B A, ...), so that a machine which slows down or warms up does so for all variants alike; two
    repeats, there and back, are a block. A time to NME is a cold trial and right after it a warm one. Levels of parity
    come last: they evaluate weights that a training leaves.

    faces: a digest of the training and test faces, which are part of what decides a result.
    placements: for each variant where it runs, which is part of what decides a time; None for this machine.
    """
    placed = placements or {}
    if experiment.measure == "throughput":
        assert experiment.throughput is not None
        return [
            _throughput(experiment, variant, recipes[variant], repeat, faces, placed.get(variant))
            for repeat in range(experiment.throughput.repeats)
            for variant in (list(recipes) if repeat % 2 == 0 else reversed(list(recipes)))
        ]
    if experiment.measure == "time_to_nme":
        assert experiment.time_to_nme is not None
        return [
            trial
            for repeat in range(experiment.time_to_nme.repeats)
            for seed in experiment.seeds
            for variant, recipe in recipes.items()
            for trial in _cold_and_warm(experiment, variant, recipe, seed, repeat, faces, placed.get(variant))
        ]
    trained = [
        Trial(f"{variant}-s{seed}-{_digest(recipe, faces, seed)}", experiment.name, variant, seed, recipe)
        for seed in experiment.seeds
        for variant, recipe in recipes.items()
    ]
    return [*trained, *_levels(experiment, recipes, faces, trained)]


def _levels(
    experiment: Experiment, recipes: Mapping[str, Recipe], faces: str, trained: Sequence[Trial]
) -> Iterator[Trial]:
    """For each variant that is compared one trial of the levels below the NME, with the first seed."""
    if experiment.parity is None or not experiment.parity.levels:
        return
    seed, steps = experiment.seeds[0], experiment.parity.trajectory_steps
    first = {trial.variant: trial.id for trial in trained if trial.seed == seed}
    for variant, other in experiment.compared.items():
        recipe, reference = recipes[variant], recipes[other]
        digest = _digest(
            recipe, faces, seed, "levels", steps, reference.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
        )
        yield Trial(
            id=f"{variant}-levels-{digest}",
            experiment=experiment.name,
            variant=variant,
            seed=seed,
            recipe=recipe,
            measure="levels",
            needs=(first[other],),
            reference=reference,
            weights=first[other],
            steps=steps,
        )


def _throughput(experiment: Experiment, variant: str, recipe: Recipe, repeat: int, faces: str, placement: Any) -> Trial:
    options, seed = experiment.throughput, experiment.seeds[0]
    assert options is not None
    digest = _digest(
        recipe, faces, seed, "throughput", repeat, options.model_dump(exclude={"repeats"}), *_known(placement)
    )
    return Trial(
        id=f"{variant}-r{repeat}-{digest}",
        experiment=experiment.name,
        variant=variant,
        seed=seed,
        recipe=recipe,
        measure="throughput",
        repeat=repeat,
        block=repeat // 2,
        options=options,
    )


def _cold_and_warm(
    experiment: Experiment, variant: str, recipe: Recipe, seed: int, repeat: int, faces: str, placement: Any
) -> list[Trial]:
    digest = _digest(recipe, faces, seed, "time_to_nme", repeat, *_known(placement))
    ids = {state: f"{variant}-s{seed}-{state}{repeat}-{digest}" for state in ("cold", "warm")}
    caches: tuple[Literal["cold", "warm"], ...] = ("cold", "warm")
    return [
        Trial(
            id=ids[state],
            experiment=experiment.name,
            variant=variant,
            seed=seed,
            recipe=recipe,
            measure="time_to_nme",
            repeat=repeat,
            caches=state,
            needs=(ids["cold"],) if state == "warm" else (),
            shared=f"{variant}-s{seed}-{repeat}-{digest}",
        )
        for state in caches
    ]


def _known(placement: Any) -> list[Any]:
    return [] if placement is None else [placement]


def _digest(recipe: Recipe, faces: str, seed: int, *more: Any) -> str:
    excluded = _WITHOUT_EFFECT_ON_TIME if more else _WITHOUT_EFFECT
    deciding = [SCHEMA_VERSION, faces, seed, recipe.model_dump(mode="json", exclude=excluded), *more]
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:10]
