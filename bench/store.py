"""The folder of an experiment: who may write to it, and what is put there before any trial runs."""

from __future__ import annotations

import fcntl
import io
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from bench.config import Experiment
from bench.experiment import CONFIG, CONTACT_SHEET, GATES
from bench.plan import Trial
from bench.rule import note_rule, rule_of
from pose.data.faces import Faces
from pose.errors import InputError
from pose.files import writable_folder, write_atomically
from pose.yaml_layers import dump_yaml

SHEET_FACES, SHEET_COLUMNS, SHEET_TILE = 24, 6, 224


@contextmanager
def claim(out: Path) -> Iterator[None]:
    """Make `out` and keep other launchers away from it. Raises `InputError` if one is at work there."""
    with (writable_folder(out) / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{out}: another launcher (process {file.read().strip()}) is at work here") from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}")
        file.flush()
        yield


def write_experiment(experiment: Experiment, trials: Sequence[Trial], out: Path) -> None:
    """Leave the resolved experiment and the ids of its trials in `out`; refuses a folder of another experiment."""
    path = out / CONFIG
    if path.exists():
        try:
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            raise InputError(f"{path}: not YAML; remove it or choose another --out") from None
        name = before.get("name") if isinstance(before, dict) else None
        if name != experiment.name:
            raise InputError(f"{path}: holds the experiment {name!r}, not {experiment.name!r}; choose another --out")
    values = experiment.model_dump(mode="json")
    values = {key: value for key, value in values.items() if value is not None}  # sections of another measure
    record = {**values, "trials": [trial.id for trial in trials]}
    if experiment.measure == "training":  # before there is anything to look at
        note_rule(rule_of(values), out, sum(trial.record(out).exists() for trial in trials))
    (out / GATES).unlink(missing_ok=True)  # verdicts on results that this run may replace
    write_atomically(path, dump_yaml(record).encode())


def write_contact_sheet(faces: Faces, out: Path) -> None:
    """Draw faces from all over the set with their true points, in crops as the model sees them."""
    from PIL import Image

    from pose.data.images import read_image
    from pose.drawing import TRUE, contact_sheet, crop_view
    from pose.geometry import PADDING
    from pose.landmarks import ATTRIBUTES

    tiles, labels = [], []
    for face in np.unique(np.linspace(0, len(faces) - 1, SHEET_FACES).astype(int)):
        picture = read_image(faces.image[face])
        side = float(faces.side[face]) * PADDING
        tiles.append(crop_view(picture, [faces.points[face]], faces.center[face], side, SHEET_TILE, colors=[TRUE]))
        names = [name for name, flag in zip(ATTRIBUTES, faces.attributes[face], strict=True) if flag]
        labels.append(", ".join(names) or "-")
    buffer = io.BytesIO()
    Image.fromarray(contact_sheet(tiles, SHEET_COLUMNS, labels)).save(buffer, format="PNG")
    write_atomically(out / CONTACT_SHEET, buffer.getvalue())
