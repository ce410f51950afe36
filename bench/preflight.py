"""What a config asks for that this machine or version cannot do: said before any trial runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pose.errors import InputError
from pose.recipe import Recipe


def refuse_impossible(recipes: Mapping[str, Recipe]) -> None:
    """Raise `InputError` for the first variant that would end as soon as it runs."""
    for variant, recipe in recipes.items():
        source = recipe.model.pretrained
        if source is not None and Path(source).suffix and not Path(source).is_file():
            raise InputError(f"variant {variant}: model.pretrained: {source}: no such file")
        if recipe.loss.impl == "triton" or recipe.train.device == "cuda":  # torch takes seconds to import
            try:
                _refuse_on_this_machine(recipe)
            except (InputError, NotImplementedError) as error:
                raise InputError(f"variant {variant}: {error}") from None


def _refuse_on_this_machine(recipe: Recipe) -> None:
    import torch

    from pose.criterion import loss_function
    from pose.precision import select_device

    select_device(recipe.train.device)
    nothing = torch.zeros(1, 1, 2)
    loss_function(recipe.loss)(nothing, nothing, None)
