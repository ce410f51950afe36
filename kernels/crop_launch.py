"""Launching the crop kernels on tensors that have passed `crop`'s checks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from kernels import crop_reference as reference
from kernels.crop_kernel import crop_kernel, tables_kernel
from kernels.loss_launch import INTERPRETED, on_device

if TYPE_CHECKING:
    from kernels.ragged import RaggedImages

# Rows and columns of a tile. A turned crop's tile should touch a compact piece of the image, which the nearest cache
# holds, not a long diagonal. The interpreter takes time by the tile, whatever its size
_ROWS, _COLUMNS = (256, 256) if INTERPRETED else (16, 32)
_WARPS = 4


def launch_crop(
    images: RaggedImages,
    index: Tensor,
    matrix: Tensor,
    flip: Tensor,
    out: Tensor,
    size: int,
    mode: str,
    normalize: bool,
) -> None:
    """Two launches: fill `out`, (B, 3 or 4, size, size), channels last."""
    if not len(index):
        return
    exact = mode == "exact"
    with on_device(index.device):
        index = index.contiguous()
        table, fraction = tables(images, index, matrix, flip, size, exact)
        rows, columns = tile_of(size)
        across, down = -(-size // columns), -(-size // rows)
        crop_kernel[(len(index) * across * down,)](
            images.pixels,
            images.offset.contiguous(),
            images.height.contiguous(),
            images.width.contiguous(),
            index,
            len(images.offset),
            table,
            fraction,
            normalised_levels(out.dtype, out.device) if normalize and not exact else None,
            out,
            **constants(size, out.shape[1], images.pixels.dtype, out.dtype, exact, normalize),
        )


def tables(
    images: RaggedImages, index: Tensor, matrix: Tensor, flip: Tensor, size: int, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """What each column and row of the faces' crops contributes to a position; see `tables_kernel`."""
    table = torch.empty(len(index), 4, size, dtype=torch.int32, device=index.device)
    fraction = torch.empty(table.shape, device=index.device) if exact else None
    tables_kernel[(len(index),)](
        matrix.contiguous(),
        flip.contiguous(),
        index,
        images.origin.contiguous(),
        images.full_width.contiguous(),
        len(images.offset),
        table,
        fraction,
        **table_constants(size, exact),
    )
    return table, fraction


def table_constants(size: int, exact: bool) -> dict[str, object]:
    """The compile-time arguments of `tables_kernel`."""
    return {
        "SIZE": size,
        "LANES": triton.next_power_of_2(size),
        "EXACT": exact,
        "num_warps": _WARPS,
        "enable_fp_fusion": False,  # a fused multiply-add rounds once where the reference rounds twice
    }


def constants(
    size: int, channels: int, pixel: torch.dtype, dtype: torch.dtype, exact: bool, normalize: bool
) -> dict[str, object]:
    """The compile-time arguments of `crop_kernel`."""
    rows, columns = tile_of(size)
    return {
        "SIZE": size,
        "ROWS": rows,
        "COLUMNS": columns,
        "TILES_X": -(-size // columns),
        "TILES_Y": -(-size // rows),
        "CHANNELS": channels,
        "PACKED": pixel == torch.int32,
        "EXACT": exact,
        "NORMALIZE": normalize,
        "INTEGER": dtype == torch.uint8,
        "SCALE": reference.SCALE,
        "SHIFT": reference.SHIFT,
        "num_warps": _WARPS,
    }


def tile_of(size: int) -> tuple[int, int]:
    """(rows, columns) of a tile."""
    enough = triton.next_power_of_2(size)
    return min(_ROWS, enough), min(_COLUMNS, enough)


_normalised: dict[tuple[torch.dtype, torch.device], Tensor] = {}


def normalised_levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(3, 256): every level of each channel, normalised by the reference and cast. Kept for each device."""
    kept = _normalised.get((dtype, device))
    if kept is not None:
        return kept
    levels = torch.arange(256.0, device=device)
    table = torch.stack([reference.normalised(levels.clone(), channel) for channel in range(3)]).to(dtype)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():  # filled when the graph runs: of no use outside it
            return table
        torch.cuda.current_stream(device).synchronize()  # once: every stream must find it filled
    return _normalised.setdefault((dtype, device), table)
