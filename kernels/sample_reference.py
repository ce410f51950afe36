"""Drawing, placing and aiming crops in plain torch: the oracle of the fused kernel, and what runs on a CPU.

Only operations that round exactly, one at a time, and tables: the bits are the same on every device. Nothing is copied
from the host, and nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.sampling import FaceColumns, Sampling

WORD = 2**32
MASK = WORD - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# fdlibm's (Sun Microsystems 1993): pi/2 in two parts, the first of 33 bits, and minimax polynomials on [-pi/4, pi/4]
HALF_PI = (1.57079632673412561417e00, 6.07710050650619224932e-11)
SINE = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
COSINE = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def sample(
    faces: FaceColumns,
    number: Tensor,
    epoch: Tensor,
    seed: int,
    sampling: Sampling,
    flip_index: Tensor,
    quantiles: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(matrix, flip, target, weight) of arguments that have passed `kernels.sample`'s checks."""
    flip, scale, rotation = draws(number, epoch, seed, sampling, quantiles)
    row = number.clamp(0, len(faces.side) - 1)  # a GPU's numbers have not been looked at
    full_width = faces.full_width[row]
    x, y = faces.center[row].unbind(1)
    center = torch.stack([torch.where(flip, full_width - x - 1, x), y], dim=1)
    matrix = crop_matrices(center, faces.side[row] * scale, rotation, size)
    names = flip_index.clamp(0, len(flip_index) - 1)
    target, weight = targets_and_weights(faces.points[row], matrix, flip, full_width, size, names)
    return matrix, flip, target, weight


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four int64 tensors of 32-bit words from four of counters and two words of key.

    Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = counter
    for i in range(ROUNDS):
        k0, k1 = ((k + i * step) & MASK for k, step in zip(key, WEYL, strict=True))
        (high0, low0), (high1, low1) = _product(c0, MULTIPLIERS[0]), _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of the product, in halves: the whole would overflow int64."""
    low = multiplier * (word & 0xFFFF)
    high = multiplier * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def normal(uniform: Tensor, quantiles: Tensor) -> Tensor:
    """Standard normal quantiles of values in (0, 1), by lines between the entries of a table at equal distances."""
    position = uniform * (len(quantiles) - 1)
    whole = position.floor()
    left = whole.long()
    low = quantiles[left]
    return low + (position - whole) * (quantiles[left + 1] - low)


def draws(
    number: Tensor,
    epoch: Tensor | int,
    seed: int,
    sampling: Sampling,
    quantiles: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(flip, scale, rotation) of faces: bool, a factor on the side, degrees. number and epoch count modulo 2^32."""
    zero = torch.zeros_like(number)
    words = philox((number & MASK, (zero + epoch) & MASK, zero, zero), (seed & MASK, seed >> 32))
    u_flip, u_scale, u_rotation, u_rotate = ((word.double() + 0.5) / WORD for word in words)  # uniform in (0, 1)
    scale, rotation = sampling.scale, sampling.rotation
    angle = (rotation * normal(u_rotation, quantiles)).clamp(-2 * rotation, 2 * rotation)
    return (
        u_flip <= sampling.flip,
        (1 + scale * normal(u_scale, quantiles)).clamp(1 - scale, 1 + scale),
        torch.where(u_rotate <= sampling.rotation_probability, angle, 0.0),
    )


def sine_and_cosine(degrees: Tensor) -> tuple[Tensor, Tensor]:
    """float64, to less than one unit in the last place for any angle of a few turns."""
    x = degrees * (math.pi / 180)
    quarter = (x * (2 / math.pi)).round()
    far = x - quarter * HALF_PI[0]
    rest = quarter * HALF_PI[1]
    y = far - rest
    tail = (far - y) - rest
    z = y * y
    v = z * y
    s = _polynomial(z, SINE[1:])
    sine = y - ((z * (0.5 * tail - v * s) - tail) - v * SINE[0])
    half = 0.5 * z
    w = 1.0 - half
    cosine = w + (((1.0 - w) - half) + (z * (z * _polynomial(z, COSINE)) - y * tail))
    turn = quarter.long() & 3
    odd, s, c = (turn & 1) == 1, sine, cosine
    sine, cosine = torch.where(odd, c, s), torch.where(odd, s, c)
    return torch.where(turn >= 2, -sine, sine), torch.where((turn == 1) | (turn == 2), -cosine, cosine)


