"""The fused losses against float64, on a GPU or in Triton's interpreter: loss and every element of the gradient.

The oracle is the reference in float64, on the same rounded inputs; `test_losses` checks it against Python's own floats.
Every case draws inputs of its own, seeded by its name.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton.language as tl
from conftest import REPOSITORY
from torch import Tensor

import kernels
from kernels import loss_kernel, loss_launch, reference
from kernels.family import PARAMETERS, REDUCTIONS, Loss
from kernels.loss_launch import INTERPRETED

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
DEFAULTS = {
    "wing": (10.0, 2.0),
    "soft_wing": (2.0, 20.0, 0.5),
    "smooth_l1": (1.0,),
    "adaptive_wing": (14.0, 0.5, 1.0, 2.1),
}
THRESHOLD = {"wing": 10.0, "soft_wing": 2.0, "smooth_l1": 1.0, "adaptive_wing": 0.5}
UNITS = {"fraction": 1.0, "pixels": 256.0}  # all in the default wing's logarithm; on both sides of its threshold
FACES = (23, 98, 2)  # 4,508 elements: a full tile and a tail for any of the kernel's tile sizes, and several programs

LOSS_RELATIVE = {F32: 3e-7, F64: 1e-12}
EACH_RELATIVE = 6e-7  # of one element: 5 ulp, of 1 / epsilon, the quotient, a logarithm of 2 ulp, the product
CONDITION = {"wing": 1, "soft_wing": 8, "smooth_l1": 2, "adaptive_wing": 3}  # largest |d| f'(d) / f(d)
ULPS = {F64: 4500.0, F32: 4.0, BF16: 1.0, F16: 1.0}  # 4500 ulp of float64 are 1e-12
ADAPTIVE_ULPS = 64.0  # of float32: the power's exponent is large where |d| is small


@pytest.fixture
def random(request: pytest.FixtureRequest) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(request.node.name.encode()))


def uniform(random: torch.Generator, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random, dtype=F64)


def signs(random: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(0, 2, shape, generator=random) * 2.0 - 1.0


def draw(
    random: torch.Generator,
    kind: str,
    shape: tuple[int, ...],
    device: torch.device,
    dtypes: tuple[torch.dtype, torch.dtype] = (F32, F32),
    unit: float = 1.0,
    decades: tuple[float, float] = (-3.0, 1.5),
) -> tuple[Tensor, Tensor]:
    """(pred, target): targets of 0 to `unit` (of 0 to 1 for the adaptive wing), |d| of 10^decades, both signs."""
    target = (uniform(random, shape) * (1.0 if kind == "adaptive_wing" else unit)).to(dtypes[1])
    size = 10 ** uniform(random, shape, *decades)
    return (target + size * signs(random, shape)).to(dtypes[0]).to(device), target.to(device)


def named(kind: str, parameters: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(PARAMETERS[kind], parameters or DEFAULTS[kind], strict=True))


def fused(
    kind: str, pred: Tensor, target: Tensor, weight: Tensor | None = None, parameters: tuple[float, ...] = (), **options
) -> Tensor:
    function = getattr(kernels, f"{kind}_loss")
    return function(pred, target, weight, impl="triton", **named(kind, parameters), **options)


def fused_and_grad(
    kind: str, pred: Tensor, target: Tensor, weight: Tensor | None = None, parameters: tuple[float, ...] = (), **options
) -> tuple[Tensor, Tensor]:
    function = getattr(kernels, f"{kind}_loss_and_grad")
    return function(pred, target, weight, impl="triton", **named(kind, parameters), **options)


def exact(
    kind: str,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    parameters: tuple[float, ...] = (),
    reduction: str = "mean",
    weighting: str = "input",
    scale: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """(loss, scale times its gradient for pred) in float64."""
    loss = Loss(kind, parameters or DEFAULTS[kind], reduction, weighting)
    pred, target, weight = (None if t is None else t.detach().double() for t in (pred, target, weight))
    return reference.loss_and_gradient(loss, pred, target, weight, scale)


def ulps(value: Tensor, exact: Tensor) -> Tensor:
    """|value - exact| in units in the last place of `value`'s dtype; infinite where one of the two alone is NaN."""
    value, info = value.detach(), torch.finfo(value.dtype)
    exponent = torch.frexp(exact.abs().clamp_min(info.tiny)).exponent - 1
    off = (value.double() - exact).abs() / torch.ldexp(torch.full_like(exact, info.eps), exponent)
    same = (value.double() == exact) | (value.isnan() & exact.isnan())
    return torch.where(same, 0.0, off.nan_to_num(nan=math.inf))


def check_gradient(kind: str, gradient: Tensor, exact: Tensor) -> None:
    assert gradient.shape == exact.shape
    limit = ULPS[gradient.dtype]
    if gradient.dtype == BF16 and INTERPRETED:
        # The interpreter cuts float32 off to bfloat16 where a GPU rounds: a whole ulp beside the arithmetic's own
        limit += ADAPTIVE_ULPS * 2**-16
    if gradient.dtype == F32 and kind == "adaptive_wing":
        limit = ADAPTIVE_ULPS
    worst = ulps(gradient, exact)
    assert worst.max() <= limit, f"{float(worst.max())} ulp at element {int(worst.argmax())}"


