"""The recipe of an experiment's variant that is to be measured on this machine's GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError

if TYPE_CHECKING:
    from pose.recipe import Recipe


def recipe_of(config: Path, variant: str) -> Recipe:
    """Raises `InputError` where there is no GPU or no such variant."""
    import torch

    from bench.config import load_experiment

    if not torch.cuda.is_available():
        raise InputError("no CUDA GPU here: kernels' times say something on one alone")
    recipes = load_experiment(config)[1]
    if variant not in recipes:
        raise InputError(f"--variant {variant}: {config} has {', '.join(recipes)}")
    return recipes[variant]
