"""Decoding pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from pose.data.faces import Faces
from pose.errors import InputError, refuse

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation


def read_image(path: Path | str) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises `InputError` naming the file when it is missing, truncated or no picture.
    """
    with _opened(Path(path)) as image:
        turn = _TURNS.get(_orientation(image))
        return np.asarray((image if turn is None else image.transpose(turn)).convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, whose pixels the block may decode; what goes wrong is an `InputError` that names the file."""
    try:
        with Image.open(path) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise InputError(f"{path}: its pixels are {image.mode} (more than 8 bits); 8-bit pictures are wanted")
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), "").strip(" '") or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason})") from None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none or it cannot be read, as OpenCV takes it."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's parser meets damaged EXIF with whatever its line happens to raise
        return 1


def check_images_exist(faces: Faces, source: Path | str) -> None:
    """Raise one `InputError` that names every missing picture of `faces`, which were listed in `source`."""
    missing = [str(path) for path in unique_paths(faces.image) if not path.is_file()]
    if missing:
        refuse(f"{source}: images are missing" if len(missing) > 1 else f"{source}: no such image", missing)


def unique_paths(paths: Sequence[Path]) -> list[Path]:
    """Each path once, in order of first appearance."""
    return list(dict.fromkeys(paths))


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) of the array that `read_image` would give, from the file's header alone. Raises `InputError`."""
    path = Path(path)
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in (5, 6, 7, 8) else (width, height)
