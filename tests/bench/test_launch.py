"""Trials of several ranks: what they leave, and what a rank that fails does to the others and tells the user."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed
from conftest import REPOSITORY, tiny_recipe

import bench.launch
from bench.launch import launch
from bench.plan import Trial
from bench.result import Failure, read_failure, read_result
from bench.trial import _of_another_rank, write_if_first
from pose.recipe import Recipe
from slurm.call import Call


def trial(root: Path, ranks: int = 2, **train: Any) -> Trial:
    recipe = Recipe.model_validate(tiny_recipe(root, train={**train, "parallel": {"world_size": ranks}}))
    return Trial("a-s0-0", "ranks", "a", 0, recipe)


def failure_of(trial: Trial, out: Path) -> Failure:
    assert launch([trial], out) is None
    assert not trial.record(out).exists()
    return read_failure(trial.folder(out) / "failure.json")


def with_fault(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def run_faulty(call: Call, **options: Any) -> Any:
        return real(replace(call, function="faulty_trial:run_trial"), **options)

    real = bench.launch.run_here
    monkeypatch.setattr(bench.launch, "run_here", run_faulty)
    monkeypatch.setenv("PYTHONPATH", os.fspath(REPOSITORY / "tests/bench"))
    monkeypatch.setenv("FAULT", fault)


@pytest.mark.parametrize(
    ("fault", "ranks", "kind", "message"),
    [
        ("1 raise", 2, "exception", "rank 1 of 2: ValueError: broken on purpose"),
        ("1 raise deaf", 2, "exception", "rank 1 of 2: ValueError: broken on purpose"),
        ("1 kill", 3, "signal", "rank 1 of 3: killed by SIGKILL"),
        ("0 exit", 2, "exception", "rank 0 of 2: ended with exit code 7"),
    ],
    ids=["exception", "exception while another rank hangs", "SIGKILL", "silent end of the main rank"],
)
def test_the_rank_that_fails_is_the_one_the_user_hears_of(
    face_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fault: str,
    ranks: int,
    kind: str,
    message: str,
) -> None:
    monkeypatch.setattr("slurm.here.FAILURE_GRACE_SECONDS", 1.0)
    if fault.endswith("deaf"):
        monkeypatch.setenv("DEAF", "0")
    with_fault(monkeypatch, fault.removesuffix(" deaf"))
    failure = failure_of(trial(face_set, ranks), tmp_path)
    assert (failure.kind, failure.message, failure.rank) == (kind, message, int(fault[0]))
    said = capfd.readouterr().err
    assert said.count("FAILED after") == said.count(message) == 1
    if "raise" in fault:
        assert failure.traceback is not None
        assert failure.traceback.endswith("ValueError: broken on purpose\n")
        assert failure.traceback in said
        log = (tmp_path / "trials/a-s0-0/log.txt").read_text().splitlines()
        assert next(line for line in log if "Traceback" in line).startswith("[rank 1] ")
    assert "gloo" not in said  # what the others met


def test_what_all_ranks_find_is_told_once_and_by_no_rank(
    face_set: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A step of 1e30 drives the weights out of range
    failure = failure_of(trial(face_set, lr=1e30, schedule="constant", steps=12), tmp_path)
    assert (failure.kind, failure.rank) == ("non_finite_loss", None)
    assert failure.faces is not None
    assert len(failure.faces) == 4
    assert capfd.readouterr().err.count(failure.message) == 1


def test_an_interrupted_launcher_has_all_ranks_stop_after_one_step_and_go_on_from_there(
    face_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = trial(face_set)
    with monkeypatch.context() as patched:
        with_fault(patched, "1 interrupt")
        with pytest.raises(KeyboardInterrupt):
            launch([settings], tmp_path)
    failure = read_failure(tmp_path / "trials/a-s0-0/failure.json")
    assert (failure.kind, failure.rank) == ("interrupted", None)
    assert "after step 3;" in failure.message
    assert launch([settings], tmp_path) is None
    result = read_result(settings.record(tmp_path))
    assert (result.resumed_at, result.steps) == (3, 6)
    assert not (tmp_path / "trials/a-s0-0/failure.json").exists()


def test_what_does_not_start_in_time_is_left_for_the_same_command_again(
    face_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trials = [replace(trial(face_set, ranks=1), id=f"a-s{seed}-0", seed=seed) for seed in range(3)]
    clock = iter([0.0, 0.0, 61.0, 62.0])  # at the start, and before each trial
    monkeypatch.setattr(bench.launch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert launch(trials, tmp_path, start_within=60.0) is None
    assert [one.record(tmp_path).exists() for one in trials] == [True, False, False]
    said = capfd.readouterr().out
    assert said.count("left for the next time, 60 s are over") == 2
    assert not trials[1].folder(tmp_path).exists()
    monkeypatch.undo()
    launch(trials, tmp_path)
    assert all(one.record(tmp_path).exists() for one in trials)
    assert capfd.readouterr().out.count("done before") == 1


def test_input_that_all_ranks_find_wrong_makes_one_sentence(face_set: Path, tmp_path: Path) -> None:
    settings = trial(face_set, steps=2)
    (tmp_path / "trials/a-s0-0").mkdir(parents=True)
    (tmp_path / "trials/a-s0-0/checkpoint.pt").write_bytes(b"no checkpoint")
    sentence = launch([settings], tmp_path)
    assert sentence is not None
    assert "checkpoint.pt is not a PyTorch file" in sentence
    assert "\n" not in sentence
    assert " of 2" not in sentence
    assert read_failure(tmp_path / "trials/a-s0-0/failure.json").kind == "input"


@pytest.mark.parametrize(
    ("error", "of_another"),
    [
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (torch.distributed.DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (torch.distributed.DistNetworkError("The client socket has timed out"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("gloo"), False),
    ],
    ids=["gloo", "NCCL", "store", "RuntimeError of its own", "ValueError"],
)
def test_an_error_that_another_rank_has_caused_is_known(error: Exception, of_another: bool) -> None:
    assert _of_another_rank(error) is of_another


def test_the_first_failure_stays(tmp_path: Path) -> None:
    for message in ("the cause", "what followed"):
        write_if_first(Failure(kind="exception", message=message), tmp_path / "failure.json")
    assert read_failure(tmp_path / "failure.json").message == "the cause"
    assert [path.name for path in tmp_path.iterdir()] == ["failure.json"]
