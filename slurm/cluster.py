"""Jobs on a SLURM cluster, sent by submitit. What submitit says of their state is not used: see `slurm.states`."""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal

from slurm.call import Call
from slurm.client import output
from slurm.request import Refused, Request, exports
from slurm.states import JobState, named, names, states

LARGEST_ARRAY = 1001  # Slurm's own limit where the cluster does not tell one
_SUBMITTING_SECONDS = 120.0
_CANCEL_SECONDS = 600.0  # a busy controller takes its time, and what is not cancelled goes on


class Slurm:
    """The cluster whose client commands are on this machine.

    Jobs belong together by `name`: whoever starts again after a crash finds by it what may have been sent.
    """

    kind: Literal["slurm"] = "slurm"
    detached = True  # jobs wait in the cluster's own queue, so their launcher may go

    def __init__(self) -> None:
        for command in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
            if shutil.which(command) is None:
                raise Refused(f"{command} is not on this machine: it is no part of a SLURM cluster")

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
        """Send `calls` as one array, or as one job if there is one; returns the id of each.

        folder: for files of the job's own, shared with the nodes. search_path: where they find the code.
        parallel: how many may run at a time. after: jobs that have to end before any starts.
        Raises `Refused` with the scheduler's own sentence.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        executor = _executor(request, name, folder, search_path, parallel, after)
        folder.mkdir(parents=True, exist_ok=True)
        said = io.StringIO()
        try:
            with redirect_stderr(said):  # submitit repeats there what its error says
                jobs = executor.submit_array(list(calls))
        except (FailedJobError, FailedSubmissionError) as error:
            raise Refused(sentence(str(error))) from None
        return [job.job_id for job in jobs]

    def look(self, jobs: Collection[str], folders: Mapping[str, Path]) -> dict[str, JobState]:
        """The state of each of `jobs`. Raises `slurm.states.Silent`."""
        return states(jobs)

    def cancel(self, jobs: Collection[str], *, name: str, folder: Path) -> list[str]:
        """End those of `jobs` that are alive and called `name`; returns them. A number may be another's job by now."""
        alive = names(jobs)
        ours = [job for job in jobs if alive.get(job) == name]
        for start in range(0, len(ours), 500):  # a command line has an end
            output("scancel", *ours[start : start + 500], seconds=_CANCEL_SECONDS)
        return ours

    def end_orphans(self, name: str, folder: Path) -> list[str]:
        """End the jobs called `name` of a launcher that died before it noted their ids; returns these.

        Waits for an sbatch that may still be at work, and until the jobs are gone. Raises `slurm.states.Silent`.
        """
        deadline = time.monotonic() + _SUBMITTING_SECONDS
        while _sbatch_at_work(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        found = named(name)
        if found:
            output("scancel", *found, seconds=_CANCEL_SECONDS)
        while named(name) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def largest_array(self) -> int:
        """How many jobs an array may have."""
        limit = re.search(r"MaxArraySize\s*=\s*(\d+)", output("scontrol", "show", "config") or "")
        return int(limit[1]) if limit else LARGEST_ARRAY  # one more than the highest index


def script(
    request: Request, *, name: str, folder: Path, search_path: Path, count: int = 1, parallel: int | None = None
) -> str:
    """The sbatch script that `Slurm.submit` would send for `count` calls; needs no cluster."""
    executor = _executor(request, name, folder, search_path, parallel, ())
    if count > 1:
        executor.parameters["map_count"] = count
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def _executor(
    request: Request, name: str, folder: Path, search_path: Path, parallel: int | None, after: Sequence[str]
) -> Any:
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 2  # of what it needs, the class above has been sure

    refuse_path(folder)
    executor = Executor(folder=folder, python=shlex.quote(sys.executable))
    parameters = request.parameters()
    parameters["setup"] = [*parameters["setup"], *exports(search_path)]
    if after:
        parameters["dependency"] = "afterany:" + ":".join(after)
    if parallel is not None:
        parameters["array_parallelism"] = parallel
    executor.update_parameters(job_name=name, **parameters)
    return executor


def refuse_path(folder: Path) -> None:
    """Raise `Refused` for a folder that a line of sbatch cannot name: Slurm puts other things in for a %."""
    bad = sorted({char for char in str(folder.absolute()) if char in "%\\" or not char.isprintable()})
    if bad:
        listed = ", ".join(repr(char) for char in bad)
        raise Refused(f"{str(folder.absolute())!r}: Slurm cannot use a path with {listed} in it")


def sentence(text: str) -> str:
    """What sbatch says, without its own name and on one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line) or "sbatch failed and said nothing"


def _sbatch_at_work(folder: Path) -> bool:
    """Whether a process of this machine is submitting something from `folder`."""
    wanted = os.fsencode(str(folder.absolute())) + b"/"
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.endswith(b"sbatch") for word in words[:1]) and any(word.startswith(wanted) for word in words):
            return True
    return False
