"""The Triton code of the face crop: tables of positions, one program a face; then the pixels.

A position in the image is the sum of what a column and what a row of the crop contribute. Both are computed in float64
once for each column and row, with the operations of `crop_reference`, and leave the pixels integers to add.
"""

import triton
import triton.language as tl

from kernels import crop_reference as reference
from kernels.sample_kernel import nearest

_LIMIT, _FAR = tl.constexpr(reference.LIMIT), tl.constexpr(reference.FAR)


@triton.jit
def _inverse(matrix, face):
    """The inverse affine map, in OpenCV's order of operations."""
    at = matrix + 6 * face.to(tl.int64)
    a = tl.load(at)
    b = tl.load(at + 1)
    c = tl.load(at + 2)
    d = tl.load(at + 3)
    e = tl.load(at + 4)
    f = tl.load(at + 5)
    determinant = a * e - b * d
    regular = determinant != 0.0
    reciprocal = tl.where(regular, 1.0 / tl.where(regular, determinant, 1.0), 0.0)
    ia = e * reciprocal
    ie = a * reciprocal
    ib = b * -reciprocal
    id = d * -reciprocal
    return ia, ib, -ia * c - ib * f, id, ie, -id * c - ie * f


@triton.jit
def _fixed_point(value):
    """1/1024 px as int64, half to even; see `crop_reference.FAR`."""
    rounded = nearest(value * 1024.0)
    return tl.where(tl.abs(rounded) <= _LIMIT, rounded, _FAR).to(tl.int64)


@triton.jit
def _store_split(whole_out, fraction_out, at, value, mask):
    value = tl.where(tl.abs(value) <= _LIMIT, value, _FAR)
    whole = tl.floor(value)
    tl.store(whole_out + at, whole.to(tl.int32), mask=mask)
    tl.store(fraction_out + at, (value - whole).to(tl.float32), mask=mask)


@triton.jit(
    do_not_specialize=["regions"],
    do_not_specialize_on_alignment=["matrix", "flip", "index", "origin", "full_width"],
)
def tables_kernel(
    matrix,
    flip,
    index,
    origin,
    full_width,
    regions,
    table,
    fraction,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    EXACT: tl.constexpr,
):
    """table: (B, 4, SIZE) int32: x and y of each column, x and y of each row, for pixels of the region.

    opencv4: 1/1024 px, to be added and shifted by 5: 1/32 px. A mirrored position 32 (W - 1) - (s >> 5) is
    (31 - s + 1024 (W - 1)) >> 5, so that mirroring, like the region's origin, costs the pixels nothing.
    EXACT: whole pixels, and `fraction`, float32, the rest.
    """
    face = tl.program_id(0)
    region = tl.minimum(tl.maximum(tl.load(index + face), 0), regions - 1)
    mirrored = tl.load(flip + face) != 0
    left = tl.load(origin + 2 * region)
    top = tl.load(origin + 2 * region + 1)
    last = tl.load(full_width + region) - 1
    m00, m01, m02, m10, m11, m12 = _inverse(matrix, face)
    lane = tl.arange(0, LANES)
    mask = lane < SIZE
    grid = lane.to(tl.float64)
    at = 4 * SIZE * face.to(tl.int64) + lane
    if EXACT:
        m00 = tl.where(mirrored, -m00, m00)
        m01 = tl.where(mirrored, -m01, m01)
        m02 = tl.where(mirrored, -m02 + last.to(tl.float64), m02) - left.to(tl.float64)
        m12 = m12 - top.to(tl.float64)
        _store_split(table, fraction, at, m00 * grid, mask)
        _store_split(table, fraction, at + SIZE, m10 * grid, mask)
        _store_split(table, fraction, at + 2 * SIZE, m01 * grid + m02, mask)
        _store_split(table, fraction, at + 3 * SIZE, m11 * grid + m12, mask)
    else:
        column_x = _fixed_point(m00 * grid)
        column_y = _fixed_point(m10 * grid)
        row_x = _fixed_point(m01 * grid + m02) + 16
        row_y = _fixed_point(m11 * grid + m12) + 16
        column_x = tl.where(mirrored, -column_x, column_x)
        row_x = tl.where(mirrored, 31 - row_x + 1024 * last, row_x) - 1024 * left
        row_y = row_y - 1024 * top
        tl.store(table + at, column_x.to(tl.int32), mask=mask)
        tl.store(table + at + SIZE, column_y.to(tl.int32), mask=mask)
        tl.store(table + at + 2 * SIZE, row_x.to(tl.int32), mask=mask)
        tl.store(table + at + 3 * SIZE, row_y.to(tl.int32), mask=mask)


