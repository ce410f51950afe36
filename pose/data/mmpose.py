"""WFLW in the JSON form of MMPose: COCO-like, with a `center` and a `scale` for each face."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pose.data.faces import MAX_COORDINATE, Faces
from pose.errors import InputError, refuse
from pose.geometry import box_to_square
from pose.landmarks import ATTRIBUTES, EYE_CORNERS, NUM_LANDMARKS

MIN_SIDE = 0.1  # pixels
PIXEL_STD = 200.0  # `scale` is the side of the face's square in units of 200 pixels
SUBSET_SUFFIXES = dict(zip(ATTRIBUTES, ("largepose", *ATTRIBUTES[1:]), strict=True))


def load_mmpose(json_path: Path | str, image_root: Path | str) -> Faces:
    """Read the faces of an MMPose annotation file; `image_root` is the folder its file names are relative to.

    Center and side are the file's `center` and 200 x `scale`. A face that has neither takes them from its `bbox`
    (x, y, w, h): the box's centre, and its longer edge as the side. Faces whose coordinates are all 0 carry no
    annotation; they are left out with a warning. The form holds no attributes: they are read from the subset files
    beside it (`..._largepose.json` and so on) where those exist, and are unknown otherwise.
    Raises one `InputError` naming every bad face.
    """
    path = Path(json_path)
    document = _read(path)
    names, problems = _image_names(document)

    images, points, squares, skipped = [], [], [], []
    for number, annotation in enumerate(document["annotations"]):
        label = f"annotation {annotation.get('id', number)}" if isinstance(annotation, dict) else f"annotation {number}"
        try:
            face = _points(annotation)
            name = names.get(annotation["image_id"]) if _is_id(annotation.get("image_id")) else None
            if name is None:
                raise ValueError(f"'image_id' {annotation.get('image_id')!r} names no image")
            if face.max() <= 0:
                skipped.append(label)
                continue
            squares.append(_square(annotation))
            images.append(Path(image_root) / name)
            points.append(face)
        except ValueError as error:
            problems.append(f"{label}: {error}")
    if problems:
        refuse(str(path), problems)
    if skipped:
        warnings.warn(f"{path}: left out {len(skipped)} faces without points ({skipped[0]}, ...)", stacklevel=2)
    if not points:
        raise InputError(f"{path}: the file holds no faces")

    stacked = np.stack(points)
    attributes, known = _attributes(path, images, stacked, Path(image_root))
    return Faces(
        image=images,
        points=stacked,
        attributes=attributes,
        center=np.array([center for center, _ in squares]),
        side=np.array([side for _, side in squares]),
        attributes_known=known,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    for key in ("images", "annotations"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise InputError(f"{path}: no list {key!r}: not an MMPose annotation file")
    return document


def _image_names(document: dict[str, Any]) -> tuple[dict[Any, str], list[str]]:
    names, problems = {}, []
    for number, image in enumerate(document["images"]):
        if isinstance(image, dict) and _is_id(image.get("id")) and isinstance(image.get("file_name"), str):
            names[image["id"]] = image["file_name"]
        else:
            problems.append(f"image {number}: 'id' and 'file_name' are needed")
    return names, problems


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str)


def _points(annotation: Any) -> np.ndarray:
    """(98, 2) of one annotation; `ValueError` says what is wrong with it."""
    if not isinstance(annotation, dict):
        raise ValueError("not an object")
    keypoints = _numbers(annotation, "keypoints", 3 * NUM_LANDMARKS).reshape(NUM_LANDMARKS, 3)
    points = keypoints[:, :2]
    if np.abs(points).max() > MAX_COORDINATE:
        raise ValueError(f"'keypoints' holds a coordinate beyond {MAX_COORDINATE:g} pixels")
    if points.max() > 0 and not (keypoints[:, 2] > 0).all():
        hidden = int(np.argmax(keypoints[:, 2] <= 0))
        raise ValueError(f"'keypoints': point {hidden} is not labelled (visibility 0); WFLW labels all {NUM_LANDMARKS}")
    if points.max() > 0 and (points[EYE_CORNERS[0]] == points[EYE_CORNERS[1]]).all():  # the unit of every error is 0
        raise ValueError("'keypoints': the outer eye corners (points 60 and 72) coincide")
    return points


def _square(annotation: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Center and side before padding."""
    if "center" in annotation and "scale" in annotation:
        center, side = _numbers(annotation, "center", 2), PIXEL_STD * float(_numbers(annotation, "scale", None))
    elif "bbox" in annotation:
        center, side = box_to_square(*_numbers(annotation, "bbox", 4))
    else:
        raise ValueError("neither 'center' and 'scale' nor 'bbox'")
    if not MIN_SIDE <= side <= MAX_COORDINATE:
        raise ValueError(f"the face's square has a side of {side:g} pixels")
    return np.asarray(center, dtype=np.float64), float(side)


def _numbers(annotation: dict[str, Any], key: str, length: int | None) -> np.ndarray:
    """`length` finite numbers, or one (length None), under `key`."""
    wanted = "a number" if length is None else f"{length} numbers"
    value = annotation.get(key)
    flat = [value] if length is None else value
    if not isinstance(flat, list) or any(isinstance(v, bool) or not isinstance(v, int | float) for v in flat):
        raise ValueError(f"{key!r} must be {wanted}")
    if length is not None and len(flat) != length:
        raise ValueError(f"{key!r} holds {len(flat)} numbers, not {length}")
    if not all(abs(v) < 10**300 for v in flat):  # not NaN, not infinite, and no integer beyond float64
        raise ValueError(f"{key!r} holds a number that is not finite")
    return np.array(flat if length is not None else flat[0], dtype=np.float64)


def _attributes(path: Path, images: list[Path], points: np.ndarray, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Attributes (N, 6) and which of them are known, from the subset files beside `path`.

    A face is recognised by its picture and points: ids are not the same in all copies of these files.
    """
    attributes = np.zeros((len(images), len(ATTRIBUTES)), dtype=bool)
    known = np.zeros(len(ATTRIBUTES), dtype=bool)
    keys = [(image, face.tobytes()) for image, face in zip(images, points, strict=True)]
    for column, suffix in enumerate(SUBSET_SUFFIXES.values()):
        subset_path = path.with_name(f"{path.stem}_{suffix}.json")
        if not subset_path.is_file():
            continue
        subset = _read(subset_path)
        names, problems = _image_names(subset)
        members = set()
        for number, annotation in enumerate(subset["annotations"]):
            try:
                points_of = _points(annotation).tobytes()
                members.add((root / names.get(annotation.get("image_id"), ""), points_of))
            except (ValueError, TypeError) as error:
                problems.append(f"annotation {number}: {error}")
        strangers = len(members - set(keys))
        if strangers:
            problems.append(f"{strangers} of its {len(members)} faces are not in {path.name}")
        if problems:
            refuse(str(subset_path), problems)
        known[column] = True
        attributes[:, column] = [key in members for key in keys]
    return attributes, known
