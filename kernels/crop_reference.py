"""The face crop in plain torch: the oracle of the fused kernel, and what runs on a CPU."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kernels.ragged import RaggedImages

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
# On a CPU what a crop touches of a region is converted to float32 as a whole if it has at most this many pixels per
# output pixel (by quarters, or gathering pairs of neighbours, took longer); a crop of fewer pixels from more, a
# thumbnail of a huge face, is gathered tap by tap
_DENSE_LIMIT = 64
_FARTHEST = 2.0**40  # pixels: outside of everything, and 2^14 of them still fit into an int64

# Bytes from which on a CPU's memory is asked for in huge pages, as numpy does. torch's have 4 KiB: finding those of 64
# crops of 256 px takes 34 ms and not 5, and what a large crop touches is more of them than a core keeps translations of
# (a large part of a region is sampled in 0.8 ms and not 6; measured on an AMD EPYC)
_LARGE = 2**22

SCALE = tuple(1 / (255 * std) for std in STD)
SHIFT = tuple(mean / std for mean, std in zip(MEAN, STD, strict=True))


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
    step = 4 if packed else 3
    if index.is_cpu and mode == "exact":
        _exact_by_face(_Faces(images, index, _inverse(matrix), flip, step), out, normalize)
        return
    chunk = max(1, (_CHUNK_CUDA if index.is_cuda else _CHUNK_CPU) // size**2)
    for start in range(0, len(index), chunk):
        part = slice(start, start + chunk)
        faces = _Faces(images, index[part], _inverse(matrix[part]), flip[part], step)
        if mode == "exact":
            levels = _exact(faces, size)
        else:
            levels = _opencv4_by_face(faces, size) if index.is_cpu else _opencv4(faces, size)
        _store(levels, out[part], mode, normalize)


def empty(count: int, channels: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory for (count, channels, size, size), channels last."""
    shape = count, size, size, channels
    flat = _memory(math.prod(shape), dtype) if device.type == "cpu" else torch.empty(shape, dtype=dtype, device=device)
    return flat.view(shape).permute(0, 3, 1, 2)


