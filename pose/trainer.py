"""The training loop."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pose.clock import Clock
from pose.data.faces import Faces
from pose.distributed import ALONE, Ranks
from pose.errors import InputError
from pose.events import Events
from pose.files import link, remove_leftovers, write_atomically
from pose.model import DeepPose
from pose.recipe import Recipe
from pose.stepper import Stepper, total_steps
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
class Milestone:
    """An evaluation on the way."""

    step: int  # finished steps
    epoch: int  # finished epochs
    seconds: float  # of this process's training until the evaluation was done
    nme: float  # on the test set, a fraction


@dataclass(frozen=True)
class Trained:
    """A finished run. Speeds are of this process alone: a resumed run does not mix in the time before."""

    model: DeepPose  # in evaluation mode; the moving average of the weights, where the recipe wants one
    steps: int
    final_loss: float
    seconds: float
    first_step_seconds: float | None
    resumed_at: int  # the step this process went on from, 0 if it began the run
    warmup_steps: int  # steps before the windows below
    window_steps: int
    windows: list[float]  # images per second of each window of steps, evaluation and checkpoints left out
    input_share: float | None  # share of step time spent on making batches; not known on a GPU, where it overlaps
    milestones: list[Milestone]  # of this process


def train(
    recipe: Recipe,
    faces: Faces,
    folder: Path,
    *,
    seed: int,
    ranks: Ranks = ALONE,
    validate: Callable[[DeepPose], float] | None = None,
    on_look: Callable[[Look], None] = lambda look: None,
    say: Callable[[str], None] = print,
) -> Trained:
    """Train a model on `faces`; leave last checkpoint, loss curve and, with `validate`, best checkpoint in `folder`.

    TensorBoard's events go to its folder `tensorboard`.
    If `folder` holds a checkpoint of the same recipe and seed, the run goes on from there and ends with the same
    bits (on one device) as one that was never stopped. `validate` gives the test NME, lower is better.
    SIGTERM, SIGUSR2 and SIGINT finish the step, save, and raise `Interrupted`. A loss that is not finite raises
    `NonFiniteLoss`, and the last good checkpoint stays. Several `ranks` all call this; the main one writes and speaks.
    """
    begun = time.perf_counter()
    config = recipe.train
    if not ranks.main:
        say, on_look = _nothing, _nothing
    digest = faces.digest()
    steps = total_steps(config, len(faces))
    if ranks.main:
        for name in (LAST, BEST, CURVE):
            remove_leftovers(folder / name)
    saved = _saved(folder / LAST, recipe, seed, digest)
    if saved is not None and saved.step > steps:
        raise InputError(f"{folder / LAST}: holds {saved.step} finished steps, this recipe ends after {steps}")
    stepper = Stepper(recipe, faces, seed=seed, ranks=ranks, saved=saved, say=say)
    order = stepper.order
    checkpoint_every = config.checkpoint_every or order.steps_per_epoch
    # How often all ranks learn of a signal to one of them: it is an exchange, which a GPU would have to be waited for
    agree_every = 1 if ranks.device.type == "cpu" else config.log_every
    curve: list[tuple[Any, ...]] = []
    milestones: list[Milestone] = []
    best = math.inf
    start = 0
    final_loss = math.nan
    if saved is not None:
        start, best, final_loss = saved.step, saved.extra["best_nme"], saved.extra["final_loss"]
        curve = [row for row in _read_curve(folder / CURVE) if row[0] <= start] if ranks.main else []
        say(f"resuming after step {start} of {steps}")

    def save(name: str, step: int) -> None:
        if not ranks.main:
            return
        extra = {"seed": seed, "best_nme": best, "training_set": digest, "final_loss": final_loss}
        _write_curve(folder / CURVE, curve)
        save_checkpoint(
            folder / name,
            Checkpoint(recipe=recipe.model_dump(mode="json"), step=step, extra=extra, **stepper.learner.state()),
        )

    def pictures_of(step: int) -> list[str]:
        return [str(faces.image[face]) for face in order.faces(step)]

    unseen: list[tuple[int, float, Tensor]] = []  # step, learning rate, loss on the device: looked at now and then
    last_good = folder / LAST if saved is not None else None
    first_step_seconds = None
    events = Events(folder, start, say) if ranks.main else None
    clock = Clock()

    with (
        closing(stepper),
        closing(events) if events is not None else nullcontext(),
        stepper.settings(),
        stop_requests() as stop,
    ):
        for step in range(start, steps):
            # 1. the step
            input_before = stepper.input_seconds
            loss = stepper.run(step)
            clock.input_seconds += stepper.input_seconds - input_before
            unseen.append((step, stepper.rate(step), loss))
            clock.steps += 1

            # 2. now and then: look at the losses, evaluate, save
            done = step + 1
            stopped_by = stop.signal  # read once: a signal that comes later waits for the next step
            if ranks.world_size > 1:
                agreed = (done % agree_every == 0 or done == steps) and ranks.any(stopped_by is not None)
                stopped_by = (stopped_by or "a signal to another rank") if agreed else None
            if first_step_seconds is None:
                stepper.finish()
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
                values = ranks.sum_(torch.stack([value for _, _, value in unseen])).tolist()  # waits for the device
                speed = clock.steps_per_second() * config.batch_size
                if look_due:
                    clock.close_window()
                for (at, rate, _), value in zip(unseen, values, strict=True):
                    if not math.isfinite(value):
                        what = f"the loss of step {at + 1} is {value}"
                        raise NonFiniteLoss(at + 1, what, pictures_of(at), last_good)
                    curve.append((at + 1, order.epoch(at), rate, value, round(speed, 3)))
                final_loss = values[-1]
                on_look(Look(done, steps, order.epoch(step), final_loss, unseen[-1][1], speed))
                if events is not None:
                    events.scalars(done, loss=final_loss, learning_rate=unseen[-1][1], images_per_second=speed)
                unseen.clear()
            if save_due:
                with clock.outside():
                    finite = [parameter.isfinite().all() for parameter in stepper.network.parameters()]
                    if not bool(torch.stack(finite).all()):
                        what = f"the weights after step {done} are not finite"
                        raise NonFiniteLoss(done, what, pictures_of(step), last_good)
                    improved = False
                    if evaluation_due and validate is not None:
                        score = validate(stepper.evaluated)
                        milestones.append(Milestone(done, order.epoch(step) + 1, time.perf_counter() - begun, score))
                        say(f"epoch {order.epoch(step) + 1}: test NME {100 * score:.2f}")
                        if events is not None:
                            events.scalars(done, test_nme_x100=100 * score)
                        improved, best = score < best, min(score, best)
                        if improved:
                            save(BEST, done)
                    if not (improved and ranks.main and link(folder / BEST, folder / LAST)):
                        save(LAST, done)
                    last_good = folder / LAST
            if stopped_by is not None and done < steps:
                raise Interrupted(stopped_by, done, folder / LAST)

    windows, warmup_steps = clock.steady(config.log_every)
    seconds = sum(window.seconds for window in windows)
    on_cpu = ranks.device.type == "cpu"
    return Trained(
        model=stepper.evaluated.eval(),
        steps=steps,
        final_loss=final_loss,
        seconds=time.perf_counter() - begun,
        first_step_seconds=first_step_seconds,
        resumed_at=start,
        warmup_steps=warmup_steps,
        window_steps=config.log_every,
        windows=[window.steps * config.batch_size / window.seconds for window in windows],
        input_share=sum(w.input_seconds for w in windows) / seconds if windows and on_cpu else None,
        milestones=milestones,
    )


def _nothing(what: object) -> None:
    pass


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
