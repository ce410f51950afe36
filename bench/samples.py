"""Sample faces for the report: the best, the median, the worst, with the true and the predicted points drawn."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.experiment import FaceErrors
from pose.errors import InputError

TILE = 320  # pixels of a drawn face; a page 1120 wide shows it at 200
QUALITY = 85
BEST, WORST = 3, 6  # faces of either kind


@dataclass(frozen=True)
class Tile:
    """One drawn face; `source` is a data URI, None where the picture cannot be shown and `problem` says why."""

    label: str
    nme: float
    image: str
    source: str | None
    problem: str | None = None


def sample_tiles(faces: FaceErrors, folder: Path) -> list[Tile]:
    """The best faces, the median one and the worst; relative image paths are looked up in `folder` too."""
    from pose.data.images import read_image
    from pose.drawing import crop_view
    from pose.geometry import PADDING

    order = np.argsort(faces.nme, kind="stable")
    order = order[np.isfinite(faces.nme[order])]
    named = [(place, "best" if place == 0 else "") for place in range(BEST)]
    named += [((len(order) - 1) // 2, "median")]
    named += [(len(order) - place, "worst" if place == 1 else "") for place in range(WORST, 0, -1)]
    tiles: dict[int, Tile] = {}
    for rank, label in named:
        if not 0 <= rank < len(order) or int(order[rank]) in tiles:  # fewer faces than ranks
            continue
        face = int(order[rank])
        path = Path(str(faces.image[face]))
        source, problem = None, None
        try:
            picture = read_image(path if path.exists() else folder / path)
            points = (faces.predicted[face], faces.true[face])
            side = float(faces.side[face]) * PADDING  # as the network sees the face
            source = data_uri(crop_view(picture, points, faces.center[face], side, TILE))
        except InputError as error:
            problem = str(error)
        tiles[face] = Tile(label, float(faces.nme[face]), path.name, source, problem)
    return list(tiles.values())


def data_uri(picture: np.ndarray) -> str:
    """A picture (H, W, 3) uint8 as a JPEG inside a `data:` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def contact_sheet_uri(path: Path, width: int = 1600) -> str | None:
    """The contact sheet, at most `width` pixels wide, as a data URI; None if there is none. Raises `InputError`."""
    from PIL import Image

    from pose.data.images import read_image

    if not path.exists():
        return None
    picture = read_image(path)
    if picture.shape[1] > width:
        height = round(picture.shape[0] * width / picture.shape[1])
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return data_uri(picture)
