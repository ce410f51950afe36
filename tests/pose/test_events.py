"""What TensorBoard is told of a training."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_recipe

from pose.data.source import load_split
from pose.events import Events
from pose.recipe import Recipe
from pose.trainer import Interrupted, Look, train


def recipe(face_set: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(tiny_recipe(face_set, train={"log_every": 1, "checkpoint_every": 2, **changes}))


def told(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Each tag's steps and values, as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {
        name: [(int(row["step"]), pytest.approx(float(row[name]), rel=1e-4)) for row in rows]  # events are float32
        for name in ("loss", "learning_rate", "images_per_second")
    }


def test_events_are_those_of_the_curve_and_the_evaluations(face_set: Path, tmp_path: Path) -> None:
    one = recipe(face_set, steps=None, epochs=2, evaluate_every=1)
    trained = train(one, load_split(one.data, "train"), tmp_path, seed=0, validate=lambda model: 0.125)
    found = told(tmp_path)
    nmes = found.pop("test_nme_x100")
    assert nmes == [(milestone.step, 12.5) for milestone in trained.milestones]
    assert found == curve(tmp_path)


def stopped_after(step: int, one: Recipe, folder: Path) -> None:
    def stop(look: Look) -> None:
        if look.step == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(one, load_split(one.data, "train"), folder, seed=0, on_look=stop)


def test_a_run_that_goes_on_tells_every_step_once(face_set: Path, tmp_path: Path) -> None:
    one = recipe(face_set)
    stopped_after(3, one, tmp_path)
    assert [step for step, _ in told(tmp_path)["loss"]][-1] >= 3
    train(one, load_split(one.data, "train"), tmp_path, seed=0)
    assert told(tmp_path)["loss"] == curve(tmp_path)["loss"]


def test_steps_after_the_checkpoint_of_a_killed_run_are_told_anew(face_set: Path, tmp_path: Path) -> None:
    """A killed run has told of steps that its checkpoint does not hold."""
    one = recipe(face_set)
    stopped_after(3, one, tmp_path)
    late = Events(tmp_path, 4, print)
    late.scalars(5, loss=99.0)
    late.close()
    train(one, load_split(one.data, "train"), tmp_path, seed=0)
    assert told(tmp_path)["loss"] == curve(tmp_path)["loss"]


def test_a_run_from_the_start_tells_nothing_of_an_earlier_one(face_set: Path, tmp_path: Path) -> None:
    one = recipe(face_set)
    train(one, load_split(one.data, "train"), tmp_path, seed=0)
    (tmp_path / "checkpoint.pt").unlink()
    train(one, load_split(one.data, "train"), tmp_path, seed=0)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert told(tmp_path)["loss"] == curve(tmp_path)["loss"]


def test_events_that_cannot_be_written_cost_a_warning_and_not_the_training(
    face_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import tensorboard

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    one, said = recipe(face_set), list[str]()
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.SummaryWriter, "add_scalar", full)
        trained = train(one, load_split(one.data, "train"), tmp_path / "a", seed=0, say=said.append)
    assert [text for text in said if "TensorBoard" in text] == [
        "warning: no TensorBoard events from here on: [Errno 28] No space left on device"
    ]
    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.SummaryWriter, "__init__", full)
        again = train(one, load_split(one.data, "train"), tmp_path / "b", seed=0, say=said.append)
    assert trained.final_loss == again.final_loss