def away_from_kinks(kind: str, d: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    """`gradients`, 0 where float32 may find d, a float64, on the other side of a threshold at which the slope jumps."""
    at_kink = (d.abs() - THRESHOLD[kind]).abs() <= 2.0**-22 * THRESHOLD[kind]
    kinked = kind in ("wing", "soft_wing")
    return tuple(gradient.masked_fill(at_kink, 0.0) if kinked else gradient for gradient in gradients)


def check_loss(loss: Tensor, exact: Tensor, size: Tensor | None = None) -> None:
    """`size`: what terms add up to whose signs cancel; the loss itself where they have none."""
    error = (loss.detach().double() - exact).abs()
    assert error <= LOSS_RELATIVE[loss.dtype] * (exact if size is None else size), f"{float(loss)} for {float(exact)}"


def check_each(kind: str, loss: Tensor, exact: Tensor, roundings: int = 0) -> None:
    """`roundings`: of d, before the formula; none where pred - target is exact and not weighted."""
    limit = ADAPTIVE_ULPS * 2**-23 if kind == "adaptive_wing" else EACH_RELATIVE
    limit = 1e-12 if loss.dtype == F64 else limit + roundings * CONDITION[kind] * 2**-24
    torch.testing.assert_close(loss.detach().double(), exact, rtol=limit, atol=0, equal_nan=True)


# -- accuracy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "dtypes",
    [
        pytest.param((F32, F32), id="float32"),  # a logarithm for 4
        pytest.param((BF16, F32), id="bfloat16 and float32"),  # for 8; a model under autocast
        pytest.param((F16, F16), id="float16"),
    ],
)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_loss_and_gradient_are_right_at_every_magnitude(kind, dtypes, unit, random, device):
    for decade in range(-7, 4):  # one at a time, or the largest would hide the others' part of the loss
        pred, target = draw(random, kind, (500, 2), device, dtypes, UNITS[unit], (decade, decade + 1))
        loss, gradient = fused_and_grad(kind, pred, target)
        wanted, wanted_gradient = exact(kind, pred, target, reduction=default_reduction(kind))
        check_loss(loss, wanted)
        check_gradient(kind, gradient, wanted_gradient)
        if dtypes == (F32, F32):
            each = fused(kind, pred, target, reduction="none")
            check_each(kind, each, exact(kind, pred, target, reduction="none")[0], roundings=1)


def default_reduction(kind: str) -> str:
    return "batchmean" if kind in ("wing", "soft_wing") else "mean"  # as published


@pytest.mark.parametrize("side", [0.9999, 1.0001, 1.01])  # constants that make branches meet cancel just beyond it
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        *((kind, ()) for kind in DEFAULTS),
        ("wing", (1.0, 1000.0)),
        ("wing", (10.0, 1e-3)),
        ("soft_wing", (5.0, 2.0, 1e-3)),
    ],
)
def test_around_the_threshold_no_digit_of_the_loss_is_lost(kind, parameters, side, random, device):
    threshold = parameters[0] if parameters else THRESHOLD[kind]
    d = threshold * side * uniform(random, FACES, 0.9999, 1.0)
    pred = (d * signs(random, FACES)).to(F32).to(device)
    for reduction in ("none", "sum"):
        loss = fused(kind, pred, torch.zeros_like(pred), None, parameters, reduction=reduction)
        wanted, _ = exact(kind, pred, torch.zeros_like(pred), None, parameters, reduction=reduction)
        check_each(kind, loss, wanted) if reduction == "none" else check_loss(loss, wanted)


ODD_PARAMETERS = [
    pytest.param("wing", (5.0, 0.5), id="catalyst's wing"),
    pytest.param("wing", (10.0, 1e-3), id="an epsilon that is no power of two"),
    pytest.param("wing", (1.0, 1e-6), id="factors of a million, of which only 4 may be multiplied"),
    pytest.param("wing", (1.0, 1e-20), id="factors of which none may be multiplied"),
    pytest.param("wing", (0.3, 0.7), id="epsilon above omega"),
    pytest.param("wing", (1.0, 100.0), id="a wing that is almost an L1"),
    pytest.param("soft_wing", (0.125, 3.0, 1e-3), id="a steep soft wing"),
    pytest.param("soft_wing", (5.0, 0.3, 11.0), id="a flat soft wing"),
    pytest.param("smooth_l1", (1 / 9,), id="a parabola as narrow as RetinaNet's"),
    pytest.param("smooth_l1", (300.0,), id="a parabola alone"),
    pytest.param("adaptive_wing", (14.0, 0.3, 0.7, 1.9), id="an adaptive wing off the powers of two"),
    pytest.param("adaptive_wing", (8.0, 5.0, 0.1, 3.1), id="powers above 1, of which 8 would overflow"),
    pytest.param("adaptive_wing", (14.0, 5000.0, 0.01, 2.1), id="powers up to 2^40"),
]


@pytest.mark.parametrize("dtype", [F32, F16, F64])  # groups of 4, 8 and 2
@pytest.mark.parametrize(("kind", "parameters"), ODD_PARAMETERS)
def test_any_parameters_are_computed_right(kind, parameters, dtype, random, device):
    pred, target = draw(random, kind, (900, 2), device, (dtype, dtype), decades=(-5, 2))
    weight = uniform(random, (900, 1), 0.1, 1.0).to(dtype).to(device)
    for weighting, w in (("input", None), ("loss", weight)):
        options = {"reduction": "mean", "weighting": weighting}
        loss, gradient = fused_and_grad(kind, pred, target, w, parameters, **options)
        wanted, wanted_gradient = exact(kind, pred, target, w, parameters, **options)
        check_loss(loss, wanted)
        check_gradient(kind, gradient, wanted_gradient)