def _memory(length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(length,) on the CPU."""
    if length * dtype.itemsize < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(length, dtype=dtype)
    memory = mmap.mmap(-1, length * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel that has none
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype)


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
    """Levels 0 to 255 as int32, (B, 3, size, size), by gathering every tap. Weights are in 1/1024."""
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
    """Levels 0 to 255 as float32, (B, 3, size, size), by gathering every tap."""
    source = _to_region(faces)[..., None]
    grid = torch.arange(size, dtype=torch.float64, device=faces.region.device)
    across = source[:, :, 0] * grid
    down = source[:, :, 1] * grid + source[:, :, 2]
    position = down[:, :, :, None] + across[:, :, None, :]
    whole = position.floor()
    fx, fy = (position - whole).float().unbind(1)
    x, y = whole.clamp_(-_FARTHEST, _FARTHEST).long().unbind(1)
    return _bilinear(faces, x, y, fx, fy, one=1)


def _bilinear(faces: _Faces, x: Tensor, y: Tensor, fx: Tensor, fy: Tensor, one: int) -> Tensor:
    """(B, 3, S, S) sums of four taps at region pixels (x, y) to (x + 1, y + 1); `one` is the weight 1 of fx and fy."""
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
    return total.permute(0, 3, 1, 2)


def _exact_by_face(faces: _Faces, out: Tensor, normalize: bool) -> None:
    """`_exact` for a CPU, several times faster there; writes to `out`."""
    size = out.shape[-1]
    images = faces.images
    maps = _to_region(faces).nan_to_num_(_FARTHEST).clamp_(-_FARTHEST, _FARTHEST).mT.tolist()
    lattices = [_Lattice(complex(*first), complex(*right), complex(*down), size) for right, down, first in maps]
    regions = torch.stack([images.offset, images.width, images.height], 1)[faces.region].tolist()
    cuts = [lattice.touched(*region[1:]) for lattice, region in zip(lattices, regions, strict=True)]
    most = _DENSE_LIMIT * size**2
    scratch = _memory(3 * max((cut.area for cut in cuts if cut.area <= most), default=0))
    for face, (lattice, region, cut) in enumerate(zip(lattices, regions, cuts, strict=True)):
        one = slice(face, face + 1)
        if not cut.area:
            levels = torch.zeros(1, 3, size, size)
        elif cut.area > most:
            alone = _Faces(images, faces.region[one], faces.inverse[one], faces.flip[one], faces.step)
            levels = _exact(alone, size)
        else:
            values = _converted(faces, region, cut, scratch[: 3 * cut.area].view(1, cut.height, cut.width, 3))
            levels = torch.grid_sampler(values, lattice.relative_to(cut), 0, 0, False)
        _store(levels, out[one], "exact", normalize)


class _Cut(NamedTuple):
    """A rectangle of pixels: left <= x < right and top <= y < bottom."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def area(self) -> int:
        return max(0, self.width) * max(0, self.height)


class _Lattice(NamedTuple):
    """Where a crop's pixels lie in a region: pixel (j, i) at first + j right + i down. Points are complex, x + iy."""

    first: complex
    right: complex
    down: complex
    size: int

    def touched(self, width: int, height: int) -> _Cut:
        """What bilinear interpolation reads of a region."""
        right, down = (self.size - 1) * self.right, (self.size - 1) * self.down
        corners = (self.first, self.first + right, self.first + down, self.first + right + down)
        x, y = [point.real for point in corners], [point.imag for point in corners]
        return _Cut(
            max(0, math.floor(min(x))),
            max(0, math.floor(min(y))),
            min(width, math.floor(max(x)) + 2),
            min(height, math.floor(max(y)) + 2),
        )

    def relative_to(self, cut: _Cut) -> Tensor:
        """(1, size, size, 2) as grid_sample wants it: the cut's first pixel's outer edge at -1 and the last one's at 1.

        All is float64 until it is relative, so that the rounding to float32 is that of the cut, not of the image.
        """
        center = complex(cut.left + cut.right - 1, cut.top + cut.bottom - 1) / 2
        first, right, down = (
            complex(point.real * 2 / cut.width, point.imag * 2 / cut.height)
            for point in (self.first - center, self.right, self.down)
        )
        steps = torch.arange(self.size, dtype=torch.float64)
        columns, rows = (steps * right).to(torch.complex64), (steps * down + first).to(torch.complex64)
        return torch.view_as_real(rows[:, None] + columns)[None]


def _converted(faces: _Faces, region: list[int], cut: _Cut, memory: Tensor) -> Tensor:
    """(1, 3, H, W): `cut` of a region (offset, width, height) is written to the top left of `memory`, (1, H, W, 3)."""
    pixels, step = faces.images.pixels, faces.step
    begin, width, _ = region
    begin += step * (cut.top * width + cut.left) + int(pixels.storage_offset())  # as_strided counts from the storage's
    memory[0, : cut.height, : cut.width] = pixels.as_strided((cut.height, cut.width, 3), (step * width, step, 1), begin)
    return memory.permute(0, 3, 1, 2)


def _opencv4_by_face(faces: _Faces, size: int) -> Tensor:
    """`_opencv4` for a CPU, as float32 and several times faster there, by grid_sample on what a crop touches.

    Its rounding to float32 is exact here: over a cut whose sides are powers of two, a position in 1/32 px has few
    enough bits to survive the way through grid_sample's -1 to 1, and so have all products and sums after it.
    """
    images = faces.images
    position = _fixed_point(faces, size)
    limit = torch.stack([images.width, images.height], dim=1)[faces.region]
    low = (position.amin((2, 3)) >> 5).clamp_(min=0).minimum(limit)
    high = ((position.amax((2, 3)) >> 5) + 2).clamp_(min=0).minimum(limit)
    extent = (1 << torch.frexp((high - low).clamp(min=1) - 0.5).exponent).long()  # the next power of two
    offset = (1 / extent - 1 - 2 * low / extent)[..., None, None]
    grid = torch.empty((len(limit), size, size, 2))
    for axis in (0, 1):
        scale = 1 / (16 * extent[:, axis, None, None])
        torch.addcmul(offset[:, axis], position[:, axis].float(), scale, out=grid[..., axis])

    levels = torch.empty((len(limit), 3, size, size))
    columns = torch.cat([images.offset[faces.region, None], limit, low, high, extent], dim=1).tolist()
    for i, (*region, left, top, right, bottom, full_width, full_height) in enumerate(columns):
        one, cut = slice(i, i + 1), _Cut(left, top, right, bottom)
        if not cut.area:
            levels[one] = 0
        elif full_width * full_height > _DENSE_LIMIT * size**2:
            alone = _Faces(images, faces.region[one], faces.inverse[one], faces.flip[one], faces.step)
            levels[one] = _opencv4(alone, size)
        else:
            memory = torch.zeros(1, full_height, full_width, 3)
            values = _converted(faces, region, cut, memory)
            levels[one] = torch.grid_sampler(values, grid[one], 0, 0, False)
    return levels.add_(0.5).floor_()


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


def _store(levels: Tensor, out: Tensor, mode: str, normalize: bool) -> None:
    """Write `levels` (B, 3, S, S) to `out` (B, channels, S, S), normalised and cast as asked; may overwrite them."""
    out[:, 3:] = 0
    if normalize and mode == "exact":
        for channel in range(3):
            levels[:, channel].mul_(SCALE[channel]).sub_(SHIFT[channel])
    elif normalize:
        levels = torch.stack([normalised(levels[:, channel], channel) for channel in range(3)], dim=1)
    elif out.dtype == torch.uint8 and levels.is_floating_point():
        levels = levels.round_()
    out[:, :3].copy_(levels)
