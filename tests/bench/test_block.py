"""A block of measurements without a cluster: ranks as processes of this machine."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from bench.block import block_call
from bench.result import read_failure
from slurm.call import Call

PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

def measure(argument):
    folder = Path(argument)
    rank = os.environ.get("RANK", "0")
    begun = time.time()
    how = json.loads(os.environ.get("HOW", "{}")).get(folder.name)
    if how == "raise" and rank == "1":
        raise ValueError("broken on purpose")
    if how == "kill" and rank == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600 if how == "hang" or (how and how != "slow") else 0.2)
    (folder / f"rank-{rank}.json").write_text(json.dumps(
        [begun, time.time(), os.getpid(), os.environ.get("MASTER_PORT"), os.environ["OWN"]]))
    if rank == "0":
        (folder / "throughput.json").write_text("{}")
    print("measured", folder.name)
    return 0
"""


def block(tmp_path: Path, names: tuple[str, ...]) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    calls = [Call("program:measure", str(one), one / "log.txt", {"OWN": one.name}) for one in folders]
    job = tmp_path / "job"
    job.mkdir()
    return Path(block_call(calls, [one / "throughput.json" for one in folders], job).argument)


def ranks(tmp_path: Path, path: Path, count: int, **how: Any) -> list[subprocess.Popen[bytes]]:
    search = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
    common = {**os.environ, "PYTHONPATH": search, "HOW": json.dumps(how), "WORLD_SIZE": str(count), "JOB_ID": "7"}
    line = "import sys; from bench.block import run_block; sys.exit(run_block(sys.argv[1]))"
    return [
        subprocess.Popen(
            [sys.executable, "-c", line, str(path)], env={**common, "RANK": str(rank), "MASTER_PORT": "12000"}
        )
        for rank in range(count)
    ]


def codes(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.wait(timeout=60) for process in processes]


def test_measurements_follow_each_other_in_fresh_processes_on_all_ranks(tmp_path: Path) -> None:
    names = ("a0", "b0", "b1", "a1")
    assert codes(ranks(tmp_path, block(tmp_path, names), 2)) == [0, 0]
    found = [[json.loads((tmp_path / n / f"rank-{r}.json").read_text()) for r in (0, 1)] for n in names]
    for before, after in itertools.pairwise(found):
        assert max(one[1] for one in before) <= min(one[0] for one in after)
    assert len({one[2] for pair in found for one in pair}) == 8
    for name, pair in zip(names, found, strict=True):
        assert pair[0][3] == pair[1][3] != "12000"  # a port of its own for each
        assert pair[0][4] == name
    assert len({pair[0][3] for pair in found}) == 4
    assert (tmp_path / "b1/log.txt").read_text() == "measured b1\n"
    assert (tmp_path / "b1/log.rank-1.txt").read_text() == "measured b1\n"


def test_what_is_done_is_skipped_by_all_ranks(tmp_path: Path) -> None:
    path = block(tmp_path, ("a0", "b0"))
    (tmp_path / "a0/throughput.json").write_text("{}")
    assert codes(ranks(tmp_path, path, 2)) == [0, 0]
    assert not (tmp_path / "a0/rank-0.json").exists()
    assert (tmp_path / "b0/rank-1.json").exists()


@pytest.mark.parametrize(
    ("how", "rank", "kind", "message"),
    [
        ("raise", 1, "exception", "rank 1 of 2: ended with exit code 1"),
        ("kill", 0, "signal", "rank 0 of 2: killed by SIGKILL"),
    ],
)
def test_a_rank_that_fails_takes_its_measurement_down_and_the_next_one_runs(
    tmp_path: Path, how: str, rank: int, kind: str, message: str
) -> None:
    path = block(tmp_path, ("a0", "b0"))
    began = time.monotonic()
    assert codes(ranks(tmp_path, path, 2, a0=how)) == [0, 0]
    assert time.monotonic() - began < 30  # the other rank would sleep for an hour
    failure = read_failure(tmp_path / "a0/failure.json")
    assert (failure.kind, failure.rank, failure.message) == (kind, rank, message)
    if how == "raise":
        assert failure.log is not None
        assert "ValueError: broken on purpose" in failure.log
    assert (tmp_path / "b0/throughput.json").exists()
    assert not (tmp_path / "b0/failure.json").exists()


def test_the_end_of_the_job_ends_the_measurement_without_a_failure_of_its_own(tmp_path: Path) -> None:
    processes = ranks(tmp_path, block(tmp_path, ("a0", "b0")), 2, a0="hang")
    while not (tmp_path / "a0/log.txt").exists():
        time.sleep(0.05)
    time.sleep(1.0)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert codes(processes) == [3, 3]
    assert not (tmp_path / "a0/failure.json").exists()
    assert not (tmp_path / "b0/log.txt").exists()
