"""Evaluate a model on annotated faces, as published: upright crops, flip test, decode, NME."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.data.faces import Faces
from pose.files import replacing
from pose.geometry import PADDING
from pose.inputs import upright_batches
from pose.loader import Loader, open_loader
from pose.metrics import SubsetRow, nme, subset_rows
from pose.model import DeepPose, decode
from pose.precision import allow_tf32, autocast, parameter_dtype
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
                image=np.array([str(path) for path in faces.image]),
                **columns,
            )
            np.savez_compressed(file, **everything)


def open_test_loader(faces: Faces, config: Input, device: torch.device) -> Loader:
    """A loader whose regions hold the upright crops."""
    label = "decoding test faces"
    return open_loader(faces, config.images, reach=1.0, workers=config.workers, device=device, label=label)


@torch.inference_mode()
def evaluate(
    model: DeepPose,
    faces: Faces,
    loader: Loader,
    *,
    config: Input,
    options: Evaluate,
    device: torch.device,
    shown: bool = True,
) -> Evaluation:
    """Predict all `faces` with `model`, which is moved to `device` and put into evaluation mode."""
    dtype = parameter_dtype(options.precision)
    allow_tf32(options.precision)
    model = model.to(device, dtype).eval()
    points = np.empty((len(faces), model.num_landmarks, 2))
    done = 0
    batches = upright_batches(loader, faces, config=config, batch_size=options.batch_size, device=device, dtype=dtype)
    with progress("evaluating", len(faces), shown=shown) as update:
        for pixels in batches:
            with autocast(options.precision, device):
                output = predict_batch(
                    model, pixels, flip_test=options.flip_test, shift=options.flip_shift / config.size
                )
            rows = slice(done, done + len(pixels))
            points[rows] = decode(output.double().cpu().numpy(), faces.center[rows], faces.side[rows] * PADDING)
            done += len(pixels)
            update(done)
    return Evaluation(faces, points, nme(points, faces.points))


def table(rows: Iterable[SubsetRow]) -> str:
    """The NME table as text, x 100; subsets without faces say so."""
    lines = [f"{'subset':<14}{'faces':>7}{'NME':>9}{'FR@10':>9}{'AUC@10':>9}"]
    for row in rows:
        values = (row.nme, row.failure_rate, row.auc)
        numbers = "".join(f"{100 * value:9.2f}" for value in values) if row.count else "   no faces"
        lines.append(f"{row.name:<14}{row.count:>7}{numbers}")
    return "\n".join(lines)
