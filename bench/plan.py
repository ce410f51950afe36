"""The trials of an experiment: every variant with every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import Experiment
from bench.result import SCHEMA_VERSION
from pose.recipe import Recipe

# Keys of a recipe that change neither the weights nor the metrics nor what a timing means
_WITHOUT_EFFECT: Any = {"name": True, "description": True, "train": {"checkpoint_every"}}


@dataclass(frozen=True)
class Trial:
    """One training run. `id` is its folder's name and changes with everything that can change its result."""

    id: str
    experiment: str
    variant: str
    seed: int
    recipe: Recipe

    def folder(self, out: Path) -> Path:
        return out / "trials" / self.id


def plan(experiment: Experiment, recipes: Mapping[str, Recipe], faces: str) -> list[Trial]:
    """Trials in the order they run: seed by seed, so that an early stop leaves whole pairs.

    faces: a digest of the training and test faces, which are part of what decides a result.
    """
    return [
        Trial(_trial_id(variant, seed, recipe, faces), experiment.name, variant, seed, recipe)
        for seed in experiment.seeds
        for variant, recipe in recipes.items()
    ]


def _trial_id(variant: str, seed: int, recipe: Recipe, faces: str) -> str:
    deciding = [SCHEMA_VERSION, faces, seed, recipe.model_dump(mode="json", exclude=_WITHOUT_EFFECT)]
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return f"{variant}-s{seed}-{digest[:10]}"
