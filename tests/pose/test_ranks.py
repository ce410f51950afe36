"""Several processes train one model: on CPUs, over gloo."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml

from pose.checkpoint import load_checkpoint
from slurm.ranks import free_port

SECONDS = 120


def start(world_size: int, *command: object) -> list[subprocess.CompletedProcess[str]]:
    """Run `command` once for each rank, with torchrun's variables, and wait."""
    common = {
        **shell_environment(),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world_size)
    ]
    ended = []
    for process in ranks:
        out, err = process.communicate(timeout=SECONDS)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


def together(root: Path, folder: Path, world_size: int, **changes: Any) -> list[dict[str, Any]]:
    """Train with so many ranks; what each of them found."""
    train = {"parallel": {"world_size": world_size, **changes.pop("parallel", {})}, **changes.pop("train", {})}
    stop = {"signal": changes.pop("signal")} if "signal" in changes else {}
    folder.mkdir(parents=True, exist_ok=True)
    recipe = write_yaml(folder / "recipe.json", {**tiny_recipe(root, train=train, **changes), **stop})
    ended = start(world_size, REPOSITORY / "tests/rank_program.py", recipe, folder)
    assert [each.returncode for each in ended] == [0] * world_size, "\n".join(each.stderr for each in ended)
    return [json.loads(each.stdout.splitlines()[-1]) for each in ended]


def losses(folder: Path) -> np.ndarray:
    with (folder / "curve.csv").open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


# With batch statistics each rank would normalise by its own faces, which is another computation
COMPARABLE: dict[str, Any] = {
    "train": {"precision": "fp64", "batch_norm": "frozen", "batch_size": 8, "evaluate_every": 2},
    "evaluate": {"precision": "fp64"},
}


def comparable(**train: Any) -> dict[str, Any]:
    return {**COMPARABLE, "train": {**COMPARABLE["train"], **train}}


@pytest.fixture(scope="module")
def alone(face_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, together(face_set, folder, 1, **comparable())[0]


# Two ranks share 8 faces evenly, three do not; the device's sampling is what a graph captures
@pytest.mark.parametrize(("world_size", "sampling"), [(2, "host"), (3, "device")])
def test_ranks_compute_what_one_process_does(
    face_set: Path, tmp_path: Path, alone: tuple[Path, dict[str, Any]], world_size: int, sampling: str
) -> None:
    folder, wanted = alone
    found = together(face_set, tmp_path, world_size, input={"sampling": sampling}, **comparable())
    # Sums in another order: float64 has 2e-16, Adam divides by gradients' own size
    np.testing.assert_allclose(losses(tmp_path), losses(folder), rtol=1e-9)
    for rank in found:
        assert rank["collected"] == list(range(7))
        assert rank["weights"] == found[0]["weights"]
        np.testing.assert_allclose(rank["nme"], wanted["nme"], rtol=0, atol=1e-6)
        assert [m["step"] for m in rank["milestones"]] == [m["step"] for m in wanted["milestones"]] != []
        np.testing.assert_allclose(rank["milestones"][-1]["nme"], wanted["milestones"][-1]["nme"], rtol=1e-6)


def test_a_last_partial_batch_counts_every_face_once(face_set: Path, tmp_path: Path) -> None:
    kept = comparable(drop_last=False, micro_batch=2)  # 12 faces: 8 and 4, the 8 as two micro-batches a rank
    together(face_set, tmp_path / "one", 1, **kept)
    together(face_set, tmp_path / "two", 2, **kept)
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-9)


@pytest.mark.parametrize(
    "parallel",
    [
        pytest.param({"compression": "bf16"}, id="gradients travel in 16 bits"),
        pytest.param({"broadcast_buffers": True, "bucket_mb": 0.1}, id="statistics of rank 0, many small buckets"),
    ],
)
def test_every_way_to_exchange_keeps_the_ranks_equal(face_set: Path, tmp_path: Path, parallel: dict[str, Any]) -> None:
    one, other = together(face_set, tmp_path, 2, parallel=parallel)
    assert one["weights"] == other["weights"]
    assert one["nme"] == other["nme"]  # although each has normalised by statistics of its own


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_they_resume_exactly(
    face_set: Path, tmp_path: Path
) -> None:
    train = {"train": {"log_every": 1, "ema": 0.5}}
    # Sent while the main rank looks at step 3, which is over by then; the other rank has to hear of it
    stopped = together(face_set, tmp_path / "stopped", 2, signal=(0, 3), **train)
    assert "SIGTERM" in stopped[0]["interrupted"]
    assert "another rank after step 4;" in stopped[1]["interrupted"]
    assert load_checkpoint(tmp_path / "stopped/checkpoint.pt").step == 4
    resumed = together(face_set, tmp_path / "stopped", 2, **train)
    whole = together(face_set, tmp_path / "whole", 2, **train)
    assert [rank["weights"] for rank in resumed] == [rank["weights"] for rank in whole]
    assert (losses(tmp_path / "stopped") == losses(tmp_path / "whole")).all()
    one, other = (load_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("stopped", "whole"))
    for name, tensor in one.model.items():
        assert torch.equal(tensor, other.model[name]), name


def test_torchrun_starts_the_command(face_set: Path, tmp_path: Path) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(face_set, train={"parallel": {"world_size": 2}}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*torchrun, "-m", "pose.train", str(recipe), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**shell_environment(), "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("6 steps, final loss") == 1  # of the main rank alone
    assert (tmp_path / "out/faces.npz").is_file()


@pytest.mark.parametrize(
    ("started", "wanted", "sentence"),
    [
        (1, 2, "2 processes are to train together, the launcher started 1: start them with torchrun"),
        (2, 1, "1 processes are to train together, the launcher started 2: make the two equal"),
        (7, 7, "7 ranks for 6 test faces"),
    ],
)
def test_a_number_of_ranks_that_cannot_be_is_refused(
    face_set: Path, tmp_path: Path, started: int, wanted: int, sentence: str
) -> None:
    train = {"batch_size": 8, "parallel": {"world_size": wanted}}
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(face_set, train=train))
    for ended in start(started, "-m", "pose.train", recipe, "--out", tmp_path / "out"):
        assert ended.returncode == 2
        assert sentence in ended.stderr
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out/curve.csv").exists()
