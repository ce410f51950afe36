"""One trial, in a process of its own: train and evaluate, or measure speed; its result or `failure.json` is left."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from bench.caches import filled, note_filled, with_crops
from bench.plan import Trial
from bench.result import (
    FAILURE,
    LEVELS,
    RESULT,
    THROUGHPUT,
    Failure,
    LevelsResult,
    Milestone,
    Result,
    SubsetMetrics,
    Throughput,
    ThroughputResult,
    Timings,
    read_failure,
    write_record,
)
from pose.errors import EXIT_INPUT, InputError
from pose.files import write_atomically
from pose.recipe import Recipe
from slurm.call import ATTEMPT, JOB, STOPPED

if TYPE_CHECKING:
    from pose.distributed import Ranks
    from pose.metrics import SubsetRow
    from pose.trainer import Look

SPEC = "trial.json"
STATUS = "status.json"
EXIT_FAILED = 3
STATUS_SECONDS = 0.5
NOT_FILLED = "the cold trial before it did not fill its caches"
CAUSE_SECONDS = 10.0  # longer than `slurm.here` lets live the others of a rank that failed


def write_spec(trial: Trial, folder: Path) -> None:
    """Leave in `folder` what `run_trial` needs to know."""
    spec = {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in vars(trial).items()
    }
    write_atomically(folder / SPEC, json.dumps(spec, indent=1).encode() + b"\n")


def process_environment(recipe: Recipe, on_gpu: bool | None = None, reference: Recipe | None = None) -> dict[str, str]:
    """Variables that have to be set before the trial's process imports anything.

    on_gpu: whether it will have a GPU; None: as this machine would give it one. reference: another recipe that the
    process runs, too.
    """
    if on_gpu is None:
        on_gpu = _on_gpu(recipe.train.device)
    variables = {"OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads starve each other where cores are shared
    if recipe.train.threads is not None:
        variables["OMP_NUM_THREADS"] = str(recipe.train.threads)
    elif recipe.train.parallel.world_size > 1 and not on_gpu:
        variables["OMP_NUM_THREADS"] = "1"  # each rank would take all cores
    if not on_gpu and any(one is not None and one.loss.impl == "triton" for one in (recipe, reference)):
        variables["TRITON_INTERPRET"] = "1"
    return variables


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device == "cuda"
    from pose.precision import select_device

    return select_device(device).type == "cuda"


def run_trial(argument: str) -> int:
    """Run the trial whose folder is `argument`; the entry point that `slurm` calls. Returns the exit code.

    Of several ranks the first to fail leaves `failure.json`; what the others meet as it goes is no cause. A trial that
    has its result already, as one that is started again after its node died in its last moment, does nothing.
    """
    folder = Path(argument)
    from pose.distributed import launched
    from pose.trainer import Interrupted, NonFiniteLoss

    rank, ranks, _ = launched()
    lost_rank = False
    try:
        spec = json.loads((folder / SPEC).read_bytes())
        result = _run(folder, spec)
        if result is not None:
            write_record(result, folder / _record_of(spec))
            if spec["caches"] == "cold":
                note_filled(spec["shared"], folder.parents[1])
    except NonFiniteLoss as error:
        checkpoint = str(error.checkpoint) if error.checkpoint else None
        failure = Failure(
            kind="non_finite_loss", message=str(error), step=error.step, faces=error.faces, checkpoint=checkpoint
        )
    except Interrupted as error:
        failure = Failure(kind="interrupted", message=str(error), checkpoint=str(error.checkpoint))
    except InputError as error:
        failure = Failure(kind="input", message=str(error))
    except Exception as error:
        traceback.print_exc()
        lost_rank = ranks > 1 and _of_another_rank(error)
        if lost_rank:
            time.sleep(CAUSE_SECONDS)  # if a rank has failed, the launcher ends this one meanwhile
        who = f"rank {rank} of {ranks}: " if ranks > 1 else ""
        failure = Failure(
            kind="exception",
            message=who + f"{type(error).__name__}: {error}".splitlines()[0],
            rank=rank if ranks > 1 else None,
            traceback=traceback.format_exc(),
            lost_rank=lost_rank,
        )
    else:
        if rank == 0:
            (folder / STATUS).unlink(missing_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)  # an earlier attempt's
        return 0
    if rank > 0 and failure.kind in ("non_finite_loss", "interrupted"):
        return 0  # all ranks end here after the same step: the main one tells, and may still have to save
    print(f"error: {failure.message}", file=sys.stderr)
    failure = failure.model_copy(update={"attempt": int(os.environ.get(ATTEMPT, "0")), "job": os.environ.get(JOB)})
    with suppress(InputError, OSError):  # a full disk: the exit code and the last line tell
        write_if_first(failure, folder / FAILURE)
    return {"input": EXIT_INPUT, "interrupted": STOPPED}.get(failure.kind, EXIT_FAILED)


def _of_another_rank(error: Exception) -> bool:
    """Whether `error` is what a rank meets that has lost another, or that waited too long for it."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def write_if_first(failure: Failure, path: Path) -> None:
    """Write `failure` unless another rank has left the cause there already."""
    own = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}")
    write_record(failure, own)
    try:
        path.hardlink_to(own)
    except FileExistsError:
        before = read_failure(path)
        if before.attempt < failure.attempt or (before.lost_rank and not failure.lost_rank):
            own.replace(path)
    except OSError:  # a file system without links
        own.replace(path)
    finally:
        own.unlink(missing_ok=True)


