"""The training loop."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pose.clock import Clock
from pose.criterion import backward
from pose.data.faces import Faces
from pose.errors import InputError
from pose.files import write_atomically
from pose.geometry import PADDING
from pose.inputs import training_batch
from pose.loader import open_loader, training_reach
from pose.metrics import mean_shape
from pose.model import DeepPose, initialise, load_imagenet, start_at
from pose.order import BatchOrder
from pose.precision import autocast, parameter_dtype, select_device, tf32
from pose.recipe import Recipe, Train
from pose.schedule import constant, cosine, learning_rate, scale_for_batch
from pose.stop import stop_requests

LAST = "checkpoint.pt"
BEST = "best.pt"
CURVE = "curve.csv"

_CURVE_COLUMNS = ("step", "epoch", "learning_rate", "loss", "images_per_second")
# What a resumed run may change without becoming another run (of the data, where it lies: its faces are compared)
_FREE_TO_CHANGE = {"name", "description", "evaluate", "data"}
_FREE_TO_CHANGE_IN_TRAIN = {"checkpoint_every", "evaluate_every", "log_every", "threads"}


class NonFiniteLoss(Exception):
    """The loss, or with it the weights, became NaN or infinite in `step` (from 1); `faces`: pictures of its batch."""

    def __init__(self, step: int, what: str, faces: list[str], checkpoint: Path | None) -> None:
        self.step = step
        self.faces = faces
        self.checkpoint = checkpoint
        last_good = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written before"
        super().__init__(f"{what}; {last_good}")


class Interrupted(Exception):
    """A signal asked the run to stop: the step was finished and `checkpoint` written."""

    def __init__(self, signal_name: str, step: int, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        super().__init__(f"stopped by {signal_name} after step {step}; start again to resume from {checkpoint}")


@dataclass(frozen=True)
class Look:
    """What a look at the running training shows; `images_per_second` is that of the steps since the last look."""

    step: int  # finished steps
    steps: int  # of the whole run
    epoch: int
    loss: float
    learning_rate: float
    images_per_second: float


@dataclass(frozen=True)
class Trained:
    """A finished run. Speeds are of this process alone: a resumed run does not mix in the time before."""

    model: DeepPose
    steps: int
    final_loss: float
    seconds: float
    first_step_seconds: float | None
    resumed_at: int  # the step this process went on from, 0 if it began the run
    warmup_steps: int  # steps before the windows below
    window_steps: int
    windows: list[float]  # images per second of each window of steps, evaluation and checkpoints left out
    input_share: float | None  # share of step time spent on making batches; not known on a GPU, where it overlaps


def train(
    recipe: Recipe,
    faces: Faces,
    folder: Path,
    *,
    seed: int,
    validate: Callable[[DeepPose], float] | None = None,
    on_look: Callable[[Look], None] = lambda look: None,
    say: Callable[[str], None] = print,
) -> Trained:
    """Train a model on `faces`; leave last checkpoint, loss curve and, with `validate`, best checkpoint in `folder`.

    If `folder` holds a checkpoint of the same recipe and seed, the run goes on from there and ends with the same
    bits (on one device) as one that was never stopped. `validate` gives the test NME, lower is better.
    SIGTERM, SIGUSR2 and SIGINT finish the step, save, and raise `Interrupted`. A loss that is not finite raises
    `NonFiniteLoss`, and the last good checkpoint stays.
    """
    begun = time.perf_counter()
    config = recipe.train
    device = select_device(config.device)
    dtype = parameter_dtype(config.precision)
    order = BatchOrder(len(faces), config.batch_size, seed)
    steps = total_steps(config, len(faces))
    checkpoint_every = config.checkpoint_every or order.steps_per_epoch
    base_lr = _base_learning_rate(config, say)
    micro_batches = config.batch_size // (config.micro_batch or config.batch_size)
    if config.threads is not None:
        torch.set_num_threads(config.threads)

    digest = faces.digest()
    saved = _saved(folder / LAST, recipe, seed, digest)
    if saved is not None and saved.step > steps:
        raise InputError(f"{folder / LAST}: holds {saved.step} finished steps, this recipe ends after {steps}")
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model = _new_model(recipe, faces, seed) if saved is None else saved.network()
    model = model.to(device=device, dtype=dtype, memory_format=memory_format).train()  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(model.parameters(), lr=base_lr)
    scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=config.precision == "fp16")
    curve: list[tuple[Any, ...]] = []
    best = math.inf
    start = 0
    final_loss = math.nan
    if saved is not None:
        optimizer.load_state_dict(saved.optimizer)  # type: ignore[arg-type]  # a training checkpoint has one
        if saved.scaler:
            scaler.load_state_dict(saved.scaler)
        start, best, final_loss = saved.step, saved.extra["best_nme"], saved.extra["final_loss"]
        curve = [row for row in _read_curve(folder / CURVE) if row[0] <= start]
        say(f"resuming after step {start} of {steps}")

    def save(name: str, step: int) -> None:
        extra = {"seed": seed, "best_nme": best, "training_set": digest, "final_loss": final_loss}
        state = Checkpoint(
            recipe=recipe.model_dump(mode="json"),
            step=step,
            backbone=recipe.model.backbone,
            num_landmarks=model.num_landmarks,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            scaler=scaler.state_dict() if scaler.is_enabled() else None,
            extra=extra,
        )
        _write_curve(folder / CURVE, curve)
        save_checkpoint(folder / name, state)

    def pictures_of(step: int) -> list[str]:
        return [str(faces.image[face]) for face in order.faces(step)]

    loader = open_loader(
        faces,
        recipe.input.images,
        reach=training_reach(config.augment.scale),
        workers=recipe.input.workers,
        device=device,
        label="decoding training faces",
    )
    batches = loader.batches(order.faces(step) for step in range(start, steps))
    unseen: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss on the device: looked at now and then
    last_good = folder / LAST if saved is not None else None
    first_step_seconds = None
    clock = Clock()

    with tf32(config.precision), stop_requests() as stop:
        for step in range(start, steps):
            # 1. the batch
            input_begun = time.perf_counter()
            batch = training_batch(
                next(batches),
                faces,
                config=recipe.input,
                augment=config.augment,
                seed=seed,
                epoch=order.epoch(step),
                device=device,
                dtype=dtype,
            )
            pixels = batch.pixels.contiguous(memory_format=memory_format)
            clock.input_seconds += time.perf_counter() - input_begun

            # 2. the step
            lr = _scheduled(config, step, steps, order.steps_per_epoch, base_lr)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=device, dtype=torch.promote_types(dtype, torch.float32))
            scale = scaler.scale(torch.full((), 1 / micro_batches, device=device, dtype=loss.dtype))
            for part in range(micro_batches):
                rows = slice(part, None, micro_batches)  # the faces that rank `part` of several would get
                with autocast(config.precision, device):
                    pred = model(pixels[rows])
                loss += backward(recipe.loss, pred, batch.target[rows], batch.weight[rows], scale) / micro_batches
            scaler.step(optimizer)
            scaler.update()
            unseen.append((step, lr, loss))
            clock.steps += 1

            # 3. now and then: look at the losses, evaluate, save
            done = step + 1
            stopped_by = stop.signal  # read once: a signal that comes later waits for the next step
            if first_step_seconds is None:
                _wait_for(device)
                first_step_seconds = time.perf_counter() - begun
            epoch_ends = done % order.steps_per_epoch == 0
            evaluation_due = (
                validate is not None
                and config.evaluate_every is not None
                and epoch_ends
                and (done // order.steps_per_epoch % config.evaluate_every == 0 or done == steps)
            )
            save_due = done % checkpoint_every == 0 or done == steps or stopped_by is not None or evaluation_due
            look_due = done % config.log_every == 0
            if look_due or save_due:
                values = torch.stack([value for _, _, value in unseen]).tolist()  # waits for the device
                speed = clock.steps_per_second() * config.batch_size
                if look_due:
                    clock.close_window()
                for (at, rate, _), value in zip(unseen, values, strict=True):
                    if not math.isfinite(value):
                        what = f"the loss of step {at + 1} is {value}"
                        raise NonFiniteLoss(at + 1, what, pictures_of(at), last_good)
                    curve.append((at + 1, order.epoch(at), rate, value, round(speed, 3)))
                unseen.clear()
                final_loss = values[-1]
                on_look(Look(done, steps, order.epoch(step), final_loss, lr, speed))
            if save_due:
                with clock.outside():
                    if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                        what = f"the weights after step {done} are not finite"
                        raise NonFiniteLoss(done, what, pictures_of(step), last_good)
                    if evaluation_due and validate is not None:
                        score = validate(model)
                        say(f"epoch {order.epoch(step) + 1}: test NME {100 * score:.2f}")
                        if score < best:
                            best = score
                            save(BEST, done)
                    save(LAST, done)
                    last_good = folder / LAST
            if stopped_by is not None and done < steps:
                raise Interrupted(stopped_by, done, folder / LAST)

    windows, warmup_steps = clock.steady(config.log_every)
    seconds = sum(window.seconds for window in windows)
    return Trained(
        model=model.eval(),
        steps=steps,
        final_loss=final_loss,
        seconds=time.perf_counter() - begun,
        first_step_seconds=first_step_seconds,
        resumed_at=start,
        warmup_steps=warmup_steps,
        window_steps=config.log_every,
        windows=[window.steps * config.batch_size / window.seconds for window in windows],
        input_share=sum(w.input_seconds for w in windows) / seconds if windows and device.type == "cpu" else None,
    )


def total_steps(config: Train, faces: int) -> int:
    """Optimiser steps of a whole run on `faces` faces; a last partial batch of an epoch is dropped."""
    return config.steps if config.steps is not None else (config.epochs or 0) * (faces // config.batch_size)


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


def _scheduled(config: Train, step: int, steps: int, steps_per_epoch: int, base: float) -> float:
    if config.schedule == "published":
        return learning_rate(step, steps_per_epoch, base)
    if config.schedule == "cosine":
        return cosine(step, steps, base, min(config.warmup, steps - 1))
    return constant(step, base, config.warmup)


def _saved(path: Path, recipe: Recipe, seed: int, training_set: str) -> Checkpoint | None:
    """The checkpoint to resume from, None without one; `InputError` if it belongs to another run."""
    if not path.exists():
        return None
    saved = load_checkpoint(path)
    if saved.optimizer is None:
        raise InputError(f"{path}: holds no optimizer, so training cannot go on from it")
    now = {**_deciding(recipe.model_dump(mode="json")), "seed": seed, "training_set": training_set}
    then = {**_deciding(saved.recipe), **{key: saved.extra.get(key) for key in ("seed", "training_set")}}
    for key in sorted(now.keys() | then.keys()):
        if now.get(key) != then.get(key):
            raise InputError(
                f"{path}: belongs to another run: its {key} is {then.get(key)!r}, now {now.get(key)!r}; "
                "give another output folder or remove it"
            )
    return saved


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe, flattened, that decide what training does."""
    flat = {}
    for section, values in recipe.items():
        if section in _FREE_TO_CHANGE:
            continue
        for key, value in values.items():
            if section != "train" or key not in _FREE_TO_CHANGE_IN_TRAIN:
                flat[f"{section}.{key}"] = value
    return flat


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _write_curve(path: Path, rows: list[tuple[Any, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_CURVE_COLUMNS, *rows])
    write_atomically(path, text.getvalue().encode())


def _read_curve(path: Path) -> list[tuple[Any, ...]]:
    if not path.exists():
        return []
    rows: list[tuple[Any, ...]] = []
    with path.open(newline="", errors="replace") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1:
                continue
            try:
                step, epoch, *values = row
                rows.append((int(step), int(epoch), *(float(value) for value in values)))
                if len(values) != len(_CURVE_COLUMNS) - 2:
                    raise ValueError
            except (ValueError, csv.Error):
                raise InputError(f"{path}: line {number} is damaged; remove the file to go on without it") from None
    return rows
