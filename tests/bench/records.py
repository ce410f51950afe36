"""Records for tests."""

from __future__ import annotations

from bench.result import (
    Environment,
    Estimate,
    Gauges,
    Memory,
    OpError,
    Result,
    SubsetMetrics,
    ThroughputResult,
    Timings,
    Windows,
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
