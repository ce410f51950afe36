"""How far the trials of an experiment are, from its folder and its cluster's word."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import submissions
from bench.experiment import TRIALS, read_experiment
from bench.result import FAILURE, read_failure
from bench.submissions import Job
from pose.errors import InputError
from slurm.backend import backend
from slurm.request import Refused
from slurm.states import JobState, Silent

REFRESH_SECONDS = 2.0
STATES = ("done", "running", "queued", "failed", "not sent")


@dataclass(frozen=True)
class Row:
    """One trial."""

    trial: str
    state: str  # of STATES
    job: str = ""
    nodes: str = ""
    step: int | None = None
    steps: int | None = None
    eta: float | None = None  # seconds
    note: str = ""


def rows(out: Path, known: Mapping[str, JobState | None] | None = None) -> list[Row]:
    """The trials of the experiment in `out`. known: states that the caller has just asked for.

    Raises `InputError` where `out` is no experiment.
    """
    experiment = read_experiment(out)
    done = {one.folder.name for one in experiment.everything}
    jobs = submissions.latest(submissions.read_all(out))
    waiting = {name: job for name, job in jobs.items() if name not in done}
    states, silent = (dict(known), "") if known is not None else _ask(waiting)
    return [
        Row(name, "done", jobs[name].id if name in jobs else "")
        if name in done
        else _row(name, out / TRIALS / name, waiting.get(name), states.get(name), silent)
        for name in experiment.config["trials"]
    ]


def _ask(jobs: Mapping[str, Job]) -> tuple[dict[str, JobState | None], str]:
    """The states of `jobs` by trial, and what a cluster says that does not answer."""
    states: dict[str, JobState | None] = {}
    silent = ""
    for kind, some in submissions.by_cluster(jobs.values()).items():
        try:
            found = submissions.look(some, backend(kind))
        except (Silent, Refused) as error:
            silent = str(error)
        else:
            states |= {job.trial: found[job.id] for job in some}
    return states, silent


def _row(name: str, folder: Path, job: Job | None, state: JobState | None, silent: str) -> Row:
    from bench.launch import read_status
    from bench.outcome import failure_of
    from bench.trial import STATUS

    id, status = job.id if job is not None else "", read_status(folder / STATUS)
    if job is not None and state is not None:
        if state.name == "PENDING":
            return Row(name, "queued", id, note=state.reason)
        if state.alive and not status and (job.submission.jobs or []).count(id) > 1:
            return Row(name, "queued", id, state.nodes, note="its turn in the job comes")
        if state.alive:
            return _running(name, status, id, state)
        return Row(name, "failed", id, state.nodes, note=failure_of(job, state, folder).message)
    if (folder / FAILURE).exists():  # also of a job that its launcher has given up
        try:
            return Row(name, "failed", id, note=read_failure(folder / FAILURE).message)
        except (InputError, OSError) as error:
            return Row(name, "failed", id, note=str(error))
    if job is not None:
        return Row(name, "queued", id, note=silent or "state not known")
    return _running(name, status, id, None) if status else Row(name, "not sent")


def _running(name: str, status: dict[str, Any], job: str, state: JobState | None) -> Row:
    notes = [state.name.lower()] if state is not None and state.name != "RUNNING" else []
    notes += [str(status["phase"])] if status.get("phase") else []
    if status.get("loss") is not None:
        notes.append(f"loss {status['loss']:.4g}, {status['images_per_second']:.0f} img/s")
    return Row(
        name,
        "running",
        job,
        state.nodes if state is not None else "",
        status.get("step"),
        status.get("steps"),
        status.get("eta"),
        ", ".join(notes),
    )


def show(out: Path) -> None:
    """Print the table once, or on a terminal keep it up to date while anything is queued or running."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    if not console.is_terminal:
        found = rows(out)
        Console(highlight=False, width=160).print(_table(found), _summary(found), sep="\n")
        return
    with Live(console=console, auto_refresh=False) as live:
        while True:
            found = rows(out)
            live.update(_group(found), refresh=True)
            if not any(row.state in ("queued", "running") for row in found):
                return
            time.sleep(REFRESH_SECONDS)


@contextmanager
def watching(out: Path, line_seconds: float) -> Iterator[Callable[[Mapping[str, JobState | None]], None]]:
    """While a launcher waits: the table on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, stderr=True)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield lambda known: live.update(_group(rows(out, known)), refresh=True)
        return
    last = time.monotonic()

    def line(known: Mapping[str, JobState | None]) -> None:
        nonlocal last
        if time.monotonic() - last >= line_seconds:
            last = time.monotonic()
            print(_summary(rows(out, known)), file=sys.stderr, flush=True)

    yield line


def _summary(found: list[Row]) -> str:
    counts = {state: sum(row.state == state for row in found) for state in STATES}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    etas = [row.eta for row in found if row.eta is not None]
    return f"{len(found)} trials: {text}" + (f"; the last that runs needs {_duration(max(etas))}" if etas else "")


def _table(found: list[Row]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("trial", "state", "job", "nodes", "step", "ETA", ""):
        table.add_column(name, justify="right" if name in ("step", "ETA") else "left", overflow="fold")
    colors = {"done": "green", "failed": "red", "running": "cyan", "queued": "yellow"}
    for row in found:
        table.add_row(
            Text(row.trial),
            Text(row.state, style=colors.get(row.state, "")),
            row.job,
            Text(row.nodes),
            f"{row.step:,}/{row.steps:,}" if row.step is not None and row.steps is not None else "",
            _duration(row.eta) if row.eta is not None else "",
            Text(row.note),
        )
    return table


def _group(found: list[Row]) -> Any:
    from rich.console import Group

    return Group(_table(found), _summary(found))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
