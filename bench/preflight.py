"""What a config asks for that this machine or version cannot do: said before any trial runs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
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
            except InputError as error:
                raise InputError(f"variant {variant}: {error}") from None


def _refuse_on_this_machine(recipe: Recipe) -> None:
    from pose.criterion import refuse_unavailable
    from pose.precision import select_device

    device = select_device(recipe.train.device)
    if device.type != "cpu":
        refuse_unavailable(recipe.loss, device)
    elif recipe.loss.impl == "triton" and find_spec("triton") is None:  # trials switch its interpreter on themselves
        raise InputError("loss.impl: triton: the package triton is not installed")
