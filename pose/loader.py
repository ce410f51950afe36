"""From the names of pictures to decoded regions around faces, batch by batch."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels import RaggedImages, crop_faces
from pose.augment import Augmentation, draw
from pose.cache import open_or_build
from pose.data.faces import Faces
from pose.data.images import read_image
from pose.errors import InputError
from pose.placement import place
from pose.recipe import Augment, Input
from pose.regions import Region, cut, decode_all, ragged

PREFETCH = 4  # batches that each worker makes ahead
_UPLOAD = 2**26  # bytes that travel to a GPU at once, through pinned memory


@dataclass(frozen=True)
class PixelBatch:
    """Pixels of some faces: `images` holds regions, `index` (B,) says which is whose, `faces` (B,) are the numbers."""

    images: RaggedImages
    index: Tensor
    faces: np.ndarray
    widths: Tensor  # (B,) of the whole pictures, on the CPU


def open_loader(
    faces: Faces, config: Input, *, reach: float, device: torch.device, label: str
) -> MemoryLoader | DiskLoader:
    """A loader for `faces`: `config.images` says where their pixels wait.

    reach: the longest side a crop may have, in units of the padded side; see `pose.regions.training_reach`.
    Raises `InputError` for pictures that cannot be read (those in memory or a cache at once, one error for all of them)
    and for a cache that cannot be trusted.
    """
    if config.images == "disk":
        return DiskLoader(faces, reach, config.workers, device)
    if config.images == "cache":
        images = open_or_build(Path(config.cache), faces, reach, label)
    else:
        images = ragged(decode_all(faces, reach, label))
    return MemoryLoader(images, config.pixel_bytes, device, mapped=config.images == "cache")


def fits(needed: int, free: int) -> bool:
    """Whether `needed` bytes of pixels may lie on a GPU with `free` bytes: half of it is left to training."""
    return needed <= free // 2


class MemoryLoader:
    """Every region at hand: on the device where it has room, else in main memory or a file's memory map.

    images: the regions; resident: whether they lie on the device.
    """

    def __init__(self, images: RaggedImages, pixel_bytes: int, device: torch.device, mapped: bool) -> None:
        self.widths = images.full_width
        needed = images.pixels.numel() // 3 * pixel_bytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        self.resident = device.type == "cpu" or fits(needed, free)
        if not self.resident:
            warnings.warn(
                f"the faces' pixels, {needed / 1e9:.2f} GB, are too many for the GPU, which has {free / 1e9:.2f} GB "
                f"free, half of them for training: they stay in {'the memory map' if mapped else 'main memory'}",
                stacklevel=3,
            )
        if device.type == "cuda" and self.resident:
            images = _uploaded(images, device)
        # A map that the GPU has no room for stays one: packing would read all of it into memory
        self.images = images.packed() if pixel_bytes == 4 and (self.resident or not mapped) else images

    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[PixelBatch]:
        """The pixels of each group of face numbers, in turn."""
        for faces in orders:
            index = torch.from_numpy(np.asarray(faces, dtype=np.int64))
            if self.resident:
                yield PixelBatch(self.images, index, faces, self.widths[index])
            else:  # only this batch's regions will travel
                yield PixelBatch(_select(self.images, index), torch.arange(len(index)), faces, self.widths[index])


class DiskLoader:
    """Regions decoded when a batch needs them, by `workers` processes ahead of time (0: by this one)."""

    def __init__(self, faces: Faces, reach: float, workers: int, device: torch.device) -> None:
        self.faces = faces
        self.reach = reach
        self.workers = workers
        self.pinned = device.type == "cuda"

    def batches(self, orders: Iterable[np.ndarray]) -> Iterator[PixelBatch]:
        """The pixels of each group of face numbers, in turn."""
        groups, ahead = tee(orders)  # the loader is a few batches ahead
        load = partial(_load, _Regions(self.faces, self.reach), (group.tolist() for group in ahead))
        for group, images in zip(groups, load(_collate, self.workers, self.pinned), strict=True):
            yield PixelBatch(images, torch.arange(len(group)), group, images.full_width)


@dataclass(frozen=True)
class CropBatch:
    """Made by workers. crops: (B, 3, S, S) uint8, channels last; target, weight: (B, 98, 2) float32."""

    crops: Tensor
    target: Tensor
    weight: Tensor

    def pin_memory(self) -> CropBatch:
        return CropBatch(self.crops.pin_memory(), self.target.pin_memory(), self.weight.pin_memory())


def worker_batches(
    faces: Faces,
    config: Input,
    augment: Augment,
    seed: int,
    groups: Iterable[tuple[int, np.ndarray]],
    reach: float,
    device: torch.device,
) -> Iterator[CropBatch]:
    """Batches whose decoding, draws, targets and crops are the workers' work; groups: (epoch, face numbers) of each."""
    keys = ([(epoch, face) for face in group.tolist()] for epoch, group in groups)
    dataset = _Crops(faces, config, Augmentation(**augment.model_dump()), seed, reach)
    yield from _load(dataset, keys, _first, config.workers, device.type == "cuda")


