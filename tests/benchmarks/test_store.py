"""How long it takes to read a large experiment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from records import result, store

from bench.experiment import read_experiment
from bench.result import Throughput

TRIALS = 10_000
SPEED = Throughput(
    images_per_second=1000.0,
    windows=[1000.0 + i for i in range(22)],
    window_steps=20,
    warmup_steps=20,
    batch_size=32,
    input_share=0.1,
)


@pytest.mark.parametrize("indexed", [False, True])
def test_read_10000_trials(benchmark: Any, tmp_path: Path, indexed: bool) -> None:
    store(tmp_path, [result(variant="a", seed=seed, throughput=SPEED) for seed in range(TRIALS)])
    for path in tmp_path.glob("trials/*/result.json"):
        os.utime(path, (0, path.stat().st_mtime - 60))
    index = tmp_path / "index.jsonl"

    def prepare() -> None:
        index.unlink(missing_ok=True)
        if indexed:
            read_experiment(tmp_path)

    experiment = benchmark.pedantic(read_experiment, (tmp_path,), setup=prepare, rounds=3)
    assert experiment.done == TRIALS
    assert index.exists()
