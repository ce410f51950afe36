"""The part of a picture that the crops of a face can touch, cut out at native resolution.

A crop from the region equals a crop from the picture.
"""

from __future__ import annotations

import math
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from kernels import RaggedImages
from pose.data.faces import Faces
from pose.data.images import read_image
from pose.errors import InputError, refuse_any
from pose.geometry import PADDING
from pose.progress import progress

MARGIN = 3  # pixels: bilinear taps, and the rounding of a mirrored centre


def training_reach(scale: float) -> float:
    """The longest side that crops enlarged by up to 1 + `scale` and turned by any angle cover, in padded sides."""
    return (1 + scale) * math.sqrt(2)


class Box(NamedTuple):
    """Pixels left <= x < right and top <= y < bottom of a picture."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def bytes(self) -> int:
        return 3 * (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Region:
    pixels: np.ndarray  # (h, w, 3) uint8
    origin: tuple[int, int]  # x, y in the picture
    full_width: int


def region_box(faces: Faces, face: int, width: int, height: int, reach: float) -> Box:
    """Where the region of `face` lies in its picture of width x height pixels.

    reach: the longest side a crop may have, in units of the padded side; see `training_reach`. Raises `InputError` for
    a face outside its picture.
    """
    (cx, cy), half = faces.center[face], faces.side[face] * PADDING * reach / 2 + MARGIN
    box = Box(
        left=max(0, math.floor(cx - half)),
        top=max(0, math.floor(cy - half)),
        right=min(width, math.ceil(cx + half) + 1),
        bottom=min(height, math.ceil(cy + half) + 1),
    )
    if box.left >= box.right or box.top >= box.bottom:
        raise InputError(
            f"{faces.image[face]}: face {face}, centred at ({cx:g}, {cy:g}), lies outside the picture "
            f"of {width} x {height} pixels"
        )
    return box


def cut(faces: Faces, face: int, picture: np.ndarray, reach: float) -> Region:
    """The region of `face` in its decoded picture, (H, W, 3) uint8."""
    height, width = picture.shape[:2]
    box = region_box(faces, face, width, height, reach)
    pixels = picture[box.top : box.bottom, box.left : box.right]
    return Region(np.ascontiguousarray(pixels), (box.left, box.top), width)


def faces_by_picture(faces: Faces) -> dict[Path, list[int]]:
    """The numbers of the faces on each picture, pictures in order of first appearance."""
    numbers: dict[Path, list[int]] = {}
    for number, path in enumerate(faces.image):
        numbers.setdefault(path, []).append(number)
    return numbers


def outside(faces: Faces, face: int, width: int, height: int) -> bool:
    """Whether some point of the face lies outside its picture."""
    points = faces.points[face]
    return bool(((points < 0) | (points > np.array([width, height]) - 1)).any())


def warn_of_outside(faces: Faces, numbers: list[int], label: str) -> None:
    """Say which faces have points outside their picture: WFLW has some where the picture cuts a face, so that there is
    nothing to refuse, but nothing to hide either."""
    if numbers:
        first = faces.image[min(numbers)]
        warnings.warn(f"{label}: {len(numbers)} faces have points outside their picture (first: {first})", stacklevel=2)


def decode_all(faces: Faces, reach: float, label: str) -> list[Region]:
    """The region of every face, each picture decoded once; Pillow decodes outside the interpreter's lock."""
    numbers = faces_by_picture(faces)
    cut_off: list[int] = []

    def decode(path: Path) -> list[tuple[int, Region]] | str:
        try:
            picture = read_image(path)
            height, width = picture.shape[:2]
            cut_off.extend(n for n in numbers[path] if outside(faces, n, width, height))
            return [(number, cut(faces, number, picture, reach)) for number in numbers[path]]
        except InputError as error:
            return str(error)

    regions: dict[int, Region] = {}
    problems = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, progress(label, len(numbers)) as update:
        for done, outcome in enumerate(pool.map(decode, numbers), start=1):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                regions.update(outcome)
            update(done)
    refuse_any(label, problems)
    warn_of_outside(faces, cut_off, label)
    return [regions[number] for number in range(len(faces))]


def ragged(regions: list[Region]) -> RaggedImages:
    """Regions one after the other in one buffer."""
    sizes = np.array([region.pixels.size for region in regions], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    pixels = torch.empty(int(sizes.sum()), dtype=torch.uint8)
    for region, first in zip(regions, offset, strict=True):
        pixels.numpy()[first : first + region.pixels.size] = region.pixels.reshape(-1)
    return RaggedImages(
        pixels=pixels,
        offset=torch.from_numpy(offset),
        height=torch.tensor([region.pixels.shape[0] for region in regions]),
        width=torch.tensor([region.pixels.shape[1] for region in regions]),
        origin=torch.tensor([region.origin for region in regions]),
        full_width=torch.tensor([region.full_width for region in regions]),
    )
