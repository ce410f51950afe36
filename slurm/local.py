"""Jobs on this machine, started by submitit: they outlive their launcher, as a cluster's do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from slurm.call import Call
from slurm.marks import read_marks
from slurm.request import Request
from slurm.states import JobState

_TAKE_DOWN_SECONDS = 10.0  # for the others, after one rank of a job has ended: they may be saving


class Local:
    """This machine. All ranks of a job run here, whatever number of nodes is asked for; its id is a process's."""

    kind: Literal["local"] = "local"
    detached = False  # whoever launches has to hold back what may not run yet

    def __init__(self) -> None:
        self._incomplete: dict[str, float] = {}  # since when a job has lacked ranks

    def submit(
        self,
        calls: Sequence[Call],
        request: Request,
        *,
        name: str,
        folder: Path,
        search_path: Path,
        parallel: int | None = None,
        after: Sequence[str] = (),
    ) -> list[str]:
        """Start `calls` at once, all of them; returns the id of each. `slurm.cluster.Slurm.submit` says the rest."""
        from submitit import LocalExecutor

        folder.mkdir(parents=True, exist_ok=True)
        before = {name: os.environ.get(name) for name in ("PYTHONPATH", "PYTHONSAFEPATH")}
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(search_path), before["PYTHONPATH"])))
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            executor = LocalExecutor(folder=folder)
            executor.update_parameters(
                tasks_per_node=request.ranks,
                gpus_per_node=request.gpus_per_rank * request.ranks,
                timeout_min=request.minutes,
                stderr_to_stdout=True,
            )
            return [job.job_id for job in executor.submit_array(list(calls))]
        finally:
            for variable, value in before.items():
                if value is None:
                    os.environ.pop(variable, None)
                else:
                    os.environ[variable] = value

    def look(self, jobs: Collection[str], folders: Mapping[str, Path]) -> dict[str, JobState]:
        """The state of each of `jobs`, whose files lie in `folders`: RUNNING or COMPLETED, be it well or not.

        Takes down what is left of a job of which a rank has ended badly, as srun does.
        """
        found = {}
        for job in jobs:
            alive = _is_job(job, folders[job])
            if alive:
                self._take_down(job, folders[job])
            found[job] = JobState("RUNNING" if alive else "COMPLETED")
        return found

    def cancel(self, jobs: Collection[str], *, name: str, folder: Path) -> list[str]:
        """Ask those of `jobs` that are alive to stop; returns them."""
        alive = [job for job in jobs if _is_job(job, folder)]
        for job in alive:
            with suppress(ProcessLookupError):
                os.kill(int(job), signal.SIGTERM)  # submitit hands it on
        return alive

    def end_orphans(self, name: str, folder: Path) -> list[str]:
        """End the jobs of a launcher that died before it noted their ids; returns these."""
        found = [path.name for path in Path("/proc").glob("[0-9]*") if _is_job(path.name, folder)]
        for job in found:
            for process in (*_children(job), int(job)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        return found

    def _take_down(self, job: str, folder: Path) -> None:
        children, ranks = _children(job), _ranks(job)
        well = sum(mark.exit_code == 0 for mark in read_marks(folder, job, ranks))
        if not children or len(children) >= ranks - well:
            self._incomplete.pop(job, None)
        elif time.monotonic() - self._incomplete.setdefault(job, time.monotonic()) > _TAKE_DOWN_SECONDS:
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def _is_job(job: str, folder: Path) -> bool:
    """Whether process `job` runs what submitit starts for `folder`: a number may be another's process by now."""
    for _ in range(20):
        words = _words(Path("/proc") / job / "cmdline")
        if any(words) or not words or _is_zombie(job):
            break
        time.sleep(0.01)  # it is just being started, and has no command line yet
    return b"submitit.local._local" in words and os.fsencode(str(folder.absolute())) in words


def _is_zombie(job: str) -> bool:
    with suppress(OSError, IndexError):
        return (Path("/proc") / job / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def _ranks(job: str) -> int:
    for word in _words(Path("/proc") / job / "environ"):
        if word.startswith(b"SUBMITIT_LOCAL_NTASKS="):
            return int(word.partition(b"=")[2])
    return 0


def _children(job: str) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in (Path("/proc") / job / "task" / job / "children").read_text().split()]
    return []


def _words(path: Path) -> list[bytes]:
    with suppress(OSError):
        return path.read_bytes().split(b"\0")
    return []
