"""The random crops of a training batch, drawn and placed where the faces' columns lie, without the host's help."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import sample_reference as reference
from kernels.arguments import check_tensors, takes_triton
from kernels.sampling import FaceColumns, Sampled, Sampling


def sample_faces(
    faces: FaceColumns,
    number: Tensor,
    epoch: Tensor,
    *,
    seed: int,
    sampling: Sampling,
    flip_index: Tensor,
    quantiles: Tensor,
    size: int = 256,
    impl: str = "auto",
) -> Sampled:
    """Draw flip, scale and rotation of each face in `number`, and make its crop's matrix, targets and weights.

    number: (B,) int64, rows of `faces` and the faces' names in the draws. epoch: () int64 on the same device; the draws
    are a function of (seed, epoch, number) alone (Philox4x32-10), so a CUDA graph is replayed for another epoch by
    changing it in place. epoch and seed: 0 to 2^32 - 1 and 2^64 - 1. flip_index: (K,) int64, the name each point takes
    in a mirror. quantiles: (M,) float64, the standard normal's at 0, 1 / (M - 1), ... 1. size: the crop's side, pixels.
    impl: "auto" (Triton on a GPU, else plain torch), "triton" (one launch) or "reference": the same bits from either,
    on every device.
    Raises TypeError or ValueError for wrong arguments, IndexError for a number or a name out of range. The values of
    epoch, number and flip_index are looked at on a CPU only: elsewhere the nearest row or point is taken.
    """
    _check(faces, number, epoch, seed, flip_index, quantiles, size, impl)
    if takes_triton(impl, number.device):
        from kernels.sample_launch import launch_sample

        return Sampled(*launch_sample(faces, number, epoch, seed, sampling, flip_index, quantiles, size))
    return Sampled(*reference.sample(faces, number, epoch, seed, sampling, flip_index, quantiles, size))


def _check(
    faces: FaceColumns,
    number: Tensor,
    epoch: Tensor,
    seed: int,
    flip_index: Tensor,
    quantiles: Tensor,
    size: int,
    impl: str,
) -> None:
    if impl not in ("auto", "triton", "reference"):
        raise ValueError(f"impl is {impl!r}; wanted one of 'auto', 'triton', 'reference'")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; wanted 0 to 2^64 - 1")
    if not 0 < size < 2**15:
        raise ValueError(f"size is {size}; wanted 1 to {2**15 - 1} pixels")
    if faces.points.dim() != 3 or not faces.points.shape[1] or quantiles.dim() != 1 or len(quantiles) < 2:
        raise ValueError(
            f"faces.points and quantiles have shapes {tuple(faces.points.shape)} and {tuple(quantiles.shape)}; "
            "wanted (N, K, 2) and (M,), K at least 1 and M at least 2"
        )
    count, landmarks = faces.points.shape[:2]
    wanted = {
        "number": (number, torch.int64, (number.numel(),)),
        "epoch": (epoch, torch.int64, ()),
        "faces.points": (faces.points, torch.float32, (count, landmarks, 2)),
        "faces.center": (faces.center, torch.float64, (count, 2)),
        "faces.side": (faces.side, torch.float64, (count,)),
        "faces.full_width": (faces.full_width, torch.int64, (count,)),
        "flip_index": (flip_index, torch.int64, (landmarks,)),
        "quantiles": (quantiles, torch.float64, tuple(quantiles.shape)),
    }
    check_tensors(wanted)
    if len(number) and not count:
        raise ValueError("faces holds no face; wanted at least one")
    if not number.is_cpu:  # the answers would have to be waited for
        return
    if not 0 <= epoch < reference.WORD:
        raise ValueError(f"epoch is {int(epoch)}; wanted 0 to 2^32 - 1")
    for name, rows, limit in (("number", number, count), ("flip_index", flip_index, landmarks)):
        if len(rows) and not (rows.min() >= 0 and rows.max() < limit):
            raise IndexError(f"{name} holds {int(rows.min())} to {int(rows.max())}; wanted 0 to {limit - 1}")
