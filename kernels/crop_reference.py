"""The face crop in plain torch: the oracle of the fused kernel, and what runs on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.crop import RaggedImages

MEAN = (0.485, 0.456, 0.406)  # RGB, of values in 0 to 1: ImageNet's, as published
STD = (0.229, 0.224, 0.225)

# What a crop's column or row contributes to a position, in 1/1024 px, is FAR if it is more than LIMIT (2^19 px, where
# no crop of a picture comes) or not a number. FAR and any other contribution lie outside every image of sides up to
# MAX_SIDE pixels, the most that JPEG files have, and no sum of two, mirrored or not, leaves 32 bits.
LIMIT = 2.0**29
FAR = 2.0**30 - 2.0**27
MAX_SIDE = 2**16

# Output pixels handled at once: bounds the temporaries (some 200 bytes a pixel); on a CPU small enough for its caches
_CHUNK_CPU = 2**17
_CHUNK_CUDA = 2**21
# A region's part that a crop touches is converted to float as a whole if it has at most this many pixels per output
# pixel; a crop of fewer pixels from more (a thumbnail of a huge face) is gathered tap by tap
_DENSE_LIMIT = 64


def crop(
    images: RaggedImages,
    index: Tensor,
    matrix: Tensor,
    flip: Tensor,
    out: Tensor,
    size: int,
    mode: str,
    normalize: bool,
) -> None:
    """Fill `out`, (B, 3 or 4, size, size); see `crop_faces`."""
    packed = images.pixels.dtype == torch.int32
    if packed:  # the same bytes, four a pixel
        images = images._replace(pixels=images.pixels.view(torch.uint8), offset=4 * images.offset)
    chunk = max(1, (_CHUNK_CUDA if index.is_cuda else _CHUNK_CPU) // size**2)
    for start in range(0, len(index), chunk):
        part = slice(start, start + chunk)
        faces = _Faces(images, index[part], _inverse(matrix[part]), flip[part], step=4 if packed else 3)
        if index.is_cpu:
            levels = _by_face(faces, size, mode)
        else:
            levels = _opencv4(faces, size) if mode == "opencv4" else _exact(faces, size)
        _store(levels, out[part], normalize)


def normalised(levels: Tensor, channel: int) -> Tensor:
    """(levels / 255 - MEAN) / STD in float32, in that order; may overwrite float32 levels."""
    # Divisors are tensors on the device: by a number, CUDA multiplies with the reciprocal, which rounds differently
    full = torch.full((), 255.0, device=levels.device)
    values = levels.float().div_(full).sub_(MEAN[channel])
    return values.div_(torch.full((), STD[channel], device=levels.device))


class _Faces(NamedTuple):
    """What one chunk of a batch needs: `inverse` (B, 2, 3) maps crop pixels to the (mirrored) full image's; a pixel is
    `step` bytes, of which the first three are read."""

    images: RaggedImages
    region: Tensor
    inverse: Tensor
    flip: Tensor
    step: int


def _inverse(matrix: Tensor) -> Tensor:
    """Inverse affine maps, in OpenCV's order of operations; separate float64 operations, which nothing may fuse."""
    a, b, c, d, e, f = matrix.flatten(1).unbind(1)
    determinant = a * e - b * d
    reciprocal = torch.where(determinant != 0, 1.0 / determinant, 0.0)
    ia, ie = e * reciprocal, a * reciprocal
    ib, id_ = b * -reciprocal, d * -reciprocal
    ic = -ia * c - ib * f
    if_ = -id_ * c - ie * f
    return torch.stack([ia, ib, ic, id_, ie, if_], dim=1).view(-1, 2, 3)


def _opencv4(faces: _Faces, size: int) -> Tensor:
    """Levels 0 to 255 as int32, (B, size, size, 3), by gathering every tap. Weights are in 1/1024."""
    x, y = _fixed_point(faces, size).unbind(1)
    levels = _bilinear(faces, (x >> 5).long(), (y >> 5).long(), x & 31, y & 31, one=32)
    return (levels + 512) >> 10


