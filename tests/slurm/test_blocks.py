"""Measurements of speed on a real two-node SLURM cluster: variants that alternate within one allocation."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from mini_cluster import MiniCluster
from runs import command, config, environment, run

from bench.experiment import read_experiment
from bench.result import read_failure, read_throughput

OPTIONS = {"warmup_steps": 1, "window_steps": 1, "windows": 10, "repeats": 2}
VARIANTS: dict[str, dict[str, Any]] = {"a": {}, "b": {"train": {"lr": 1e-4}}}


def speeds(folder: Path, faces: Path, *, ranks: int = 1, **top: Any) -> Path:
    top = {"measure": "throughput", "throughput": OPTIONS, "variants": VARIANTS, **top}
    return config(folder, faces, ranks=ranks, train={"steps": 100, "checkpoint_every": None}, **top)


def results(out: Path) -> list[Any]:
    """In the order they were started."""
    found = [read_throughput(path) for path in out.glob("trials/*/throughput.json")]
    order = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("trials/*/throughput.json")}
    return sorted(found, key=lambda one: order[one.trial])


def test_the_variants_of_a_block_alternate_there_and_back_in_one_job(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    ended = run(cluster, speeds(tmp_path, face_set), "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "4 measurements: sent as job" in ended.stdout
    found = results(tmp_path / "out")
    assert [(one.variant, one.repeat) for one in found] == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert len({one.environment.job for one in found}) == 1
    assert found[0].environment.job is not None
    assert len(list((tmp_path / "out").glob("jobs/*/submission.json"))) == 1
    logs = [path.read_text() for path in (tmp_path / "out").glob("trials/*/log.txt")]
    assert len(logs) == 4
    again = run(cluster, speeds(tmp_path, face_set), "--out", tmp_path / "out")
    assert again.returncode == 0
    assert "4 of 4 trials: done before" in again.stdout


def test_each_measurement_has_fresh_ranks_on_both_nodes(cluster: MiniCluster, face_set: Path, tmp_path: Path) -> None:
    ended = run(cluster, speeds(tmp_path, face_set, ranks=2), "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = results(tmp_path / "out")
    assert [(one.variant, one.repeat, one.world_size) for one in found] == [
        ("a", 0, 2), ("b", 0, 2), ("b", 1, 2), ("a", 1, 2)
    ]  # fmt: skip
    assert {tuple(one.environment.nodes) for one in found} == {("node1", "node2")}
    marks = [json.loads(path.read_bytes()) for path in (tmp_path / "out").glob("jobs/*/*_rank.json")]
    assert {(mark["rank"], mark["exit_code"]) for mark in marks} == {(0, 0), (1, 0)}


def test_a_measurement_that_fails_leaves_the_others_and_runs_again_alone(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    path = speeds(tmp_path, face_set, ranks=2)
    ended = run(cluster, path, "--out", tmp_path / "out", faults={"b": [1, "kill", 3]})
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert {one.variant for one in results(tmp_path / "out")} == {"a"}
    assert len(results(tmp_path / "out")) == 2
    for folder in (tmp_path / "out").glob("trials/b-*"):
        failure = read_failure(folder / "failure.json")
        assert (failure.kind, failure.rank) == ("signal", 1)
        assert failure.message == "rank 1 of 2: killed by SIGKILL"
        assert failure.message in ended.stderr
    again = run(cluster, path, "--out", tmp_path / "out", faults={})
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 measurements: sent as job" in again.stdout
    assert read_experiment(tmp_path / "out").done == 4


def test_a_block_that_is_cancelled_leaves_nothing_running_and_no_failure_of_its_own(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    import subprocess

    path = speeds(tmp_path, face_set, throughput={**OPTIONS, "windows": 2000, "repeats": 1})
    with (tmp_path / "log").open("wb") as log:
        launcher = subprocess.Popen(
            command(path, "--out", tmp_path / "out", "--cluster", "slurm"),
            env=environment(cluster),
            stdout=log,
            stderr=log,
        )
    cluster.wait_for(lambda: list((tmp_path / "out").glob("trials/a-*/status.json")), 90)
    status = run(cluster, path, "--out", tmp_path / "out", "--status")
    assert "its turn in the job comes" in status.stdout
    cancelled = run(cluster, path, "--out", tmp_path / "out", "--cancel")
    assert cancelled.returncode == 0, cancelled.stderr
    assert cancelled.stdout.startswith("1 jobs cancelled") or "1 job" in cancelled.stdout
    began = time.monotonic()
    assert launcher.wait(timeout=120) == 3
    assert time.monotonic() - began < 60
    for folder in (tmp_path / "out/trials").iterdir():
        assert read_failure(folder / "failure.json").kind == "cancelled", folder
    cluster.wait_for(lambda: not cluster.alive(), 60)


@pytest.mark.parametrize(("repeats", "scripts"), [(1, 1), (4, 2), (5, 3)])
def test_a_dry_run_prints_a_script_for_each_block(face_set: Path, tmp_path: Path, repeats: int, scripts: int) -> None:
    path = speeds(tmp_path, face_set, throughput={**OPTIONS, "repeats": repeats})
    shown = run(None, path, "--out", tmp_path / "out", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("#SBATCH --job-name=") == scripts
    assert "#SBATCH --array" not in shown.stdout
