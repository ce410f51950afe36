"""Experiments of tiny trials on a cluster, as a user would run them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml
from mini_cluster import MiniCluster

from pose.checkpoint import load_checkpoint

TESTS = REPOSITORY / "tests"


def config(folder: Path, faces: Path, *, ranks: int = 4, **top: Any) -> Path:
    """`ranks` processes on two nodes train the tiny model in six steps, saving after each."""
    train = {"parallel": {"world_size": ranks}, "checkpoint_every": 1, "log_every": 1, **top.pop("train", {})}
    resources = {"nodes": 2 if ranks > 1 else 1, "time": 10, "cpus_per_task": 1, **top.pop("resources", {})}
    values = {**tiny_recipe(faces, train=train), "name": "cluster", "resources": resources, **top}
    return write_yaml(folder / "experiment.yaml", {"gates": {"op_error": False}, **values})


def command(*arguments: str | Path, faulty: bool = False) -> list[str]:
    start = [str(TESTS / "slurm" / "faulty_run.py")] if faulty else ["-m", "bench.run"]
    return [sys.executable, *start, *map(str, arguments)]


def environment(cluster: MiniCluster | None, **more: str) -> dict[str, str]:
    seen = {name: value for name, value in shell_environment().items() if not name.startswith("PYTEST")}
    if cluster is not None:
        seen |= {name: cluster.environment[name] for name in ("PATH", "SLURM_CONF")}
    path = os.pathsep.join(map(str, (REPOSITORY, TESTS / "slurm")))
    return {**seen, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **more}


def run(
    cluster: MiniCluster | None, *arguments: str | Path, faults: dict[str, list[Any]] | None = None
) -> subprocess.CompletedProcess[str]:
    """`bench.run` to its end."""
    more = {"FAULTS": json.dumps(faults)} if faults is not None else {}
    where = ["--cluster", "slurm"] if cluster is not None else []
    return subprocess.run(
        command(*arguments, *where, faulty=faults is not None),
        env=environment(cluster, **more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(
    cluster: MiniCluster, *arguments: str | Path, faults: dict[str, list[Any]], log: Path
) -> subprocess.Popen[bytes]:
    """The same, left running."""
    with log.open("ab") as file:
        return subprocess.Popen(
            command(*arguments, "--cluster", "slurm", faulty=True),
            env=environment(cluster, FAULTS=json.dumps(faults)),
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def trial_folders(out: Path) -> dict[str, Path]:
    """The trials' folders by variant."""
    return {path.name.rpartition("-s0-")[0]: path for path in sorted((out / "trials").iterdir())}


def ended_with(folder: Path) -> tuple[str, bytes]:
    """What a trial has to end with, whatever happened on the way: a digest of its weights, and every face's points."""
    digest = hashlib.sha256()
    for name, value in sorted(load_checkpoint(folder / "checkpoint.pt").model.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    with np.load(folder / "faces.npz", allow_pickle=False) as faces:
        return digest.hexdigest(), faces["predicted"].tobytes() + faces["nme"].tobytes()
