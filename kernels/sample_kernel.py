"""The Triton code that draws and places the crops of a batch: one program a face.

Line by line what `sample_reference` does. To have its bits, the launch forbids fused multiply-adds, and divisions in
float32 are the correctly rounded ones (in float64 they always are).
"""

import math

import triton
import triton.language as tl

from kernels import sample_reference as reference

_RADIAN = tl.constexpr(math.pi / 180)
_TWO_OVER_PI = tl.constexpr(2 / math.pi)
_HALF_PI_0, _HALF_PI_1 = (tl.constexpr(value) for value in reference.HALF_PI)
_S0, _S1, _S2, _S3, _S4, _S5 = (tl.constexpr(value) for value in reference.SINE)
_C0, _C1, _C2, _C3, _C4, _C5 = (tl.constexpr(value) for value in reference.COSINE)
_TO_INTEGER = tl.constexpr(1.5 * 2**52)  # added and taken away again, it rounds to the nearest integer, half to even


@triton.jit
def nearest(x):
    """The integer nearest to a float64 of less than 2^51."""
    return (x + _TO_INTEGER) - _TO_INTEGER


@triton.jit
def _uniform(word):
    return (word.to(tl.float64) + 0.5) / 4294967296.0


@triton.jit
def _normal(uniform, quantiles, INTERVALS: tl.constexpr):
    position = uniform * INTERVALS
    whole = tl.floor(position)
    left = whole.to(tl.int32)
    low = tl.load(quantiles + left)
    return low + (position - whole) * (tl.load(quantiles + left + 1) - low)


@triton.jit
def _double(value: tl.constexpr):
    """`value` as a float64: comparisons and extrema take a bare constant for a float32."""
    return tl.full((), value, tl.float64)


@triton.jit
def _clamp(x, low: tl.constexpr, high: tl.constexpr):
    return tl.minimum(tl.maximum(x, _double(low)), _double(high))


@triton.jit
def _sine_and_cosine(degrees):
    x = degrees * _RADIAN
    quarter = nearest(x * _TWO_OVER_PI)
    far = x - quarter * _HALF_PI_0
    rest = quarter * _HALF_PI_1
    y = far - rest
    tail = (far - y) - rest
    z = y * y
    v = z * y
    s = _S1 + z * (_S2 + z * (_S3 + z * (z * _S5 + _S4)))
    sine = y - ((z * (0.5 * tail - v * s) - tail) - v * _S0)
    half = 0.5 * z
    w = 1.0 - half
    c = _C0 + z * (_C1 + z * (_C2 + z * (_C3 + z * (z * _C5 + _C4))))
    cosine = w + (((1.0 - w) - half) + (z * (z * c) - y * tail))
    turn = quarter.to(tl.int32) & 3
    odd = (turn & 1) == 1
    a = tl.where(odd, cosine, sine)
    b = tl.where(odd, sine, cosine)
    return tl.where(turn >= 2, -a, a), tl.where((turn == 1) | (turn == 2), -b, b)


@triton.jit
def _swap(swap, a, b):
    return tl.where(swap, b, a), tl.where(swap, a, b)


@triton.jit
def _solved(x0, y0, x1, y1, x2, y2, r0, r1, r2):
    """(a, b, c) with a x + b y + c = r; see `sample_reference._solved`."""
    one0 = _double(1.0)
    one1 = one0
    one2 = one0
    # Column x: the first of the largest
    to1 = (tl.abs(x1) > tl.abs(x0)) & (tl.abs(x1) >= tl.abs(x2))
    to2 = (tl.abs(x2) > tl.abs(x0)) & (tl.abs(x2) > tl.abs(x1))
    x0, x1 = _swap(to1, x0, x1)
    y0, y1 = _swap(to1, y0, y1)
    r0, r1 = _swap(to1, r0, r1)
    x0, x2 = _swap(to2, x0, x2)
    y0, y2 = _swap(to2, y0, y2)
    r0, r2 = _swap(to2, r0, r2)
    factor = -1.0 / x0
    alpha = x1 * factor
    y1 = y1 + alpha * y0
    one1 = one1 + alpha * one0
    r1 = r1 + alpha * r0
    alpha = x2 * factor
    y2 = y2 + alpha * y0
    one2 = one2 + alpha * one0
    r2 = r2 + alpha * r0
    # Column y
    to2 = tl.abs(y2) > tl.abs(y1)
    y1, y2 = _swap(to2, y1, y2)
    one1, one2 = _swap(to2, one1, one2)
    r1, r2 = _swap(to2, r1, r2)
    factor = -1.0 / y1
    alpha = y2 * factor
    one2 = one2 + alpha * one1
    r2 = r2 + alpha * r1
    c = r2 / one2
    b = (r1 - one1 * c) / y1
    a = (r0 - y0 * b - one0 * c) / x0
    return a, b, c


