from __future__ import annotations

from pathlib import Path

import pytest
import torch
from records import result, store

import pose.criterion
from bench.config import Gates
from bench.experiment import Gate, read_experiment
from bench.gates import judge
from bench.op_error import op_error, ulp_distance
from bench.result import Result, SubsetMetrics
from pose.recipe import SmoothL1Loss, SoftWingLoss, WingLoss

CPU = torch.device("cpu")
LOSSES = [
    WingLoss(kind="wing"),
    WingLoss(kind="wing", gradient="direct"),
    SoftWingLoss(kind="soft_wing"),
    SmoothL1Loss(kind="smooth_l1"),
]


@pytest.mark.parametrize("config", LOSSES)
@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16", "fp16"])
def test_the_reference_losses_are_within_their_limits(config: WingLoss, precision: str) -> None:
    error = op_error(config, precision, CPU)
    assert error.dtype == {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[precision]
    assert error.loss_relative <= error.loss_relative_limit
    assert error.gradient_ulp <= error.gradient_ulp_limit


def test_a_gradient_that_is_off_by_a_millionth_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pose.criterion.kernels.wing_loss_and_grad

    def skewed(*arguments: object, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        loss, gradient = real(*arguments, **options)
        return loss, gradient * (1 + 2e-6)

    monkeypatch.setattr(pose.criterion.kernels, "wing_loss_and_grad", skewed)
    error = op_error(WingLoss(kind="wing", gradient="direct"), "fp32", CPU)
    assert error.gradient_ulp > error.gradient_ulp_limit


def test_ulp_distance_counts_units_in_the_last_place() -> None:
    exact = torch.tensor([1.0, 1.5, 2.0, -4.0, 0.0], dtype=torch.float64)
    value = exact.float()
    assert ulp_distance(value, exact).tolist() == [0, 0, 0, 0, 0]
    up = torch.nextafter(value, torch.full_like(value, torch.inf))
    assert ulp_distance(up, exact)[:3].tolist() == [1, 1, 1]
    assert ulp_distance(torch.tensor([float("nan")]), exact[:1]).item() == float("inf")
    assert ulp_distance(torch.tensor([1e-3]), torch.zeros(1, dtype=torch.float64)).item() > 1e30


def judged(gates: Gates, folder: Path, one: Result) -> list[Gate]:
    return judge(gates, read_experiment(store(folder, [one])))


def test_gates_pass_and_fail_on_the_numbers(tmp_path: Path) -> None:
    gates = Gates(mean_shape_ratio=0.5)
    assert [gate.passed for gate in judged(gates, tmp_path, result())] == [True, True]
    worse = {"test": SubsetMetrics(count=3, nme=0.126, failure_rate=0.0, auc=0.5)}
    assert [gate.passed for gate in judged(gates, tmp_path, result(metrics=worse))] == [True, False]
    unknown = {"test": SubsetMetrics(count=3, nme=None, failure_rate=None, auc=None)}
    assert [gate.passed for gate in judged(gates, tmp_path, result(metrics=unknown))] == [True, False]
    good = op_error(LOSSES[0], "fp32", CPU)
    bad = good.model_copy(update={"gradient_ulp": 4.1})
    assert [gate.passed for gate in judged(gates, tmp_path, result(op_error=bad))] == [False, True]
    not_a_number = good.model_copy(update={"loss_relative": float("nan")})
    assert [gate.passed for gate in judged(gates, tmp_path, result(op_error=not_a_number))] == [False, True]


def test_gates_that_are_off_say_nothing(tmp_path: Path) -> None:
    assert judged(Gates(op_error=False), tmp_path, result()) == []
