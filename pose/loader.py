"""From the names of pictures to decoded regions around faces, batch by batch.

A face's region is the rectangle of its picture that any of its crops can touch, at native resolution, so a crop
from the region equals a crop from the picture.
"""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import tee
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from kernels import RaggedImages
from pose.data.faces import Faces
from pose.data.images import read_image, unique_paths
from pose.errors import InputError, refuse
from pose.geometry import PADDING
from pose.progress import progress

MARGIN = 3  # pixels: bilinear taps, and the rounding of a mirrored centre


@dataclass(frozen=True)
class PixelBatch:
    """Pixels of some faces: `images` holds regions, `index` (B,) says which is whose, `faces` (B,) are the numbers."""

    images: RaggedImages
    index: Tensor
    faces: np.ndarray
    widths: Tensor  # (B,) of the whole pictures, on the CPU


class Loader(Protocol):
    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[PixelBatch]:
        """The pixels of each group of face numbers, in turn."""
        ...


def open_loader(faces: Faces, images: str, *, reach: float, workers: int, device: torch.device, label: str) -> Loader:
    """A loader for `faces`: `images` "memory" decodes everything now and keeps it, "disk" decodes at every use.

    reach: the longest side a crop may have, in units of the padded side; see `training_reach`.
    Raises `InputError` for pictures that cannot be read (in memory mode at once, one error for all of them).
    """
    if images == "disk":
        return DiskLoader(faces, reach, workers)
    return MemoryLoader(faces, reach, device, label)


def training_reach(scale: float) -> float:
    """`reach` of crops that are enlarged by up to 1 + `scale` and turned by any angle."""
    return (1 + scale) * math.sqrt(2)


class MemoryLoader:
    """Every region decoded once and kept: on the device where it has room, in main memory otherwise."""

    def __init__(self, faces: Faces, reach: float, device: torch.device, label: str) -> None:
        images = _ragged(_decode_all(faces, reach, label))
        self.widths = images.full_width
        self.resident = device.type == "cpu" or images.pixels.numel() < torch.cuda.mem_get_info(device)[0] / 2
        self.images = images.to(device) if self.resident else images

    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[PixelBatch]:
        for faces in orders:
            index = torch.from_numpy(np.asarray(faces, dtype=np.int64))
            if self.resident:
                yield PixelBatch(self.images, index, faces, self.widths[index])
            else:  # only this batch's regions will travel
                yield PixelBatch(_select(self.images, index), torch.arange(len(index)), faces, self.widths[index])


class DiskLoader:
    """Regions decoded when a batch needs them, by `workers` processes ahead of time (0: by this one)."""

    def __init__(self, faces: Faces, reach: float, workers: int) -> None:
        self.dataset = _Regions(faces, reach)
        self.workers = workers

    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[PixelBatch]:
        groups, ahead = tee(orders)  # the loader is a few batches ahead
        loader = torch.utils.data.DataLoader(
            self.dataset,
            batch_sampler=(group.tolist() for group in ahead),
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_ignore_signals,
        )
        for group, images in zip(groups, loader, strict=True):
            if isinstance(images, str):
                raise InputError(images)
            yield PixelBatch(images, torch.arange(len(group)), group, images.full_width)


@dataclass(frozen=True)
class _Region:
    pixels: np.ndarray  # (h, w, 3) uint8
    origin: tuple[int, int]  # x, y in the picture
    full_width: int


class _Regions(torch.utils.data.Dataset[Any]):
    """Regions by face number. An `InputError` is handed on as its text: torch would bury it in a worker's traceback."""

    def __init__(self, faces: Faces, reach: float) -> None:
        self.faces = faces
        self.reach = reach

    def __getitem__(self, face: int) -> _Region | str:
        try:
            return _region(self.faces, face, read_image(self.faces.image[face]), self.reach)
        except InputError as error:
            return str(error)


def _ignore_signals(worker: int) -> None:
    """A signal to the process group is for the training process, which needs its batches to finish the step."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _collate(regions: Sequence[_Region | str]) -> RaggedImages | str:
    good = [region for region in regions if not isinstance(region, str)]
    return _ragged(good) if len(good) == len(regions) else next(r for r in regions if isinstance(r, str))


def _decode_all(faces: Faces, reach: float, label: str) -> list[_Region]:
    """The region of every face, each picture decoded once; Pillow decodes outside the interpreter's lock."""
    numbers: dict[Any, list[int]] = {path: [] for path in unique_paths(faces.image)}
    for number, path in enumerate(faces.image):
        numbers[path].append(number)

    outside: list[int] = []

    def decode(path: Any) -> list[tuple[int, _Region]] | str:
        try:
            picture = read_image(path)
            limit = np.array(picture.shape[1::-1]) - 1
            outside.extend(n for n in numbers[path] if ((faces.points[n] < 0) | (faces.points[n] > limit)).any())
            return [(number, _region(faces, number, picture, reach)) for number in numbers[path]]
        except InputError as error:
            return str(error)

    regions: dict[int, _Region] = {}
    problems = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, progress(label, len(numbers)) as update:
        for done, outcome in enumerate(pool.map(decode, numbers), start=1):
            if isinstance(outcome, str):
                problems.append(outcome)
            else:
                regions.update(outcome)
            update(done)
    if problems:
        if len(problems) == 1:
            raise InputError(problems[0])
        refuse(label, problems)
    if outside:  # WFLW has some where the picture cuts a face: nothing to refuse, but nothing to hide either
        first = faces.image[min(outside)]
        warnings.warn(f"{label}: {len(outside)} faces have points outside their picture (first: {first})", stacklevel=2)
    return [regions[number] for number in range(len(faces))]


def _region(faces: Faces, face: int, picture: np.ndarray, reach: float) -> _Region:
    height, width = picture.shape[:2]
    (cx, cy), half = faces.center[face], faces.side[face] * PADDING * reach / 2 + MARGIN
    left, right = max(0, math.floor(cx - half)), min(width, math.ceil(cx + half) + 1)
    top, bottom = max(0, math.floor(cy - half)), min(height, math.ceil(cy + half) + 1)
    if left >= right or top >= bottom:
        raise InputError(
            f"{faces.image[face]}: face {face}, centred at ({cx:g}, {cy:g}), lies outside the picture "
            f"of {width} x {height} pixels"
        )
    return _Region(np.ascontiguousarray(picture[top:bottom, left:right]), (left, top), width)


def _ragged(regions: list[_Region]) -> RaggedImages:
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


def _select(images: RaggedImages, index: Tensor) -> RaggedImages:
    """The regions at `index` in a buffer of their own."""
    size = (images.height * images.width * 3)[index]
    parts = [images.pixels[first : first + count] for first, count in zip(images.offset[index], size, strict=True)]
    return RaggedImages(
        pixels=torch.cat(parts),
        offset=size.cumsum(0) - size,
        height=images.height[index],
        width=images.width[index],
        origin=images.origin[index],
        full_width=images.full_width[index],
    )