@triton.jit(do_not_specialize=["count", "seed"])
def sample_kernel(
    points,
    center,
    side,
    full_width,
    count,
    number,
    epoch,
    seed: tl.int64,
    flip_index,
    quantiles,
    matrix_out,
    flip_out,
    target_out,
    weight_out,
    FLIP: tl.constexpr,
    SCALE: tl.constexpr,
    ROTATION: tl.constexpr,
    ROTATE: tl.constexpr,
    INTERVALS: tl.constexpr,
    SIZE: tl.constexpr,
    POINTS: tl.constexpr,
    LANES: tl.constexpr,
):
    row = tl.program_id(0)
    name = tl.load(number + row)
    face = tl.minimum(tl.maximum(name, 0), count - 1)  # nothing is read from elsewhere, whatever the number

    # Draws
    zero = name.to(tl.uint32) * 0
    w0, w1, w2, w3 = tl.philox(seed, name.to(tl.uint32), tl.load(epoch).to(tl.uint32), zero, zero)
    u = _uniform(w0)
    flip = u <= _double(FLIP)
    scale = _clamp(1.0 + SCALE * _normal(_uniform(w1), quantiles, INTERVALS), 1.0 - SCALE, 1.0 + SCALE)
    angle = _clamp(ROTATION * _normal(_uniform(w2), quantiles, INTERVALS), -2.0 * ROTATION, 2.0 * ROTATION)
    u = _uniform(w3)
    rotation = tl.where(u <= _double(ROTATE), angle, 0.0)

    # Crop: three points in float32
    wide = tl.load(full_width + face)
    x = tl.load(center + 2 * face)
    y = tl.load(center + 2 * face + 1)
    x = tl.where(flip, wide.to(tl.float64) - x - 1.0, x)
    length = tl.load(side + face) * scale
    sine, cosine = _sine_and_cosine(rotation)
    x0 = x.to(tl.float32)
    y0 = y.to(tl.float32)
    x1 = (x + sine * length / 2.0).to(tl.float32)
    y1 = (y + -cosine * length / 2.0).to(tl.float32)
    x2 = x1 + -(y0 - y1)
    y2 = y1 + (x0 - x1)
    x0 = x0.to(tl.float64)
    y0 = y0.to(tl.float64)
    x1 = x1.to(tl.float64)
    y1 = y1.to(tl.float64)
    x2 = x2.to(tl.float64)
    y2 = y2.to(tl.float64)
    none = _double(0.0)
    half = _double(SIZE / 2)
    a, b, c = _solved(x0, y0, x1, y1, x2, y2, half, half, none)
    d, e, f = _solved(x1, y1, x0, y0, x2, y2, none, half, none)
    at = matrix_out + 6 * row.to(tl.int64)
    tl.store(at, a)
    tl.store(at + 1, b)
    tl.store(at + 2, c)
    tl.store(at + 3, d)
    tl.store(at + 4, e)
    tl.store(at + 5, f)
    tl.store(flip_out + row, flip)

    # Targets
    lane = tl.arange(0, LANES)
    kept = lane < POINTS
    partner = tl.load(flip_index + lane, mask=kept, other=0)
    point = tl.where(flip, tl.minimum(tl.maximum(partner, 0), POINTS - 1), lane)
    where = points + face * (2 * POINTS) + 2 * point
    px = tl.load(where, mask=kept, other=0.0)
    py = tl.load(where + 1, mask=kept, other=0.0).to(tl.float64)
    px = tl.where(flip, (wide - 1).to(tl.float32) - px, px).to(tl.float64)
    cx = (a * px + b * py + c).to(tl.float32)
    cy = (d * px + e * py + f).to(tl.float32)
    last = SIZE - 1.0
    inside = ((cx >= 0.0) & (cx <= last) & (cy >= 0.0) & (cy <= last)).to(tl.float32)
    whole = tl.full((), SIZE, tl.float32)
    at = 2 * (row.to(tl.int64) * POINTS + lane)
    tl.store(target_out + at, tl.div_rn(cx, whole), mask=kept)
    tl.store(target_out + at + 1, tl.div_rn(cy, whole), mask=kept)
    tl.store(weight_out + at, inside, mask=kept)
    tl.store(weight_out + at + 1, inside, mask=kept)
