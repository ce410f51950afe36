"""Where a training step's batch comes from: made on the host, by worker processes, or on the device."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kernels import FaceColumns, Sampling, crop_faces, sample_faces
from pose.augment import quantiles
from pose.data.faces import Faces
from pose.distributed import Ranks
from pose.errors import InputError
from pose.geometry import PADDING
from pose.inputs import TrainingBatch, normalised_batch, training_batch
from pose.landmarks import NUM_LANDMARKS
from pose.loader import DiskLoader, MemoryLoader, open_loader, worker_batches
from pose.order import BatchOrder
from pose.precision import parameter_dtype, pixel_dtype
from pose.recipe import Recipe
from pose.regions import training_reach
from pose.targets import flip_index


class Feed(Protocol):
    def batch(self, step: int) -> TrainingBatch:
        """This rank's share of the batch of `step`; steps that follow each other may be prepared ahead."""
        ...

    def close(self) -> None:
        """End what prepares batches ahead."""


def open_feed(recipe: Recipe, faces: Faces, seed: int, order: BatchOrder, ranks: Ranks, last: int) -> Feed:
    """The feed that `recipe.input` asks for; steps end before `last`.

    Raises `InputError` where a graph is to hold the input and the GPU has no room for the pixels. Without a graph they
    then travel from the host, batch by batch.
    """
    config = recipe.input
    shares = Shares(order, ranks)
    if config.sampling == "workers":
        return IteratedFeed(partial(_from_workers, faces, recipe, shares, seed, ranks.device, last))
    reach = training_reach(recipe.train.augment.scale)
    loader = open_loader(faces, config, reach=reach, device=ranks.device, label="decoding training faces")
    if config.sampling == "device" and isinstance(loader, MemoryLoader):
        if loader.resident:
            return DeviceFeed(loader, faces, recipe, shares, seed)
        if recipe.train.graph:
            raise InputError(
                f"train.graph: a captured step needs the training faces' pixels on the GPU, which has no room for "
                f"{loader.images.pixels.nbytes / 1e9:.1f} GB; set it to false"
            )
    return IteratedFeed(partial(_from_loader, loader, faces, recipe, shares, seed, ranks.device, last))


class Shares:
    """Which faces of each step's batch are this rank's."""

    def __init__(self, order: BatchOrder, ranks: Ranks) -> None:
        self.order = order
        self.ranks = ranks

    def of(self, step: int) -> np.ndarray:
        """(B / world size,) face numbers."""
        faces = self.order.faces(step)
        return faces[self.ranks.shard(len(faces))]


class IteratedFeed:
    """Batches that `batches_from(step)` makes, one step after the other; it begins anew where steps do not follow."""

    def __init__(self, batches_from: Callable[[int], Generator[TrainingBatch]]) -> None:
        self.batches_from = batches_from
        self._next = -1
        self._batches: Generator[TrainingBatch] | None = None

    def batch(self, step: int) -> TrainingBatch:
        if self._batches is None or step != self._next:
            self.close()
            self._batches = self.batches_from(step)
        self._next = step + 1
        return next(self._batches)

    def close(self) -> None:
        # A loader's processes ignore signals, and would be waited for when this one ends
        if self._batches is not None:
            self._batches.close()


def _from_loader(
    loader: DiskLoader | MemoryLoader,
    faces: Faces,
    recipe: Recipe,
    shares: Shares,
    seed: int,
    device: torch.device,
    last: int,
    first: int,
) -> Generator[TrainingBatch]:
    """Pixels from a loader; draws and targets on the host, the crop on the device."""
    train = recipe.train
    steps = range(first, last)
    for step, pixels in zip(steps, loader.batches(map(shares.of, steps)), strict=True):
        yield training_batch(
            pixels,
            faces,
            config=recipe.input,
            augment=train.augment,
            seed=seed,
            epoch=shares.order.epoch(step),
            device=device,
            pixel_dtype=pixel_dtype(train.precision),
            dtype=parameter_dtype(train.precision),
        )


