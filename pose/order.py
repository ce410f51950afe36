"""Which faces make up which batch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from pose.errors import InputError


class BatchOrder:
    """The batches of a whole training run, a pure function of (faces, batch size, seed).

    As published: an epoch is a permutation from a generator seeded with seed + epoch, and the last partial batch
    is dropped (with `drop_last`).
    """

    def __init__(self, faces: int, batch_size: int, seed: int, *, drop_last: bool = True) -> None:
        if batch_size > faces:
            raise InputError(f"train.batch_size: {batch_size} is more than the {faces} training faces")
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch(faces, batch_size, drop_last)
        self._permutation = lru_cache(maxsize=2)(lambda epoch: _permutation(faces, seed + epoch))

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that step `step` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def faces(self, step: int) -> np.ndarray:
        """(batch_size,) face numbers of step `step`; fewer in a partial batch."""
        first = step % self.steps_per_epoch * self.batch_size
        return self._permutation(self.epoch(step))[first : first + self.batch_size]


def steps_per_epoch(faces: int, batch_size: int, drop_last: bool) -> int:
    """Batches of an epoch."""
    return faces // batch_size if drop_last else -(-faces // batch_size)


def _permutation(count: int, seed: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()
