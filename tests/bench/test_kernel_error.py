from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bench.kernels import error as module
from bench.kernels.cases import Case, make_inputs, triton_variant
from bench.kernels.cases import build as build_call
from bench.kernels.error import ErrorBar, KernelError, error_checks, kernel_error

CPU = torch.device("cpu")
CASE = Case("wing", "loss_and_grad", "float32", "float32", (8, 5, 2), "sample_landmark")


@pytest.mark.parametrize("loss", ["wing", "soft_wing", "smooth_l1", "adaptive_wing"])
@pytest.mark.parametrize("mode", ["loss_and_grad", "forward_backward"])
@pytest.mark.parametrize("weight", ["none", "landmark", "sample_landmark", "element"])
def test_float64_is_its_own_oracle_and_parts_of_a_batch_add_up(
    monkeypatch: pytest.MonkeyPatch, loss: str, mode: str, weight: str
) -> None:
    monkeypatch.setattr(module, "CHUNK", 30)  # three rows at a time
    case = Case(loss, mode, "float64", "float64", (8, 5, 2), weight)
    error = kernel_error(case, "eager", make_inputs(case, 1, CPU))
    assert error.loss_relative < 1e-14
    assert error.gradient_ulp < 64  # of float64: another order of summation and of the factors
    assert error.repeats


def test_another_upstream_gradient_is_in_the_oracle_as_well() -> None:
    case = replace(CASE, mode="forward_backward", upstream="other")
    error = kernel_error(case, "eager", make_inputs(case, 1, CPU))
    assert error.gradient_ulp < 4


def broken(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Any, Any], Any], case: Case = CASE, inputs: Any = None
) -> KernelError:
    real = build_call
    runs = iter(range(10))

    def build(*arguments: Any) -> Any:
        call = real(*arguments)
        return lambda index: change(next(runs), *call(index))

    with monkeypatch.context() as patch:
        patch.setattr(module, "build", build)
        return kernel_error(case, "eager", inputs or make_inputs(case, 1, CPU))


def test_a_gradient_off_by_two_millionths_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    good = kernel_error(CASE, "eager", make_inputs(CASE, 1, CPU))
    assert good.gradient_ulp < 4
    error = broken(monkeypatch, lambda _, loss, gradient: (loss, gradient * (1 + 2e-6)))
    assert error.gradient_ulp > 8


def test_an_element_that_was_not_written_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def skip_one(_: int, loss: torch.Tensor, gradient: torch.Tensor) -> Any:
        gradient.view(-1)[3] = torch.nan
        return loss, gradient

    assert broken(monkeypatch, skip_one).gradient_ulp == float("inf")


@pytest.mark.parametrize(("loss", "kink"), module.KINKS.items())
@pytest.mark.parametrize("weight", ["none", "sample_landmark"])
def test_only_what_rounding_may_carry_over_a_kink_is_left_out(
    monkeypatch: pytest.MonkeyPatch, loss: str, kink: float, weight: str
) -> None:
    def on_the_other_side(_: int, loss: torch.Tensor, gradient: torch.Tensor) -> Any:
        gradient[0, 0, 0] *= 1.2
        return loss, gradient

    case = Case(loss, "loss_and_grad", "float32", "float32", (8, 5, 2), weight)
    inputs = make_inputs(case, 1, CPU)
    inputs.target[0].fill_(0.75)  # so that differences are rounded to more than their own last digit
    factor = 1.0 if inputs.weight[0] is None else inputs.weight[0][0, 0]
    for steps, left_out in ((0, 1), (1, 1), (-1, 1), (12, 0), (-12, 0)):
        off = kink / factor * (1 + steps * 2.0**-23)
        inputs.pred[0][0, 0, 0] = off + 0.75
        error = kernel_error(case, "eager", inputs)
        assert error.at_kink == left_out, steps
        assert error.gradient_ulp < 8
        wrong = broken(monkeypatch, on_the_other_side, case, inputs)
        assert (wrong.gradient_ulp < 8) == bool(left_out), steps


def test_a_wrong_loss_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    error = broken(monkeypatch, lambda _, loss, gradient: (loss * (1 + 1e-6), gradient))
    assert 5e-7 < error.loss_relative < 2e-6


def test_other_bits_in_the_second_run_show(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_error(CASE, "eager", make_inputs(CASE, 1, CPU)).repeats
    error = broken(monkeypatch, lambda run, loss, gradient: (loss, gradient if run else -gradient * 0))
    assert not error.repeats


def test_there_is_no_gradient_error_of_a_forward_pass() -> None:
    case = replace(CASE, mode="forward")
    with pytest.raises(ValueError, match="no gradient"):
        kernel_error(case, "eager", make_inputs(case, 1, CPU))


@pytest.mark.skipif(triton_variant() != "triton_interpreted", reason="needs TRITON_INTERPRET=1")
def test_the_interpreted_kernel_is_within_its_limits() -> None:
    error = kernel_error(CASE, "triton_interpreted", make_inputs(CASE, 1, CPU))
    assert error.loss_relative <= 3e-7
    assert error.gradient_ulp <= 4
    assert error.repeats


@pytest.mark.gpu
def test_on_a_gpu_the_output_is_written_over_nans() -> None:
    device = torch.device("cuda")
    case = replace(CASE, shape=(4096, 98, 2))
    error = kernel_error(case, "triton", make_inputs(case, 1, device))
    assert error.poisoned
    assert error.loss_relative <= 3e-7
    assert error.gradient_ulp <= 4


def error(loss: float = 1e-8, ulp: float = 1.0, repeats: bool = True) -> KernelError:
    return KernelError(loss, ulp, repeats, poisoned=True)


SECOND = replace(CASE, shape=(2, 5, 2))
BAR = ErrorBar("made up", (CASE, SECOND), gradient_ulp=4.0)


def test_the_worst_case_of_a_bar_counts() -> None:
    loss, gradient, bits = error_checks([BAR], {CASE: error(), SECOND: error(2e-7, 4.5, False)}, {}, "how", "why")
    assert (loss.figure, loss.verdict) == (2e-7, "PASS")
    assert (gradient.figure, gradient.verdict) == (4.5, "FAIL")
    assert (bits.figure, bits.verdict) == (1, "FAIL")


def test_a_missing_case_leaves_a_bar_unmeasured() -> None:
    checks = error_checks([BAR], {CASE: error()}, {}, "how", "why")
    assert {check.verdict for check in checks} == {"unmeasured"}
    assert {check.how for check in checks} == {"why"}


def test_worse_than_eager_is_short_and_an_infinite_error_fails() -> None:
    bar = replace(BAR, cases=(CASE,), gradient_ulp=64.0, no_worse_than_eager=True)
    eager = {CASE: error(ulp=40.0)}
    verdicts = [
        error_checks([bar], {CASE: error(ulp=ulp)}, eager, "how", "why")[1].verdict for ulp in (40.0, 41.0, 65.0)
    ]
    assert verdicts == ["PASS", "SHORT", "FAIL"]
    assert error_checks([bar], {CASE: error(ulp=float("inf"))}, eager, "how", "why")[1].verdict == "FAIL"
    assert error_checks([bar], {CASE: error()}, {}, "how", "why")[1].verdict == "unmeasured"
    # Eager worse than the limit does not move the limit
    assert error_checks([bar], {CASE: error()}, {CASE: error(ulp=90.0)}, "how", "why")[1].target == 64.0
