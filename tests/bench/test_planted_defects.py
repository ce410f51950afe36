"""Mistakes planted in one variant alone: which levels see them. The table stands in `bench.level_verdicts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import bench.op_error
import pose.criterion
import pose.evaluator
import pose.inputs
import pose.learner
import pose.model
import pose.targets
from bench import levels
from bench.level_verdicts import level_verdicts
from bench.nme_verdicts import judged
from bench.rule import Rule
from pose.checkpoint import Checkpoint, save_checkpoint
from pose.data.source import load_split
from pose.distributed import ALONE
from pose.evaluator import Evaluator
from pose.landmarks import FLIP_INDEX
from pose.recipe import Recipe
from pose.stepper import Stepper

STEPS, SEEDS = 60, range(8)
BASE: dict[str, Any] = {
    "name": "defects",
    "input": {"size": 64, "crop": "exact"},
    "model": {"backbone": "tiny", "start_at_mean_shape": True},
    "loss": {"kind": "wing", "impl": "reference", "gradient": "direct"},
    "train": {
        "steps": STEPS, "batch_size": 16, "lr": 2e-3, "schedule": "cosine", "warmup": 0, "device": "cpu", "threads": 1
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    root = tmp_path_factory.mktemp("faces")
    data = {"kind": "synthetic", "root": str(root), "train": 240, "test": 80, "size": 96}
    return Recipe.model_validate({**BASE, "data": data})


def changed(recipe: Recipe, **train: Any) -> Recipe:
    """What the variant trains by; its mark is a key that changes no result."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"log_every": 7, **train})})


Defect = Callable[[], Any]  # a context in which the mistake is there


@contextmanager
def gradient() -> Iterator[None]:
    real = pose.criterion.loss_and_grad_function

    def wrong(config: Any) -> Any:
        function = real(config)
        if function is None:
            return None

        def off(*arguments: Any, **options: Any) -> Any:
            loss, grad = function(*arguments, **options)
            return loss, grad * 1.01

        return off

    with mock.patch.object(pose.criterion, "loss_and_grad_function", wrong):
        yield


@contextmanager
def flip_pair() -> Iterator[None]:
    wrong = FLIP_INDEX.copy()
    wrong[[60, 72]] = [60, 72]  # the outer eye corners keep their names
    with (
        mock.patch.object(pose.model, "FLIP_INDEX", wrong),
        mock.patch.object(pose.targets, "flip_index", return_value=torch.from_numpy(wrong)),
    ):
        yield


@contextmanager
def half_a_pixel() -> Iterator[None]:
    real = pose.evaluator.decode

    def wrong(output: Any, center: Any, side: Any) -> Any:
        return real(output, center, side) + np.array([0.5, 0.0])

    with mock.patch.object(pose.evaluator, "decode", wrong):
        yield


def off_by_a_level(crops: torch.Tensor) -> torch.Tensor:
    hit = torch.rand(crops.shape, generator=torch.Generator().manual_seed(0)) < 0.01
    return crops + hit / 255 / 0.225


@contextmanager
def grey_level() -> Iterator[None]:
    real = pose.inputs.crop_faces

    def wrong(*arguments: Any, **options: Any) -> torch.Tensor:
        return off_by_a_level(real(*arguments, **options))

    with mock.patch.object(pose.inputs, "crop_faces", wrong):
        yield


@contextmanager
def grey_level_evaluated() -> Iterator[None]:
    real = pose.evaluator.upright_batches

    def wrong(*arguments: Any, **options: Any) -> Iterator[torch.Tensor]:
        return map(off_by_a_level, real(*arguments, **options))

    with mock.patch.object(pose.evaluator, "upright_batches", wrong):
        yield


@contextmanager
def loss_factor(where: Any) -> Iterator[None]:
    real = pose.criterion.backward

    def wrong(config: Any, pred: Any, target: Any, weight: Any, scale: Any) -> torch.Tensor:
        return 3 * real(config, pred, target, weight, 3 * scale)

    with ExitStack() as stack:
        for module in where:
            stack.enter_context(mock.patch.object(module, "backward", wrong))
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