def _fixed_point(faces: _Faces, size: int) -> Tensor:
    """Positions in the region in 1/32 px, (B, 2, size, size) int32, rounded as OpenCV 4 does it."""
    grid = torch.arange(size, dtype=torch.float64, device=faces.region.device)
    m = faces.inverse[..., None]
    across = _near(m[:, :, 0] * grid * 1024).int()
    down = _near((m[:, :, 1] * grid + m[:, :, 2]) * 1024).int() + 16
    # OpenCV saturates whole pixels at 16 bits here, which no image of fewer than 2^15 pixels a side can tell
    position = (down[:, :, :, None] + across[:, :, None, :]) >> 5
    x, y = position.unbind(1)
    flip = faces.flip[:, None, None]
    x.copy_(torch.where(flip, 32 * (_column(faces.images.full_width, faces) - 1) - x, x))
    x -= 32 * _column(faces.images.origin[:, 0], faces)
    y -= 32 * _column(faces.images.origin[:, 1], faces)
    return position


def _near(contribution: Tensor) -> Tensor:
    rounded = contribution.round()
    return rounded.where(rounded.abs() <= LIMIT, FAR)


def _exact(faces: _Faces, size: int) -> Tensor:
    """Levels 0 to 255 as float32, (B, size, size, 3), by gathering every tap."""
    source = _to_region(faces)[..., None]
    grid = torch.arange(size, dtype=torch.float64, device=faces.region.device)
    across = source[:, :, 0] * grid
    down = source[:, :, 1] * grid + source[:, :, 2]
    position = down[:, :, :, None] + across[:, :, None, :]
    whole = position.floor()
    fx, fy = (position - whole).float().unbind(1)
    x, y = whole.clamp_(-(2.0**40), 2.0**40).long().unbind(1)
    return _bilinear(faces, x, y, fx, fy, one=1)


def _bilinear(faces: _Faces, x: Tensor, y: Tensor, fx: Tensor, fy: Tensor, one: int) -> Tensor:
    """Sum of the four taps at region pixels (x, y) to (x + 1, y + 1), (B, S, S); `one` is the weight 1 of fx and fy."""
    images = faces.images
    width, height = _column(images.width, faces), _column(images.height, faces)
    offset = _column(images.offset, faces)
    channel = torch.arange(3, device=x.device)
    total: Tensor | None = None
    for ty, wy in ((y, one - fy), (y + 1, fy)):
        row = offset + faces.step * width * ty.clamp(min=0).minimum(height - 1)
        wy = wy * ((ty >= 0) & (ty < height))
        for tx, wx in ((x, one - fx), (x + 1, fx)):
            at = row + faces.step * tx.clamp(min=0).minimum(width - 1)
            weight = wy * (wx * ((tx >= 0) & (tx < width)))
            tap = images.pixels[at[..., None] + channel] * weight[..., None]
            total = tap if total is None else total.add_(tap)
    assert total is not None
    return total