@pytest.mark.parametrize("parameters", [(10.0, 2.0), (10.0, 1e-3), (1.0, 1e-6), (1.0, 1e-12), (1.0, 1e-30)])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_group_of_the_largest_factors_does_not_overflow(parameters, dtype, device):
    pred = torch.full((5000,), parameters[0] * (1 - 2**-8), dtype=dtype, device=device)  # just inside the logarithm
    loss = fused("wing", pred, torch.zeros_like(pred), None, parameters, reduction="sum")
    check_loss(loss, exact("wing", pred, torch.zeros_like(pred), None, parameters, "sum")[0])


@pytest.mark.parametrize("weighting", [None, "input", "loss"])
def test_the_adaptive_wing_is_no_worse_than_eager_float32(weighting, random, device):
    shape = (6000, 2)
    pred, target = draw(random, "adaptive_wing", shape, device, decades=(-7, 1))
    weight = None if weighting is None else uniform(random, shape).to(F32).to(device)
    options = {"reduction": "mean", "weighting": weighting or "input"}
    wanted, wanted_gradient = exact("adaptive_wing", pred, target, weight, **options)

    eager = pred.clone().requires_grad_()
    kernels.adaptive_wing_loss(eager, target, weight, impl="reference", **options).backward()
    loss, gradient = fused_and_grad("adaptive_wing", pred, target, weight, **options)
    check_loss(loss, wanted)
    worst = ulps(gradient, wanted_gradient).max()
    assert worst <= ADAPTIVE_ULPS
    assert worst <= ulps(eager.grad, wanted_gradient).max()


@pytest.mark.parametrize("weighting", ["input", "loss"])  # groups of 4 or 8 powers, and each alone
@pytest.mark.parametrize("dtype", [F32, F16])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param((2.1, 2.0, (1e-6, 0.4)), id="targets just below alpha"),
        pytest.param((2.1, 2.1, (1e-6, 0.4)), id="an exponent of 0, but for rounding"),
        pytest.param((2.1, 3.5, (1e-6, 0.4)), id="negative exponents"),
        pytest.param((2.1, 12.0, (1e-3, 0.4)), id="powers up to 2^98"),
        pytest.param((2.1, 100.0, (0.05, 20.0)), id="powers beyond any float, some beyond the threshold"),
        pytest.param((60.0, 0.0, (1e-6, 0.4)), id="powers below any float"),
        pytest.param((2.1, -50.0, (1e-6, 0.4)), id="negative targets"),
    ],
)
def test_the_adaptive_wing_stays_finite_for_any_exponent(case, dtype, weighting, random, device):
    alpha, y, sizes = case
    omega, theta, epsilon, _ = DEFAULTS["adaptive_wing"]
    shape = (700, 2)
    target = torch.full(shape, y, dtype=F32)
    size = 10 ** uniform(random, shape, *map(math.log10, sizes))
    pred = (target + size * signs(random, shape)).to(dtype)
    pred[:3] = target[:3].to(dtype)
    target[:3] = pred[:3].float()  # no error at all
    weight = torch.ones(2).to(device)
    options = {"reduction": "sum", "weighting": weighting}
    parameters = (omega, theta, epsilon, alpha)
    loss, gradient = fused_and_grad(
        "adaptive_wing", pred.to(device), target.to(device), weight, parameters, scale=2**-10, **options
    )
    each = fused("adaptive_wing", pred.to(device), target.to(device), None, parameters, reduction="none").cpu().double()

    # The formula with the logistic function for power / (1 + power), which no exponent takes out of float64
    d = pred.double() - target.double()
    p = alpha - target.double()
    b = torch.where(d == 0, theta, d.abs().clamp(max=theta))
    exponent = p * (b / epsilon).log()
    slope = omega * p / b * exponent.sigmoid()
    value = omega * torch.nn.functional.softplus(exponent) + slope * (d.abs() - b)
    value, slope = (torch.where(d == 0, 0.0, x) for x in (value, slope * d.sign()))

    # An exponent's error is 2 ulp of its own size, p's is one of alpha's
    unit = 2.0**-23
    error = ADAPTIVE_ULPS * unit + 2 * unit * exponent.abs()
    slack = torch.where(d == 0, 0.0, omega / b * (2 * unit * max(alpha, abs(y)))) + 2.0**-100
    gradient = gradient.cpu().double() * 2**10
    assert gradient.isfinite().all()
    finest = 2.0**-14 if dtype == F16 else 0.0  # float16's least step, times 2^10
    rounding = {F32: 0.0, F16: 2.0**-11}[dtype]
    assert ((gradient - slope).abs() <= (error + rounding) * slope.abs() + slack + finest).all()
    assert ((gradient.sign() == slope.sign()) | (slope.abs() <= slack + finest)).all()
    assert (gradient[:3] == 0).all()
    assert (each[:3] == 0).all()
    assert ((each - value).abs() <= error * value.abs() + slack * d.abs()).all()
    assert abs(loss.item() - value.sum()) <= 5e-6 * value.abs().sum() + 1e-30


