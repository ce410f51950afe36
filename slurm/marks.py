"""What is noted of a job's end beside its files: by each rank of its own, and by whoever cancels it."""

from __future__ import annotations

import json
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Mark:
    """One rank's note. `exit_code` is None while it runs, and of a rank that was killed."""

    rank: int
    attempt: int
    host: str
    started: float  # seconds since 1970
    ended: float | None = None
    exit_code: int | None = None
    error: str | None = None  # traceback


def begin(folder: Path, job: str, rank: int, attempt: int) -> Mark:
    """Note that a rank of `job` has started."""
    mark = Mark(rank, attempt, socket.gethostname(), time.time())
    _write(folder, job, mark)
    return mark


def end(folder: Path, job: str, mark: Mark, exit_code: int, error: str | None) -> None:
    """Note how it ended."""
    _write(folder, job, replace(mark, ended=time.time(), exit_code=exit_code, error=error))


def read_marks(folder: Path, job: str, ranks: int) -> list[Mark]:
    """The notes of the ranks of `job`'s last attempt."""
    found = []
    for rank in range(ranks):
        with suppress(OSError, ValueError, TypeError):
            found.append(Mark(**json.loads(_path(folder, job, rank).read_bytes())))
    last = max((mark.attempt for mark in found), default=0)
    return [mark for mark in found if mark.attempt == last]


def note_cancelled(folder: Path, job: str) -> None:
    """Note that `job` was ended on request: of one that never began Slurm may soon know nothing, or not yet."""
    with suppress(OSError):
        (folder / f"{job}_cancelled").touch()


def was_cancelled(folder: Path, job: str) -> bool:
    """Whether somebody noted that."""
    return (folder / f"{job}_cancelled").exists()


def _path(folder: Path, job: str, rank: int) -> Path:
    return folder / f"{job}_{rank}_rank.json"


def _write(folder: Path, job: str, mark: Mark) -> None:
    path = _path(folder, job, mark.rank)
    temporary = path.with_suffix(".tmp")
    with suppress(OSError):  # of no consequence to what the rank does
        temporary.write_text(json.dumps(asdict(mark)))
        temporary.replace(path)