def measured(recipe: Recipe, defect: Defect, folder: Path, **train: Any) -> dict[str, str]:
    """The levels' verdicts on a variant that has the `defect`, beside the recipe without it."""
    faces, variant = load_split(recipe.data, "train"), changed(recipe, **train)
    trained = Stepper(recipe, faces, seed=0)
    with closing(trained), trained.settings():
        for step in range(STEPS):
            trained.run(step)
    (folder / "weights").mkdir()
    save_checkpoint(
        folder / "weights/checkpoint.pt", Checkpoint(recipe={}, step=STEPS, extra={}, **trained.learner.state())
    )

    def only_in_variant(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(one: Recipe, *arguments: Any) -> Any:
            with defect() if one.train.log_every == variant.train.log_every else nothing():
                return function(one, *arguments)

        return run

    spec = {
        "id": "variant-levels-0", "experiment": "defects", "variant": "variant", "seed": 0, "steps": 4,
        "recipe": variant.model_dump(mode="json"), "reference": recipe.model_dump(mode="json"), "weights": "weights",
    }  # fmt: skip
    names = ("op_errors", "run_steps", "evaluated")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(mock.patch.object(levels, name, only_in_variant(getattr(levels, name))))
        result = levels.measure_levels(variant, spec, folder / "variant", ALONE)
    assert result is not None
    return {one.level: one.state for one in level_verdicts(result)}


@pytest.mark.parametrize(
    ("defect", "train", "flips"),
    [
        pytest.param(nothing, {}, set(), id="nothing"),
        pytest.param(nothing, {"channels_last": True}, set(), id="another memory order"),
        pytest.param(gradient, {}, {"op"}, id="1 % in the fused gradient"),
        pytest.param(flip_pair, {}, {"trajectory", "evaluation"}, id="a wrong flip pair"),
        pytest.param(half_a_pixel, {}, {"evaluation"}, id="half a pixel in decode"),
        pytest.param(grey_level_evaluated, {}, {"evaluation"}, id="a grey level in 1 % of the pixels evaluated"),
        pytest.param(grey_level, {}, {"trajectory", "evaluation"}, id="and of those trained on, too"),
        pytest.param(
            partial(loss_factor, [pose.learner]),
            {},
            {"trajectory"},
            id="the loss off by a factor where training calls it",
        ),
        pytest.param(
            partial(loss_factor, [pose.learner, bench.op_error]),
            {},
            {"op", "trajectory"},
            id="and in the loss itself",
        ),
        pytest.param(nothing, {"lr": 1.6e-3}, {"trajectory"}, id="a learning rate 20 % lower"),
    ],
)
def test_a_mistake_in_one_variant_trips_the_documented_levels_and_no_others(
    recipe: Recipe, tmp_path: Path, defect: Defect, train: dict[str, Any], flips: set[str]
) -> None:
    states = measured(recipe, defect, tmp_path, **train)
    assert {level for level, state in states.items() if state == "DIFFERENT"} == flips, states
    assert "not measured" not in states.values()


def nmes(recipe: Recipe, defect: Defect) -> dict[int, dict[str, tuple[float | None, ...]]]:
    """The test NME after training, by seed."""
    train, test = load_split(recipe.data, "train"), load_split(recipe.data, "test")
    found: dict[int, dict[str, tuple[float | None, ...]]] = {}
    with defect():
        evaluator = Evaluator(test, recipe.input, recipe.evaluate, ALONE)
        for seed in SEEDS:
            stepper = Stepper(recipe, train, seed=seed)
            with closing(stepper), stepper.settings():
                for step in range(STEPS):
                    stepper.run(step)
            found[seed] = {"test": (evaluator.score(stepper.network), None, None)}
    return found


def test_a_lower_learning_rate_changes_the_nme_and_a_factor_on_the_loss_does_not_under_adam(recipe: Recipe) -> None:
    factor = partial(loss_factor, [pose.learner])
    table = {
        "reference": nmes(recipe, nothing),
        "slower": nmes(changed(recipe, lr=1.6e-3), nothing),
        "factor": nmes(changed(recipe), factor),
    }
    rule = Rule(
        margin=0.05, alpha=0.05, gating=["test"], compared={"slower": "reference", "factor": "reference"},
        seeds=list(SEEDS), length=f"{STEPS} steps",
    )  # fmt: skip
    states = {one.variant: (one.state, one.sentence) for one in judged(rule, table)}
    assert states["slower"][0] == "DIFFERENT", states
    assert states["factor"][0] != "DIFFERENT", states
