"""Records for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.result import (
    LEVELS,
    RESULT,
    THROUGHPUT,
    Environment,
    Estimate,
    Gauges,
    LevelsResult,
    Memory,
    OpError,
    PredictionDifference,
    Result,
    SubsetMetrics,
    ThroughputResult,
    Timings,
    Trajectory,
    Windows,
    write_record,
)

OP_ERROR = OpError(
    dtype="float32",
    elements=3136,
    loss_relative=1e-8,
    gradient_ulp=1.5,
    loss_relative_limit=3e-7,
    gradient_ulp_limit=4.0,
)


def result(**changes: object) -> Result:
    metrics = {"test": SubsetMetrics(count=3, nme=0.1, failure_rate=0.0, auc=0.5)}
    shape = {"test": SubsetMetrics(count=3, nme=0.25, failure_rate=1.0, auc=0.0)}
    environment = Environment(
        commit=None, dirty=None, host="", platform="", python="", packages={}, cpu="", cpus=1, threads=1, gpu=None,
        driver=None, variables={},
    )  # fmt: skip
    values: dict[str, object] = {
        "trial": "a-s0-0", "experiment": "e", "variant": "a", "seed": 0, "config": {}, "environment": environment,
        "train_faces": 3, "test_faces": 3, "steps": 1, "final_loss": 1.0, "metrics": metrics, "mean_shape": shape,
        "throughput": None, "timings": Timings(data=0, first_step=0, train=0, evaluate=0, total=0),
        "op_error": OP_ERROR, "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return Result.model_validate({**values, **changes})


def windows(images_per_second: float, *, batch_size: int = 256, steps: int = 10, spread: float = 0.01) -> Windows:
    """Ten windows of like speed; the interval is `spread` to either side."""
    return Windows(
        steps=steps,
        seconds=[steps * batch_size / images_per_second] * 10,
        warmup_steps=5,
        warmup_seconds=2.0,
        images_per_second=Estimate(
            value=images_per_second, low=images_per_second * (1 - spread), high=images_per_second * (1 + spread)
        ),
    )


def throughput_result(
    variant: str, repeat: int, speed: float, *, gpu: str | None = "NVIDIA H200", spread: float = 0.01, **changes: object
) -> ThroughputResult:
    """A trial of ResNet-50 at 256 px that reached `speed` images per second."""
    batch_size, world_size = int(str(changes.get("batch_size", 256))), int(str(changes.get("world_size", 1)))
    environment = Environment(
        commit="a" * 40, dirty=False, host="host", platform="Linux", python="3.11", packages={"torch": "2.11.0"},
        cpu="processor", cpus=16, threads=16, gpu=gpu, driver="1.0" if gpu else None, variables={},
    )  # fmt: skip
    gauges = Gauges(sm_clock_mhz=1980, memory_clock_mhz=3201, power_w=600, power_limit_w=700, temperature_c=55)
    train = {"batch_size": batch_size, "device": "auto", "parallel": {"world_size": world_size}}
    values: dict[str, object] = {
        "trial": f"{variant}-r{repeat}-0123456789", "experiment": "fake", "variant": variant, "repeat": repeat,
        "seed": 0, "config": {"train": train}, "environment": environment, "train_faces": 7500,
        "world_size": world_size, "batch_size": batch_size, "first_step_from_process": 9.5,
        "first_step_from_stepper": 3.25, "training": windows(speed, batch_size=batch_size, spread=spread),
        "input_alone": windows(300_000, batch_size=batch_size),
        "resident": windows(speed * 1.25, batch_size=batch_size),
        "input_share": Estimate(value=0.2, low=0.19, high=0.21),
        "memory": Memory(of="gpu" if gpu else "process", allocated=2 * 10**10, reserved=24 * 10**9 if gpu else None),
        "gauges_before": gauges if gpu else None, "gauges_after": gauges if gpu else None,
        "flops_per_image": 31_700_000_000, "bytes_per_image": 508_000_000,
        "peak_flops": 989e12 if gpu else None, "bandwidth": 4.3e12 if gpu else None,
        "started": f"2026-01-01T00:0{repeat}:00+00:00", "seconds": 60.0,
    }  # fmt: skip
    return ThroughputResult.model_validate({**values, **changes})


def subset(nme: float | None, count: int = 400) -> SubsetMetrics:
    return SubsetMetrics(count=count, nme=nme, failure_rate=0.02, auc=0.5)


def store(
    folder: Path,
    records: Sequence[Result | ThroughputResult | LevelsResult],
    config: Mapping[str, Any] | None = None,
    nme: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """An experiment's folder that holds `records`, under ids of their own; `nme`: by variant, of each test face.

    Faces of the subsets pose and blur are known: every other one, and every third.
    """
    variants = list(dict.fromkeys(one.variant for one in records))
    ids = []
    for one in records:
        if isinstance(one, ThroughputResult):
            part, file = f"r{one.repeat}", THROUGHPUT
        elif isinstance(one, LevelsResult):
            part, file = "levels", LEVELS
        else:
            part, file = f"s{one.seed}", RESULT
        name = f"{one.variant}-{part}-0123456789"
        ids.append(name)
        write_record(one.model_copy(update={"trial": name, "experiment": "fake"}), folder / "trials" / name / file)
        if nme is not None and file == RESULT:
            _write_faces(folder / "trials" / name / "faces.npz", nme[one.variant])
    values = {
        "name": "fake", "variants": {name: {} for name in variants}, "baseline": variants[0],
        "seeds": sorted({one.seed for one in records}), "trials": ids, **(config or {}),
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(values))
    return folder


def _write_faces(path: Path, nme: np.ndarray) -> None:
    count = len(nme)
    attributes = np.zeros((count, 6), dtype=bool)
    attributes[::2, 0] = attributes[::3, 5] = True
    points = np.tile(np.linspace(50, 150, 98)[None, :, None], (count, 1, 2))
    known = np.array([True, False, False, False, False, True])
    np.savez(
        path, nme=nme, predicted=points + 1, true=points, center=np.full((count, 2), 100.0), side=np.full(count, 120.0),
        attributes=attributes, attributes_known=known, image=np.array(["face.jpg"] * count),
    )  # fmt: skip


def levels_result(variant: str, **changes: object) -> LevelsResult:
    """Levels of a variant that differs from the other by rounding."""
    way = Trajectory(loss=[1e-8, 2e-8, 3e-8], update=[1e-4, 2e-4, 4e-4], length=[1e-9] * 3, growth=2.0)
    values: dict[str, object] = {
        "trial": f"{variant}-levels-0", "experiment": "fake", "variant": variant, "seed": 0,
        "config": {}, "reference": {}, "environment": result().environment, "op_errors": [OP_ERROR],
        "reference_op_errors": [OP_ERROR], "trajectory": way, "twin": way, "precision": "fp32",
        "evaluation": PredictionDifference(faces=3, largest=2e-5, mean=3e-6, nme=1e-9),
        "yardstick": PredictionDifference(faces=3, largest=2e-5, mean=4e-6, nme=1e-9),
        "weights": "b-s0-0", "started": "2026-01-01T00:00:00+00:00", "seconds": 5.0,
    }  # fmt: skip
    return LevelsResult.model_validate({**values, **changes})
