from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import kernels
from bench.kernels.cases import (
    LOSSES,
    MODES,
    PUBLISHED,
    UPSTREAM,
    Case,
    adaptive_wing_published,
    build,
    make_inputs,
    triton_variant,
)

CPU = torch.device("cpu")
FP32 = Case("wing", "forward_backward", "float32", "float32", (4, 5, 2))
# Bytes per element by hand: pred and target read once, the gradient, as wide as pred, written once
BYTES = {
    ("float32", "float32"): (8, 12),
    ("bfloat16", "float32"): (6, 8),
    ("float16", "float32"): (6, 8),
    ("float32", "bfloat16"): (6, 10),
    ("bfloat16", "bfloat16"): (4, 6),
    ("float64", "float64"): (16, 24),
}


@pytest.mark.parametrize("dtypes", BYTES, ids="/".join)
@pytest.mark.parametrize("mode", MODES)
def test_model_bytes_are_those_of_the_dtypes_and_the_mode(dtypes: tuple[str, str], mode: str) -> None:
    forward, with_gradient = BYTES[dtypes]
    case = Case("wing", mode, *dtypes, (64, 98, 2))
    assert case.elements == 12544
    assert case.model_bytes == 12544 * (forward if mode == "forward" else with_gradient)


@pytest.mark.parametrize(
    ("weight", "shape", "more"),
    [
        ("none", None, 0),
        ("landmark", (98, 1), 98 * 4),
        ("sample_landmark", (64, 98, 1), 64 * 98 * 4),
        ("element", (64, 98, 2), 64 * 98 * 2 * 4),
    ],
)
def test_a_weight_is_read_once_at_its_own_size(weight: str, shape: tuple[int, ...] | None, more: int) -> None:
    case = Case("wing", "loss_and_grad", "bfloat16", "float32", (64, 98, 2), weight)
    assert case.weight_shape == shape
    assert case.model_bytes == 12544 * 8 + more
    (tensor,) = make_inputs(case, 1, CPU).weight
    assert (None if tensor is None else tuple(tensor.shape)) == shape
    heatmaps = replace(case, shape=(2, 98, 8, 8), weight="landmark")
    assert heatmaps.weight_shape == (98, 1, 1)


@pytest.mark.parametrize("loss", ["wing", "adaptive_wing"])
def test_inputs_of_every_set_are_different_and_drawn_alike(loss: str) -> None:
    case = Case(loss, "forward", "bfloat16", "float32", (256, 98, 2), "element")
    inputs = make_inputs(case, 2, CPU)
    again = make_inputs(case, 2, CPU)
    for first, second, same in (
        (*inputs.pred, again.pred[0]),
        (*inputs.target, again.target[0]),
    ):
        assert not torch.equal(first, second)
        assert torch.equal(first, same)
        # Deviations of two draws of 50,000 numbers
        assert first.float().std().item() == pytest.approx(second.float().std().item(), rel=0.05)
    assert (inputs.pred[0].dtype, inputs.target[0].dtype) == (torch.bfloat16, torch.float32)
    # Both branches are in use: the threshold is 10 of the wing loss, 0.5 of the adaptive one
    beyond = ((inputs.pred[0].float() - inputs.target[0]).abs() > (10 if loss == "wing" else 0.5)).float().mean().item()
    assert 0.05 < beyond < 0.3
    assert inputs.pred[0].count_nonzero() > 0.99 * case.elements


# On a CPU the kernel runs in the interpreter alone
VARIANTS = ["eager", *(["triton_interpreted"] if triton_variant() == "triton_interpreted" else [])]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("upstream", ["one", "other"])
def test_all_variants_and_modes_compute_the_same_loss_and_gradient(loss: str, upstream: str) -> None:
    case = replace(FP32, loss=loss, upstream=upstream, weight="landmark")
    inputs = make_inputs(case, 2, CPU)
    pred = inputs.pred[1].clone().requires_grad_()
    value = getattr(kernels, f"{loss}_loss")(pred, inputs.target[1], inputs.weight[1], impl="reference")
    value.backward()
    assert pred.grad is not None
    factor = UPSTREAM if upstream == "other" else 1.0
    for variant in VARIANTS:
        got, gradient = build(case, variant, inputs)(1)
        # The same formula in float32, evaluated in another order; the adaptive wing's power adds some ulp
        torch.testing.assert_close(got, value.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, pred.grad * factor, rtol=2e-5, atol=1e-8)
        assert not got.requires_grad
        direct, slope = build(replace(case, mode="loss_and_grad"), variant, inputs)(1)
        torch.testing.assert_close(direct, value.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(slope, pred.grad, rtol=2e-5, atol=1e-8)
        alone = build(replace(case, mode="forward"), variant, inputs)(1)
        torch.testing.assert_close(alone, value.detach(), rtol=1e-5, atol=0)
        assert not alone.requires_grad
    assert all(tensor.grad is None for tensor in inputs.pred)


def test_an_upstream_gradient_that_is_handed_in_is_used() -> None:
    inputs = make_inputs(FP32, 1, CPU)
    _, one = build(FP32, "eager", inputs, torch.ones(()))(0)
    _, three = build(FP32, "eager", inputs, torch.tensor(3.0))(0)
    torch.testing.assert_close(three, 3 * one)


def test_the_published_formula_is_the_adaptive_wing_loss() -> None:
    case = Case(PUBLISHED, "forward_backward", "float64", "float64", (2, 3, 8, 8))
    inputs = make_inputs(case, 1, CPU)
    loss, gradient = build(case, "eager", inputs)(0)
    ours, same = build(replace(case, loss="adaptive_wing"), "eager", inputs)(0)
    # float64 rounding, times a hundred operations
    torch.testing.assert_close(loss, ours, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient, same, rtol=1e-11, atol=1e-16)


def test_the_published_formula_evaluates_four_powers_forward() -> None:
    seen = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Seen():
        adaptive_wing_published(torch.rand(8), torch.rand(8))
    assert seen.count("pow") == 4
    assert seen.count("where") == 1


def test_what_the_published_formula_lacks_is_refused() -> None:
    for case, variant in (
        (Case(PUBLISHED, "loss_and_grad", "float32", "float32", (2, 3)), "eager"),
        (Case(PUBLISHED, "forward", "float32", "float32", (2, 3)), "triton"),
        (Case(PUBLISHED, "forward", "float32", "float32", (2, 3), "element"), "eager"),
    ):
        with pytest.raises(ValueError, match="published formula"):
            build(case, variant, make_inputs(case, 1, CPU))


def test_a_case_says_what_sets_it_apart() -> None:
    assert str(FP32) == "wing forward_backward float32 4x5x2"
    other = replace(FP32, pred_dtype="bfloat16", weight="landmark", upstream="other")
    assert str(other) == "wing forward_backward bfloat16/float32 4x5x2 weight per landmark upstream other"
