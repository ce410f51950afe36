"""The losses against their formulas, written here once more, one number at a time, in Python's float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, shell_environment

from kernels import (
    adaptive_wing_loss,
    adaptive_wing_loss_and_grad,
    reference,
    smooth_l1_loss,
    smooth_l1_loss_and_grad,
    soft_wing_loss,
    soft_wing_loss_and_grad,
    wing_loss,
    wing_loss_and_grad,
)
from kernels.family import PARAMETERS

LOSSES = {
    "wing": wing_loss,
    "soft_wing": soft_wing_loss,
    "smooth_l1": smooth_l1_loss,
    "adaptive_wing": adaptive_wing_loss,
}
LOSSES_AND_GRADS = {
    "wing": wing_loss_and_grad,
    "soft_wing": soft_wing_loss_and_grad,
    "smooth_l1": smooth_l1_loss_and_grad,
    "adaptive_wing": adaptive_wing_loss_and_grad,
}
DEFAULTS = {
    "wing": (10.0, 2.0),
    "soft_wing": (2.0, 20.0, 0.5),
    "smooth_l1": (1.0,),
    "adaptive_wing": (14.0, 0.5, 1.0, 2.1),
}
OUTER_KINK = {"wing": 10.0, "soft_wing": 2.0, "smooth_l1": 1.0, "adaptive_wing": 0.5}


def value_and_slopes(name: str, d: float, t: float = 0.0, parameters: tuple[float, ...] = ()):
    """(loss, d loss / d pred, d loss / d target) of one element, d = pred - target."""
    parameters = parameters or DEFAULTS[name]
    a = abs(d)
    sign = (d > 0) - (d < 0)
    if name == "wing":
        omega, epsilon = parameters
        constant = omega - omega * math.log(1 + omega / epsilon)
        loss, slope = (omega * math.log1p(a / epsilon), omega / (epsilon + a)) if a < omega else (a - constant, 1.0)
        return loss, slope * sign, -slope * sign
    if name == "soft_wing":
        omega1, omega2, epsilon = parameters
        constant = omega1 - omega2 * math.log(1 + omega1 / epsilon)
        far = omega2 * math.log1p(a / epsilon) + constant, omega2 / (epsilon + a)
        loss, slope = (a, 1.0) if a < omega1 else far
        return loss, slope * sign, -slope * sign
    if name == "smooth_l1":
        (beta,) = parameters
        loss, slope = (0.5 * a * a / beta, a / beta) if a < beta else (a - 0.5 * beta, 1.0)
        return loss, slope * sign, -slope * sign
    omega, theta, epsilon, alpha = parameters
    e = alpha - t
    if a == 0:
        return 0.0, 0.0, 0.0
    if a < theta:
        q = (a / epsilon) ** e
        slope = omega / (1 + q) * e * (a / epsilon) ** (e - 1) / epsilon
        by_exponent = omega / (1 + q) * q * math.log(a / epsilon)
        return omega * math.log1p(q), slope * sign, -slope * sign - by_exponent
    r = theta / epsilon
    q = r**e
    big_a = omega * (1 / (1 + q)) * e * r ** (e - 1) / epsilon
    big_c = theta * big_a - omega * math.log1p(q)
    # dA/de and dC/de by the product rule; q' = q ln r
    log_r = math.log(r)
    da = omega / epsilon * (r ** (e - 1) * (1 + e * log_r) / (1 + q) - e * r ** (e - 1) * q * log_r / (1 + q) ** 2)
    dc = theta * da - omega * q * log_r / (1 + q)
    return big_a * a - big_c, big_a * sign, -big_a * sign - (a * da - dc)


def expected(name, pred, target, weight, reduction, weighting):
    """Loss and gradients of pred, target and weight, by plain loops over float64 lists."""
    flat_w = torch.ones_like(pred) if weight is None else weight.expand_as(pred)
    triples = zip(pred.flatten().tolist(), target.flatten().tolist(), flat_w.flatten().tolist(), strict=True)
    losses, by_pred, by_target, by_weight = [], [], [], []
    for p, t, w in triples:
        if weighting == "input":
            loss, dp, dt = value_and_slopes(name, w * (p - t), w * t)  # w p - w t, without its cancellation
            losses.append(loss)
            by_pred.append(dp * w)
            by_target.append(dt * w)
            by_weight.append(dp * (p - t) + (dp + dt) * t)
        else:
            loss, dp, dt = value_and_slopes(name, p - t, t)
            losses.append(w * loss)
            by_pred.append(w * dp)
            by_target.append(w * dt)
            by_weight.append(loss)
    factor = {"none": 1.0, "sum": 1.0, "mean": 1 / pred.numel(), "batchmean": 1 / pred.shape[0]}[reduction]

    def as_tensor(values):
        return torch.tensor(values, dtype=torch.float64).view(pred.shape) * factor

    loss = as_tensor(losses)
    return (loss if reduction == "none" else loss.sum()), as_tensor(by_pred), as_tensor(by_target), as_tensor(by_weight)


def face_like(name: str, unit: str, dtype=torch.float64):
    """Predictions and targets with both branches, both signs, exact zeros and exact kinks among them."""
    generator = torch.Generator().manual_seed(7)
    scale = {"fraction": 1.0, "pixels": 256.0}[unit]
    target = torch.rand(5, 98, 2, generator=generator, dtype=torch.float64) * scale
    if name == "adaptive_wing":
        target = target / scale  # its exponent, alpha - target, is made for targets of 0 to 1
    pred = target + torch.randn(5, 98, 2, generator=generator, dtype=torch.float64) * scale * 0.06
    kink = OUTER_KINK[name]
    target[0, :4, 0] = torch.tensor([0.0, 0.5, 0.25, 0.75])
    pred[0, :4, 0] = target[0, :4, 0] + torch.tensor([kink, -kink, 0.0, kink])  # sums that are exact in binary
    return pred.to(dtype), target.to(dtype)


WEIGHTS = {
    "none": None,
    "ones": torch.ones(5, 98, 2, dtype=torch.float64),
    "0/1 mask": (torch.arange(5 * 98).view(5, 98, 1) % 3 > 0).double(),
    "fractional per landmark": torch.linspace(0.0, 1.7, 98, dtype=torch.float64).view(98, 1),
    "one number": torch.tensor(0.5, dtype=torch.float64),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("unit", ["fraction", "pixels"])  # the default wing never leaves its logarithm on fractions
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("weighting", ["input", "loss"])
def test_loss_and_gradients_equal_the_formula_in_float64(name, unit, weight, weighting):
    pred, target = face_like(name, unit)
    leaves = [pred.requires_grad_(), target.requires_grad_()]
    w = WEIGHTS[weight]
    if w is not None:
        w = w.clone().requires_grad_()
        leaves.append(w)
    for reduction in ("none", "sum", "mean", "batchmean"):
        loss = LOSSES[name](pred, target, w, reduction=reduction, weighting=weighting)
        gradients = torch.autograd.grad(loss.sum(), leaves)
        want_loss, *want = expected(name, pred.detach(), target.detach(), w, reduction, weighting)
        torch.testing.assert_close(loss.detach(), want_loss, rtol=1e-12, atol=0)
        # atol only for the sums by which a gradient cancels to almost 0 (the adaptive wing's target, a shared weight)
        size = max(1.0, float(want[1].abs().max()))
        torch.testing.assert_close(gradients[0], want[0], rtol=1e-12, atol=0)
        torch.testing.assert_close(gradients[1], want[1], rtol=1e-12, atol=1e-13 * size)
        if w is not None:
            by_weight = want[2].sum_to_size(w.shape)
            torch.testing.assert_close(gradients[2], by_weight, rtol=1e-12, atol=1e-12 * float(by_weight.abs().max()))


ODD_PARAMETERS = [
    pytest.param("wing", (5.0, 0.5), id="catalyst's wing"),
    pytest.param("wing", (10.0, 1e-3), id="a steep wing"),
    pytest.param("wing", (1.0, 1e-6), id="a ratio of a million"),
    pytest.param("wing", (0.3, 0.7), id="epsilon above omega, neither exact in binary"),
    pytest.param("soft_wing", (0.1, 3.0, 1e-3), id="a steep soft wing"),
    pytest.param("soft_wing", (5.0, 0.3, 11.0), id="a flat soft wing"),
    pytest.param("smooth_l1", (1 / 9,), id="a narrow parabola"),
    pytest.param("smooth_l1", (300.0,), id="a parabola alone"),
    pytest.param("adaptive_wing", (14.0, 0.3, 0.7, 1.9), id="an adaptive wing off the powers of two"),
    pytest.param("adaptive_wing", (8.0, 5.0, 0.1, 3.1), id="theta beyond epsilon"),
]


@pytest.mark.parametrize(("name", "parameters"), ODD_PARAMETERS)
def test_other_parameters_enter_the_formula_where_they_should(name, parameters):
    pred, target = face_like(name, "fraction")
    for factor in (0.01, 1.0, 30.0):  # errors below, around and above every threshold of these
        p = (target + (pred - target) * factor).requires_grad_()
        loss = LOSSES[name](p, target, reduction="none", **dict(zip(PARAMETERS[name], parameters, strict=True)))
        (gradient,) = torch.autograd.grad(loss.sum(), p)
        rows = [
            value_and_slopes(name, a - b, b, parameters)[:2]
            for a, b in zip(p.flatten().tolist(), target.flatten().tolist(), strict=True)
        ]
        want, slope = torch.tensor(rows, dtype=torch.float64).T
        # atol: the constants that make the branches meet cancel, here and there, by up to this much
        torch.testing.assert_close(loss.detach().flatten(), want, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(gradient.flatten(), slope, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "parameters"), [*((name, DEFAULTS[name]) for name in LOSSES), *(case.values for case in ODD_PARAMETERS)]
)
def test_the_slopes_are_the_derivatives_of_the_formulas(name, parameters):
    generator = torch.Generator().manual_seed(11)
    size = 10 ** (torch.rand(2000, generator=generator, dtype=torch.float64) * 11 - 7)  # 1e-7 to 1e4
    size *= torch.randint(0, 2, size.shape, generator=generator) * 2 - 1
    threshold = parameters[1 if name == "adaptive_wing" else 0]
    d = torch.cat((size, torch.tensor([0.0, threshold, -threshold], dtype=torch.float64))).requires_grad_()
    target = torch.rand(d.shape, generator=generator, dtype=torch.float64) * 3  # beyond alpha, too
    more = (target,) if name == "adaptive_wing" else ()
    value = getattr(reference, name)(d, *more, *parameters)
    (derivative,) = torch.autograd.grad(value.sum(), d)
    slope = getattr(reference, f"{name}_slope")(d.detach(), *more, *parameters)
    torch.testing.assert_close(slope, derivative, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_outer_branch_applies_exactly_at_the_threshold(name):
    target = torch.zeros(3, dtype=torch.float64)
    kink = OUTER_KINK[name]
    below = math.nextafter(kink, 0.0)
    pred = torch.tensor([kink, -kink, below], dtype=torch.float64, requires_grad=True)
    LOSSES[name](pred, target, reduction="sum").backward()
    outer = {"wing": 1.0, "soft_wing": 20.0 / 2.5, "smooth_l1": 1.0, "adaptive_wing": value_and_slopes(name, kink)[1]}
    inner = {"wing": 10.0 / 12.0, "soft_wing": 1.0, "smooth_l1": 1.0, "adaptive_wing": outer["adaptive_wing"]}
    want = torch.tensor([outer[name], -outer[name], inner[name]], dtype=torch.float64)
    torch.testing.assert_close(pred.grad, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("target_value", [0.0, 0.5, 1.0, 1.2, 2.0])  # from 1.1 on |d|^(alpha - y) has no slope at 0
def test_no_error_gives_no_loss_and_zero_finite_gradients(name, target_value):
    pred = torch.full((4,), target_value, dtype=torch.float64, requires_grad=True)
    target = torch.full((4,), target_value, dtype=torch.float64, requires_grad=True)
    weight = torch.full((4,), 1.0, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name](pred, target, weight, reduction="sum")
    gradients = torch.autograd.grad(loss, (pred, target, weight))
    assert loss.item() == 0.0
    assert all(torch.equal(g, torch.zeros(4, dtype=torch.float64)) for g in gradients)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighting", ["input", "loss"])
def test_masked_entries_give_exactly_zero_and_leave_the_denominator_alone(name, weighting):
    pred = torch.tensor([[3.0, 1e30], [-0.3, 0.2]], requires_grad=True)
    target = torch.tensor([[1.0, -1e30], [0.1, 0.2]], requires_grad=True)
    weight = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    loss = LOSSES[name](pred, target, weight, reduction="none", weighting=weighting)
    mean = LOSSES[name](pred, target, weight, reduction="mean", weighting=weighting)
    by_pred, by_target = torch.autograd.grad(mean, (pred, target))
    assert loss[0].tolist() == [0.0, 0.0]
    assert by_pred[0].tolist() == [0.0, 0.0]
    assert by_target[0].tolist() == [0.0, 0.0]
    torch.testing.assert_close(mean, loss.sum() / 4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_nan_stays_nan_in_loss_and_gradient_and_harms_no_neighbour(name, dtype):
    pred = torch.tensor([float("nan"), 0.25, float("nan")], dtype=dtype, requires_grad=True)
    target = torch.tensor([0.5, 0.5, float("nan")], dtype=dtype)
    loss = LOSSES[name](pred, target, reduction="none")
    loss.sum().backward()
    assert loss.isnan().tolist() == [True, False, True]
    assert pred.grad.isnan().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("name", "slope"), [("wing", 1.0), ("soft_wing", 0.0), ("smooth_l1", 1.0), ("adaptive_wing", None)]
)
def test_an_infinite_error_has_the_gradient_of_a_large_one(name, slope):
    pred = torch.tensor([math.inf, -math.inf], requires_grad=True)
    loss = LOSSES[name](pred, torch.zeros(2), reduction="none")
    loss.sum().backward()
    slope = value_and_slopes(name, 1e6)[1] if slope is None else slope
    assert loss.tolist() == [math.inf, math.inf]
    torch.testing.assert_close(pred.grad, torch.tensor([slope, -slope]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("pred_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("target_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_any_mix_of_dtypes_is_computed_in_float32_or_float64(name, pred_dtype, target_dtype):
    pred, target = face_like(name, "fraction")
    pred, target = pred.to(pred_dtype).requires_grad_(), target.to(target_dtype)
    weight = torch.linspace(0, 1, 98).view(98, 1).to(torch.float16)
    loss = LOSSES[name](pred, target, weight, reduction="mean")
    loss.backward()
    wide = torch.float64 in (pred_dtype, target_dtype)
    want = expected(name, pred.detach().double(), target.double(), weight.double(), "mean", "input")
    assert loss.dtype == (torch.float64 if wide else torch.float32)
    assert pred.grad.dtype == pred_dtype
    # float32: a few roundings of 6e-8 each, more where 2.1 - y enters a power; half: the gradient's own last rounding
    torch.testing.assert_close(loss.double(), want[0], rtol=1e-12 if wide else 1e-6, atol=0)
    rtol, atol = {
        torch.float16: (1e-3, 6e-8),
        torch.bfloat16: (8e-3, 1e-30),
        torch.float32: (1e-5, 1e-12),
        torch.float64: (1e-12, 1e-16),
    }[pred_dtype]
    atol = max(atol, 0.0 if wide else 2e-11)  # float32 differences of a power near its zero
    torch.testing.assert_close(pred.grad.double(), want[1], rtol=rtol, atol=atol)


def test_small_errors_keep_their_digits_in_float32():
    d = torch.tensor([1e-6, 1e-5, 1e-3], dtype=torch.float32)
    loss = wing_loss(d, torch.zeros(3), reduction="none")
    want = torch.tensor([10.0 * math.log1p(float(x) / 2.0) for x in d], dtype=torch.float64)
    torch.testing.assert_close(loss.double(), want, rtol=3e-7, atol=0)  # log(1 + x) would be off by up to 11 %


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weighting", ["input", "loss"])
def test_first_and_second_derivatives_pass_gradcheck(name, weighting):
    # Both branches, away from the kink and from 0, where differences mean nothing
    kink = OUTER_KINK[name]
    target = torch.tensor([0.2, 0.7, 0.4, 0.9], dtype=torch.float64)
    pred = target + torch.tensor([0.6, -0.3, 2.2, -1.7], dtype=torch.float64) * kink
    weight = torch.tensor([1.0, 0.8, 1.3, 1.0], dtype=torch.float64)
    leaves = tuple(x.requires_grad_() for x in (pred, target, weight))

    def run(p, t, w):
        return LOSSES[name](p, t, w, reduction="mean", weighting=weighting)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_batch_adds_nothing(name):
    for shape in ((0, 98, 2), (3, 0, 2)):
        pred = torch.zeros(shape, requires_grad=True)
        for reduction in ("sum", "mean", "batchmean"):
            loss = LOSSES[name](pred, torch.zeros(shape), reduction=reduction)
            loss.backward()
            assert loss.item() == 0.0
        assert LOSSES[name](pred, torch.zeros(shape), reduction="none").shape == shape
        assert pred.grad.shape == shape


def test_the_default_reductions_are_the_published_ones():
    pred, target = face_like("wing", "pixels")
    torch.testing.assert_close(wing_loss(pred, target), wing_loss(pred, target, reduction="sum") / 5)
    torch.testing.assert_close(soft_wing_loss(pred, target), soft_wing_loss(pred, target, reduction="sum") / 5)
    torch.testing.assert_close(smooth_l1_loss(pred, target), torch.nn.functional.smooth_l1_loss(pred, target))


def test_a_fractional_weight_enters_inside_the_wing_unless_it_weights_the_loss():
    pred, target, weight = torch.tensor([8.0]), torch.tensor([0.0]), torch.tensor([0.5])
    inside = wing_loss(pred, target, weight, reduction="sum").item()
    outside = wing_loss(pred, target, weight, reduction="sum", weighting="loss").item()
    assert inside == pytest.approx(10 * math.log1p(2.0), rel=1e-6)
    assert outside == pytest.approx(5 * math.log1p(4.0), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_non_contiguous_inputs_give_the_same_loss(name):
    pred, target = face_like(name, "pixels", torch.float32)
    scattered = pred.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    a, b = (LOSSES[name](p, target, reduction="none") for p in (pred, scattered))
    torch.testing.assert_close(a, b, rtol=5e-7, atol=0)  # the CPU's vector and scalar log1p may differ by an ulp


@pytest.mark.parametrize("weighting", ["input", "loss"])
@pytest.mark.parametrize("reduction", ["sum", "mean", "batchmean"])
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_grad_equals_the_formula_without_a_graph(name, weight, reduction, weighting):
    pred, target = face_like(name, "pixels")
    pred.requires_grad_()
    w = WEIGHTS[weight]
    loss, grad = LOSSES_AND_GRADS[name](pred, target, w, reduction=reduction, weighting=weighting)
    want_loss, want_grad, *_ = expected(name, pred.detach(), target, w, reduction, weighting)
    torch.testing.assert_close(loss, want_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, want_grad, rtol=1e-12, atol=0)
    assert not loss.requires_grad
    assert not grad.requires_grad


@pytest.mark.parametrize("scale", [512.0, torch.tensor(512.0), torch.tensor(512.0, dtype=torch.float64)])
def test_the_scale_multiplies_the_gradient_before_it_is_rounded(scale):
    # 1 / 4096 of a small slope is subnormal in float16; scaled first, nothing of it is lost
    pred = torch.full((4096, 2), 300.0, dtype=torch.float16)
    target = torch.zeros(4096, 2)
    weight = torch.tensor([0.01, 0.03])
    loss, grad = wing_loss_and_grad(pred, target, weight, scale=scale, weighting="loss")
    want = (512.0 * weight.double() / 4096).half()
    assert grad.dtype == torch.float16
    assert torch.equal(grad[0], want)
    assert loss.item() == pytest.approx(wing_loss(pred, target, weight, weighting="loss").item())


def test_loss_and_grad_keeps_nan_zero_and_infinity_apart():
    pred = torch.tensor([math.nan, 0.0, math.inf, -math.inf, 3.0])
    loss, grad = wing_loss_and_grad(pred, torch.zeros(5), reduction="sum")
    assert math.isnan(loss.item())
    assert math.isnan(grad[0].item())
    assert grad[1:].tolist() == [0.0, 1.0, -1.0, 2.0]


X = torch.zeros(4, 98, 2)
NUMBER = {"wing": "omega", "soft_wing": "omega2", "smooth_l1": "beta", "adaptive_wing": "theta"}
BAD_TENSORS = {  # what is given: (arguments, error, what it says)
    "integer pred": ((X.long(), X), TypeError, r"pred is torch\.int64; wanted float16, bfloat16, float32 or float64"),
    "boolean weight": ((X, X, X.bool()), TypeError, r"weight is torch\.bool; wanted float16"),
    "complex pred": ((X.cfloat(), X), TypeError, r"pred is torch\.complex64; wanted float16"),
    "complex target": ((X, X.cfloat()), TypeError, r"target is torch\.complex64; wanted float16"),
    "8-bit target": ((X, X.to(torch.float8_e4m3fn)), TypeError, r"target is torch\.float8_e4m3fn; wanted float16"),
    "no tensor": ((X, [0.0]), TypeError, r"target is a list; wanted a tensor"),
    "no target": ((X, None), TypeError, r"target is a NoneType; wanted a tensor"),
    "a number as weight": ((X, X, 2.0), TypeError, r"weight is a float; wanted a tensor"),
    "shapes that differ": ((X, X[0]), ValueError, r"pred has shape \(4, 98, 2\), target \(98, 2\); wanted equal"),
    "a target to broadcast": ((X, X[:1]), ValueError, r"target \(1, 98, 2\); wanted equal shapes"),
    "weight per sample, unaligned": ((X, X, X[:, 0, 0]), ValueError, r"weight has shape \(4,\), .* \(4, 98, 2\)"),
    "weight without its last 1": ((X, X, X[..., 0]), ValueError, r"weight has shape \(4, 98\), .* is \(N, K, 1\)"),
    "weight larger than pred": ((X, X, X[None]), ValueError, r"\(1, 4, 98, 2\), which does not broadcast to pred's"),
    "weight of another size": ((X, X, X[:3]), ValueError, r"\(3, 98, 2\), which does not broadcast"),
    "two devices": ((X, X.to("meta")), ValueError, r"target is on meta, pred on cpu; wanted one device"),
    "weight elsewhere": ((X, X, X.to("meta")), ValueError, r"weight is on meta, pred on cpu; wanted one device"),
}  # fmt: skip
BAD_OPTIONS = {
    "unknown reduction": ({"reduction": "avg"}, ValueError, r"'avg'; wanted one of 'none', 'sum', 'mean', 'batchmean'"),
    "no reduction": ({"reduction": None}, ValueError, r"reduction is None; wanted one of"),
    "a list of reductions": ({"reduction": ["sum"]}, ValueError, r"reduction is \['sum'\]; wanted one of"),
    "unknown weighting": ({"weighting": "both"}, ValueError, r"weighting is 'both'; wanted one of 'input', 'loss'"),
    "zero": ({"NUMBER": 0.0}, ValueError, r"NUMBER is 0\.0; wanted a finite number greater than 0"),
    "negative": ({"NUMBER": -1}, ValueError, r"NUMBER is -1; wanted a finite number greater than 0"),
    "NaN": ({"NUMBER": math.nan}, ValueError, r"NUMBER is nan; wanted a finite number greater than 0"),
    "infinite": ({"NUMBER": math.inf}, ValueError, r"NUMBER is inf; wanted a finite number greater than 0"),
    "a string": ({"NUMBER": "10"}, TypeError, r"NUMBER is a str; wanted a number"),
    "None": ({"NUMBER": None}, TypeError, r"NUMBER is a NoneType; wanted a number"),
    "complex": ({"NUMBER": 1j}, TypeError, r"NUMBER is a complex; wanted a number"),
    "a tensor": ({"NUMBER": torch.tensor(2.0)}, TypeError, r"NUMBER is a Tensor; wanted a number"),
}


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])  # one door for all of them
@pytest.mark.parametrize("functions", [LOSSES, LOSSES_AND_GRADS], ids=["loss", "loss_and_grad"])
@pytest.mark.parametrize("name", LOSSES)
def test_bad_input_is_refused_in_words(name, functions, impl):
    for arguments, error, words in BAD_TENSORS.values():
        with pytest.raises(error, match=words):
            functions[name](*arguments, impl=impl)
    for options, error, words in BAD_OPTIONS.values():
        named = {key.replace("NUMBER", NUMBER[name]): value for key, value in options.items()}
        with pytest.raises(error, match=words.replace("NUMBER", NUMBER[name])):
            functions[name](X, X, impl=impl, **named)


@pytest.mark.parametrize("functions", [LOSSES, LOSSES_AND_GRADS], ids=["loss", "loss_and_grad"])
def test_an_unknown_implementation_is_refused(functions):
    for name, function in functions.items():
        with pytest.raises(ValueError, match=r"impl is 'cuda'; wanted one of 'auto', 'triton', 'reference'"):
            function(X, X, impl="cuda")
        for parameter in PARAMETERS[name]:
            with pytest.raises(ValueError, match=rf"{parameter} is 0\.0; wanted"):
                function(X, X, **{parameter: 0.0})


@pytest.mark.parametrize("impl", ["auto", "triton", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_grad_refuses_what_has_no_single_gradient_or_scale(name, impl):
    for options, error, words in (
        ({"reduction": "none"}, ValueError, "reduction is 'none'; wanted 'sum', 'mean' or 'batchmean'"),
        ({"scale": torch.ones(2)}, ValueError, r"scale is a torch\.float32 tensor of shape \(2,\); wanted a 0-dim"),
        (
            {"scale": torch.tensor(2)},
            ValueError,
            r"scale is a torch\.int64 tensor of shape \(\); wanted a 0-dim floating",
        ),
        ({"scale": torch.ones((), device="meta")}, ValueError, r"scale is on meta, pred on cpu; wanted one device"),
        ({"scale": "2"}, TypeError, r"scale is a str; wanted a number or a 0-dimensional tensor"),
    ):
        with pytest.raises(error, match=words):
            LOSSES_AND_GRADS[name](X, X, impl=impl, **options)


WITHOUT_A_KERNEL = """
import torch, kernels
x = torch.zeros(4, 2)
for kind in ("wing", "soft_wing", "smooth_l1", "adaptive_wing"):
    for name in (f"{kind}_loss", f"{kind}_loss_and_grad"):
        getattr(kernels, name)(x, x)  # auto and reference do not need it
        getattr(kernels, name)(x, x, impl="reference")
        try:
            getattr(kernels, name)(x, x, impl="triton")
        except RuntimeError as error:
            print(error)
