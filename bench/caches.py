"""Cold and warm: where a timed training finds compiled code and decoded pixels, or does not.

A cold trial starts with empty folders for what Triton, Inductor and the driver compile and for the crop cache; its warm
one starts with what the cold one left there. Files that the operating system keeps in memory stay there for both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from bench.plan import Trial
from pose.errors import InputError
from pose.recipe import Recipe

CACHES = "caches"
_FILLED = "filled"  # a cold trial has come to its end here
_VARIABLES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda"}
_CROPS = "crops"


def prepare(trial: Trial, out: Path) -> None:
    """Make a timed training start as it has to: a cold one with empty caches, and none from a checkpoint.

    A time that spans two processes is no time to anything. Raises `InputError` if the folders cannot be made.
    """
    if trial.caches is None:
        return
    try:
        for checkpoint in trial.folder(out).glob("*.pt"):
            checkpoint.unlink()
        if trial.caches == "cold" and _folder(trial, out).exists():
            shutil.rmtree(_folder(trial, out))
        for name in (*_VARIABLES.values(), _CROPS):
            (_folder(trial, out) / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{_folder(trial, out)}: {error.strerror or error}") from None


def variables(trial: Trial, out: Path) -> dict[str, str]:
    """Environment variables that lead the trial's process to its caches; {} where it has none of its own."""
    if trial.caches is None:
        return {}
    return {name: str((_folder(trial, out) / place).absolute()) for name, place in _VARIABLES.items()}


def with_crops(recipe: Recipe, trial_folder: Path, shared: str | None) -> Recipe:
    """`recipe` with the crop cache that belongs to the caches called `shared`; as it is without them."""
    if shared is None:
        return recipe
    crops = (trial_folder.parents[1] / CACHES / shared / _CROPS).absolute()
    return recipe.model_copy(update={"input": recipe.input.model_copy(update={"cache": str(crops)})})


def note_filled(shared: str, out: Path) -> None:
    """Say that the cold trial of the caches called `shared` has come to its end."""
    (out / CACHES / shared / _FILLED).touch()


def filled(shared: str | None, out: Path) -> bool:
    """Whether the caches called `shared` hold what their cold trial left there."""
    return shared is not None and (out / CACHES / shared / _FILLED).exists()


def wanted_again(trial: Trial, trials: Sequence[Trial], out: Path) -> bool:
    """Whether a cold trial that is done has to run again: its warm one is still to come and the caches are gone."""
    if trial.caches != "cold" or filled(trial.shared, out):
        return False
    return any(
        other.shared == trial.shared and other.caches == "warm" and not other.record(out).exists() for other in trials
    )


def _folder(trial: Trial, out: Path) -> Path:
    assert trial.shared is not None
    return out / CACHES / trial.shared