@triton.jit
def _tap(pixel, inside, PACKED: tl.constexpr):
    """Red, green and blue of one pixel as int32; 0 where it is not `inside`."""
    if PACKED:
        word = tl.load(pixel, mask=inside, other=0)
        return word & 0xFF, (word >> 8) & 0xFF, (word >> 16) & 0xFF
    else:
        red = tl.load(pixel, mask=inside, other=0).to(tl.int32)
        green = tl.load(pixel + 1, mask=inside, other=0).to(tl.int32)
        blue = tl.load(pixel + 2, mask=inside, other=0).to(tl.int32)
        return red, green, blue


@triton.jit
def _within(position, length):
    """0 <= position < length, in one comparison."""
    return position.to(tl.uint32, bitcast=True) < length.to(tl.uint32, bitcast=True)


@triton.jit
def _bilinear(pixels, x, y, width, height, w00, w01, w10, w11, PACKED: tl.constexpr):
    """Sums of the taps at (x, y), (x + 1, y), (x, y + 1), (x + 1, y + 1), of which those outside the region are 0."""
    x_in = _within(x, width)
    x1_in = _within(x + 1, width)
    y_in = _within(y, height)
    y1_in = _within(y + 1, height)
    STEP: tl.constexpr = 1 if PACKED else 3
    stride = (STEP * width).to(tl.int64)
    above = pixels + y.to(tl.int64) * stride + (STEP * x).to(tl.int64)
    below = above + stride
    r00, g00, b00 = _tap(above, x_in & y_in, PACKED)
    r01, g01, b01 = _tap(above + STEP, x1_in & y_in, PACKED)
    r10, g10, b10 = _tap(below, x_in & y1_in, PACKED)
    r11, g11, b11 = _tap(below + STEP, x1_in & y1_in, PACKED)
    red = r00 * w00 + r01 * w01 + r10 * w10 + r11 * w11
    green = g00 * w00 + g01 * w01 + g10 * w10 + g11 * w11
    blue = b00 * w00 + b01 * w01 + b10 * w10 + b11 * w11
    return red, green, blue


@triton.jit
def _finished(
    level, channel, normal, scale, shift, EXACT: tl.constexpr, NORMALIZE: tl.constexpr, INTEGER: tl.constexpr
):
    """A level 0 to 255 as it is stored."""
    if NORMALIZE:
        if EXACT:
            return level * scale - shift
        else:
            return tl.load(normal + 256 * channel + level)
    else:
        if not EXACT:
            return level if INTEGER else level.to(tl.float32)
        elif INTEGER:
            return (level + 12582912.0) - 12582912.0  # 1.5 x 2^23: to the nearest integer, half to even
        else:
            return level