def _polynomial(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    total = z * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        total = coefficient + z * total
    return total


def crop_matrices(center: Tensor, side: Tensor, rotation: Tensor, size: int) -> Tensor:
    """Image -> crop, (B, 2, 3) float64: center (B, 2), side (B,) padded, rotation (B,) degrees.

    As published: three points in float32, and the map that takes them to the crop's middle, top and corner.
    """
    sine, cosine = sine_and_cosine(rotation)
    up = torch.stack([sine * side / 2, -cosine * side / 2], dim=1)
    p0, p1 = center.float(), (center + up).float()
    edge = p0 - p1
    p2 = p1 + torch.stack([-edge[:, 1], edge[:, 0]], dim=1)
    return affine_through(torch.stack([p0, p1, p2], dim=1).double(), size)


def affine_through(source: Tensor, size: int) -> Tensor:
    """The maps (B, 2, 3) that take three points (B, 3, 2) float64 to (h, h), (h, 0) and (0, 0), h being size / 2.

    With the bits of OpenCV's getAffineTransform. That eliminates six equations with partial pivoting; those of x and of
    y do not meet, but the rows of x in moving up leave those of y in another order, which decides between pivots of
    equal size.
    """
    points = [(x, y) for x, y in (p.unbind(1) for p in source.unbind(1))]
    half = size / 2
    rows = _solved(points, (half, half, 0.0)), _solved([points[1], points[0], points[2]], (0.0, half, 0.0))
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)


def _solved(points: list[tuple[Tensor, Tensor]], right: tuple[float, float, float]) -> list[Tensor]:
    """(a, b, c) with a x + b y + c = right for three points, by elimination with partial pivoting."""
    one = torch.ones_like(points[0][0])
    rows = [[x, y, one, one * value] for (x, y), value in zip(points, right, strict=True)]
    for i in range(3):
        largest = rows[i][i].abs()
        for j in range(i + 1, 3):
            larger = rows[j][i].abs() > largest
            largest = torch.where(larger, rows[j][i].abs(), largest)
        # The first of the largest changes places with row i
        taken = rows[i][i].abs() == largest
        for j in range(i + 1, 3):
            swap = ~taken & (rows[j][i].abs() == largest)
            taken = taken | swap
            rows[i], rows[j] = (
                [torch.where(swap, b, a) for a, b in zip(rows[i], rows[j], strict=True)],
                [torch.where(swap, a, b) for a, b in zip(rows[i], rows[j], strict=True)],
            )
        factor = -1 / rows[i][i]
        for j in range(i + 1, 3):
            alpha = rows[j][i] * factor
            rows[j] = [b + alpha * a if k > i else b for k, (a, b) in enumerate(zip(rows[i], rows[j], strict=True))]
    c = rows[2][3] / rows[2][2]
    b = (rows[1][3] - rows[1][2] * c) / rows[1][1]
    a = (rows[0][3] - rows[0][1] * b - rows[0][2] * c) / rows[0][0]
    return [a, b, c]


def targets_and_weights(
    points: Tensor, matrix: Tensor, flip: Tensor, full_width: Tensor, size: int, flip_index: Tensor
) -> tuple[Tensor, Tensor]:
    """Targets and weights, (B, K, 2) float32: float32 points, the product in float64, its result float32."""
    x, y = points.float().unbind(-1)
    mirrored = (full_width - 1).float()[:, None] - x[:, flip_index]
    turned = flip[:, None]
    x = torch.where(turned, mirrored, x).double()
    y = torch.where(turned, y[:, flip_index], y).double()
    m = matrix.double()[..., None]
    crop = torch.stack([m[:, i, 0] * x + m[:, i, 1] * y + m[:, i, 2] for i in (0, 1)], dim=-1).float()
    inside = ((crop >= 0) & (crop <= size - 1)).all(dim=-1, keepdim=True)
    # A tensor on the device: CUDA divides by a number by multiplying with the reciprocal, which rounds differently
    return crop / torch.full((), float(size), device=crop.device), inside.float().expand_as(crop).contiguous()
