"""The Triton code of the losses: one kernel for the whole family, and one that scales a gradient in place.

Every loss of the family is, per element, LOG log1p(z) + rest with z >= 0 and a constant LOG; a member says what z, rest
and its slope are, everything else is shared. What decides the shape of the code:

* sum log1p(z_i) = log1p(q) where q is folded by q + z + q z: one logarithm for a group, two instructions an element.
* Full tiles are read without a mask, 128 bits at a time whatever n is, and one masked tile takes the rest.
* Tile numbers are 64-bit scalars, lanes 32-bit: tensors beyond 2^31 elements cost nothing per element.
* Partial sums are added in float64, in an order that depends on n alone: the same bits every time, on every GPU.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl

MAX_PROGRAMS = 2048  # CTAs of a launch, so many partial sums are there at most for the last one to add up


class Constants(NamedTuple):
    """What a kernel is compiled for."""

    kind: str  # "wing", "soft_wing", "smooth_l1" or "adaptive_wing"
    parameters: tuple[float, ...]  # of the loss
    log: float  # LOG above
    largest: float  # log2 of the largest factor of a group (adaptive wing)
    weighting: str  # "no", "input" or "loss"
    inner: int  # element i has weight[i // inner % period]; inner 0: weight[0]; period 0: without the remainder
    period: int
    pairs: bool  # inner is 2: weights are read once for both neighbours
    loss: str  # "sum", "each" element's, or "no" loss
    grad: bool  # whether the gradient is stored
    factor: str  # the gradient's: "one" number, one for "each" element, or "no"
    skip: bool  # nothing is done where that number is 1
    wide: bool  # whether the arithmetic is in float64
    width: int  # neighbours whose losses are added before they go to float64: what a thread reads at once
    group: int  # those that share a logarithm: as many, or a part of them
    fast: bool  # by the hardware's reciprocal and exp2, which are good to 1 and 2 ulp
    refined: bool  # by the hardware's reciprocal and a step of Newton's, which makes quotients as good as rounded ones
    narrow: bool  # by the hardware's log2, too, which is good enough for gradients that are rounded to 16 bits
    alpha: float  # adaptive wing: as float32, and what that lacks
    alpha_error: float
    block: int  # elements of a tile
    programs: int = MAX_PROGRAMS


_LN2 = tl.constexpr(math.log(2))
_SMALLEST = tl.constexpr(2.0**-126)  # smaller ones are 0 to the hardware's instructions
_LARGE = tl.constexpr(2.0**126)  # of which the reciprocal is smaller
_NO_POWER = tl.constexpr(-2000.0)  # log2 of 0, near enough, in float64 too
_TOP_12, _EXPONENT = tl.constexpr(-(2**12)), tl.constexpr(-(2**23))  # bits of a float32
_SQRT_HALF, _ONE = tl.constexpr(0x3F3504F3), tl.constexpr(0x3F800000)  # as bits
_ROUND = tl.constexpr(1.5 * 2**23)  # adding it rounds a float32 to an integer, which the low bits then hold
_SIGN_32, _SIGN_64 = tl.constexpr(-(2**31)), tl.constexpr(-(2**63))


@triton.jit
def _log1p(x):
    """log(1 + x) for x >= 0: log(u) plus, to first order, what rounding 1 + x to u lost. Infinity and NaN stay.

    The quotient is at most half a unit of u's last place, so that its own error, 2 ulp on a GPU, does not count.
    """
    u = 1.0 + x
    kept = u - 1.0
    lost = tl.where(kept == x, 0.0, x - kept)
    return tl.log(u) + lost / u


@triton.jit
def _hardware(x, INSTRUCTION: tl.constexpr):
    """One instruction of PTX on float32; its errors are in the PTX manual. The interpreter cannot run it."""
    return tl.inline_asm_elementwise(INSTRUCTION + " $0, $1;", "=r,r", [x], tl.float32, True, 1)


@triton.jit
def _fma(x, y, z):
    """x y + z rounded once, which the interpreter does not do."""
    return tl.fma(x, y, z)


@triton.jit
def _quotient(x, y, C: tl.constexpr):
    """x / y for y > 0. A GPU's own division in float32 is one by the reciprocal, and good to 2 ulp."""
    if C.fast:
        return x * _hardware(y, "rcp.approx.ftz.f32")
    elif C.refined:
        # The wing's y ends at omega + epsilon; a reciprocal below 2^-126 takes another instruction
        reciprocal = _hardware(y, "rcp.approx.f32" if C.kind == "soft_wing" else "rcp.approx.ftz.f32")
        q = x * reciprocal
        better = _fma(_fma(-q, y, x + tl.zeros_like(y)), reciprocal, q)
        return tl.where(y < _LARGE, better, q) if C.kind == "soft_wing" else better
    else:
        return x / y


