"""What a config asks for that cannot be done here, or with these faces: said before any trial runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from pose import recipe as recipe_checks
from pose.errors import InputError
from pose.recipe import Recipe


def refuse_launched() -> None:
    """Raise `InputError` where a launcher has started several of this program: each would run the whole experiment."""
    started = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and started != "1":
        raise InputError(
            f"WORLD_SIZE={started} in the environment, as torchrun sets it: start bench.run once and without a "
            "launcher, it starts the ranks of train.parallel.world_size itself"
        )


def refuse_impossible(recipes: Mapping[str, Recipe], *, this_machine: bool = True) -> None:
    """Raise `InputError` for the first variant that would end as soon as it runs.

    this_machine: whether it is to run here, so that what this machine lacks counts.
    """
    for variant, recipe in recipes.items():
        source = recipe.model.pretrained
        if source is not None and Path(source).suffix and not Path(source).is_file():
            raise InputError(f"variant {variant}: model.pretrained: {source}: no such file")
        if this_machine and _asks_of_the_machine(recipe):  # torch takes seconds to import
            try:
                _refuse_on_this_machine(recipe)
            except InputError as error:
                raise InputError(f"variant {variant}: {error}") from None


def refuse_few_faces(recipes: Mapping[str, Recipe], train: int, test: int) -> None:
    """Raise `InputError` for the first variant whose ranks or batches are too large for so many faces."""
    for variant, recipe in recipes.items():
        try:
            recipe_checks.refuse_few_faces(recipe, train, test)
        except InputError as error:
            raise InputError(f"variant {variant}: {error}") from None


def _asks_of_the_machine(recipe: Recipe) -> bool:
    config = recipe.train
    return (
        recipe.loss.impl == "triton"
        or config.device == "cuda"
        or config.graph
        or config.parallel.sync_batch_norm
        or (config.parallel.world_size > 1 and config.device != "cpu")
    )


def _refuse_on_this_machine(recipe: Recipe) -> None:
    import torch

    from pose import stepper
    from pose.criterion import refuse_unavailable
    from pose.distributed import Ranks
    from pose.precision import select_device

    device, ranks = select_device(recipe.train.device), recipe.train.parallel.world_size
    if device.type == "cuda" and ranks > torch.cuda.device_count():
        raise InputError(
            f"train.parallel.world_size: {ranks} ranks need a GPU each, this machine has {torch.cuda.device_count()}"
        )
    stepper.refuse_impossible(recipe, Ranks(world_size=ranks, device=device))
    if device.type != "cpu":
        refuse_unavailable(recipe.loss, device)
    elif recipe.loss.impl == "triton" and find_spec("triton") is None:  # trials switch its interpreter on themselves
        raise InputError("loss.impl: triton: the package triton is not installed")
