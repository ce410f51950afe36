"""What cannot be done is said before anything is done, in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml

from bench.preflight import refuse_few_faces, refuse_impossible, refuse_launched
from pose.errors import InputError
from pose.recipe import Recipe


def recipes(input: dict[str, Any] | None = None, **train: Any) -> dict[str, Recipe]:
    return {"fast": Recipe.model_validate(tiny_recipe(Path(), input=input or {}, train=train))}


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError) as caught:
        refuse_impossible(recipes(device=device, parallel={"world_size": 4}))
    assert str(caught.value) == ("variant fast: train.parallel.world_size: 4 ranks need a GPU each, this machine has 2")
    refuse_impossible(recipes(device=device, parallel={"world_size": 2}))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_what_only_a_gpu_can_do_is_refused_without_one(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        InputError, match=r"^variant fast: train\.parallel\.sync_batch_norm: torch has it for GPUs only"
    ):
        refuse_impossible(recipes(device=device, parallel={"world_size": 2, "sync_batch_norm": True}))
    if device == "auto":  # with device: cpu the recipe itself is refused
        with pytest.raises(InputError, match=r"^variant fast: train\.graph: a CUDA graph needs a GPU"):
            refuse_impossible(recipes({"sampling": "device"}, device=device, graph=True))
    refuse_impossible(recipes(device=device, parallel={"world_size": 2}))


@pytest.mark.parametrize(
    ("faces", "changes", "sentence"),
    [
        ((12, 6), {"batch_size": 13}, "batch_size: 13 is more than the 12 training faces"),
        (
            (12, 6),
            {"batch_size": 16, "parallel": {"world_size": 13}},
            "parallel.world_size: 13 ranks for 12 training faces",
        ),
        ((12, 6), {"batch_size": 8, "parallel": {"world_size": 7}}, "parallel.world_size: 7 ranks for 6 test faces"),
        (
            (13, 6),
            {"drop_last": False, "parallel": {"world_size": 2}},
            "drop_last: an epoch's last batch has 1 faces for 2 ranks; set it to true",
        ),
    ],
    ids=["batch", "training faces", "test faces", "last batch"],
)
def test_fewer_faces_than_a_batch_or_the_ranks_need_are_refused(
    faces: tuple[int, int], changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        refuse_few_faces(recipes(**changes), *faces)
    assert str(caught.value) == f"variant fast: train.{sentence}"


def test_just_enough_faces_are_enough() -> None:
    refuse_few_faces(recipes(batch_size=12, parallel={"world_size": 6}), 12, 6)
    refuse_few_faces(recipes(batch_size=4, drop_last=False, parallel={"world_size": 2}), 14, 6)


def test_a_launcher_around_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    refuse_launched()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    refuse_launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"^WORLD_SIZE=2 in the environment, .*: start bench\.run once"):
        refuse_launched()


@pytest.mark.parametrize(
    ("environment", "train", "sentence"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2"}, {}, "start bench.run once and without a launcher"),
        ({}, {"batch_size": 13}, "variant baseline: train.batch_size: 13 is more than the 12 training faces"),
        ({}, {"parallel": {"world_size": 5}}, "train: 5 ranks cannot share a batch of 4 faces"),
        ({}, {"precision": "fp8"}, "train.precision: 'fp8' is none of fp64, fp32, tf32, bf16, fp16"),
    ],
    ids=["torchrun", "batch", "ranks", "precision"],
)
def test_the_command_says_so_in_one_sentence_and_exits_with_2_before_any_trial(
    face_set: Path, tmp_path: Path, environment: dict[str, str], train: dict[str, Any], sentence: str
) -> None:
    path = write_yaml(tmp_path / "experiment.yaml", tiny_recipe(face_set, train=train))
    ended = subprocess.run(
        [sys.executable, "-m", "bench.run", str(path), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**shell_environment(), "PYTHONPATH": os.fspath(REPOSITORY), **environment},
        check=False,
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert sentence in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
