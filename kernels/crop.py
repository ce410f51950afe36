"""The face crop: from uint8 image regions through an affine map to a normalised batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import crop_reference as reference
from kernels.arguments import check_tensors, takes_triton
from kernels.ragged import RaggedImages

_MAX_SIZE = 2**14  # pixels of a crop: what it holds is counted in 32 bits


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
    fused = takes_triton(impl, index.device)
    out = reference.empty(len(index), channels, size, dtype, index.device)
    if fused:
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
    wanted = {
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
    check_tensors(wanted)
    if not images.pixels.is_contiguous():
        raise ValueError(f"images.pixels has stride {images.pixels.stride(0)}; wanted elements without gaps")
    if index.is_cpu and count:  # on another device the answer would have to be waited for
        if index.min() < 0 or index.max() >= regions:
            raise IndexError(f"index holds {int(index.min())} to {int(index.max())}; wanted 0 to {regions - 1}")
        if not matrix.isfinite().all():
            raise ValueError("matrix holds a value that is not finite")
        end = (images.offset + images.elements * images.height * images.width)[index]
        if images.offset[index].min() < 0 or end.max() > images.pixels.numel():
            raise ValueError(f"a region lies outside images.pixels, which holds {images.pixels.numel()} elements")
        for name, side in (("height", images.height), ("full_width", images.full_width)):
            if side.max() > reference.MAX_SIDE:
                raise ValueError(f"images.{name} holds {int(side.max())}; wanted at most {reference.MAX_SIDE} pixels")
