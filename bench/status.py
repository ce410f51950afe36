"""How far the trials of an experiment are, from its folder and its cluster's word."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
SHOWN = 30  # trials at a time on a terminal
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
    loss: float | None = None
    speed: float | None = None  # images per second


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
    from bench.outcome import failure_of
    from bench.trial import STATUS, read_status

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
    row = running_row(name, status)
    notes = [state.name.lower()] if state is not None and state.name != "RUNNING" else []
    notes += [row.note] if row.note else []
    return replace(row, job=job, nodes=state.nodes if state is not None else "", note=", ".join(notes))


def running_row(name: str, status: dict[str, Any]) -> Row:
    """A trial that runs, as its `status.json` says."""
    return Row(
        name,
        "running",
        step=status.get("step"),
        steps=status.get("steps"),
        eta=status.get("eta"),
        note=str(status.get("phase") or "starting"),
        loss=status.get("loss"),
        speed=status.get("images_per_second"),
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
    with Live(console=console, auto_refresh=False) as view:
        while True:
            found = rows(out)
            view.update(group(found), refresh=True)
            if not any(row.state in ("queued", "running") for row in found):
                return
            time.sleep(REFRESH_SECONDS)


@contextmanager
def watching(out: Path, line_seconds: float) -> Iterator[Callable[[Mapping[str, JobState | None]], None]]:
    """While a launcher waits: the table on a terminal, a line now and then elsewhere."""
    if sys.stderr is not None and sys.stderr.isatty():
        with live() as view:
            yield lambda known: view.update(group(rows(out, known)), refresh=True)
        return
    last = time.monotonic()

    def line(known: Mapping[str, JobState | None]) -> None:
        nonlocal last
        if time.monotonic() - last >= line_seconds:
            last = time.monotonic()
            print(_summary(rows(out, known)), file=sys.stderr, flush=True)

    yield line


@contextmanager
def live() -> Iterator[Any]:
    """What keeps a table at the foot of the terminal, above which ordinary output goes on; gone when the block ends."""
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, stderr=True)
    with Live(
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # output that goes to a file stays there
        vertical_overflow="crop",
    ) as view:
        yield view


def _summary(found: list[Row], seconds_left: float | None = None) -> str:
    counts = {state: sum(row.state == state for row in found) for state in STATES}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    etas = [row.eta for row in found if row.eta is not None]
    if seconds_left is not None:
        text += f"; all of them need about {_duration(seconds_left)} more"
    elif etas:
        text += f"; the last that runs needs {_duration(max(etas))}"
    return f"{len(found)} trials: {text}"


def _table(found: list[Row]) -> Any:
    from rich import box
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    jobs = any(row.job for row in found)
    for name in ("trial", "state", *(("job", "nodes") if jobs else ()), "", "step", "img/s", "loss", "ETA", " "):
        table.add_column(name, justify="right" if name in ("step", "img/s", "loss", "ETA") else "left", overflow="fold")
    colors = {"done": "green", "failed": "red", "running": "cyan", "queued": "yellow"}
    for row in found:
        table.add_row(
            Text(row.trial),
            Text(row.state, style=colors.get(row.state, "")),
            *((row.job, Text(row.nodes)) if jobs else ()),
            ProgressBar(row.steps, row.step, width=12) if row.steps and row.step is not None else "",
            f"{row.step:,}/{row.steps:,}" if row.step is not None and row.steps is not None else "",
            f"{row.speed:,.0f}" if row.speed is not None else "",
            f"{row.loss:.4g}" if row.loss is not None else "",
            _duration(row.eta) if row.eta is not None else "",
            Text(row.note),
        )
    return table


def group(found: list[Row], seconds_left: float | None = None) -> Any:
    """The table with its summary. Of very many trials those that are of interest now: what runs, failed, comes next."""
    from rich.console import Group

    order = ("running", "failed", "queued", "not sent", "done")
    most = sorted(found, key=lambda row: order.index(row.state))[:SHOWN] if len(found) > SHOWN else found
    names = {row.trial for row in most}
    shown = [row for row in found if row.trial in names]
    return Group(_table(shown), _summary(found, seconds_left))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
