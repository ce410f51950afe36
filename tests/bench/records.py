"""Records for tests."""

from __future__ import annotations

from bench.result import Environment, OpError, Result, SubsetMetrics, Timings

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