@pytest.mark.parametrize("kind", DEFAULTS)
def test_float64_is_right_to_its_own_digits(kind, random, device):
    parameters = {"wing": (9.9, 0.3), "soft_wing": (1.7, 19.1, 0.3), "smooth_l1": (0.7,)}.get(
        kind, (13.7, 0.3, 0.9, 2.3)
    )
    pred, target = draw(random, kind, (700, 3), device, (F64, F64), decades=(-7, 4))  # no constant is exact in float32
    weight = uniform(random, (3,), 0.3, 1.0).to(device)
    for dtypes in ((F64, F64), (F64, F32), (F32, F64), (F16, F64)):
        p, t = pred.to(dtypes[0]), target.to(dtypes[1])
        for weighting in ("input", "loss"):
            loss, gradient = fused_and_grad(
                kind, p, t, weight, parameters, weighting=weighting, scale=0.37, reduction="mean"
            )
            wanted, wanted_gradient = exact(kind, p, t, weight, parameters, weighting=weighting, scale=0.37)
            check_loss(loss, wanted)
            check_gradient("in float64", gradient, wanted_gradient)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_auto_is_the_kernel_on_a_gpu_and_the_reference_elsewhere(kind, random, device):
    pred, target = draw(random, kind, FACES, device)
    impl = "triton" if pred.is_cuda else "reference"
    for name in (f"{kind}_loss", f"{kind}_loss_and_grad"):
        function = getattr(kernels, name)
        found, wanted = function(pred, target), function(pred, target, impl=impl)
        pairs = [(found, wanted)] if isinstance(found, Tensor) else zip(found, wanted, strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


RELATIVE = {"rcp": 2.0**-23, "lg2": 2.0**-22, "ex2": 2.0**-22}  # largest errors of these instructions (PTX manual)


@pytest.fixture(params=[0.0, 1.0, -1.0], ids=["exact instructions", "all too large", "all too small"])
def gpu_branch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """The code for a GPU, interpreted: its approximate instructions off by none or all of what they may be."""
    if not INTERPRETED:
        pytest.skip("a GPU has the instructions themselves")

    def instruction(x: Any, name: Any) -> Any:
        name, _, kind = getattr(name, "value", name).partition(".")
        if ".ftz." in kind:
            x = tl.where(tl.abs(x) < 2.0**-126, 0.0, x)
        exact = {"rcp": lambda: 1.0 / x, "lg2": lambda: tl.log2(x), "ex2": lambda: tl.exp2(x)}[name]()
        return exact * (1.0 + request.param * RELATIVE[name])

    def fma(x: Any, y: Any, z: Any) -> Any:
        return (x.to(tl.float64) * y.to(tl.float64) + z.to(tl.float64)).to(tl.float32)

    variant = loss_launch._variant
    monkeypatch.setattr(loss_kernel, "_hardware", instruction)
    monkeypatch.setattr(loss_kernel, "_fma", fma)
    monkeypatch.setattr(loss_launch, "_variant", lambda case: variant.__wrapped__(case._replace(cuda=True)))
    return request.param


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_approximate_instructions_are_good_enough_for_16_bits(kind, dtype, gpu_branch, random, device):
    for decade in range(-7, 4):
        pred, target = draw(random, kind, (500, 2), device, (dtype, F32), decades=(decade, decade + 1))
        loss, gradient = fused_and_grad(kind, pred, target, reduction="mean")
        wanted, wanted_gradient = exact(kind, pred, target)
        check_gradient(kind, gradient, wanted_gradient)
        if gpu_branch == 0.0:  # off at random, they would leave the sum alone; all to one side, they cannot
            # The adaptive wing's exponents, up to 50 in size here, are rounded to float32 before exp2: 50 ln 2 2^-24
            rounded = 50 * math.log(2) * 2**-24 if kind == "adaptive_wing" else 0.0
            assert abs(loss.item() - wanted.item()) <= (LOSS_RELATIVE[F32] + rounded) * abs(wanted.item())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_quotients_in_float32_are_refined_to_what_a_division_gives(kind, weighted, gpu_branch, random, device):
    """A GPU's division is good to 2 ulp, which with four or five roundings after it would be more than 4."""
    for scale in (1.0, 0.37):
        pred, target = draw(random, kind, (20_000, 2), device, (F32, F32), decades=(-2, 1.3))
        weight = uniform(random, (20_000, 1), 0.5, 1.5).to(F32).to(device) if weighted else None
        loss, gradient = fused_and_grad(kind, pred, target, weight, reduction="mean", scale=scale)
        wanted, wanted_gradient = exact(kind, pred, target, weight, scale=scale)
        check_gradient(kind, gradient, wanted_gradient)
        if gpu_branch == 0.0:
            check_loss(loss, wanted)


@pytest.mark.parametrize("kind", ["wing", "soft_wing"])
def test_refined_quotients_of_zero_and_infinite_errors_are_those_of_the_formula(kind, gpu_branch, device):
    pred = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e38, -3e38, 1e-38, 5.0], device=device)
    zero = torch.zeros_like(pred)
    _, gradient = fused_and_grad(kind, pred, zero, reduction="sum")
    _, wanted = exact(kind, pred, zero, reduction="sum")
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-6, atol=0, equal_nan=True)


# -- special values ---------------------------------------------------------------------------------------------------

