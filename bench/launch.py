"""Run trials one after the other, each in a fresh process."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import caches
from bench.board import Board, board
from bench.level_verdicts import level_verdicts
from bench.plan import Trial
from bench.result import (
    FAILURE,
    Failure,
    LevelsResult,
    Result,
    ThroughputResult,
    read_failure,
    read_levels,
    read_result,
    read_throughput,
    write_record,
)
from bench.trial import NOT_FILLED, STATUS, process_environment, read_status, write_spec
from pose.errors import EXIT_INPUT, InputError
from pose.progress import Update, progress
from slurm.call import Call
from slurm.here import Finished, run_here

LOG = "log.txt"
AnyResult = Result | ThroughputResult | LevelsResult


def launch(trials: Sequence[Trial], out: Path, start_within: float | None = None) -> str | None:
    """Run the trials that have no result in `out` yet; one that fails does not keep the others from running.

    start_within: seconds from now after which none is started any more.
    Returns None, or the sentence of a trial that found the user's input wrong: the rest is then not run.
    """
    begun = time.monotonic()
    with terminated_like_interrupted(), board(trials, out) as shown:
        for number, trial in enumerate(trials, start=1):
            label = f"[{number}/{len(trials)}] {trial.variant}, {trial.label}"
            if finished_result(trial, out) is not None and not caches.wanted_again(trial, trials, out):
                print(f"{label}: done before")
                if shown is not None:
                    shown.done_before(trial)
                continue
            if start_within is not None and time.monotonic() - begun > start_within:
                print(f"{label}: left for the next time, {start_within:g} s are over")
                continue
            if trial.caches == "warm" and not caches.filled(trial.shared, out):
                failure = Failure(kind="exception", message=NOT_FILLED)
                write_record(failure, trial.folder(out) / FAILURE)
                print(f"{label}: FAILED: {failure.message}", file=sys.stderr)
                continue
            finished = _run(trial, out, label, shown)
            if finished.exit_code == 0:
                continue
            ended = f"{label}: FAILED after {finished.seconds:.0f} s, see {trial.folder(out) / LOG}"
            if finished.exit_code == EXIT_INPUT:
                print(ended, file=sys.stderr)
                return _last_error(finished.tail)
            failure = read_failure(trial.folder(out) / FAILURE)
            print(f"{ended}: {failure.message}", file=sys.stderr)
            print(failure.traceback or failure.log or "", end="", file=sys.stderr)
    return None


def finished_result(trial: Trial, out: Path) -> AnyResult | None:
    """The trial's result if it has a readable one."""
    try:
        result = _read(trial, out) if trial.record(out).exists() else None
    except InputError as error:
        print(f"warning: {error}; the trial runs again", file=sys.stderr)
        return None
    if result is None:
        return None
    same = (result.trial, result.experiment, result.variant, result.seed)
    return result if same == (trial.id, trial.experiment, trial.variant, trial.seed) else None


def _read(trial: Trial, out: Path) -> AnyResult:
    path = trial.record(out)
    if trial.measure == "throughput":
        return read_throughput(path)
    return read_levels(path) if trial.measure == "levels" else read_result(path)


def prepared_call(trial: Trial, out: Path, on_gpu: bool | None = None) -> Call:
    """What runs `trial`, whose folder is made ready: nothing of an earlier run is left there but its checkpoints.

    on_gpu: whether it will have a GPU; None: as this machine would give it one.
    """
    folder = trial.folder(out).absolute()
    caches.prepare(trial, out)
    write_spec(trial, folder)
    trial.record(out).unlink(missing_ok=True)  # one that was not readable, or of another experiment
    (folder / STATUS).unlink(missing_ok=True)
    (folder / FAILURE).unlink(missing_ok=True)
    return Call(
        "bench.trial:run_trial",
        str(folder),
        folder / LOG,
        {**process_environment(trial.recipe, on_gpu, trial.reference), **caches.variables(trial, out)},
    )


def _run(trial: Trial, out: Path, label: str, shown: Board | None) -> Finished:
    call, folder = prepared_call(trial, out), trial.folder(out)
    ranks = trial.recipe.train.parallel.world_size
    if shown is not None:
        shown.begin(trial)
        finished = run_here(call, ranks=ranks, on_wait=shown.refresh)
        shown.end(trial, None if finished.exit_code == 0 else f"see {folder / LOG}")
    else:
        with progress(label, trial.recipe.train.steps or 1) as update:
            finished = run_here(call, ranks=ranks, on_wait=lambda: _say_how_far(folder / STATUS, update))
    if finished.exit_code == 0:
        print(f"{label}: {in_short(_read(trial, out))}, {finished.seconds:.0f} s")
    elif not (folder / FAILURE).exists() and finished.exit_code != EXIT_INPUT:
        cause = f"killed by {finished.signal}" if finished.signal else f"ended with exit code {finished.exit_code}"
        failure = Failure(
            kind="signal" if finished.signal else "exception",
            message=f"rank {finished.rank} of {ranks}: {cause}" if ranks > 1 else cause,
            rank=finished.rank if ranks > 1 else None,
            log=finished.tail,
        )
        write_record(failure, folder / FAILURE)
    return finished


def _say_how_far(path: Path, update: Update) -> None:
    status = read_status(path)
    if status.get("loss") is not None:
        note = f"loss {status['loss']:.4g}, {status['images_per_second']:.0f} img/s"
        update(status["step"], note, total=status["steps"])
    elif "phase" in status:
        done = status["steps"] if status["phase"] == "evaluating" else status["step"]
        update(done, status["phase"], total=status["steps"])


def in_short(result: AnyResult) -> str:
    """The figure that a trial was run for."""
    if isinstance(result, LevelsResult):
        return ", ".join(f"{one.level} {one.state}" for one in level_verdicts(result))
    if isinstance(result, ThroughputResult):
        return f"{result.training.images_per_second.value:.0f} img/s"
    nme = result.metrics["test"].nme
    speed = f", {result.throughput.images_per_second:.0f} img/s" if result.throughput else ""
    return (f"NME {100 * nme:.2f}" if nme is not None else "NME unknown") + speed


def _last_error(tail: str) -> str:
    """What followed the last "error:" that the process printed."""
    _, found, message = tail.rpartition("error: ")
    return message.strip() if found else tail.strip()


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM stops the running trial in order, as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