@triton.jit(
    do_not_specialize=["regions"],
    do_not_specialize_on_alignment=["pixels", "offset", "heights", "widths", "index"],
)
def crop_kernel(
    pixels,
    offset,
    heights,
    widths,
    index,
    regions,
    table,
    fraction,
    normal,
    out,
    SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES_X: tl.constexpr,
    TILES_Y: tl.constexpr,
    CHANNELS: tl.constexpr,
    PACKED: tl.constexpr,
    EXACT: tl.constexpr,
    NORMALIZE: tl.constexpr,
    INTEGER: tl.constexpr,
    SCALE: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """One tile of ROWS x COLUMNS pixels of one face. normal: (3, 256), each level normalised and cast."""
    program = tl.program_id(0)
    face = program // (TILES_X * TILES_Y)
    tile = program % (TILES_X * TILES_Y)
    region = tl.minimum(tl.maximum(tl.load(index + face), 0), regions - 1)
    width = tl.load(widths + region).to(tl.int32)
    height = tl.load(heights + region).to(tl.int32)
    begin = tl.load(offset + region)
    data = pixels + begin
    column = tile % TILES_X * COLUMNS + tl.arange(0, COLUMNS)
    row = tile // TILES_X * ROWS + tl.arange(0, ROWS)
    column_in = column < SIZE
    row_in = row < SIZE
    of_column = 4 * SIZE * face.to(tl.int64) + column
    of_row = 4 * SIZE * face.to(tl.int64) + 2 * SIZE + row
    x_of_column = tl.load(table + of_column, mask=column_in, other=0)
    y_of_column = tl.load(table + of_column + SIZE, mask=column_in, other=0)
    x_of_row = tl.load(table + of_row, mask=row_in, other=0)
    y_of_row = tl.load(table + of_row + SIZE, mask=row_in, other=0)
    x = x_of_row[:, None] + x_of_column[None, :]
    y = y_of_row[:, None] + y_of_column[None, :]
    if EXACT:
        fx_of_column = tl.load(fraction + of_column, mask=column_in, other=0.0)
        fy_of_column = tl.load(fraction + of_column + SIZE, mask=column_in, other=0.0)
        fx_of_row = tl.load(fraction + of_row, mask=row_in, other=0.0)
        fy_of_row = tl.load(fraction + of_row + SIZE, mask=row_in, other=0.0)
        fx = fx_of_row[:, None] + fx_of_column[None, :]
        fy = fy_of_row[:, None] + fy_of_column[None, :]
        x = tl.where(fx >= 1.0, x + 1, x)
        y = tl.where(fy >= 1.0, y + 1, y)
        fx = tl.where(fx >= 1.0, fx - 1.0, fx)
        fy = tl.where(fy >= 1.0, fy - 1.0, fy)
        gx = 1.0 - fx
        gy = 1.0 - fy
    else:
        x = x >> 5
        y = y >> 5
        fx = x & 31
        fy = y & 31
        x = x >> 5
        y = y >> 5
        gx = 32 - fx
        gy = 32 - fy
    red, green, blue = _bilinear(data, x, y, width, height, gy * gx, gy * fx, fy * gx, fy * fx, PACKED)
    if not EXACT:
        red = (red + 512) >> 10
        green = (green + 512) >> 10
        blue = (blue + 512) >> 10
    red = _finished(red, 0, normal, SCALE[0], SHIFT[0], EXACT, NORMALIZE, INTEGER)
    green = _finished(green, 1, normal, SCALE[1], SHIFT[1], EXACT, NORMALIZE, INTEGER)
    blue = _finished(blue, 2, normal, SCALE[2], SHIFT[2], EXACT, NORMALIZE, INTEGER)
    kind: tl.constexpr = out.dtype.element_ty
    red = red.to(kind)
    green = green.to(kind)
    blue = blue.to(kind)
    base = out + face.to(tl.int64) * (SIZE * SIZE * CHANNELS)
    place = row[:, None] * SIZE + column[None, :]
    mask = row_in[:, None] & column_in[None, :]
    if CHANNELS == 4:
        # join adds an innermost dimension: ((red, blue), (green, 0)) lie in memory as red, green, blue, 0
        pixel = tl.reshape(tl.join(tl.join(red, blue), tl.join(green, tl.zeros_like(red))), (ROWS, COLUMNS * 4))
        quarter = tl.arange(0, COLUMNS * 4)
        across = tile % TILES_X * (COLUMNS * 4) + quarter
        inside = row_in[:, None] & (across < 4 * SIZE)[None, :]
        tl.store(base + row[:, None] * (4 * SIZE) + across[None, :], pixel, mask=inside)
    else:
        tl.store(base + 3 * place, red, mask=mask)
        tl.store(base + 3 * place + 1, green, mask=mask)
        tl.store(base + 3 * place + 2, blue, mask=mask)
