"""Steps, eager and as a replayed graph. A GPU's graph is stood in for by a recorder that runs the step again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_recipe
from torch import Tensor

from pose.checkpoint import Checkpoint
from pose.data.wflw import load_wflw
from pose.distributed import Ranks
from pose.errors import InputError
from pose.graph import capture
from pose.recipe import Recipe
from pose.stepper import Stepper, refuse_impossible


class RunAgain:
    """A replay runs the body, and its result lies in one place, as a graph's does. Nothing else is shared with it."""

    def __init__(self) -> None:
        self.warmups = 0

    def warm_up(self, body: Callable[[], Tensor], times: int) -> None:
        for _ in range(times):
            body()
            self.warmups += 1

    def record(self, body: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        result = torch.full((), torch.nan)

        def replay() -> None:
            result.copy_(body())

        return result, replay


def recipe(root: Path, *, graph: bool, **train: Any) -> Recipe:
    # Fused: of the two kinds of Adam that a graph can hold, the one that runs on a CPU
    settings = {"device": "auto", "adam": "fused", "graph": graph, "schedule": "cosine", "steps": 6, **train}
    return Recipe.model_validate(tiny_recipe(root, train=settings, input={"sampling": "device"}))


def stepper(root: Path, *, graph: bool, saved: Checkpoint | None = None, **train: Any) -> Stepper:
    recorder = RunAgain() if graph else None
    settings = recipe(root, graph=graph, **train)
    steps = Stepper(settings, load_wflw(root, "train"), seed=3, saved=saved, say=str, recorder=recorder)
    # A recorded step's learning rate is a float32 tensor: compare where rounding to it changes nothing
    steps.rate = lambda step: 2.0 ** -(9 + step)  # type: ignore[method-assign]
    return steps


def run(steps: Stepper, first: int, last: int) -> list[float]:
    with steps.settings():
        return [steps.run(step).item() for step in range(first, last)]


def same(one: Stepper, other: Stepper) -> bool:
    pairs = list(zip(one.learner.tensors(), other.learner.tensors(), strict=True))
    return len(pairs) > 60 and all(torch.equal(a, b) for a, b in pairs)


# A moving average and a loss scaler have tensors of their own that the recording's runs must not leave changed
@pytest.mark.parametrize(
    "train", [{}, {"ema": 0.9}, {"precision": "fp16"}, {"precision": "bf16", "channels_last": True}]
)
def test_a_recorded_step_computes_what_the_eager_one_does(face_set: Path, train: dict[str, Any]) -> None:
    eager, recorded = (stepper(face_set, graph=graph, **train) for graph in (False, True))
    # Six steps of 4 faces of 12: other faces, another epoch and another learning rate than at the recording
    assert run(eager, 0, 6) == run(recorded, 0, 6)
    assert same(eager, recorded)


def test_a_recorded_run_resumes_where_it_was(face_set: Path) -> None:
    whole, begun = stepper(face_set, graph=True), stepper(face_set, graph=True)
    run(whole, 0, 6)
    run(begun, 0, 4)
    saved = Checkpoint(recipe={}, step=4, **begun.learner.state())
    resumed = stepper(face_set, graph=True, saved=saved)
    run(resumed, 4, 6)
    assert same(whole, resumed)


def test_a_step_without_its_input_is_a_step(face_set: Path) -> None:
    for graph in (False, True):
        steps = stepper(face_set, graph=graph)
        before = [parameter.clone() for parameter in steps.network.parameters()]
        steps.learner.set_rate(1e-3)
        assert torch.isfinite(steps.on_resident())
        changed = [not torch.equal(a, b) for a, b in zip(before, steps.network.parameters(), strict=True)]
        assert all(changed)


def test_what_recording_ran_leaves_no_trace() -> None:
    kept, made = torch.zeros(3), {}

    def body() -> Tensor:
        kept.add_(1)
        made.setdefault("state", torch.zeros(2)).add_(1)
        return kept.sum()

    recorder = RunAgain()
    replay = capture(body, lambda: [kept, *made.values()], recorder, warmup=5)
    assert recorder.warmups == 5
    assert kept.tolist() == [0, 0, 0]
    assert made["state"].tolist() == [0, 0]
    assert replay().item() == 3
    assert replay().item() == 6


def test_the_average_follows_the_weights(face_set: Path) -> None:
    steps = stepper(face_set, graph=False, ema=0.75)
    wanted = steps.network.head.weight.detach().clone()
    for step in range(4):
        steps.run(step)
        wanted = 0.75 * wanted + 0.25 * steps.network.head.weight.detach()
    found = steps.evaluated.head.weight
    assert steps.evaluated is not steps.network
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)  # float32, four roundings
    assert torch.equal(*(m.backbone.stage1.bn.running_var for m in (steps.evaluated, steps.network)))  # type: ignore[union-attr]