PLACES = (0, 5, 4095, 4096, 4507)  # first, inside a group, on both sides of a tile's end, last


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_zero_infinite_and_threshold_errors_have_the_slopes_of_the_formula(kind, dtype, device):
    t = THRESHOLD[kind]
    one_less = torch.nextafter(torch.tensor(t, dtype=dtype), torch.tensor(0.0, dtype=dtype)).item()
    values = [0.0, -0.0, t, -t, one_less, -one_less, math.inf, -math.inf, 1e4, -1e4]
    pred = torch.tensor(values, dtype=dtype, device=device)
    for zero in (0.0, -0.0):
        target = torch.full_like(pred, zero)
        upstream = torch.ones(len(values), dtype=F32, device=device)
        p = pred.clone().requires_grad_()
        each = fused(kind, p, target, reduction="none")
        each.backward(upstream)
        wanted, slope = exact(kind, pred, target, reduction="none")
        check_each(kind, each, wanted)
        check_gradient(kind, p.grad, slope)
        loss, gradient = fused_and_grad(kind, pred, target, reduction="sum")
        assert loss == math.inf
        check_gradient(kind, gradient, slope)
        assert (p.grad[:2] == 0).all()
        assert (gradient[:2] == 0).all()


@pytest.mark.parametrize("where", ["pred", "target", "weight"])
@pytest.mark.parametrize("weighting", ["input", "loss"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)  # groups of 4 and 8 share a logarithm, not their gradients
@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_nan_is_in_the_loss_and_in_its_own_gradient_alone(kind, dtype, weighting, where, random, device):
    pred, target = draw(random, kind, FACES, device, (dtype, F32))
    weight = uniform(random, FACES, 0.3, 1.0).to(F32).to(device)
    options = {"weighting": weighting}
    _, clean = fused_and_grad(kind, pred, target, weight, **options)
    {"pred": pred, "target": target, "weight": weight}[where].view(-1)[list(PLACES)] = math.nan
    loss, gradient = fused_and_grad(kind, pred, target, weight, **options)
    p = pred.clone().requires_grad_()
    each = fused(kind, p, target, weight, reduction="none", **options)
    (of_each,) = torch.autograd.grad(each.sum(), p)
    bad = torch.zeros(pred.numel(), dtype=torch.bool, device=device).index_fill_(
        0, torch.tensor(PLACES).to(device), True
    )
    bad = bad.view(FACES)
    assert loss.isnan()
    assert torch.equal(gradient.isnan(), bad)
    assert torch.equal(gradient[~bad], clean[~bad])
    assert torch.equal(each.isnan(), bad)
    assert torch.equal(of_each.isnan(), bad)


@pytest.mark.parametrize("kind", DEFAULTS)
def test_an_infinite_loss_is_infinite_and_masked_ones_are_not_there(kind, device):
    pred = torch.full((5000,), 3.0, device=device)
    pred[17], pred[4999] = 1e30, -1e30
    target = torch.zeros_like(pred)
    if kind != "adaptive_wing":
        target[17], target[4999] = -1e30, 1e30
    weight = torch.ones_like(pred)
    weight[17] = weight[4999] = 0.0
    for weighting in ("input", "loss"):
        loss, gradient = fused_and_grad(kind, pred, target, weight, weighting=weighting, reduction="sum")
        check_loss(loss, exact(kind, pred, target, weight, reduction="sum", weighting=weighting)[0])
        assert gradient[17] == gradient[4999] == 0.0
    pred[100] = math.inf
    loss, gradient = fused_and_grad(kind, pred, target, weight, reduction="sum")
    assert loss == math.inf
    assert gradient.isfinite().all()


# -- weights, reductions, dtypes --------------------------------------------------------------------------------------

N, K, _ = FACES
WEIGHTS = {  # of faces (N, K, 2)
    "one number": lambda u: u(),
    "(1,)": lambda u: u(1),
    "per coordinate (2,)": lambda u: u(2),
    "per landmark (K, 1)": lambda u: u(K, 1),
    "per landmark, 128 bits at a time (K, 2)": lambda u: u(K, 2),
    "per landmark with a batch dimension": lambda u: u(1, K, 1),
    "per sample (N, 1, 1)": lambda u: u(N, 1, 1),
    "per sample and landmark (N, K, 1)": lambda u: u(N, K, 1),
    "per sample and coordinate, written out (N, 1, 2)": lambda u: u(N, 1, 2),
    "per element": lambda u: u(N, K, 2),
    "transposed": lambda u: u(2, K, N).permute(2, 1, 0),
    "every third of a longer one": lambda u: u(3 * K, 1)[::3],
    "expanded by the caller": lambda u: u(K, 1).expand(N, K, 2),
    "off 128 bits, per landmark": lambda u: u(K + 1)[1:].view(K, 1),
    "off 128 bits, expanded": lambda u: u(K + 1)[1:].view(K, 1).expand(N, K, 2),
    "off 128 bits, per element": lambda u: u(N * K * 2 + 3)[3:].view(N, K, 2),
    "off 128 bits, transposed": lambda u: u(N * K + 1)[1:].view(K, N).T[..., None],
    "float16": lambda u: u(K, 1).half(),
    "bfloat16 per element": lambda u: u(N, K, 2).bfloat16(),
    "float64": lambda u: u(N, K, 1).double(),
}


@pytest.mark.parametrize("weighting", ["input", "loss"])
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_weights_of_any_shape_enter_at_their_places(kind, name, weighting, random, device):
    def weights(*shape: int) -> Tensor:
        w = uniform(random, shape, -1.2, 1.2)
        return torch.where(uniform(random, shape) < 0.1, 0.0, w).to(F32).to(device)  # negative ones, and zeros

    # Reductions take turns, so that every shape meets all, with one loss or another; and so do dtypes, since 16-bit
    # predictions read the weights of a landmark's two coordinates at once
    turn = list(WEIGHTS).index(name) + list(DEFAULTS).index(kind)
    dtypes = (BF16, F32) if (list(WEIGHTS).index(name) + len(weighting)) % 2 else (F32, F32)
    options = {"reduction": REDUCTIONS[turn % len(REDUCTIONS)], "weighting": weighting}
    pred, target = draw(random, kind, FACES, device, dtypes)
    weight = WEIGHTS[name](weights)
    if options["reduction"] == "none":  # each element's loss, under upstream gradients of its own
        upstream = torch.randn(FACES, generator=random).to(device)
        p = pred.clone().requires_grad_()
        each = fused(kind, p, target, weight, **options)
        each.backward(upstream)
        wanted, wanted_gradient = exact(kind, pred, target, weight, scale=upstream.double(), **options)
        check_each(kind, each, wanted, roundings=2)
        check_gradient(kind, p.grad, wanted_gradient)
        return
    wanted, wanted_gradient = exact(kind, pred, target, weight, **options)
    size, _ = exact(kind, pred, target, weight.abs(), **options)  # without cancellation
    loss, gradient = fused_and_grad(kind, pred, target, weight, **options)
    check_loss(loss, wanted, size if weighting == "loss" else None)
    check_gradient(kind, gradient, wanted_gradient)


@pytest.mark.parametrize("target_dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("pred_dtype", [F16, BF16, F32, F64], ids=str)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_any_mix_of_dtypes_is_read_as_it_is(kind, pred_dtype, target_dtype, random, device):
    pred, target = draw(random, kind, FACES, device, (pred_dtype, target_dtype))
    weight_dtype = (F16, BF16, F32, F64)[(pred_dtype.itemsize + target_dtype.itemsize) // 2 % 4]
    weight = uniform(random, (K, 1), 0.2, 1.0).to(weight_dtype).to(device)
    p = pred.clone().requires_grad_()
    loss = fused(kind, p, target, weight, reduction="mean")
    loss.backward()
    assert loss.dtype == (F64 if F64 in (pred_dtype, target_dtype) else F32)
    assert p.grad.dtype == pred_dtype
    # A weight in float64 is read in the arithmetic's dtype
    wanted, wanted_gradient = exact(kind, pred, target, weight.to(loss.dtype))
    check_loss(loss, wanted)
    check_gradient(kind, p.grad, wanted_gradient)


UPSTREAM = [
    pytest.param(1.0, id="one: the gradient is not touched"),
    pytest.param(0.37, id="any number"),
    pytest.param(-1.7, id="negative"),
    pytest.param(2.0**16, id="a loss scale"),
    pytest.param(1 / 3, id="three accumulation steps"),
    pytest.param(0.0, id="zero"),
]


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])  # stored; stored but computed anew; computed; stored
@pytest.mark.parametrize("kind", DEFAULTS)
def test_upstream_gradients_and_scales_multiply_before_the_last_rounding(kind, dtype, upstream, random, device):
    pred, target = draw(random, kind, (1100, 2), device, (dtype, dtype))
    p = pred.clone().requires_grad_()
    loss = fused(kind, p, target, reduction="mean")
    loss.backward(torch.tensor(upstream, dtype=loss.dtype, device=device))
    upstream = torch.tensor(upstream, dtype=loss.dtype).item()
    _, wanted = exact(kind, pred, target, scale=upstream)
    check_gradient(kind, p.grad, wanted)
    for scale in (upstream, *(torch.tensor(upstream, dtype=d, device=device) for d in (F16, F64))):
        number = float(scale)
        if math.isfinite(number):  # 2^16 is not, in float16
            alone, gradient = fused_and_grad(kind, pred, target, scale=scale, reduction="mean")
            assert torch.equal(alone, loss)
            check_gradient(kind, gradient, exact(kind, pred, target, scale=number)[1])


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_loss_and_grad_gives_the_bits_of_the_loss_and_its_gradient(kind, dtype, random, device):
    pred, target = draw(random, kind, FACES, device, (dtype, F32))
    weight = uniform(random, (K, 1)).to(F32).to(device)
    p = pred.clone().requires_grad_()
    loss = fused(kind, p, target, weight)
    loss.backward()
    alone = fused(kind, pred, target, weight)  # forward only
    both, gradient = fused_and_grad(kind, pred, target, weight)
    assert torch.equal(loss, both)
    assert torch.equal(loss, alone)
    assert torch.equal(p.grad, gradient)
    assert not both.requires_grad
    assert not gradient.requires_grad


@pytest.mark.parametrize("through", ["autograd", "scale as a number", "scale as a tensor"])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_float16_gradients_of_a_large_batch_do_not_underflow(kind, through, random, device):
    # 1 / 4096 of these slopes is subnormal in float16; scaled before that they lose nothing but the last rounding
    shape, scale = (4096, 2), 2.0**16
    pred, target = draw(random, kind, shape, device, (F16, F32), decades=(-2, 0.5))
    weight = uniform(random, (2,), 0.01, 0.05).to(F32).to(device)
    options = {"reduction": "batchmean", "weighting": "loss"}
    if through == "autograd":
        p = pred.clone().requires_grad_()
        (fused(kind, p, target, weight, **options) * scale).backward()
        gradient = p.grad
    else:
        given = scale if through == "scale as a number" else torch.tensor(scale, device=device)
        _, gradient = fused_and_grad(kind, pred, target, weight, scale=given, **options)
    _, wanted = exact(kind, pred, target, weight, scale=scale, **options)
    _, unscaled = exact(kind, pred, target, weight, **options)
    normal = wanted.abs() >= torch.finfo(F16).tiny
    assert normal.float().mean() > 0.9
    assert (unscaled.abs() < torch.finfo(F16).tiny).float().mean() > 0.5  # so the case means something
    relative = ((gradient.double() - wanted) / wanted).abs()[normal]
    own = (ADAPTIVE_ULPS if kind == "adaptive_wing" else ULPS[F32]) * 2**-23  # of the arithmetic before the rounding
    assert relative.max() <= 2**-11 + own


# -- shapes and layouts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F16, F64])  # tiles of different sizes on a GPU
@pytest.mark.parametrize("kind", DEFAULTS)
def test_no_element_is_missed_or_counted_twice_at_any_size(kind, dtype, random, device):
    edges = [256, 512, 1024, 4096, 8192]  # the tiles of the GPU's variants, and one and two of the interpreter's
    for n in (1, 2, 3, 7, 16, 17, *(edge + more for edge in edges for more in (-1, 0, 1)), 12_288 + 13):
        pred, target = draw(random, kind, (n,), device, (dtype, dtype))
        loss, gradient = fused_and_grad(kind, pred, target, reduction="sum")
        wanted, wanted_gradient = exact(kind, pred, target, reduction="sum")
        check_loss(loss, wanted)
        check_gradient(kind, gradient, wanted_gradient)


def strided(x: Tensor, *, dims: tuple[int, ...]) -> Tensor:
    """The same elements, in memory in the order of `dims`."""
    back = sorted(range(len(dims)), key=dims.__getitem__)
    return x.permute(dims).contiguous().permute(back)


def shifted(x: Tensor) -> Tensor:
    """The same elements, contiguous, one element off the 128 bits that are read at a time."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "another order": lambda x: strided(x, dims=(3, 0, 2, 1)),
    "transposed": lambda x: strided(x, dims=(3, 2, 1, 0)),
    "off 128 bits": lambda x: shifted(x),
    "channels_last off 128 bits": lambda x: shifted(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "the left half of wider ones": lambda x: torch.cat((x, x + 1), dim=3)[..., : x.shape[3]],
    "every second row": lambda x: torch.stack((x, x + 1), dim=3).flatten(2, 3)[:, :, ::2],
    "one sample for all": lambda x: x[:1].expand_as(x),
    "one pixel for a map": lambda x: x[..., :1, :1].expand_as(x),
}
DENSE = ("contiguous", "channels_last", "another order", "transposed", "off 128 bits", "channels_last off 128 bits")


@pytest.mark.parametrize("of_target", ["contiguous", "channels_last", "the left half of wider ones"])
@pytest.mark.parametrize("of_pred", LAYOUTS)
def test_heatmaps_of_any_layout_are_read_where_they_lie(of_pred, of_target, random, device):
    kind, shape = "adaptive_wing", (2, 98, 5, 6)  # 5,880 elements, strides that 128 bits do not divide
    pred, target = draw(random, kind, shape, device)
    pred, target = LAYOUTS[of_pred](pred), LAYOUTS[of_target](target)
    turn = list(LAYOUTS).index(of_pred) + len(of_target)
    for shape_of_weight in (None, ((98, 1, 1), (2, 98, 1, 1), (5, 1), shape)[turn % 4]):
        weight = None if shape_of_weight is None else uniform(random, shape_of_weight, 0.1, 1.0).to(F32).to(device)
        if weight is not None and weight.shape == shape:
            weight = weight.contiguous(memory_format=torch.channels_last)
        loss, gradient = fused_and_grad(kind, pred, target, weight)
        wanted, wanted_gradient = exact(kind, pred, target, weight)
        check_loss(loss, wanted)
        check_gradient(kind, gradient, wanted_gradient)
        assert gradient.stride() == torch.empty_like(pred).stride()
        if of_pred in DENSE:
            assert gradient.stride() == pred.stride()

    p = pred.detach().requires_grad_()
    upstream = torch.randn(shape, generator=random).to(device)
    each = fused(kind, p, target, weight, reduction="none")
    (gradient,) = torch.autograd.grad(each, p, strided(upstream, dims=(1, 0, 2, 3)))
    wanted, wanted_gradient = exact(kind, pred, target, weight, reduction="none", scale=upstream.double())
    check_each(kind, each, wanted, roundings=2)
    check_gradient(kind, gradient, wanted_gradient)
    assert each.stride() == gradient.stride() == torch.empty_like(pred).stride()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_a_single_number_is_a_batch_of_one(kind, reduction, device):
    pred = torch.tensor(3.25, device=device, requires_grad=True)
    target, weight = torch.tensor(1.0, device=device), torch.tensor(0.5, device=device)
    loss = fused(kind, pred, target, weight, reduction=reduction)
    loss.backward()
    wanted, wanted_gradient = exact(kind, pred, target, weight, reduction=reduction)
    assert loss.shape == ()
    check_each(kind, loss, wanted)
    check_gradient(kind, pred.grad, wanted_gradient)


@pytest.mark.parametrize("shape", [(0,), (0, 98, 2), (3, 0, 2)])  # no sample, no landmark
@pytest.mark.parametrize("kind", DEFAULTS)
def test_an_empty_batch_adds_nothing(kind, shape, device):
    pred, target = torch.empty(shape, device=device, requires_grad=True), torch.empty(shape, device=device)
    for reduction in REDUCTIONS:
        loss = fused(kind, pred, target, reduction=reduction)
        loss.sum().backward()
        assert loss.sum() == 0
        assert loss.shape == (shape if reduction == "none" else ())
        assert pred.grad.shape == shape
    loss, gradient = fused_and_grad(kind, pred, target)
    assert loss == 0
    assert gradient.shape == shape


# -- the same bits, always --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, F64])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_what_memory_held_before_does_not_matter(kind, dtype, random, device):
    pred, target = draw(random, kind, FACES, device, (dtype, F32))
    weight = uniform(random, (N, K, 1)).to(F32).to(device)

    def run() -> list[Tensor]:
        p = pred.clone().requires_grad_()
        each = fused(kind, p, target, weight, reduction="none")
        (of_each,) = torch.autograd.grad(each.sum() * 0.5, p)
        (of_mean,) = torch.autograd.grad(fused(kind, p, target, weight, reduction="mean") * 0.5, p)
        return [each, of_each, of_mean, *fused_and_grad(kind, pred, target, weight)]

    assert torch.utils.deterministic.fill_uninitialized_memory
    clean = run()
    torch.use_deterministic_algorithms(True)  # every torch.empty is then full of NaN
    try:
        assert torch.empty_like(pred).isnan().all()
        poisoned = run()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(clean, poisoned, strict=True):
        assert torch.equal(one, other)
        assert not other.isnan().any()


def test_another_process_computes_the_same_bits(random, device, tmp_path: Path):
    inputs = {kind: draw(random, kind, (150, 98, 2), device, (BF16, F32)) for kind in DEFAULTS}
    torch.save(inputs, tmp_path / "inputs.pt")
    here = {kind: fused_and_grad(kind, *inputs[kind]) for kind in DEFAULTS}
    again = {kind: fused_and_grad(kind, *inputs[kind]) for kind in DEFAULTS}
    script = """
import sys, torch, kernels
inputs = torch.load("inputs.pt")
found = {kind: getattr(kernels, f"{kind}_loss_and_grad")(*pair, impl="triton") for kind, pair in inputs.items()}
torch.save(found, "found.pt")
"""
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "5"}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=variables, check=True)
    there = torch.load(tmp_path / "found.pt")
    for kind in DEFAULTS:
        for one, two, three in zip(here[kind], again[kind], there[kind], strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)


# -- on a GPU alone ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F16), (F64, F64)], ids=str)
@pytest.mark.parametrize("kind", DEFAULTS)
def test_many_tiles_of_every_program_add_up_on_a_gpu(kind, dtypes, device, random):
    shape = (64, 98, 65, 64)  # heatmaps; 16-bit gradients come from the hardware's approximate instructions
    pred, target = draw(random, kind, shape, device, dtypes, decades=(-4, 1))
    weight = uniform(random, (98, 1, 1), 0.1, 1.0).to(F32).to(device)
    for w, weighting in ((None, "input"), (weight, "input"), (weight, "loss")):
        loss, gradient = fused_and_grad(kind, pred, target, w, weighting=weighting, reduction="mean")
        wanted, wanted_gradient = exact(kind, pred, target, w, weighting=weighting)
        check_loss(loss, wanted)
        d = pred.double() - target.double()
        d = d * w.double() if w is not None and weighting == "input" else d
        check_gradient(kind, *away_from_kinks(kind, d, gradient, wanted_gradient))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", DEFAULTS)
def test_more_than_2_31_elements_are_right_everywhere_on_a_gpu(kind, device):
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("30 GB of GPU memory are not free")
    rows = 2**24 + 8
    shape = (rows, 64, 2)  # 2^31 + 1024 elements
    on_device = torch.Generator(device).manual_seed(1)
    pred = torch.empty(shape, dtype=BF16, device=device).uniform_(generator=on_device)
    target = torch.empty(shape, dtype=BF16, device=device).uniform_(generator=on_device)
    weight = torch.rand((64, 1), generator=on_device, device=device)
    loss, gradient = fused_and_grad(kind, pred, target, weight, reduction="sum")
    total, worst = 0.0, 0.0
    for start in range(0, rows, 2**17):
        part = slice(start, start + 2**17)
        wanted, wanted_gradient = exact(kind, pred[part], target[part], weight, reduction="sum")
        total += wanted.item()
        worst = max(worst, ulps(gradient[part], wanted_gradient).max().item())
    assert worst <= ULPS[BF16]
    assert loss.item() == pytest.approx(total, rel=LOSS_RELATIVE[F32])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("kind", DEFAULTS)
def test_the_same_loss_hundreds_of_millions_of_times_adds_up_on_a_gpu(kind, dtype, device):
    for value in (0.0123, 0.37, 1.7, 23.0):  # equal terms: what rounding takes off one it takes off all
        pred = torch.full((2**28,), value, dtype=dtype, device=device)
        loss = fused(kind, pred, torch.zeros_like(pred), reduction="mean")
        wanted, _ = exact(kind, pred[:1], torch.zeros_like(pred[:1]))
        size = wanted
        if kind == "adaptive_wing" and dtype == BF16:  # the power's exponent by the hardware's log2, good to 2^-22
            _, theta, epsilon, alpha = DEFAULTS[kind]
            exponent = alpha * math.log2(min(value, theta) / epsilon)
            size = wanted * (1 + abs(exponent) * math.log(2) * RELATIVE["lg2"] / LOSS_RELATIVE[F32])
        check_loss(loss, wanted, size)
