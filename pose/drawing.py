"""Pictures with landmarks drawn on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from pose.landmarks import CONTOURS, NUM_LANDMARKS

Color = tuple[int, int, int]

PREDICTED: Color = (0, 229, 255)
TRUE: Color = (255, 64, 129)

_OVERSAMPLING = 4  # drawn this many times larger and averaged down: Pillow's own shapes have jagged edges
_LABEL_HEIGHT = 16


def draw_landmarks(
    image: np.ndarray,
    points: ArrayLike,
    *,
    color: Color = PREDICTED,
    true_points: ArrayLike | None = None,
    true_color: Color = TRUE,
    contours: bool = True,
) -> np.ndarray:
    """A copy of `image`, (H, W, 3) uint8, with one face's points on it and `true_points`, if any, beneath.

    points: (K, 2) pixels of the image; those that are not finite or outside are left out. The 98-point scheme also
    gets its contour lines. Dots and lines grow with the face.
    """
    result = _checked(image).copy()
    if true_points is not None:
        _draw(result, true_points, true_color, contours)
    _draw(result, points, color, contours)
    return result


def crop_view(
    image: np.ndarray,
    points: Sequence[ArrayLike],
    center: ArrayLike,
    side: float,
    size: int = 160,
    *,
    colors: Sequence[Color] = (PREDICTED, TRUE),
) -> np.ndarray:
    """One face as a square picture, (size, size, 3) uint8: the square `center`, `side` of `image`, black outside.

    points: sets of points in pixels of the image, drawn in `colors`, the first on top.
    """
    x, y = np.asarray(center, dtype=np.float64) - side / 2 + 0.5  # from pixel centres to pixel edges
    left, top = math.floor(x), math.floor(y)
    extent = math.ceil(side) + 1
    region = Image.fromarray(_checked(image)).crop((left, top, left + extent, top + extent))
    box = (x - left, y - top, x - left + side, y - top + side)
    view = np.array(region.resize((size, size), Image.Resampling.LANCZOS, box=box))
    for face, color in reversed(list(zip(points, colors, strict=False))):
        _draw(view, (np.asarray(face, dtype=np.float64) + 0.5 - (x, y)) * (size / side) - 0.5, color, contours=True)
    return view


def contact_sheet(tiles: Sequence[np.ndarray], columns: int, labels: Sequence[str] | None = None) -> np.ndarray:
    """Tiles of one size, (h, w, 3) uint8, side by side in rows of `columns`, each above its label; (H, W, 3) uint8."""
    if not tiles or columns < 1 or len({tile.shape for tile in tiles}) > 1:
        raise ValueError(f"{len(tiles)} tiles in {columns} columns; wanted at least one of each, all tiles of one size")
    if labels is not None and len(labels) != len(tiles):
        raise ValueError(f"{len(labels)} labels for {len(tiles)} tiles")
    gap = 4
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    pitch_x, pitch_y = width + gap, height + gap + (0 if labels is None else _LABEL_HEIGHT)
    sheet = Image.new("RGB", (gap + columns * pitch_x, gap + math.ceil(len(tiles) / columns) * pitch_y), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for i, tile in enumerate(tiles):
        x, y = gap + i % columns * pitch_x, gap + i // columns * pitch_y
        sheet.paste(Image.fromarray(_checked(tile)), (x, y))
        if labels is not None:
            text = labels[i]
            while text and pen.textlength(text, font) > width:
                text = text[:-1]
            pen.text((x + width / 2, y + height + 1), text, fill="black", font=font, anchor="ma")
    return np.asarray(sheet)


def _draw(image: np.ndarray, points: ArrayLike, color: Color, contours: bool) -> None:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points have shape {points.shape}, wanted (K, 2)")
    height, width = image.shape[:2]
    seen = np.isfinite(points).all(1) & (points > -0.5).all(1) & (points < (width - 0.5, height - 0.5)).all(1)
    if not seen.any():
        return
    extent = float(np.ptp(points[seen], axis=0).max())
    radius = max(0.9, 0.0085 * extent)
    line = max(0.6, 0.4 * radius)
    rim = 0.25 * radius

    # Only the part of the picture that holds the face is drawn large
    margin = 2 * radius + 2
    left, top = np.maximum(np.floor(points[seen].min(0) - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(points[seen].max(0) + margin) + 1, (width, height)).astype(int)
    zoom = _OVERSAMPLING if extent < 1000 else 1  # a large face needs no finer edges
    canvas = Image.new("RGBA", (int(right - left) * zoom, int(bottom - top) * zoom), (*color, 0))
    pen = ImageDraw.Draw(canvas)
    place = (points + 0.5 - (left, top)) * zoom
    if contours and len(points) == NUM_LANDMARKS:
        for first, last, closed in CONTOURS:
            run = [*range(first, last + 1), *([first] if closed else [])]
            for a, b in itertools.pairwise(run):
                if seen[a] and seen[b]:
                    pen.line([*place[a], *place[b]], fill=(*color, 190), width=max(1, round(line * zoom)))
    for grown, fill in ((rim, (0, 0, 0, 200)), (0.0, (*color, 255))):  # a dark rim shows the dot on light skin
        reach = (radius + grown) * zoom
        for x, y in place[seen]:
            pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=fill)
    overlay = canvas.convert("RGBa").resize((int(right - left), int(bottom - top)), Image.Resampling.BOX)
    region = Image.fromarray(image[top:bottom, left:right]).convert("RGBA")
    image[top:bottom, left:right] = np.asarray(Image.alpha_composite(region, overlay.convert("RGBA")).convert("RGB"))


def _checked(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}, wanted uint8 (H, W, 3)")
    return np.ascontiguousarray(image)