@triton.jit
def _exp2(x, C: tl.constexpr):
    return _hardware(x, "ex2.approx.ftz.f32") if C.fast else tl.exp2(x)


@triton.jit
def _working(x, C: tl.constexpr):
    """A float64 in the precision of the arithmetic."""
    return x if C.wide else x.to(tl.float32)


@triton.jit
def _with_sign(slope, d, a, scale, ABOVE: tl.constexpr):
    """slope * sign(d), a = |d|; d * scale where a <= ABOVE, and NaN at NaN: no bad value leaves the gradient."""
    if d.dtype == tl.float64:
        sign = d.to(tl.int64, bitcast=True) & _SIGN_64
        signed = (slope.to(tl.int64, bitcast=True) ^ sign).to(tl.float64, bitcast=True)
    else:
        sign = d.to(tl.int32, bitcast=True) & _SIGN_32
        signed = (slope.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)
    return tl.where(a > ABOVE, signed, d * scale)


@triton.jit
def _below(a, LIMIT: tl.constexpr):
    """a < LIMIT. A GPU takes a bare constant in a comparison for a float32, the interpreter does not."""
    return a < tl.full((), LIMIT, a.dtype)


@triton.jit
def _wing(a, scale, C: tl.constexpr):
    OMEGA: tl.constexpr = C.parameters[0]
    EPSILON: tl.constexpr = C.parameters[1]
    # Beyond omega the loss goes on in a straight line: without C, from which little is left where epsilon is large
    inside = _below(a, OMEGA)
    b = tl.where(inside, a, OMEGA)
    slope = tl.where(inside, _quotient(_working(OMEGA * scale, C), EPSILON + a, C), _working(scale, C))
    return b * (1.0 / EPSILON), a - b, slope


@triton.jit
def _soft_wing(a, scale, C: tl.constexpr):
    OMEGA1: tl.constexpr = C.parameters[0]
    OMEGA2: tl.constexpr = C.parameters[1]
    EPSILON: tl.constexpr = C.parameters[2]
    inside = _below(a, OMEGA1)
    # omega2 ln(1 + a / epsilon) + B without the cancellation
    z = tl.where(inside, 0.0, (a - OMEGA1) * (1.0 / (EPSILON + OMEGA1)))
    rest = tl.where(inside, a, OMEGA1)
    return z, rest, tl.where(inside, _working(scale, C), _quotient(_working(OMEGA2 * scale, C), EPSILON + a, C))


@triton.jit
def _smooth_l1(a, scale, C: tl.constexpr):
    BETA: tl.constexpr = C.parameters[0]
    inside = _below(a, BETA)
    rest = tl.where(inside, a * a * (0.5 / BETA), a - 0.5 * BETA)
    return tl.zeros_like(a), rest, tl.where(inside, a * _working((1.0 / BETA) * scale, C), _working(scale, C))


