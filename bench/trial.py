"""One trial, in a process of its own: train, evaluate, and leave `result.json` or `failure.json` in its folder."""

from __future__ import annotations

import json
import statistics
import sys
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.plan import Trial
from bench.result import FAILURE, RESULT, Failure, Result, SubsetMetrics, Throughput, Timings, write_record
from pose.errors import EXIT_INPUT, InputError
from pose.files import write_atomically
from pose.recipe import Recipe

if TYPE_CHECKING:
    from pose.distributed import Ranks
    from pose.metrics import SubsetRow
    from pose.trainer import Look

SPEC = "trial.json"
STATUS = "status.json"
EXIT_FAILED = 3
STATUS_SECONDS = 0.5


def write_spec(trial: Trial, folder: Path) -> None:
    """Leave in `folder` what `run_trial` needs to know."""
    spec = {**vars(trial), "recipe": trial.recipe.model_dump(mode="json")}
    write_atomically(folder / SPEC, json.dumps(spec, indent=1).encode() + b"\n")


def process_environment(recipe: Recipe) -> dict[str, str]:
    """Variables that have to be set before the trial's process imports anything."""
    variables = {"OMP_WAIT_POLICY": "PASSIVE"}  # spinning threads starve each other where cores are shared
    if recipe.train.threads is not None:
        variables["OMP_NUM_THREADS"] = str(recipe.train.threads)
    if recipe.loss.impl == "triton" and not _on_gpu(recipe.train.device):
        variables["TRITON_INTERPRET"] = "1"
    return variables


def _on_gpu(device: str) -> bool:
    if device != "auto":
        return device == "cuda"
    from pose.precision import select_device

    return select_device(device).type == "cuda"


def run_trial(argument: str) -> int:
    """Run the trial whose folder is `argument`; the entry point that `slurm` calls. Returns the exit code."""
    folder = Path(argument)
    (folder / FAILURE).unlink(missing_ok=True)
    from pose.trainer import Interrupted, NonFiniteLoss

    try:
        result = _run(folder)
        if result is not None:
            write_record(result, folder / RESULT)
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
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        failure = Failure(kind="exception", message=message, traceback=traceback.format_exc())
        traceback.print_exc()
    else:
        (folder / STATUS).unlink(missing_ok=True)
        return 0
    print(f"error: {failure.message}", file=sys.stderr)
    with suppress(InputError):  # a full disk: the exit code and the last line tell
        write_record(failure, folder / FAILURE)
    return EXIT_INPUT if failure.kind == "input" else EXIT_FAILED


def _run(folder: Path) -> Result | None:
    """The trial's result on its main rank, None on the others."""
    from pose.distributed import joined

    spec = json.loads((folder / SPEC).read_bytes())
    recipe = Recipe.model_validate(spec["recipe"])
    with joined(recipe.train.parallel.world_size, recipe.train.device) as ranks:
        return _train(folder, spec, recipe, ranks)


def _train(folder: Path, spec: dict[str, Any], recipe: Recipe, ranks: Ranks) -> Result | None:
    begun, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    from bench.environment import environment
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


class _Status:
    """`status.json`, which a launcher shows; written at most twice a second, and never a reason to fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = 0.0

    def look(self, look: Look) -> None:
        if time.monotonic() - self.last >= STATUS_SECONDS:
            self.write("training", look.steps, look.step, look.loss, look.images_per_second)

    def write(
        self, phase: str, steps: int, step: int = 0, loss: float | None = None, speed: float | None = None
    ) -> None:
        self.last = time.monotonic()
        status = {"phase": phase, "step": step, "steps": steps, "loss": loss, "images_per_second": speed}
        with suppress(InputError):
            write_atomically(self.path, json.dumps(status).encode())
