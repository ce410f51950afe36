"""The face crop: from uint8 image regions through an affine map to a normalised batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import crop_reference as reference
from kernels.losses import triton_problem

_MAX_SIZE = 2**14  # pixels of a crop: what it holds is counted in 32 bits
_PACKED_AT_ONCE = 2**24  # pixels: bounds the temporaries


class RaggedImages(NamedTuple):
    """Regions of images of any size in one buffer. A region is a rectangle of its full image, often all of it.

    pixels: (bytes,) uint8; a region is its rows of interleaved RGB, without gaps. Or, see `packed`, (pixels,) int32.
    offset: (N,) int64, index in `pixels` of the region's first element.
    height, width: (N,) int64, the region's size in pixels.
    origin: (N, 2) int64, x and y of the region's top left pixel in its full image.
    full_width: (N,) int64, the full image's width, about which a flip mirrors.
    """

    pixels: Tensor
    offset: Tensor
    height: Tensor
    width: Tensor
    origin: Tensor
    full_width: Tensor

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> RaggedImages:
        """Whole images, each (H, W, 3) uint8 and on one device. Raises TypeError or ValueError for anything else."""
        if not images:
            raise ValueError("no images given; wanted at least one")
        for i, image in enumerate(images):
            if not isinstance(image, Tensor) or image.dtype != torch.uint8:
                given = image.dtype if isinstance(image, Tensor) else type(image).__name__
                raise TypeError(f"image {i} is {given}; wanted a uint8 tensor")
            if image.dim() != 3 or image.shape[2] != 3 or image.numel() == 0:
                raise ValueError(f"image {i} has shape {tuple(image.shape)}; wanted (H, W, 3)")
        device = images[0].device
        height = torch.tensor([image.shape[0] for image in images])
        width = torch.tensor([image.shape[1] for image in images])
        size = height * width * 3
        return cls(
            pixels=images[0].reshape(-1) if len(images) == 1 else torch.cat([image.reshape(-1) for image in images]),
            offset=(size.cumsum(0) - size).to(device),
            height=height.to(device),
            width=width.to(device),
            origin=torch.zeros(len(images), 2, dtype=torch.int64, device=device),
            full_width=width.to(device),
        )

    def packed(self) -> RaggedImages:
        """The same regions with an int32 for each pixel, R + 256 G + 65536 B: a third more memory, one load a pixel.

        Raises ValueError for regions that do not begin at whole pixels of the buffer.
        """
        if self.pixels.dtype == torch.int32:
            return self
        if self.pixels.numel() % 3 or bool((self.offset % 3).any()):
            raise ValueError("regions that do not begin at multiples of 3 bytes cannot be packed")
        pixels = torch.empty(self.pixels.numel() // 3, dtype=torch.int32, device=self.pixels.device)
        pieces = pixels.split(_PACKED_AT_ONCE), self.pixels.view(-1, 3).split(_PACKED_AT_ONCE)
        for part, triples in zip(*pieces, strict=True):
            red, green, blue = triples.int().unbind(1)
            torch.add(red, green, alpha=2**8, out=part).add_(blue, alpha=2**16)
        return self._replace(pixels=pixels, offset=self.offset // 3)

    def to(self, device: torch.device | str) -> RaggedImages:
        """The same regions on `device`."""
        return RaggedImages(*(column.to(device) for column in self))


def crop_faces(
    images: RaggedImages,
    index: Tensor,
    matrix: Tensor,
    flip: Tensor,
    *,
    size: int = 256,
    mode: str = "exact",
    channels: int = 3,
    dtype: torch.dtype = torch.float32,
    normalize: bool = True,
    impl: str = "auto",
) -> Tensor:
    """Crop a batch of faces: (B, channels, size, size), channels last in memory.

    index: (B,) int64, which region. matrix: (B, 2, 3) float64, full image -> crop, in pixels. flip: (B,) bool; a
    flipped face's crop is that of the mirrored full image, and its matrix is built for the mirrored centre.
    mode: "exact", real-valued bilinear interpolation; "opencv4", the fixed-point arithmetic and so the bytes of
    OpenCV 4's warpAffine (INTER_LINEAR, BORDER_CONSTANT). Pixels outside a region count as 0.
    normalize: (v / 255 - MEAN) / STD, computed in float32 (for "opencv4" in that order, the same bits everywhere); else
    values stay in 0 to 255. channels: 3, or 4 with a last one of zeros. dtype: a floating one, or uint8 without
    `normalize` (half to even).
    impl: "auto" (Triton on a GPU, else plain torch), "triton" (two launches, one for the faces' tables of positions and
    one for the pixels; no host synchronisation) or "reference".
    Raises TypeError or ValueError for wrong arguments, IndexError for an index out of range (checked on a CPU only).
    """
    _check(images, index, matrix, flip, size, mode, channels, dtype, normalize, impl)
    fused = impl == "triton" or (impl == "auto" and index.is_cuda)  # asked first: Triton takes a second to import
    problem = triton_problem(index.device) if fused else None
    if impl == "triton" and problem is not None:
        raise RuntimeError(problem)
    out = reference.empty(len(index), channels, size, dtype, index.device)
    if fused and problem is None:
        from kernels.crop_launch import launch_crop

        launch_crop(images, index, matrix, flip, out, size, mode, normalize)
    else:
        reference.crop(images, index, matrix, flip, out, size, mode, normalize)
    return out


def _check(
    images: RaggedImages,
    index: Tensor,
    matrix: Tensor,
    flip: Tensor,
    size: int,
    mode: str,
    channels: int,
    dtype: torch.dtype,
    normalize: bool,
    impl: str,
) -> None:
    for name, given, allowed in (
        ("mode", mode, ("exact", "opencv4")),
        ("impl", impl, ("auto", "triton", "reference")),
        ("channels", channels, (3, 4)),
        ("dtype", dtype, (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8)),
    ):
        if given not in allowed:
            raise ValueError(f"{name} is {given!r}; wanted one of {', '.join(map(repr, allowed))}")
    if normalize and dtype == torch.uint8:
        raise ValueError("dtype is torch.uint8 with normalize=True; wanted a floating dtype, or normalize=False")
    if not 0 < size <= _MAX_SIZE:
        raise ValueError(f"size is {size}; wanted 1 to {_MAX_SIZE} pixels")
    count, regions = len(index), len(images.offset)
    if count and not regions:
        raise ValueError("images holds no region; wanted at least one")
    pixel = torch.int32 if images.pixels.dtype == torch.int32 else torch.uint8
    wanted: dict[str, tuple[Tensor, torch.dtype, tuple[int, ...]]] = {
        "index": (index, torch.int64, (count,)),
        "matrix": (matrix, torch.float64, (count, 2, 3)),
        "flip": (flip, torch.bool, (count,)),
        "images.pixels": (images.pixels, pixel, (images.pixels.numel(),)),
        "images.offset": (images.offset, torch.int64, (regions,)),
        "images.height": (images.height, torch.int64, (regions,)),
        "images.width": (images.width, torch.int64, (regions,)),
        "images.origin": (images.origin, torch.int64, (regions, 2)),
        "images.full_width": (images.full_width, torch.int64, (regions,)),
    }
    for name, (tensor, of, shape) in wanted.items():
        if tensor.dtype != of:
            raise TypeError(f"{name} is {tensor.dtype}; wanted {of}")
        if tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {shape}")
        if tensor.device != index.device:
            raise ValueError(f"{name} is on {tensor.device}, index on {index.device}; wanted one device")
    if not images.pixels.is_contiguous():
        raise ValueError(f"images.pixels has stride {images.pixels.stride(0)}; wanted elements without gaps")
    if index.is_cpu and count:  # on another device the answer would have to be waited for
        if index.min() < 0 or index.max() >= regions:
            raise IndexError(f"index holds {int(index.min())} to {int(index.max())}; wanted 0 to {regions - 1}")
        if not matrix.isfinite().all():
            raise ValueError("matrix holds a value that is not finite")
        elements = 1 if pixel == torch.int32 else 3
        end = (images.offset + elements * images.height * images.width)[index]
        if images.offset[index].min() < 0 or end.max() > images.pixels.numel():
            raise ValueError(f"a region lies outside images.pixels, which holds {images.pixels.numel()} elements")
        for name, side in (("height", images.height), ("full_width", images.full_width)):
            if side.max() > reference.MAX_SIDE:
                raise ValueError(f"images.{name} holds {int(side.max())}; wanted at most {reference.MAX_SIDE} pixels")
