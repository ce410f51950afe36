"""What a job runs, and what each of its processes does before, around and after it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from slurm import marks
from slurm.client import output
from slurm.leave import leave

STOPPED = 75  # exit code of a function that was asked to stop, has saved its state and can go on (EX_TEMPFAIL)
ATTEMPT = "JOB_ATTEMPT"  # environment variable: 0, and one more each time Slurm has put the job back into the queue
JOB = "JOB_ID"  # the same: Slurm's name of the job
NODES = "JOB_NODES"  # the same: the nodes it has

_END_SECONDS = 120.0  # for Slurm to end a job that it has been asked to requeue
_ANSWER_SECONDS = 60.0  # for what is asked once, at the end


@dataclass(frozen=True)
class Call:
    """`function` ("package.module:name") called with `argument`, in a process for each rank.

    By name and not as an object: to unpickle a function is to import its module, and `environment` has to hold before
    anything of it is imported. The function's return value is the exit code; a rank whose code is not 0 takes the
    others down. What rank 0 prints goes to `log`, what rank r prints to the same name with "rank-r" in it (of
    `slurm.here`, all to `log`).

    requeue: in a job that Slurm may put back into the queue, rank 0 has it do so once the function has returned
    `STOPPED`, or when the time limit or a preemption comes while the function does not listen for signals.
    """

    function: str
    argument: str
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    requeue: bool = False
    max_requeues: int = 0

    def resumable(self, max_requeues: int) -> Call:
        """The same, of a function that goes on from where it was when it is called again."""
        return replace(self, requeue=True, max_requeues=max_requeues)

    def __call__(self) -> int:
        """Be one rank of a job of submitit's: this is what it pickles."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        if attempt:  # a job that runs again must not look finished
            job.paths.result_pickle.unlink(missing_ok=True)
        os.environ.update(self.environment)
        os.environ.update(_distributed(job, attempt))
        folder = job.paths.folder
        mark = marks.begin(folder, job.job_id, job.global_rank, attempt)
        requeue = _Requeue(self, job, attempt)
        with _printing_to(self._own_log(job.global_rank)), requeue.on_signal():
            error = None
            try:
                code = call_by_name(self.function, self.argument)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except BaseException:
                error = traceback.format_exc()
                print(error, file=sys.stderr)
                code = 1
            if code == STOPPED:
                requeue.now()
            marks.end(folder, job.job_id, mark, code, error)
            if code or job.num_tasks > 1:
                leave(code)
        return code

    def _own_log(self, rank: int) -> Path:
        return self.log.with_name(f"{self.log.stem}.rank-{rank}{self.log.suffix}") if rank else self.log


def call_by_name(function: str, argument: str) -> int:
    """Call `function` ("package.module:name") in this process, which has its environment."""
    module, _, name = function.partition(":")
    return int(getattr(importlib.import_module(module), name)(argument))


class _Requeue:
    """Has Slurm put this job back into the queue, if that is this rank's to do and the job may."""

    def __init__(self, call: Call, job: Any, attempt: int) -> None:
        self._in_slurm = job.name() == "slurm"
        self._wanted = call.requeue and self._in_slurm and job.global_rank == 0
        self._left = call.max_requeues - attempt
        self._id = job.raw_job_id

    @contextmanager
    def on_signal(self) -> Iterator[None]:
        """While the block runs, the signal that announces the end has rank 0 requeue the job; SIGTERM does nothing.

        SIGTERM comes before SIGKILL when Slurm ends a job for whatever reason; it has decided already what follows.
        A function that listens for both itself, to save, has its own handlers meanwhile.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
        signal.signal(signal.SIGTERM, signal.SIG_IGN if self._in_slurm else signal.SIG_DFL)
        signal.signal(signal.SIGUSR2, lambda *_: self.now())
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def now(self) -> None:
        """Requeue and wait for the end; comes back if there is nothing to requeue, or Slurm does not want to."""
        if not self._wanted:
            return
        if self._left <= 0:
            print("not requeued: it has been too often", file=sys.stderr)
            return
        state = (
            output("squeue", "-h", "-o", "%T", "-j", self._id, seconds=_ANSWER_SECONDS, complaint_shown=True) or ""
        ).strip()
        if state != "RUNNING":  # cancelled, or requeued already
            print(f"not requeued: the job is {state or 'not known to Slurm'}", file=sys.stderr)
        elif output("scontrol", "requeue", self._id, seconds=_ANSWER_SECONDS, complaint_shown=True) is None:
            print("not requeued: Slurm refuses", file=sys.stderr)
            return
        sys.stderr.flush()
        time.sleep(_END_SECONDS)  # a signal does not shorten it; Slurm ends this process meanwhile


def _distributed(job: Any, attempt: int) -> dict[str, str]:
    """torchrun's variables from the job's own, and what the function may want to know of its job."""
    known = {ATTEMPT: str(attempt), JOB: job.job_id, NODES: ",".join(job.hostnames)}
    if job.num_tasks == 1:
        return known
    # Below the ports that a kernel gives away by itself; another one for the next attempt
    port = 10_000 + (int(job.raw_job_id) * 31 + attempt * 7) % 20_000
    local = job.local_rank
    if "SLURM_GPUS_PER_TASK" in os.environ:  # each rank sees its own GPUs only, and counts them from 0
        local %= max(1, len(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")))
    return known | {
        "RANK": str(job.global_rank),
        "WORLD_SIZE": str(job.num_tasks),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(job.num_tasks // job.num_nodes),
        "MASTER_ADDR": "127.0.0.1" if job.num_nodes == 1 else job.hostnames[0],
        "MASTER_PORT": str(port),
    }


@contextmanager
def _printing_to(log: Path) -> Iterator[None]:
    """This process's output goes to `log`, at once and without a helper that could die first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(before, start=1):
            os.dup2(old, number)
            os.close(old)
