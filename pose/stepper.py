"""Training steps one after the other: which faces, at which learning rate, eager or as one replayed graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pose.checkpoint import Checkpoint
from pose.data.faces import Faces
from pose.distributed import ALONE, Ranks
from pose.errors import InputError
from pose.feed import DeviceFeed, open_feed, resident_batch
from pose.geometry import PADDING
from pose.graph import WARMUP, WARMUP_PARALLEL, CudaRecorder, Recorder, capture
from pose.inputs import TrainingBatch
from pose.learner import Learner
from pose.metrics import mean_shape
from pose.model import DeepPose, initialise, load_imagenet, start_at
from pose.order import BatchOrder, steps_per_epoch
from pose.precision import tf32
from pose.recipe import Recipe, Train, refuse_few_faces
from pose.schedule import constant, cosine, learning_rate, scale_for_batch


class Stepper:
    """Runs the steps of a recipe. No step waits for the device, and none depends on what ran before it but through the
    learner's state: draws, order and learning rate are functions of the step's number.

    steps: of the whole run, unless `last` says where feeds may end. Raises `InputError` for what cannot be done here.
    """

    def __init__(
        self,
        recipe: Recipe,
        faces: Faces,
        *,
        seed: int,
        ranks: Ranks = ALONE,
        saved: Checkpoint | None = None,
        last: int | None = None,
        say: Callable[[str], None] = print,
        recorder: Recorder | None = None,
    ) -> None:
        config = recipe.train
        refuse_impossible(recipe, ranks, faces=len(faces), recorded_elsewhere=recorder is not None)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self.recipe = recipe
        self.ranks = ranks
        self.device = ranks.device
        self.order = BatchOrder(len(faces), config.batch_size, seed, drop_last=config.drop_last)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.batch_size = config.batch_size
        self.steps = total_steps(config, len(faces))
        self.input_seconds = 0.0  # that the host spent on making batches
        self._base_rate = _base_learning_rate(config, say)
        self._recorder = recorder
        if config.graph and recorder is None:
            self._recorder = CudaRecorder(self.device)
        with self._where_it_is_recorded():
            self.learner = Learner(recipe, _new_model(recipe, faces, seed) if saved is None else saved.network(), ranks)
        if saved is not None:
            self.learner.resume(saved)
        self._feed = open_feed(recipe, faces, seed, self.order, ranks, self.steps if last is None else last)
        self._replay: Callable[[], Tensor] | None = None
        self._on_resident: Callable[[], Tensor] | None = None

    @property
    def network(self) -> DeepPose:
        """The model in training."""
        return self.learner.network

    @property
    def evaluated(self) -> DeepPose:
        """The model to evaluate: the moving average of the weights, where there is one."""
        return self.learner.network if self.learner.average is None else self.learner.average.model

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The process's settings that the recipe asks for; steps run inside."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.recipe.train.cudnn_benchmark
        try:
            with tf32(self.recipe.train.precision):
                yield
        finally:
            torch.backends.cudnn.benchmark = before

    def run(self, step: int) -> Tensor:
        """Step `step` (from 0) on its real input; this rank's part of the loss, 0-dimensional, on the device."""
        self.learner.set_rate(self.rate(step))
        if self._recorder is None:
            return self.learner.learn(self.input_only(step), len(self.order.faces(step)))
        assert isinstance(self._feed, DeviceFeed)
        begun = time.perf_counter()
        self._feed.place(step)
        self.input_seconds += time.perf_counter() - begun
        if self._replay is None:
            feed = self._feed
            self._replay = self._captured(lambda: self.learner.learn(feed.make(), self.batch_size))
        return self._replay().clone()  # the next replay overwrites it

    def input_only(self, step: int) -> TrainingBatch:
        """The batch of `step` alone."""
        begun = time.perf_counter()
        batch = self._feed.batch(step)
        self.input_seconds += time.perf_counter() - begun
        return batch

    def on_resident(self) -> Tensor:
        """A step on a batch of noise that lies on the device: what `run` costs without its input."""
        if self._on_resident is None:
            batch = resident_batch(
                len(range(self.batch_size)[self.ranks.shard(self.batch_size)]), self.recipe, self.device
            )

            def body() -> Tensor:
                return self.learner.learn(batch, self.batch_size)

            self._on_resident = body if self._recorder is None else self._captured(body)
        return self._on_resident()

    def rate(self, step: int) -> float:
        """The learning rate of step `step`."""
        config, base = self.recipe.train, self._base_rate
        if config.schedule == "published":
            return learning_rate(step, self.steps_per_epoch, base)
        if config.schedule == "cosine":
            return cosine(step, self.steps, base, min(config.warmup, self.steps - 1))
        return constant(step, base, config.warmup)

    def finish(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        """End what prepares batches ahead; no step runs after it."""
        self._feed.close()

    def _captured(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        assert self._recorder is not None
        warmup = WARMUP if self.ranks.world_size == 1 else WARMUP_PARALLEL
        return capture(body, self.learner.tensors, self._recorder, warmup)

    @contextmanager
    def _where_it_is_recorded(self) -> Iterator[None]:
        """DDP has to be built on the stream that is recorded."""
        if isinstance(self._recorder, CudaRecorder):
            with torch.cuda.stream(self._recorder.stream):
                yield
            torch.cuda.current_stream(self.device).wait_stream(self._recorder.stream)
        else:
            yield


def total_steps(config: Train, faces: int) -> int:
    """Optimiser steps of a whole run on `faces` faces."""
    if config.steps is not None:
        return config.steps
    return (config.epochs or 0) * steps_per_epoch(faces, config.batch_size, config.drop_last)


def refuse_impossible(
    recipe: Recipe, ranks: Ranks, *, faces: int | None = None, recorded_elsewhere: bool = False
) -> None:
    """Raise `InputError` where the recipe asks for what the ranks' devices, or so many training faces, do not give."""
    config, on_gpu = recipe.train, ranks.device.type == "cuda"
    if config.graph and not on_gpu and not recorded_elsewhere:
        raise InputError("train.graph: a CUDA graph needs a GPU, and training runs on the CPU here; set it to false")
    if config.parallel.sync_batch_norm and not on_gpu:
        raise InputError("train.parallel.sync_batch_norm: torch has it for GPUs only, training runs on the CPU here")
    if faces is not None:
        refuse_few_faces(recipe, faces)


def _new_model(recipe: Recipe, faces: Faces, seed: int) -> DeepPose:
    model = DeepPose(recipe.model.backbone)
    initialise(model, seed)
    if recipe.model.pretrained is not None:
        load_imagenet(model, recipe.model.pretrained)
    if recipe.model.start_at_mean_shape:
        start_at(model, mean_shape(faces.points, faces.center, faces.side * PADDING))
    return model


def _base_learning_rate(config: Train, say: Callable[[str], None]) -> float:
    """The recipe's learning rate for its batch size; says what was done when the two were not meant for each other."""
    if config.lr_batch_size is None or config.lr_batch_size == config.batch_size:
        return config.lr
    lr = scale_for_batch(config.lr, config.batch_size, config.lr_batch_size, config.lr_scaling)
    done = "left as it is" if config.lr_scaling == "none" else f"scaled to {lr:g}"
    say(
        f"learning rate {config.lr:g} was meant for batches of {config.lr_batch_size}, these are of "
        f"{config.batch_size}: {done} (train.lr_scaling: {config.lr_scaling})"
    )
    return lr
