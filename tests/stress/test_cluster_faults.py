"""The slow faults of a cluster: every one ends with the result of a run that nothing happened to."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mini_cluster import MiniCluster, why_not
from runs import config, ended_with, run, start, trial_folders

from bench.result import read_failure, read_result
from bench.submissions import read_all

pytestmark = pytest.mark.stress

STEPS = 60
SLOW: dict[str, list[Any]] = {"baseline": [0, "slow", 0]}
FAULTS = 10


@pytest.fixture(scope="module")
def shared() -> Iterator[MiniCluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    found = MiniCluster()
    yield found
    found.stop()


@pytest.fixture
def cluster(shared: MiniCluster) -> Iterator[MiniCluster]:
    yield shared
    shared.clear()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, face_set: Path) -> tuple[str, bytes]:
    folder = tmp_path_factory.mktemp("here")
    ended = run(None, config(folder, face_set, train={"steps": STEPS}), "--out", folder / "out")
    assert ended.returncode == 0, ended.stderr
    return ended_with(trial_folders(folder / "out")["baseline"])


class Running:
    """A trial of four ranks on two nodes, some steps after its start."""

    def __init__(self, cluster: MiniCluster, face_set: Path, folder: Path, **resources: Any) -> None:
        self.cluster, self.folder = cluster, folder
        path = config(folder, face_set, train={"steps": STEPS}, resources=resources)
        self.launcher = start(cluster, path, "--out", folder / "out", faults=SLOW, log=folder / "log")
        self.job = cluster.wait_for(lambda: cluster.alive(), 60)[0]
        self.after(4)

    def after(self, steps: int) -> None:
        """Wait until so many have been taken in all attempts."""
        self.cluster.wait_for(lambda: len(self.steps()) >= steps, 120)

    def steps(self) -> list[int]:
        found = list(self.folder.glob("out/trials/*/steps.txt"))
        return [int(line) for line in found[0].read_text().split()] if found else []

    def ends_with(self, undisturbed: tuple[str, bytes], seconds: float = 300) -> None:
        assert self.launcher.wait(timeout=seconds) == 0, (self.folder / "log").read_text()
        folder = trial_folders(self.folder / "out")["baseline"]
        assert ended_with(folder) == undisturbed
        assert read_result(folder / "result.json").resumed_at > 0
        taken = self.steps()
        assert sorted(set(taken)) == list(range(STEPS))


def test_a_preempted_job_saves_and_goes_on(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, undisturbed: tuple[str, bytes]
) -> None:
    running = Running(cluster, face_set, tmp_path)
    high = ("-p", "high", "-N2", "--exclusive", "--mem=100", "--output=/dev/null")
    cluster.run("sbatch", *high, "--wrap", "sleep 5")
    running.ends_with(undisturbed)
    taken = running.steps()
    assert len(taken) == len(set(taken))  # it was told, and saved: no step was lost


def test_a_job_that_runs_into_its_time_limit_saves_and_goes_on(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, undisturbed: tuple[str, bytes]
) -> None:
    # Of a limit of a minute the signal comes at its half or, as Slurm looks now and then, up to a minute early
    running = Running(cluster, face_set, tmp_path, time=1)
    running.ends_with(undisturbed)
    taken = running.steps()
    assert len(taken) == len(set(taken))


def test_a_node_whose_plug_is_pulled_loses_nothing_that_was_saved(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, undisturbed: tuple[str, bytes]
) -> None:
    running = Running(cluster, face_set, tmp_path)
    cluster.kill_node("node2")
    cluster.wait_for(lambda: cluster.jobs()[running.job] == "PENDING", 90)
    cluster.start_node("node2")
    running.ends_with(undisturbed)


def test_without_accounting_a_crash_is_noticed_within_a_minute(face_set: Path, tmp_path: Path) -> None:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = MiniCluster(MINI_SLURM_ACCOUNTING="none")
    try:
        assert cluster.run("sacct", check=False) == ""
        running = Running(cluster, face_set, tmp_path)
        died = time.monotonic()
        cluster.run("scancel", "--signal=KILL", running.job)
        assert running.launcher.wait(timeout=60) == 3
        assert time.monotonic() - died < 60
        failure = read_failure(trial_folders(tmp_path / "out")["baseline"] / "failure.json")
        assert failure.kind in ("signal", "cancelled")
    finally:
        cluster.stop()


def test_ten_faults_at_random_moments_lose_no_trial_and_run_none_twice(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    draw = random.Random(20261125)
    variants: dict[str, dict[str, Any]] = {"a": {}, "b": {"train": {"lr": 1e-3}}}
    more = {"variants": variants, "train": {"steps": 160}, "resources": {"max_running": 1}}
    path, log = config(tmp_path, face_set, **more), tmp_path / "log"
    ended = run(None, path, "--out", tmp_path / "here")
    assert ended.returncode == 0, ended.stderr
    faults: dict[str, list[Any]] = {name: [0, "slow", 0] for name in variants}
    launcher = start(cluster, path, "--out", tmp_path / "out", faults=faults, log=log)
    happened: list[str] = []
    while len(happened) < FAULTS:
        before = _taken(tmp_path)
        cluster.wait_for(lambda before=before: _taken(tmp_path) > before + 2, 180)  # type: ignore[misc]
        time.sleep(draw.uniform(0, 3))
        running = [job for job, state in cluster.jobs().items() if state == "RUNNING"]
        if not running:
            continue  # between two attempts, or two trials
        fault = draw.choice(["requeue", "preempt", "node", "launcher"])
        if fault == "requeue":
            cluster.run("scontrol", "requeue", running[0])
        elif fault == "preempt":
            high = ("-p", "high", "-N2", "--exclusive", "--mem=100", "--output=/dev/null")
            cluster.run("sbatch", *high, "--wrap", "sleep 2")
        elif fault == "node":
            cluster.kill_node("node2")
            cluster.wait_for(lambda: "down" in cluster.run("sinfo", "-h", "-n", "node2", "-p", "debug", "-o", "%T"), 90)
            cluster.start_node("node2")
        else:
            launcher.kill()
            launcher.wait()
            launcher = start(cluster, path, "--out", tmp_path / "out", faults=faults, log=log)
        happened.append(fault)
    print("faults:", ", ".join(happened))
    assert launcher.wait(timeout=600) == 0, log.read_text()
    here, there = trial_folders(tmp_path / "here"), trial_folders(tmp_path / "out")
    for name in variants:
        assert ended_with(there[name]) == ended_with(here[name])
    assert sorted(path.name for path in tmp_path.glob("out/trials/*/result.json")) == ["result.json"] * 2
    assert sum(len(record.trials) for _, record in read_all(tmp_path / "out")) == 2  # nothing was sent again
    assert log.read_text().count("img/s, job") == 2  # and each was finished once


def _taken(folder: Path) -> int:
    return sum(len(path.read_text().split()) for path in folder.glob("out/trials/*/steps.txt"))
