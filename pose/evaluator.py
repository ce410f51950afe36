"""Evaluate a model on annotated faces, as published: upright crops, flip test, decode, NME."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.data.faces import Faces
from pose.distributed import Ranks
from pose.errors import InputError
from pose.files import replacing
from pose.geometry import PADDING
from pose.inputs import upright_batches
from pose.loader import open_loader
from pose.metrics import SubsetRow, nme, subset_rows
from pose.model import DeepPose, decode
from pose.precision import autocast, parameter_dtype, pixel_dtype, tf32
from pose.predictor import predict_batch
from pose.progress import progress
from pose.recipe import Evaluate, Input


@dataclass(frozen=True, eq=False)
class Evaluation:
    """points: (N, 98, 2) predicted, pixels of the picture; nme: (N,), fraction of the inter-ocular distance."""

    faces: Faces
    points: np.ndarray
    nme: np.ndarray

    def rows(self) -> list[SubsetRow]:
        """The test set and each subset that is known."""
        return subset_rows(self.nme, self.faces.attributes, self.faces.attributes_known)

    def save(self, path: Path, **columns: np.ndarray) -> None:
        """Write the per-face results as a `.npz` file, with further `columns` of one value per face."""
        faces = self.faces
        with replacing(path) as temporary, temporary.open("wb") as file:
            everything: dict[str, Any] = dict(
                nme=self.nme,
                predicted=self.points,
                true=faces.points,
                center=faces.center,
                side=faces.side,
                attributes=faces.attributes,
                attributes_known=faces.attributes_known,
                image=np.array([str(path.absolute()) for path in faces.image]),
                **columns,
            )
            np.savez_compressed(file, **everything)


class Evaluator:
    """Faces made ready once, their pictures decoded; evaluates any number of models on them.

    Several `ranks` share the faces out, and every one of them has the whole result. Raises `InputError` for fewer faces
    than ranks, and for pictures that cannot be read.
    """

    def __init__(self, faces: Faces, config: Input, options: Evaluate, ranks: Ranks) -> None:
        if len(faces) < ranks.world_size:
            raise InputError(f"train.parallel.world_size: {ranks.world_size} ranks for {len(faces)} test faces")
        self.faces = faces
        self.config = config
        self.options = options
        self.ranks = ranks
        self.device = ranks.device
        self.mine = faces if ranks.world_size == 1 else faces.select(np.arange(len(faces))[ranks.shard(len(faces))])
        # A reach of 1: crops are upright, and as large as the padded square
        self.loader = open_loader(self.mine, config, reach=1.0, device=ranks.device, label="decoding test faces")

    @torch.inference_mode()
    def evaluate(self, model: DeepPose, *, shown: bool = True) -> Evaluation:
        """Predict all faces. `model` is left as it is, in its training or evaluation mode and its dtype.

        Ranks whose running statistics went different ways all take those of the main one, which its checkpoint holds.
        """
        faces, options, ranks = self.faces, self.options, self.ranks
        dtype = parameter_dtype(options.precision)
        other = model.head.weight.dtype != dtype or model.head.weight.device != self.device
        if model.training or other or ranks.world_size > 1:
            model = copy.deepcopy(model).to(self.device, dtype).eval()
            ranks.from_main_(model.buffers())
        outputs = []
        done = 0
        batches = upright_batches(
            self.loader,
            self.mine,
            config=self.config,
            batch_size=options.batch_size,
            device=self.device,
            dtype=pixel_dtype(options.precision),
        )
        shift = options.flip_shift / self.config.size
        with tf32(options.precision), progress("evaluating", len(self.mine), shown=shown and ranks.main) as update:
            for pixels in batches:
                with autocast(options.precision, self.device):
                    outputs.append(predict_batch(model, pixels, flip_test=options.flip_test, shift=shift).double())
                done += len(pixels)
                update(done)
        output = ranks.collect(torch.cat(outputs), len(faces)).cpu().numpy()  # waits for the device, once
        points = decode(output, faces.center, faces.side * PADDING)
        return Evaluation(faces, points, nme(points, faces.points))

    def score(self, model: DeepPose) -> float:
        """Mean NME, a fraction."""
        return float(self.evaluate(model, shown=False).nme.mean())


def table(rows: Iterable[SubsetRow]) -> str:
    """The NME table as text, x 100; subsets without faces say so."""
    lines = [f"{'subset':<14}{'faces':>7}{'NME':>9}{'FR@10':>9}{'AUC@10':>9}"]
    for row in rows:
        values = (row.nme, row.failure_rate, row.auc)
        numbers = "".join(f"{100 * value:9.2f}" for value in values) if row.count else "   no faces"
        lines.append(f"{row.name:<14}{row.count:>7}{numbers}")
    return "\n".join(lines)
