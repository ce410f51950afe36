"""Random flips, scales and rotations as a pure function of (seed, epoch, face).

The generator is counter-based (Philox4x32-10, Salmon et al. 2011): the seed is the key, face and epoch are the counter,
and the four words of one block are the face's four draws. So a face draws the same on any device, in any batch, worker
or rank, and there is no state to save for a resume.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import Sampling
from kernels import sample_reference as reference

_INTERVALS = 2**12  # of the normal quantile's table: off by less than 1e-5 within 2 sigma
_TAIL = 4.0  # where the table ends; the scale is clipped at 1 sigma, the rotation at 2


Augmentation = Sampling
_PUBLISHED = Augmentation()
NO_AUGMENTATION = Augmentation(flip=0.0, scale=0.0, rotation=0.0, rotation_probability=0.0)


class Draws(NamedTuple):
    """One value per face: flip (B,) bool; scale (B,) float64, a factor on the side; rotation (B,) float64, degrees."""

    flip: Tensor
    scale: Tensor
    rotation: Tensor


def draw(
    seed: int,
    epoch: int,
    face: Tensor | Sequence[int],
    device: torch.device | str = "cpu",
    augmentation: Augmentation = _PUBLISHED,
) -> Draws:
    """Draw the augmentation of each face in `face` (B,), integers that name the faces of the training set.

    seed: 0 to 2^64 - 1; epoch and faces: 0 to 2^32 - 1, else ValueError (faces on another device than a CPU are not
    looked at). The bits are the same on CPU and CUDA: only exactly rounded operations and a table are used.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; wanted 0 to 2^64 - 1")
    if not 0 <= epoch < reference.WORD:
        raise ValueError(f"epoch is {epoch}; wanted 0 to 2^32 - 1")
    names = torch.as_tensor(face)
    if names.dim() != 1 or names.is_floating_point() or names.is_complex() or names.dtype == torch.bool:
        raise ValueError(f"face is {names.dtype} of shape {tuple(names.shape)}; wanted integers of shape (B,)")
    names = names.long()
    if names.is_cpu and len(names) and not (names.min() >= 0 and names.max() < reference.WORD):
        raise ValueError(f"face holds {int(names.min())} to {int(names.max())}; wanted 0 to 2^32 - 1")
    names = names.to(device)
    return Draws(*reference.draws(names, epoch, seed, augmentation, quantiles(names.device)))


@functools.cache
def quantiles(device: torch.device) -> Tensor:
    """The table of normal quantiles that draws are read from, float64 on `device`; clamped at +-_TAIL."""
    inner = [NormalDist().inv_cdf(i / _INTERVALS) for i in range(1, _INTERVALS)]
    return torch.tensor([-_TAIL, *inner, _TAIL], dtype=torch.float64, device=device)
