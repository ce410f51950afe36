"""What an experiment has sent to a cluster: a record for each array, written before it is sent and again after.

jobs/WHEN-TOKEN/submission.json   `Submission`; beside it the files of submitit and of the jobs' ranks
code/DIGEST/                      the code that the jobs run
"""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench.result import Record, read_record, write_record
from slurm.backend import Kind
from slurm.cluster import Slurm
from slurm.local import Local
from slurm.states import JobState

JOBS, CODE = "jobs", "code"
SUBMISSION = "submission.json"


class Submission(Record):
    """Trials that were sent together. `jobs` holds an id for each; None until the cluster has given them."""

    schema_version: Literal[1] = 1
    cluster: Kind
    name: str  # of the jobs: no others have it
    trials: list[str]
    jobs: list[str] | None = None
    ranks: int  # of each trial
    minutes: int  # their time limit
    requeue: bool
    commit: str | None  # of the code
    dirty: bool | None
    host: str  # of the launcher
    process: int
    submitted: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Job:
    """A trial that was sent: with what, and as which job."""

    trial: str
    id: str
    folder: Path
    submission: Submission


def new_folder(out: Path) -> Path:
    """Where the next submission of the experiment in `out` has its files; names sort by time."""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S.%f")
    return (out / JOBS / f"{now}-{secrets.token_hex(3)}").absolute()


def job_name(experiment: str, folder: Path) -> str:
    return f"{experiment}-{folder.name.rpartition('-')[2]}"


def write(submission: Submission, folder: Path) -> None:
    write_record(submission, folder / SUBMISSION)


def intent(
    name: str,
    cluster: Kind,
    trials: Sequence[str],
    ranks: int,
    minutes: int,
    requeue: bool,
    commit: tuple[str | None, bool | None],
) -> Submission:
    """A submission that is about to be made by this process."""
    return Submission(
        cluster=cluster,
        name=name,
        trials=list(trials),
        ranks=ranks,
        minutes=minutes,
        requeue=requeue,
        commit=commit[0],
        dirty=commit[1],
        host=platform.node(),
        process=os.getpid(),
        submitted=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def read_all(out: Path) -> list[tuple[Path, Submission]]:
    """All submissions of the experiment in `out` with their folders, oldest first.

    Raises `InputError` for a record that cannot be read: what was sent cannot be guessed.
    """
    paths = sorted((out / JOBS).glob(f"*/{SUBMISSION}"))
    return [(path.parent.absolute(), read_record(path, Submission)) for path in paths]


def everything(submissions: Sequence[tuple[Path, Submission]]) -> list[Job]:
    """All jobs, oldest first."""
    return [
        Job(trial, job, folder, submission)
        for folder, submission in submissions
        for trial, job in zip(submission.trials, submission.jobs or (), strict=False)
    ]


def by_cluster(jobs: Iterable[Job]) -> dict[Kind, list[Job]]:
    found: dict[Kind, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.submission.cluster, []).append(job)
    return found


def look(jobs: Iterable[Job], cluster: Slurm | Local) -> dict[str, JobState]:
    """What `cluster`, to which they were sent, says of `jobs`, by id. Raises `slurm.states.Silent`."""
    folders = {job.id: job.folder for job in jobs}
    return cluster.look(folders, folders)


def latest(submissions: Sequence[tuple[Path, Submission]]) -> dict[str, Job]:
    """Of each trial that was sent the last job."""
    return {job.trial: job for job in everything(submissions)}