@triton.jit
def _power(z, y, there, C: tl.constexpr):
    """(power, exponent, p): power = z^p with p = alpha - y and exponent = log2(power); power 0 where not `there`.

    In float32 the exponent of a small z would be rounded to 2^-20, 40 ulp of the power. It is kept in two parts here:
    p is split so that its product with z's own exponent e is exact, log2 of the rest is a polynomial (minimax on
    sqrt(1/2) to sqrt(2), 7e-9), and only a fraction is left for exp2. Powers below 2^-125 are 0, those above
    2^C.largest are cut off there.
    """
    if C.wide:
        p = C.parameters[3] - y
        exponent = tl.where(there, p * tl.log2(z), _NO_POWER)
        power = tl.exp2(tl.minimum(exponent, C.largest))
    elif C.narrow:
        p = C.parameters[3] - y
        exponent = tl.where(there, p * _hardware(z, "lg2.approx.ftz.f32"), _NO_POWER)
        power = _hardware(tl.minimum(exponent, C.largest), "ex2.approx.ftz.f32")
    else:
        p = C.alpha - y
        p_error = ((C.alpha - p) - y) + C.alpha_error
        p_top = (p.to(tl.int32, bitcast=True) & _TOP_12).to(tl.float32, bitcast=True)
        bits = z.to(tl.int32, bitcast=True)
        e_bits = (bits - _SQRT_HALF) & _EXPONENT
        f = (bits - e_bits).to(tl.float32, bitcast=True) - 1.0
        e = (e_bits >> 23).to(tl.float32)
        rest = p * (f * _log2_ratio(f))
        product = p_top * e
        rounded = (product + rest) + _ROUND
        fraction = (product - (rounded - _ROUND)) + ((p - p_top + p_error) * e + rest)
        exponent = tl.where(there, (rounded - _ROUND) + fraction, _NO_POWER)
        scale = ((rounded.to(tl.int32, bitcast=True) << 23) + _ONE).to(tl.float32, bitcast=True)
        power = _exp2(fraction, C) * scale
        power = tl.where(exponent < C.largest, power, 2.0**C.largest)
        power = tl.where(exponent > -125.0, power, 0.0)
    return power, exponent, p


@triton.jit
def _log2_ratio(f):
    """log2(1 + f) / f for sqrt(1/2) - 1 <= f <= sqrt(2) - 1."""
    r = -0.21030297875404358 + 0.1254112422466278 * f
    r = 0.21737967431545258 + r * f
    r = -0.23851950466632843 + r * f
    r = 0.28765663504600525 + r * f
    r = -0.3607212007045746 + r * f
    r = 0.48092252016067505 + r * f
    r = -0.7213471531867981 + r * f
    return 1.442694902420044 + r * f


@triton.jit
def _adaptive_wing(a, y, scale, C: tl.constexpr):
    """With b = min(a, theta), f(b) + f'(b) (a - b) is the two-branch formula: one power for both, and the slope."""
    OMEGA: tl.constexpr = C.parameters[0]
    THETA: tl.constexpr = C.parameters[1]
    EPSILON: tl.constexpr = C.parameters[2]
    inside = _below(a, THETA)
    b = tl.where(inside, a, THETA)
    # A power of 0, also where p <= 0, gives no loss
    power, exponent, p = _power(b * (1.0 / EPSILON), y, a > _SMALLEST, C)
    slope = _quotient(OMEGA * p * power, b + b * power, C)
    # A large power's log1p is its logarithm: what is beyond the largest that is folded is added as such
    beyond = tl.maximum(exponent - C.largest, 0.0)
    rest = tl.where(inside, 0.0, slope * (a - THETA)) + (OMEGA * _LN2) * beyond
    return power, rest, slope * _working(scale, C)


@triton.jit
def _member(a, y, scale, C: tl.constexpr):
    """(z, rest, scale times the slope) at a = |d| and target y. A NaN is in rest."""
    if C.kind == "wing":
        z, rest, slope = _wing(a, scale, C)
    elif C.kind == "soft_wing":
        z, rest, slope = _soft_wing(a, scale, C)
    elif C.kind == "smooth_l1":
        z, rest, slope = _smooth_l1(a, scale, C)
    else:
        z, rest, slope = _adaptive_wing(a, y, scale, C)
    return z, rest, slope


