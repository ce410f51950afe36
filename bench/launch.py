"""Run trials one after the other, each in a fresh process."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.plan import Trial
from bench.result import FAILURE, RESULT, Failure, Result, read_result, write_record
from bench.trial import STATUS, process_environment, write_spec
from pose.errors import EXIT_INPUT, InputError
from pose.progress import progress
from slurm.here import Finished, run_here

LOG = "log.txt"


def launch(trials: Sequence[Trial], out: Path) -> str | None:
    """Run the trials that have no result in `out` yet; one that fails does not keep the others from running.

    Returns None, or the sentence of a trial that found the user's input wrong: the rest is then not run.
    """
    with _terminated_like_interrupted():
        for number, trial in enumerate(trials, start=1):
            label = f"[{number}/{len(trials)}] {trial.variant}, seed {trial.seed}"
            if finished_result(trial, out) is not None:
                print(f"{label}: done before")
                continue
            finished = _run(trial, trial.folder(out), label)
            if finished.exit_code == 0:
                continue
            print(f"{label}: FAILED after {finished.seconds:.0f} s, see {trial.folder(out) / LOG}", file=sys.stderr)
            if finished.exit_code == EXIT_INPUT:
                return _last_error(finished.tail)
    return None


def finished_result(trial: Trial, out: Path) -> Result | None:
    """The trial's result if it has a readable one."""
    path = trial.folder(out) / RESULT
    try:
        result = read_result(path) if path.exists() else None
    except InputError as error:
        print(f"warning: {error}; the trial runs again", file=sys.stderr)
        return None
    if result is None:
        return None
    same = (result.trial, result.experiment, result.variant, result.seed)
    return result if same == (trial.id, trial.experiment, trial.variant, trial.seed) else None


def _run(trial: Trial, folder: Path, label: str) -> Finished:
    write_spec(trial, folder)
    (folder / RESULT).unlink(missing_ok=True)  # one that was not readable, or of another experiment
    (folder / STATUS).unlink(missing_ok=True)
    with progress(label, trial.recipe.train.steps or 1) as update:

        def show_status() -> None:
            status = _status(folder / STATUS)
            if status.get("step"):
                note = f"loss {status['loss']:.4g}, {status['images_per_second']:.0f} img/s"
                update(status["step"], note, total=status["steps"])
            elif "phase" in status:
                update(0 if status["phase"] == "training" else status["steps"], status["phase"], total=status["steps"])

        finished = run_here(
            "bench.trial:run_trial",
            str(folder),
            environment=process_environment(trial.recipe),
            log=folder / LOG,
            on_wait=show_status,
        )
    if finished.exit_code == 0:
        result = read_result(folder / RESULT)
        nme = result.metrics["test"].nme
        speed = f", {result.throughput.images_per_second:.0f} img/s" if result.throughput else ""
        score = f"NME {100 * nme:.2f}" if nme is not None else "NME unknown"
        print(f"{label}: {score}{speed}, {finished.seconds:.0f} s")
    elif not (folder / FAILURE).exists() and finished.exit_code != EXIT_INPUT:
        cause = f"killed by {finished.signal}" if finished.signal else f"ended with exit code {finished.exit_code}"
        failure = Failure(kind="signal" if finished.signal else "exception", message=cause, log=finished.tail)
        write_record(failure, folder / FAILURE)
    return finished


def _status(path: Path) -> dict[str, Any]:
    try:
        status = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def _last_error(tail: str) -> str:
    """What followed the last "error:" that the process printed."""
    _, found, message = tail.rpartition("error: ")
    return message.strip() if found else tail.strip()


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM stops the running trial in order, as Ctrl-C does."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