def _by_face(faces: _Faces, size: int, mode: str) -> Tensor:
    """`_exact` or `_opencv4` for a CPU, several times faster there: cut out what a crop touches, then grid_sample.

    Its rounding to float32 is exact for "opencv4": over a cut whose sides are powers of two, a position in 1/32 px has
    few enough bits to survive the way through grid_sample's -1 to 1, and so have all products and sums after it.
    """
    images = faces.images
    limit = torch.stack([images.width, images.height], dim=1)[faces.region]
    if mode == "opencv4":
        position = _fixed_point(faces, size)
        first, last = (position.amin((2, 3)) >> 5).long(), (position.amax((2, 3)) >> 5).long()
    else:
        source = _to_region(faces)
        corners = torch.tensor([[0, size - 1, 0, size - 1], [0, 0, size - 1, size - 1], [1] * 4], dtype=torch.float64)
        touched = (source @ corners).clamp_(-(2.0**40), 2.0**40)
        first, last = touched.amin(2).floor().long(), touched.amax(2).floor().long()
    low = first.clamp(min=0).minimum(limit)
    high = (last + 2).clamp(min=0).minimum(limit)
    extent = (high - low).clamp(min=1)

    # grid_sample puts the first pixel's outer edge at -1 and the last one's at 1
    grid = torch.empty((len(limit), size, size, 2))
    if mode == "opencv4":
        extent = (1 << torch.frexp(extent - 0.5).exponent).long()  # the next power of two
        offset = (1 / extent - 1 - 2 * low / extent)[..., None, None]
        for axis in (0, 1):
            torch.addcmul(
                offset[:, axis], position[:, axis].float(), 1 / (16 * extent[:, axis, None, None]), out=grid[..., axis]
            )
    else:
        # The offset is folded in before the step to float32, whose rounding then is that of the cut, not of the image
        scaled = source * (2 / extent.double())[:, :, None]
        scaled[:, :, 2] -= (2 * low - 1) / extent.double() + 1
        step = torch.arange(size, dtype=torch.float64)
        across = (scaled[:, :, 0, None] * step).float()
        down = (scaled[:, :, 1, None] * step + scaled[:, :, 2, None]).float()
        for axis in (0, 1):
            torch.add(down[:, axis, :, None], across[:, axis, None, :], out=grid[..., axis])

    out = torch.empty((len(limit), 3, size, size))
    inside = ((first >= 0) & (last + 1 < limit)).all(1)
    dense = (extent.prod(1) <= _DENSE_LIMIT * size**2) & (high > low).all(1)
    scratch = torch.empty(3 * int((extent.prod(1) * dense).max()))
    start = images.offset[faces.region] + faces.step * (low[:, 1] * limit[:, 0] + low[:, 0])
    start += int(images.pixels.storage_offset())  # as_strided counts from the beginning of the storage
    columns = torch.cat([torch.stack([start, dense, inside], 1), limit[:, :1], high - low, extent], dim=1).tolist()
    for i, (one_out, one_grid, column) in enumerate(zip(out.split(1), grid.split(1), columns, strict=True)):
        at, is_dense, is_inside, stride, width, height, full_width, full_height = column
        if width <= 0 or height <= 0:
            one_out.zero_()
        elif is_dense:
            cut = scratch.as_strided((1, 3, full_height, full_width), (0, 1, 3 * full_width, 3))
            if not is_inside:
                cut.zero_()
            touched_pixels = images.pixels.as_strided((height, width, 3), (faces.step * stride, faces.step, 1), at)
            scratch.as_strided((height, width, 3), (3 * full_width, 3, 1)).copy_(touched_pixels)
            one_out.copy_(torch.grid_sampler(cut, one_grid, 0, 0, False))
        else:
            one = slice(i, i + 1)
            alone = _Faces(images, faces.region[one], faces.inverse[one], faces.flip[one], faces.step)
            one_out.copy_((_opencv4 if mode == "opencv4" else _exact)(alone, size).permute(0, 3, 1, 2))
    if mode == "opencv4":
        out.add_(0.5).floor_()
    return out.permute(0, 2, 3, 1)


def _to_region(faces: _Faces) -> Tensor:
    """(B, 2, 3) maps from crop pixels to pixels of the region, flip included: x -> full width - 1 - x."""
    source = faces.inverse.clone()
    x = source[:, 0]
    mirrored = -x
    mirrored[:, 2] += faces.images.full_width[faces.region] - 1
    source[:, 0] = torch.where(faces.flip[:, None], mirrored, x)
    source[:, :, 2] -= faces.images.origin[faces.region]
    return source


def _column(values: Tensor, faces: _Faces) -> Tensor:
    """Values of the regions (N,) for the chunk's faces, (B, 1, 1)."""
    return values[faces.region][:, None, None]


def _store(levels: Tensor, out: Tensor, normalize: bool) -> None:
    """Write `levels` (B, S, S, 3) to `out` (B, channels, S, S), normalised and cast as asked; may overwrite them."""
    out[:, 3:] = 0
    for channel in range(3):  # each is long runs in memory, where the interleaved three are not
        values, target = levels[..., channel], out[:, channel]
        if normalize:
            values = normalised(values, channel)
        elif out.dtype == torch.uint8 and values.is_floating_point():
            values = values.round_()
        target.copy_(values)
