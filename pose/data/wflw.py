"""WFLW in its official layout: `WFLW_images/` and text lists of 207 fields a face in `WFLW_annotations/`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pose.data.faces import MAX_COORDINATE, Faces
from pose.errors import InputError, refuse
from pose.geometry import square_from_points
from pose.landmarks import ATTRIBUTES, EYE_CORNERS, NUM_LANDMARKS

LIST_FOLDER = "list_98pt_rect_attr_train_test"
IMAGE_FOLDER = "WFLW_images"
SPLITS = ("train", "test")

_COORDINATES = 2 * NUM_LANDMARKS
_CORNERS = [slice(2 * corner, 2 * corner + 2) for corner in EYE_CORNERS]
_NUMBERS = _COORDINATES + 4 + len(ATTRIBUTES)  # points, the detector's box, flags
_FIELDS = _NUMBERS + 1  # and the image's path


def list_path(root: Path | str, split: str) -> Path:
    """Where the list of `split` ("train" or "test") lies under `root`.

    It is looked for in the official place and, for partial copies, in the folders above it. Raises `InputError`
    naming the official place when it is in none.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r}: WFLW has {' and '.join(SPLITS)}")
    root = Path(root)
    name = f"list_98pt_rect_attr_{split}.txt"
    official = root / "WFLW_annotations" / LIST_FOLDER / name
    for path in (official, root / "WFLW_annotations" / name, root / LIST_FOLDER / name, root / name):
        if path.is_file():
            return path
    raise InputError(f"{official}: no such list (is {root} the folder that holds WFLW_annotations?)")


def load_wflw(root: Path | str, split: str) -> Faces:
    """Read the `split` list of WFLW under `root`; pictures are named, not opened.

    Center and side follow `pose.geometry.square_from_points`; the detector's box is not used, as in the published
    models. Raises one `InputError` naming every bad line.
    """
    path = list_path(root, split)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error.reason})") from None

    rows = [(number, line.split()) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise InputError(f"{path}: the list is empty")
    problems = {n: f"line {n} has {len(row)} fields, not {_FIELDS}" for n, row in rows if len(row) != _FIELDS}
    complete = [(number, row) for number, row in rows if len(row) == _FIELDS]
    numbers = np.empty((len(complete), _NUMBERS))
    for i, (number, row) in enumerate(complete):
        try:
            numbers[i] = row[:_NUMBERS]
        except ValueError:
            numbers[i] = np.nan
            problems[number] = f"line {number}: {_first_word(row[:_NUMBERS])!r} is not a number"
        else:
            if not np.isfinite(numbers[i]).all():
                problems[number] = f"line {number} holds a number that is not finite"
            elif not np.isin(numbers[i, -len(ATTRIBUTES) :], (0, 1)).all():
                problems[number] = f"line {number}: the six attribute flags (fields 201 to 206) must be 0 or 1"
            elif np.abs(numbers[i, :_COORDINATES]).max() > MAX_COORDINATE:
                problems[number] = f"line {number} holds a coordinate beyond {MAX_COORDINATE:g} pixels"
            elif (np.ptp(numbers[i, :_COORDINATES].reshape(-1, 2), axis=0) == 0).all():
                problems[number] = f"line {number}: all {NUM_LANDMARKS} points coincide"
            elif (numbers[i, _CORNERS[0]] == numbers[i, _CORNERS[1]]).all():  # the unit of every error would be 0
                problems[number] = f"line {number}: the outer eye corners (points 60 and 72) coincide"
    if problems:
        refuse(str(path), [problems[number] for number in sorted(problems)])

    points = numbers[:, :_COORDINATES].reshape(-1, NUM_LANDMARKS, 2)
    center, side = square_from_points(points)
    images = Path(root) / IMAGE_FOLDER
    return Faces(
        image=[images / row[-1] for _, row in complete],
        points=points,
        attributes=numbers[:, -len(ATTRIBUTES) :].astype(bool),
        center=center,
        side=side,
        attributes_known=np.ones(len(ATTRIBUTES), dtype=bool),
    )


def _first_word(fields: list[str]) -> str:
    for field in fields:
        try:
            float(field)
        except ValueError:
            return field
    raise AssertionError("called for a row that holds a word")