"""


def said_without_a_kernel(first: str = "", **more: str) -> str:
    """The sentence with which every loss refuses impl="triton", in a process that executes `first` before all."""
    variables = {**shell_environment(), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY), **more}
    command = [sys.executable, "-c", first + WITHOUT_A_KERNEL]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    (sentence,) = set(lines)
    return sentence


@pytest.mark.parametrize("more", [{}, {"TRITON_INTERPRET": "0"}], ids=["unset", "switched off"])
def test_a_kernel_without_gpu_or_interpreter_says_in_a_sentence_how_to_switch_it_on(more):
    assert said_without_a_kernel(**more) == (
        "impl is 'triton' and the tensors are on the CPU, where Triton runs in its interpreter alone: "
        "set the environment variable TRITON_INTERPRET=1 before Python starts, or use impl='reference'"
    )


def test_without_triton_there_is_the_reference():
    sentence = said_without_a_kernel("import sys; sys.modules['triton'] = None")
    assert sentence.startswith("impl is 'triton' and Triton cannot be imported (")
    assert sentence.endswith("); install triton, or use impl='reference'")


@pytest.mark.parametrize("name", LOSSES)
def test_the_losses_trace_into_one_graph(name):
    pred, target = face_like(name, "fraction", torch.float32)
    weight = torch.rand(5, 98, 1)

    # The eager backend proves that nothing breaks the graph, without a compiler's minute
    compiled = torch.compile(lambda p, t, w: LOSSES[name](p, t, w), fullgraph=True, backend="eager")
    assert torch.equal(compiled(pred, target, weight), LOSSES[name](pred, target, weight))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name):
    pred, target = face_like(name, "fraction")
    for p in (pred, pred.float(), pred.bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under = LOSSES[name](p, target.to(p.dtype))
        assert torch.equal(under, LOSSES[name](p, target.to(p.dtype)))


@pytest.mark.parametrize("name", LOSSES)
def test_transforms_and_forward_mode_agree_with_the_plain_call(name):
    pred, target = face_like(name, "fraction")
    plain = LOSSES[name](pred, target, reduction="none")
    mapped = torch.func.vmap(lambda p, t: LOSSES[name](p, t, reduction="none"))(pred, target)
    torch.testing.assert_close(mapped, plain, rtol=1e-15, atol=0)
    gradient = torch.func.grad(lambda p: LOSSES[name](p, target, reduction="sum"))(pred)
    _, along = torch.func.jvp(lambda p: LOSSES[name](p, target, reduction="sum"), (pred,), (torch.ones_like(pred),))
    torch.testing.assert_close(along, gradient.sum(), rtol=1e-10, atol=1e-10)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_cuda_agrees_with_the_cpu_to_a_few_ulp(name):
    pred, target = face_like(name, "pixels", torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        p = pred.detach().to(device).requires_grad_()
        loss = LOSSES[name](p, target.to(device), WEIGHTS["fractional per landmark"].to(device), reduction="none")
        loss.sum().backward()
        results.append((loss.detach().cpu(), p.grad.cpu()))
    # a few ulp of 1.2e-7 each; the adaptive wing takes powers, which amplify them
    rtol = 5e-6 if name == "adaptive_wing" else 5e-7
    for on_cpu, on_cuda in zip(*results, strict=True):
        torch.testing.assert_close(on_cuda, on_cpu, rtol=rtol, atol=1e-7)
