"""Decoding pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pose.data.faces import Faces
from pose.errors import InputError, refuse


def read_image(path: Path | str) -> np.ndarray:
    """Decode a picture to (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises `InputError` naming the file when it is missing, truncated or no picture.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).replace(str(path), "").strip(" '") or type(error).__name__
        raise InputError(f"{path}: not a readable image ({reason})") from None


def check_images_exist(faces: Faces, source: Path | str) -> None:
    """Raise one `InputError` that names every missing picture of `faces`, which were listed in `source`."""
    missing = [str(path) for path in unique_paths(faces.image) if not path.is_file()]
    if missing:
        refuse(f"{source}: images are missing" if len(missing) > 1 else f"{source}: no such image", missing)


def unique_paths(paths: Sequence[Path]) -> list[Path]:
    """Each path once, in order of first appearance."""
    return list(dict.fromkeys(paths))
