"""Experiments on a real two-node SLURM cluster: what they end with, and what they do when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mini_cluster import MiniCluster
from runs import config, ended_with, run, start, trial_folders

from bench.result import read_failure, read_result

SLOW: dict[str, list[Any]] = {"baseline": [0, "slow", 0]}  # each step is noted and takes 0.2 s more


STEPS = {"steps": 24}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, face_set: Path) -> tuple[str, bytes]:
    """What four ranks on this machine end with."""
    folder = tmp_path_factory.mktemp("here")
    ended = run(None, config(folder, face_set, train=STEPS), "--out", folder / "out")
    assert ended.returncode == 0, ended.stderr
    return ended_with(trial_folders(folder / "out")["baseline"])


def test_two_nodes_of_two_ranks_end_with_the_bits_of_four_local_ranks(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, undisturbed: tuple[str, bytes]
) -> None:
    out = tmp_path / "o'u t $(touch injected)"
    ended = run(cluster, config(tmp_path, face_set, train=STEPS), "--out", out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    folder = trial_folders(out)["baseline"]
    assert ended_with(folder) == undisturbed
    result = read_result(folder / "result.json")
    assert result.environment.nodes == ["node1", "node2"]
    assert result.environment.job is not None
    assert result.environment.threads == 1
    marks = [json.loads(path.read_bytes()) for path in sorted(out.glob("jobs/*/*_rank.json"))]
    assert [(mark["rank"], mark["host"], mark["exit_code"]) for mark in marks] == [
        (0, "node1", 0), (1, "node1", 0), (2, "node2", 0), (3, "node2", 0)
    ]  # fmt: skip
    assert (out / "report.html").exists()
    again = run(cluster, config(tmp_path, face_set, train=STEPS), "--out", out)
    assert again.returncode == 0
    assert "1 of 1 trials: done before" in again.stdout
    assert len(list(out.glob("jobs/*"))) == 1


def test_of_an_array_the_failed_are_told_with_rank_and_reason_and_they_alone_run_again(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    names = ("a", "raises", "b", "killed", "c", "memory")
    variants: dict[str, dict[str, Any]] = {name: {"train": {"lr": 1e-3 + 1e-5 * i}} for i, name in enumerate(names)}
    resources = {"max_running": 2, "memory_gb": 1.5}
    path = config(tmp_path, face_set, ranks=2, variants=variants, resources=resources, train={"steps": 3})
    faults = {"raises": [1, "raise", 1], "killed": [1, "kill", 1], "memory": [1, "memory", 1]}
    ended = run(cluster, path, "--out", tmp_path / "out", faults=faults)
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "6 trials: sent as jobs" in ended.stdout
    assert "2 at a time" in ended.stdout
    assert "3 of 6 trials are missing" in ended.stderr
    folders = trial_folders(tmp_path / "out")
    assert {name for name, folder in folders.items() if (folder / "result.json").exists()} == {"a", "b", "c"}
    raised, killed, memory = (read_failure(folders[name] / "failure.json") for name in ("raises", "killed", "memory"))
    assert (raised.kind, raised.rank, raised.message) == (
        "exception", 1, "rank 1 of 2: ValueError: broken on purpose"
    )  # fmt: skip
    assert raised.traceback is not None
    assert raised.traceback.endswith("ValueError: broken on purpose\n")
    assert raised.traceback in ended.stderr
    assert (killed.kind, killed.rank) == ("signal", 1)
    assert killed.message.startswith("rank 1 of 2: killed")
    assert (memory.kind, memory.rank) == ("out_of_memory", 1)
    assert "out of memory" in memory.message
    for failure in (raised, killed, memory):
        assert failure.message in ended.stderr

    again = run(cluster, path, "--out", tmp_path / "out", faults={})
    assert again.returncode == 0, again.stdout + again.stderr
    assert "3 of 6 trials: done before" in again.stdout
    assert again.stderr.count("runs again") == 3
    assert "3 trials: sent as jobs" in again.stdout
    assert len(cluster.jobs()) >= 9


def test_a_rank_that_dies_takes_its_job_down(cluster: MiniCluster, face_set: Path, tmp_path: Path) -> None:
    path = config(tmp_path, face_set, train={"steps": 600})
    launcher = start(cluster, path, "--out", tmp_path / "out", faults=SLOW, log=tmp_path / "log")
    steps = tmp_path / "out/trials"
    cluster.wait_for(lambda: list(steps.glob("*/steps.txt")), 90)
    mark = json.loads(next(tmp_path.glob("out/jobs/*/*_3_rank.json")).read_bytes())
    assert mark["host"] == "node2"
    victims = _ranks_of(tmp_path / "out", "3")
    assert len(victims) == 1
    died = time.monotonic()
    os.kill(victims[0], signal.SIGKILL)
    cluster.wait_for(lambda: not cluster.alive(), 30)
    assert time.monotonic() - died < 30
    assert launcher.wait(timeout=90) == 3
    failure = read_failure(trial_folders(tmp_path / "out")["baseline"] / "failure.json")
    assert (failure.kind, failure.rank) == ("signal", 3)


def test_a_requeued_job_goes_on_and_ends_with_the_undisturbed_result(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, undisturbed: tuple[str, bytes]
) -> None:
    path = config(tmp_path, face_set, train=STEPS)
    launcher = start(cluster, path, "--out", tmp_path / "out", faults=SLOW, log=tmp_path / "log")
    job = cluster.wait_for(lambda: cluster.alive(), 60)[0]
    cluster.wait_for(lambda: len(_steps(tmp_path / "out")) >= 4, 90)
    cluster.run("scontrol", "requeue", job)
    assert launcher.wait(timeout=180) == 0, (tmp_path / "log").read_text()
    folder = trial_folders(tmp_path / "out")["baseline"]
    assert ended_with(folder) == undisturbed
    assert 0 < read_result(folder / "result.json").resumed_at < 24
    assert list(cluster.jobs()).count(job) == 1
    assert "again" in (tmp_path / "log").read_text()
    assert not (folder / "failure.json").exists()


def test_a_launcher_that_was_killed_finds_its_jobs_again_and_sends_none_twice(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    variants = {"a": {}, "b": {"train": {"lr": 1e-3}}}
    path = config(tmp_path, face_set, ranks=2, variants=variants, train={"steps": 30})
    before = set(cluster.jobs())
    faults = {"a": [0, "slow", 0], "b": [0, "slow", 0]}
    launcher = start(cluster, path, "--out", tmp_path / "out", faults=faults, log=tmp_path / "log")
    cluster.wait_for(lambda: list(tmp_path.glob("out/trials/*/steps.txt")), 90)
    launcher.kill()
    launcher.wait()
    second = start(cluster, path, "--out", tmp_path / "out", faults=faults, log=tmp_path / "second")
    cluster.wait_for(lambda: b"is running" in (tmp_path / "second").read_bytes(), 60)
    third = run(cluster, path, "--out", tmp_path / "out", faults=faults)
    assert third.returncode == 2
    assert "another launcher" in third.stderr
    shown = run(cluster, path, "--out", tmp_path / "out", "--status")
    assert shown.returncode == 0
    assert "2 trials: " in shown.stdout
    assert second.wait(timeout=180) == 0, (tmp_path / "second").read_text()
    assert len(set(cluster.jobs()) - before) == 2
    for folder in trial_folders(tmp_path / "out").values():
        assert _steps_of(folder) == list(range(30))
    assert (tmp_path / "out/report.html").exists()


def test_a_launcher_that_died_before_it_knew_what_it_sent_leaves_nothing_behind(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    path = config(tmp_path, face_set, ranks=1, train={"steps": 2})
    assert run(cluster, path, "--out", tmp_path / "out", "--detach").returncode == 3
    record = next(tmp_path.glob("out/jobs/*/submission.json"))
    values = json.loads(record.read_bytes())
    orphan = values["jobs"][0]
    cluster.run("scontrol", "hold", orphan, check=False)
    record.write_text(json.dumps({**values, "jobs": None}))
    ended = run(cluster, path, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert not cluster.alive()


def test_cancel_ends_what_this_experiment_sent_and_nothing_else(
    cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    other = cluster.run("sbatch", "--parsable", "--mem=10", "--output=/dev/null", "--wrap", "sleep 300").strip()
    variants = {name: {"train": {"lr": 1e-3 + 1e-5 * i}} for i, name in enumerate("abc")}
    path = config(tmp_path, face_set, ranks=1, variants=variants, train={"steps": 5000}, resources={"max_running": 1})
    assert run(cluster, path, "--out", tmp_path / "out", "--detach").returncode == 3
    cluster.wait_for(lambda: "RUNNING" in [s for job, s in cluster.jobs().items() if job in cluster.alive()], 30)
    ended = run(cluster, path, "--out", tmp_path / "out", "--cancel")
    assert ended.returncode == 0
    assert "3 jobs cancelled" in ended.stdout
    cluster.wait_for(lambda: cluster.alive() == [other], 30)
    shown = run(cluster, path, "--out", tmp_path / "out", "--status").stdout
    assert "3 trials: 3 failed" in shown
    assert "was cancelled" in shown


def test_more_trials_than_an_array_may_hold_make_several_and_keep_the_limit(
    plain_cluster: MiniCluster, face_set: Path, tmp_path: Path
) -> None:
    variants = {name: {"train": {"lr": 1e-3 + 1e-5 * i}} for i, name in enumerate("abcdef")}
    path = config(tmp_path, face_set, ranks=1, variants=variants, train={"steps": 2}, resources={"max_running": 2})
    sent = run(plain_cluster, path, "--out", tmp_path / "out", "--detach")
    assert sent.returncode == 3
    assert "4 trials: sent as jobs 1_0 to 1_3, 2 at a time" in sent.stdout
    assert "2 trials: sent as jobs" in sent.stdout
    assert "afterany:1" in plain_cluster.run("squeue", "-h", "-o", "%E")
    ended = run(plain_cluster, path, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert len(plain_cluster.jobs()) == 6


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"partition": "nosuch"}, "invalid partition specified: nosuch"),
        ({"nodes": 1, "gpus_per_node": 4}, "Requested node configuration is not available"),
        ({"nodes": 4}, "(PartitionNodeLimit)"),
        ({"partition": "short", "time": "1:00:00"}, "(PartitionTimeLimit)"),
        ({"memory_gb": 64}, "Requested node configuration is not available"),
    ],
    ids=["partition", "GPUs", "nodes", "time", "memory"],
)
def test_a_request_that_the_cluster_refuses_ends_with_its_sentence(
    cluster: MiniCluster, face_set: Path, tmp_path: Path, resources: dict[str, Any], message: str
) -> None:
    device = "cuda" if "gpus_per_node" in resources else "cpu"
    path = config(tmp_path, face_set, resources=resources, train={"device": device})
    ended = run(cluster, path, "--out", tmp_path / "out")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr
    assert ended.stderr.count("error:") == 1
    assert "Traceback" not in ended.stderr
    assert not cluster.alive()


def _steps_of(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "steps.txt").read_text().split()]


def _steps(out: Path) -> list[int]:
    found = list(out.glob("trials/*/steps.txt"))
    return _steps_of(found[0].parent) if found else []


def _ranks_of(out: Path, rank: str) -> list[int]:
    """Processes that run this rank of a trial of `out`; nodes' processes are seen from outside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        ours = b"submitit.core._submit" in words and any(os.fsencode(str(out)) in word for word in words)
        if ours and words[0].endswith(b"python") and f"SLURM_PROCID={rank}".encode() in variables:
            found.append(int(process.name))
    return found
