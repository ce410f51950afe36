"""Experiments as processes of this machine that outlive their launcher."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from runs import command, config, ended_with, environment, run, trial_folders

from bench.result import read_failure
from slurm.call import Call
from slurm.local import Local
from slurm.request import Request

FUNCTIONS = """
import os, time

def say_who(argument):
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "JOB_ATTEMPT", "GIVEN")
    with open(argument + os.environ["RANK"], "w") as file:
        file.write(" ".join(os.environ[name] for name in names))
    print("said")
    return 0

def one_dies(argument):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    time.sleep(600)
"""


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    """The folder of a module that jobs run."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/functions_of_the_test.py").write_text(FUNCTIONS)
    return tmp_path / "code"


def ended(local: Local, job: str, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while local.look([job], {job: folder})[job].alive:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_ranks_of_all_nodes_are_folded_into_one(
    tmp_path: Path, functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    call = Call("functions_of_the_test:say_who", f"{tmp_path}/who", tmp_path / "log.txt", {"GIVEN": "a b"})
    local, folder = Local(), tmp_path / "jobs"
    (job,) = local.submit(
        [call], Request(nodes=2, ranks_per_node=2), name="n", folder=folder, search_path=functions
    )  # fmt: skip
    ended(local, job, folder)
    told = [(tmp_path / f"who{rank}").read_text() for rank in range(4)]
    assert told == [f"{rank} 4 {rank} 4 127.0.0.1 0 a b" for rank in range(4)]
    assert (tmp_path / "log.txt").read_text() == (tmp_path / "log.rank-3.txt").read_text() == "said\n"


def test_a_rank_that_dies_takes_the_others_down(
    tmp_path: Path, functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr("slurm.local._TAKE_DOWN_SECONDS", 1.0)
    local, folder = Local(), tmp_path / "jobs"
    call = Call("functions_of_the_test:one_dies", "", tmp_path / "log.txt")
    (job,) = local.submit([call], Request(ranks_per_node=3), name="n", folder=folder, search_path=functions)
    ended(local, job, folder, 30)


def test_an_experiment_ends_as_it_does_here_and_its_jobs_outlive_their_launcher(face_set: Path, tmp_path: Path) -> None:
    variants: dict[str, dict[str, Any]] = {"a": {}, "raises": {"train": {"lr": 1e-3}}}
    path = config(tmp_path, face_set, ranks=2, variants=variants, resources={"nodes": 2})
    assert run(None, path, "--out", tmp_path / "here").returncode == 0
    faults = json.dumps({"a": [0, "slow", 0], "raises": [1, "raise", 2]})
    started = command(path, "--out", tmp_path / "out", "--cluster", "local", faulty=True)
    first = subprocess.Popen(started, env=environment(None, FAULTS=faults), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("out/trials/a-*/steps.txt")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = subprocess.run(started, env=environment(None, FAULTS=faults), capture_output=True, text=True, check=False)
    assert second.returncode == 3, second.stderr
    folders = trial_folders(tmp_path / "out")
    assert ended_with(folders["a"]) == ended_with(trial_folders(tmp_path / "here")["a"])
    assert (folders["a"] / "steps.txt").read_text().split() == [str(step) for step in range(6)]
    failure = read_failure(folders["raises"] / "failure.json")
    assert (failure.kind, failure.message) == ("exception", "rank 1 of 2: ValueError: broken on purpose")
    assert (tmp_path / "out/report.html").exists()