def _record_of(spec: dict[str, Any]) -> str:
    return {"throughput": THROUGHPUT, "levels": LEVELS}.get(spec["measure"], RESULT)


def _run(folder: Path, spec: dict[str, Any]) -> Result | ThroughputResult | LevelsResult | None:
    """The trial's result on its main rank, None on the others, and where there was one before."""
    from pose.distributed import joined

    if spec["caches"] == "warm" and not filled(spec["shared"], folder.parents[1]):
        raise RuntimeError(NOT_FILLED)
    record = folder / _record_of(spec)
    recipe = with_crops(Recipe.model_validate(spec["recipe"]), folder, spec["shared"])
    with joined(recipe.train.parallel.world_size, recipe.train.device, captured=recipe.train.graph) as ranks:
        if ranks.any(ranks.main and record.exists()):
            return None
        if spec["measure"] == "throughput":
            from bench.throughput import measure

            return measure(recipe, spec, ranks, _Status(folder / STATUS).phase)
        if spec["measure"] == "levels":
            from bench.levels import measure_levels

            if not (folder.parent / spec["weights"] / "checkpoint.pt").exists():
                raise RuntimeError(f"the trial {spec['weights']}, whose weights it evaluates, has left no checkpoint")
            return measure_levels(recipe, spec, folder, ranks, _Status(folder / STATUS).phase)
        return _train(folder, spec, recipe, ranks)