@triton.jit
def _halves(x):
    """Neighbours apart: what a thread holds stays with it."""
    return tl.split(tl.reshape(x, [x.shape[0] // 2, 2]))


@triton.jit
def _folded(z, GROUP: tl.constexpr):
    """q of each GROUP neighbours, log1p(q) = sum log1p(z)."""
    for _ in tl.static_range(GROUP.bit_length() - 1):
        z0, z1 = _halves(z)
        z = z0 + (z1 + z0 * z1)
    return z


@triton.jit
def _added(x, COUNT: tl.constexpr):
    """Sums of each COUNT neighbours."""
    for _ in tl.static_range(COUNT.bit_length() - 1):
        x0, x1 = _halves(x)
        x = x0 + x1
    return x


@triton.jit
def _read(pointer, there, MASKED: tl.constexpr):
    """What lies at `pointer`; 0, which adds no loss, where `there` is false. Without a mask, 128 bits at a time."""
    return tl.load(pointer, mask=there, other=0.0) if MASKED else tl.load(pointer)


@triton.jit
def weight_offsets(base, lane, INNER: tl.constexpr, PERIOD: tl.constexpr):
    """(base + lane) // INNER % PERIOD as a 64-bit scalar plus 32-bit lanes; PERIOD 0: no remainder is taken."""
    if INNER > 1:
        lane = ((base % INNER).to(tl.int32) + lane) // INNER
        base = base // INNER
    if PERIOD > 0:
        lane = ((base % PERIOD).to(tl.int32) + lane) % PERIOD
        if INNER == 1 and PERIOD % 4 == 0:  # tiles begin at multiples of 4 and so do periods: 128 bits at a time
            lane = tl.max_contiguous(tl.multiple_of(lane, 4), 4)
        base = 0
    return base, lane


@triton.jit
def _weights(weight, base, n, C: tl.constexpr, MASKED: tl.constexpr):
    if C.inner == 0:
        w = tl.load(weight)
    elif C.pairs:
        lane = tl.arange(0, C.block // 2)
        first, place = weight_offsets(base // 2, lane, 1, C.period)
        w = _read(weight + first + place, 2 * lane < n - base, MASKED)
        w = tl.interleave(w, w)
    else:
        lane = tl.arange(0, C.block)
        first, place = weight_offsets(base, lane, C.inner, C.period)
        w = _read(weight + first + place, lane < n - base, MASKED)
    return w.to(tl.float64 if C.wide else tl.float32)


@triton.jit
def _tile(
    pred, target, weight, factor, loss, grad, base, n, scale, C: tl.constexpr, MASKED: tl.constexpr
):  # fmt: skip
    """One tile, from element `base` on: stores what is asked for, returns its losses, some of them added up.

    scale: of the gradient, a float64: what it makes of a loss's constants is rounded once.
    """
    lane = tl.arange(0, C.block)
    there = lane < n - base if MASKED else None
    y = _read(target + base + lane, there, MASKED).to(tl.float64 if C.wide else tl.float32)
    d = _read(pred + base + lane, there, MASKED).to(tl.float64 if C.wide else tl.float32) - y
    if C.weighting != "no":
        w = _weights(weight, base, n, C, MASKED)
    if C.weighting == "input":
        d, y = d * w, y * w
    a = tl.abs(d)
    z, rest, slope = _member(a, y, scale, C)
    if C.grad:
        g = _with_sign(slope, d, a, _working(scale, C), _SMALLEST if C.kind == "adaptive_wing" else 0.0)
        if C.weighting != "no":
            g = g * w
        if C.factor == "each":
            g = g * _read(factor + base + lane, there, MASKED).to(tl.float64 if C.wide else tl.float32)
        if C.wide and grad.dtype.element_ty != tl.float64:
            g = g.to(tl.float32)  # the interpreter cannot take float64 to bfloat16
        tl.store(grad + base + lane, g.to(grad.dtype.element_ty), mask=there)
    value = tl.zeros([C.block // C.width], tl.float64 if C.wide else tl.float32)
    if C.loss != "no":
        value = _added(rest, C.group)
        if C.log != 0.0:
            value = C.log * _log1p(_folded(z, C.group)) + value
        if C.weighting == "loss":  # the group is 1, as it is for a loss of each
            value = value * w
        if C.loss == "each":
            tl.store(loss + base + lane, value, mask=there)
        value = _added(value, C.width // C.group)
    return value.to(tl.float64)


@triton.jit(do_not_specialize=["n"], do_not_specialize_on_alignment=["partials", "ticket"])
def loss_kernel(
    pred, target, weight, factor, loss, grad, partials, ticket,
    n: tl.int64, loss_factor: tl.float64, grad_factor: tl.float64, C: tl.constexpr,
):  # fmt: skip
    """Loss and gradient of n elements that lie in the same order in pred, target, grad and a loss for each.

    loss: loss_factor * sum. grad: slope * weight * grad_factor * *factor. What C does not ask for is None.
    partials: float64[C.programs], anything. ticket: int32, 0 before and after.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    scale = tl.full((), grad_factor, tl.float64)
    if C.factor == "one":
        given = tl.load(factor)
        scale = scale * given.to(tl.float64)
        if C.skip:
            n = tl.where(given == 1.0, 0, n)
    full = n // C.block
    sums = tl.zeros([C.block // C.width], tl.float64)  # float32 would lose equal losses of many tiles
    tile = program.to(tl.int64)
    while tile < full:  # a range of tensors is more than the interpreter can do with numpy 2.4
        sums += _tile(pred, target, weight, factor, loss, grad, tile * C.block, n, scale, C, False)
        tile += programs
    if (tile == full) & (full * C.block < n):  # whose turn the rest is
        sums += _tile(pred, target, weight, factor, loss, grad, full * C.block, n, scale, C, True)
    if C.loss == "sum":
        total = tl.sum(sums)
        mean = tl.full((), loss_factor, tl.float64)
        if programs == 1:
            tl.store(loss, (total * mean).to(loss.dtype.element_ty))
        else:
            # No CTA waits for another: whoever takes the last ticket finds all partial sums written
            tl.store(partials + program, total)
            tl.debug_barrier()
            taken = tl.atomic_add(ticket, 1, sem="acq_rel", scope="gpu")
            tl.debug_barrier()
            if taken == programs - 1:
                place = tl.arange(0, C.programs)
                totals = tl.load(partials + place, mask=place < programs, other=0.0, cache_modifier=".cg")
                tl.store(loss, (tl.sum(totals) * mean).to(loss.dtype.element_ty))
                tl.store(ticket, 0)


@triton.jit(do_not_specialize=["n"])
def scale_kernel(grad, factor, n: tl.int64, BLOCK: tl.constexpr):
    """grad *= *factor in place, for n elements; grad is not touched where *factor is exactly 1."""
    scale = tl.load(factor)
    n = tl.where(scale == 1.0, 0, n)
    full = n // BLOCK
    programs = tl.num_programs(0)
    lane = tl.arange(0, BLOCK)
    tile = tl.program_id(0).to(tl.int64)
    while tile < full:
        place = grad + tile * BLOCK + lane
        tl.store(place, (tl.load(place) * scale).to(grad.dtype.element_ty))
        tile += programs
    if (tile == full) & (full * BLOCK < n):
        place = grad + full * BLOCK + lane
        there = lane < n - full * BLOCK
        tl.store(place, (tl.load(place, mask=there) * scale).to(grad.dtype.element_ty), mask=there)