def test_frozen_batch_norm_keeps_its_statistics(face_set: Path) -> None:
    steps = stepper(face_set, graph=False, batch_norm="frozen")
    steps.run(0)
    assert steps.network.backbone.stage1.bn.running_mean.abs().max() == 0  # type: ignore[union-attr]
    assert steps.network.backbone.stage1.bn.weight.requires_grad  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"precision": "fp16", "adam": "foreach"}, "adam must be fused, not foreach"),
        ({"compile": "reduce-overhead"}, "captures CUDA graphs of its own"),
        ({"parallel": {"find_unused_parameters": True}}, "find_unused_parameters is true"),
        ({"drop_last": False}, "drop_last is false"),
        ({"device": "cpu"}, "a CUDA graph needs a GPU"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_the_recipe(face_set: Path, train: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        recipe(face_set, graph=True, **train)


def test_a_graph_of_a_step_whose_input_is_made_on_the_host_is_refused(face_set: Path) -> None:
    with pytest.raises(ValueError, match=r"input\.sampling must be device, not host"):
        Recipe.model_validate(tiny_recipe(face_set, train={"graph": True, "device": "auto"}))


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"graph": True, "adam": "fused"}, "train.graph: a CUDA graph needs a GPU"),
        ({"parallel": {"sync_batch_norm": True, "world_size": 2}}, "sync_batch_norm: torch has it for GPUs only"),
        ({"batch_size": 13}, "train.batch_size: 13 is more than the 12 training faces"),
        (
            {"batch_size": 11, "drop_last": False, "parallel": {"world_size": 2}},
            "train.drop_last: an epoch's last batch has 1 faces for 2 ranks",
        ),
    ],
)
def test_what_the_device_or_the_set_does_not_give_is_refused(
    face_set: Path, train: dict[str, Any], sentence: str
) -> None:
    settings = Recipe.model_validate(
        tiny_recipe(face_set, train={"device": "auto", **train}, input={"sampling": "device"})
    )
    ranks = Ranks(0, settings.train.parallel.world_size)
    with pytest.raises(InputError, match=re.escape(sentence)):
        refuse_impossible(settings, ranks, faces=12)


@pytest.mark.gpu
@pytest.mark.parametrize("train", [{"adam": "auto"}, {"adam": "fused", "ema": 0.9}, {"precision": "fp16"}])
def test_a_graph_on_a_gpu_computes_what_eager_steps_do(face_set: Path, train: dict[str, Any]) -> None:
    results = []
    for graph in (False, True):
        settings = recipe(face_set, graph=graph, channels_last=True, **train)
        ranks = Ranks(device=torch.device("cuda", 0))
        steps = Stepper(settings, load_wflw(face_set, "train"), seed=3, ranks=ranks, say=str)
        results.append((run(steps, 0, 6), steps))
    (eager_losses, eager), (graph_losses, graph_steps) = results
    # The same kernels in the same order; atomics in cuDNN's weight gradients may change the last bits
    assert graph_losses == pytest.approx(eager_losses, rel=1e-4)
    for one, other in zip(eager.network.parameters(), graph_steps.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


@pytest.mark.gpu
def test_no_step_waits_for_the_gpu(face_set: Path) -> None:
    for graph in (False, True):
        settings = recipe(face_set, graph=graph)
        ranks = Ranks(device=torch.device("cuda", 0))
        steps = Stepper(settings, load_wflw(face_set, "train"), seed=3, ranks=ranks, say=str)
        with steps.settings():
            steps.run(0)
            torch.cuda.set_sync_debug_mode("error")
            try:
                for step in range(1, 6):
                    steps.run(step)
            finally:
                torch.cuda.set_sync_debug_mode("default")