def _from_workers(
    faces: Faces, recipe: Recipe, shares: Shares, seed: int, device: torch.device, last: int, first: int
) -> Generator[TrainingBatch]:
    """All but normalisation by worker processes, which decode, draw and crop ahead of time."""
    config, train = recipe.input, recipe.train
    groups = ((shares.order.epoch(step), shares.of(step)) for step in range(first, last))
    reach = training_reach(train.augment.scale)
    dtype = parameter_dtype(train.precision)
    for made in worker_batches(faces, config, train.augment, seed, groups, reach, device):
        crops = made.crops.to(device, non_blocking=True)
        yield TrainingBatch(
            normalised_batch(crops, config.channels, pixel_dtype(train.precision)),
            made.target.to(device, dtype, non_blocking=True),
            made.weight.to(device, dtype, non_blocking=True),
        )


class DeviceFeed:
    """Everything on the device: `place` says which faces come next, `make` draws, crops and computes targets.

    `make` reads and writes nothing on the host and always takes the same shapes, so it can be part of a CUDA graph.
    """

    def __init__(self, loader: MemoryLoader, faces: Faces, recipe: Recipe, shares: Shares, seed: int) -> None:
        device = loader.images.pixels.device
        self.images = loader.images
        self.recipe = recipe
        self.shares = shares
        self.seed = seed
        self.columns = FaceColumns(
            points=torch.from_numpy(faces.points).float(),
            center=torch.from_numpy(faces.center),
            side=torch.from_numpy(faces.side * PADDING),
            full_width=loader.images.full_width,
        ).to(device)
        self.sampling = Sampling(**recipe.train.augment.model_dump())
        self.flip_index = flip_index(device)
        self.quantiles = quantiles(device)
        self.share = len(shares.of(0))
        self.number = torch.zeros(self.share, dtype=torch.int64, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)
        self._order = torch.empty(0, dtype=torch.int64, device=device), range(0)

    def batch(self, step: int) -> TrainingBatch:
        self.place(step)
        return self.make()

    def close(self) -> None:
        pass

    def place(self, step: int) -> None:
        """Say which batch `make` makes. Nothing waits: an epoch's order travels once, ahead of its first step."""
        numbers, steps = self._order
        if step not in steps:
            steps = self._rest_of_epoch(step)
            numbers = torch.from_numpy(np.concatenate([self.shares.of(at) for at in steps]))
            if self.epoch.is_cuda:
                numbers = numbers.pin_memory()
            numbers = numbers.to(self.epoch.device, non_blocking=True)
            self._order = numbers, steps
            self.epoch.fill_(self.shares.order.epoch(step))
        first = (step - steps.start) * self.share
        number = numbers[first : first + self.share]
        if len(number) == len(self.number):
            self.number.copy_(number)
        else:  # a partial batch, which no graph sees
            self.number = number.clone()

    def _rest_of_epoch(self, step: int) -> range:
        per_epoch = self.shares.order.steps_per_epoch
        return range(step, (step // per_epoch + 1) * per_epoch)

    def make(self) -> TrainingBatch:
        config = self.recipe.input
        precision = self.recipe.train.precision
        matrix, flip, target, weight = sample_faces(
            self.columns,
            self.number,
            self.epoch,
            seed=self.seed,
            sampling=self.sampling,
            flip_index=self.flip_index,
            quantiles=self.quantiles,
            size=config.size,
            impl=config.impl,
        )
        pixels = crop_faces(
            self.images,
            self.number,
            matrix,
            flip,
            size=config.size,
            mode=config.crop,
            channels=config.channels,
            dtype=pixel_dtype(precision),
            impl=config.impl,
        )
        dtype = parameter_dtype(precision)
        return TrainingBatch(pixels, target.to(dtype), weight.to(dtype))


def resident_batch(share: int, recipe: Recipe, device: torch.device) -> TrainingBatch:
    """A batch of noise that lies on the device: what a step costs without its input."""
    generator = torch.Generator(device).manual_seed(0)
    precision, size = recipe.train.precision, recipe.input.size

    def noise(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.rand(shape, generator=generator, device=device).to(dtype)

    pixels = noise(share, recipe.input.channels, size, size, dtype=pixel_dtype(precision))
    dtype = parameter_dtype(precision)
    return TrainingBatch(
        pixels.contiguous(memory_format=torch.channels_last),
        noise(share, NUM_LANDMARKS, 2, dtype=dtype),
        torch.ones(share, NUM_LANDMARKS, 2, dtype=dtype, device=device),
    )