class _Regions(torch.utils.data.Dataset[Any]):
    """Regions by face number. An `InputError` is handed on as its text: torch would bury it in a worker's traceback."""

    def __init__(self, faces: Faces, reach: float) -> None:
        self.faces = faces
        self.reach = reach

    def __getitem__(self, face: int) -> Region | str:
        try:
            return cut(self.faces, face, read_image(self.faces.image[face]), self.reach)
        except InputError as error:
            return str(error)


class _Crops(torch.utils.data.Dataset[Any]):
    """Whole batches, since draws and matrices of many faces cost little more than those of one."""

    def __init__(self, faces: Faces, config: Input, augmentation: Augmentation, seed: int, reach: float) -> None:
        self.regions = _Regions(faces, reach)
        self.config = config
        self.augmentation = augmentation
        self.seed = seed

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[CropBatch | str]:
        faces, config = self.regions.faces, self.config
        numbers = np.array([face for _, face in keys])
        found = [self.regions[face] for face in numbers]
        images = _collate(found)
        if isinstance(images, str):
            return [images]
        draws = draw(self.seed, keys[0][0], torch.from_numpy(numbers), augmentation=self.augmentation)
        matrix, target, weight = place(faces, numbers, draws, images.full_width, config.size)
        crops = crop_faces(
            images,
            torch.arange(len(numbers)),
            matrix,
            draws.flip,
            size=config.size,
            mode=config.crop,
            dtype=torch.uint8,
            normalize=False,
            impl="reference",
        )
        return [CropBatch(crops, target, weight)]


def _load(
    dataset: torch.utils.data.Dataset[Any], keys: Iterator[list[Any]], collate: Any, workers: int, pinned: bool
) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=keys,  # one pass over all steps: workers live as long as training
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_begin_worker,
        pin_memory=pinned,
        prefetch_factor=PREFETCH if workers else None,
    )
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        yield batch


def _begin_worker(worker: int) -> None:
    """A signal to the process group is for the training process, which needs its batches to finish the step."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)  # there is a worker for each core


def _collate(regions: Sequence[Region | str]) -> RaggedImages | str:
    good = [region for region in regions if not isinstance(region, str)]
    return ragged(good) if len(good) == len(regions) else next(r for r in regions if isinstance(r, str))


def _first(batches: Sequence[CropBatch | str]) -> CropBatch | str:
    return batches[0]


def _uploaded(images: RaggedImages, device: torch.device) -> RaggedImages:
    """`images` on a GPU, in pieces through pinned memory: one copy of gigabytes from pageable memory takes longer."""
    pixels = torch.empty(images.pixels.shape, dtype=torch.uint8, device=device)
    staged = [torch.empty(_UPLOAD, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in staged]
    for number, (target, source) in enumerate(zip(pixels.split(_UPLOAD), images.pixels.split(_UPLOAD), strict=True)):
        turn = number % 2
        copied[turn].synchronize()  # at once where nothing was recorded yet
        piece = staged[turn][: len(source)]
        piece.copy_(source)
        target.copy_(piece, non_blocking=True)
        copied[turn].record()
    columns = images._replace(pixels=images.pixels[:0]).to(device)
    return columns._replace(pixels=pixels)


def _select(images: RaggedImages, index: Tensor) -> RaggedImages:
    """The regions at `index` in a buffer of their own."""
    size = (images.height * images.width * images.elements)[index]
    parts = [images.pixels[first : first + count] for first, count in zip(images.offset[index], size, strict=True)]
    return RaggedImages(
        pixels=torch.cat(parts),
        offset=size.cumsum(0) - size,
        height=images.height[index],
        width=images.width[index],
        origin=images.origin[index],
        full_width=images.full_width[index],
    )
