"""Training runs through the command line, killed at moments that a seed decides."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml

from pose.checkpoint import load_checkpoint
from slurm.ranks import free_port

SECONDS = 120  # for a run to end, or to get anywhere
WAITS = 5  # for the other ranks to end by themselves: they do where they were connected


def end_alike(face_set: Path, folder: Path, *, kills: int, seed: int, ranks: int = 1, **train: Any) -> None:
    """Train once undisturbed and once killed `kills` times, going on each time; both must end with the same bits."""
    # Enough that no run ends before it has been killed as often: 3 checkpoints a kill at most, and some to spare
    steps = (20 + 5 * kills) * train.get("checkpoint_every", 1)
    values = tiny_recipe(face_set, train={"steps": steps, "parallel": {"world_size": ranks}, **train})
    recipe = write_yaml(folder / "recipe.yaml", values)
    rng = np.random.default_rng(seed)
    for number in range(kills):
        assert killed(recipe, folder / "killed", ranks, rng), f"run {number + 1} ended before it could be killed"
    for out in (folder / "killed", folder / "whole"):
        processes = start(recipe, out, ranks)
        assert [process.wait(SECONDS) for process in processes] == [0] * ranks, (out / "log").read_text()
    assert "resuming after step" in (folder / "killed" / "log").read_text()
    whole, resumed = everything(folder / "whole"), everything(folder / "killed")
    assert whole.keys() == resumed.keys()
    assert [name for name, value in whole.items() if not same(value, resumed[name])] == []


def killed(recipe: Path, out: Path, ranks: int, rng: np.random.Generator) -> bool:
    """Start the run and send one of its ranks SIGKILL, mostly while it trains and saves; False if it ended before."""
    checkpoints = 0 if rng.random() < 0.2 else int(rng.integers(1, 4))
    # Without a checkpoint to wait for: while it imports, loads, resumes. Otherwise within about a step and its saving
    delay = rng.uniform(0, 1.5) if checkpoints == 0 else rng.uniform(0, 0.03)
    victim = int(rng.integers(ranks))
    processes = start(recipe, out, ranks)
    last, deadline = written(out), time.monotonic() + SECONDS
    while checkpoints and processes[victim].poll() is None:
        assert time.monotonic() < deadline, (out / "log").read_text()
        if (now := written(out)) != last:
            last, checkpoints = now, checkpoints - 1
        time.sleep(0.0005)
    time.sleep(delay)
    processes[victim].kill()
    was_killed = processes[victim].wait() != 0
    for process in processes:
        try:
            process.wait(WAITS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return was_killed


def start(recipe: Path, out: Path, ranks: int) -> list[subprocess.Popen[bytes]]:
    environment = {**shell_environment(), "OMP_NUM_THREADS": "1"}
    if ranks > 1:
        environment |= {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    out.mkdir(exist_ok=True)
    with (out / "log").open("ab") as log:
        return [
            subprocess.Popen(
                [sys.executable, "-m", "pose.train", os.fspath(recipe), "--out", os.fspath(out)],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=environment if ranks == 1 else {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(ranks)
        ]


def written(out: Path) -> int | None:
    try:
        return (out / "checkpoint.pt").stat().st_ino
    except FileNotFoundError:
        return None


def everything(out: Path) -> dict[str, Any]:
    """What the run in `out` ended with, each value under a name: checkpoints, curve without speeds, every face."""
    found: dict[str, Any] = {}
    for path in sorted(out.glob("*.pt")):
        flatten(path.name, vars(load_checkpoint(path)), found)
    with (out / "curve.csv").open() as file:
        found["curve"] = [{**row, "images_per_second": None} for row in csv.DictReader(file)]
    with np.load(out / "faces.npz") as faces:
        found |= {f"faces.{name}": faces[name] for name in faces.files}
    return found


def flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            flatten(f"{name}.{key}", item, into)
    else:
        into[name] = value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other