def _train(folder: Path, spec: dict[str, Any], recipe: Recipe, ranks: Ranks) -> Result | None:
    begun, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    from bench.environment import environment
    from bench.gauges import process_age
    from bench.op_error import op_error
    from pose.data.source import load_split
    from pose.evaluator import Evaluator
    from pose.geometry import PADDING
    from pose.metrics import mean_shape, mean_shape_nme, subset_rows
    from pose.stepper import refuse_impossible, total_steps
    from pose.trainer import train

    status = _Status(folder / STATUS)
    train_faces, test_faces = load_split(recipe.data, "train"), load_split(recipe.data, "test")
    refuse_impossible(recipe, ranks, faces=len(train_faces))
    error = op_error(recipe.loss, recipe.train.precision, ranks.device)  # before hours of training, not after
    if ranks.main:
        status.write("training", total_steps(recipe.train, len(train_faces)))
    evaluator = Evaluator(test_faces, recipe.input, recipe.evaluate, ranks)
    data_seconds = time.perf_counter() - begun

    age = process_age(data_seconds)
    trained = train(
        recipe,
        train_faces,
        folder,
        seed=spec["seed"],
        ranks=ranks,
        validate=evaluator.score,
        on_look=status.look,
    )
    if ranks.main:
        status.write("evaluating", trained.steps)
    evaluation_begun = time.perf_counter()
    evaluation = evaluator.evaluate(trained.model, shown=False)
    if not ranks.main:
        return None
    evaluation_seconds = time.perf_counter() - evaluation_begun
    shape = mean_shape(train_faces.points, train_faces.center, train_faces.side * PADDING)
    shape_nme = mean_shape_nme(shape, test_faces.points, test_faces.center, test_faces.side * PADDING)
    evaluation.save(folder / "faces.npz", mean_shape_nme=shape_nme)
    throughput = None
    if trained.windows:
        throughput = Throughput(
            images_per_second=statistics.median(trained.windows),
            windows=trained.windows,
            window_steps=trained.window_steps,
            warmup_steps=trained.warmup_steps,
            batch_size=recipe.train.batch_size,
            input_share=trained.input_share,
        )
    return Result(
        trial=spec["id"],
        experiment=spec["experiment"],
        variant=spec["variant"],
        seed=spec["seed"],
        config=spec["recipe"],
        environment=environment(),
        train_faces=len(train_faces),
        test_faces=len(test_faces),
        steps=trained.steps,
        resumed_at=trained.resumed_at,
        final_loss=trained.final_loss,
        metrics=_metrics(evaluation.rows()),
        mean_shape=_metrics(subset_rows(shape_nme, test_faces.attributes, test_faces.attributes_known)),
        throughput=throughput,
        timings=Timings(
            data=data_seconds,
            first_step=trained.first_step_seconds or 0.0,
            train=trained.seconds,
            evaluate=evaluation_seconds,
            total=time.perf_counter() - begun,
        ),
        op_error=error,
        started=started,
        caches=spec["caches"],
        repeat=spec["repeat"],
        milestones=[
            Milestone(step=one.step, epoch=one.epoch, seconds=age + one.seconds, nme=one.nme)
            for one in trained.milestones
        ],
        process_seconds=process_age(time.perf_counter() - begun),
    )


def _metrics(rows: list[SubsetRow]) -> dict[str, SubsetMetrics]:
    return {
        row.name: SubsetMetrics(
            count=row.count,
            nme=row.nme if row.count else None,
            failure_rate=row.failure_rate if row.count else None,
            auc=row.auc if row.count else None,
        )
        for row in rows
    }


def read_status(path: Path) -> dict[str, Any]:
    """How far a trial says it is; {} where it does not."""
    try:
        status = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


class _Status:
    """`status.json`, which a launcher shows; written at most twice a second, and never a reason to fail.

    Its `eta` is in seconds, until training ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = 0.0
        self.begun: tuple[float, int] | None = None  # when the first steps were known, and how many

    def look(self, look: Look) -> None:
        if time.monotonic() - self.last >= STATUS_SECONDS:
            self.write("training", look.steps, look.step, look.loss, look.images_per_second)

    def phase(self, name: str, done: int, of: int) -> None:
        """Of a measurement, between its windows."""
        if done == 0 or time.monotonic() - self.last >= STATUS_SECONDS:
            self.write(name, of, done)

    def write(
        self, phase: str, steps: int, step: int = 0, loss: float | None = None, speed: float | None = None
    ) -> None:
        self.last = time.monotonic()
        eta = None
        if phase == "training" and step:
            begun, first = self.begun = self.begun or (self.last, step)
            eta = (self.last - begun) / (step - first) * (steps - step) if step > first else None
        status = {"phase": phase, "step": step, "steps": steps, "loss": loss, "images_per_second": speed, "eta": eta}
        temporary = self.path.with_suffix(".tmp")
        with suppress(OSError):  # not synced to the disk: that may take longer than a step
            temporary.write_text(json.dumps(status))
            temporary.replace(self.path)
