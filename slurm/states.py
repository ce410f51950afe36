"""What the cluster says of jobs: from its controller, from its accounting, from either alone where the other fails."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from slurm.client import output

GONE = "GONE"  # neither controller nor accounting knows the job any more

# Of a job that holds or awaits nodes; COMPLETING: its processes are still being ended
ALIVE = {
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip

# Why a job waits that will not go away by waiting
HOPELESS = {
    "PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "AccountNotAllowed", "QOSNotAllowed", "InvalidQOS",
    "InvalidAccount", "QOSMaxWallDurationPerJobLimit", "AssocMaxWallDurationPerJobLimit", "QOSMaxNodePerJobLimit",
    "QOSMaxGRESPerJob", "AssocMaxNodePerJobLimit", "AssocMaxGRESPerJob", "DependencyNeverSatisfied",
}  # fmt: skip


class Silent(Exception):
    """Neither the controller nor the accounting answers."""


@dataclass(frozen=True)
class Step:
    """A part of a job: "batch", "0" for the first srun, ..."""

    name: str
    state: str
    exit_code: int
    signal: int


@dataclass(frozen=True)
class JobState:
    """Slurm's words for a job: `name` is the state in its long form, `reason` why it waits or why it ended."""

    name: str
    reason: str = ""
    nodes: str = ""
    exit_code: int = 0
    signal: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def alive(self) -> bool:
        return self.name in ALIVE

    @property
    def hopeless(self) -> bool:
        return self.name == "PENDING" and self.reason in HOPELESS


def states(jobs: Collection[str]) -> dict[str, JobState]:
    """The state of each of `jobs` ("12", "12_3" for an array's), in at most two questions for all of them.

    The controller knows first: of a job that it has put back into the queue, the accounting may still say how its
    last attempt ended. The accounting knows more, and for longer, of jobs that have ended. Raises `Silent`.
    """
    if not jobs:
        return {}
    queue = _queue()
    found = {job: queue[job] for job in jobs if queue is not None and job in queue}
    ended = [job for job in jobs if job not in found or not found[job].alive]
    if not ended:
        return found
    accounts = _accounting(ended)
    if queue is None and accounts is None:
        raise Silent("neither squeue nor sacct answers")
    for job in ended:
        in_queue, account = found.get(job), (accounts or {}).get(job)
        if account is not None and (queue is None or not account.alive):
            found[job] = account
        elif in_queue is None and queue is None:
            found[job] = JobState("UNKNOWN")
        elif in_queue is not None:  # no accounting, or it lags behind
            found[job] = _detailed(job, in_queue)
        else:
            found[job] = JobState(GONE)
    return found


def named(name: str) -> list[str]:
    """Ids of this user's jobs called `name` that are alive. Raises `Silent`."""
    lines = output("squeue", "-h", "-o", "%F|%T", "-u", str(os.getuid()), "-n", name)
    if lines is None:
        raise Silent("squeue does not answer")
    rows = [line.split("|") for line in lines.splitlines()]
    return sorted({row[0] for row in rows if len(row) == 2 and row[1] in ALIVE})


def names(jobs: Iterable[str]) -> dict[str, str]:
    """The names of those of this user's `jobs` that are alive. Raises `Silent`."""
    lines = output("squeue", "-h", "-r", "-o", "%i|%j", "-u", str(os.getuid()))
    if lines is None:
        raise Silent("squeue does not answer")
    rows = dict(line.split("|", 1) for line in lines.splitlines() if "|" in line)
    return {job: rows[job] for job in jobs if job in rows}


def _queue() -> dict[str, JobState] | None:
    """All jobs of this user that the controller remembers, None if it does not answer."""
    lines = output("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%N", "-u", str(os.getuid()))
    if lines is None:
        return None
    found = {}
    for line in lines.splitlines():
        job, state, reason, nodes = line.split("|", 3)
        found[job] = JobState(state, "" if reason in ("None", "(null)") else reason, nodes)
    return found


def _accounting(jobs: Collection[str]) -> dict[str, JobState] | None:
    """What sacct says of `jobs` and their steps, None if there is no accounting."""
    whole = sorted({job.partition("_")[0] for job in jobs})
    lines = output("sacct", "-n", "-P", "-o", "JobID,State,ExitCode,NodeList", "-j", ",".join(whole))
    if lines is None:
        return None
    found: dict[str, JobState] = {}
    for line in lines.splitlines():
        fields = line.split("|")
        if len(fields) != 4:
            continue
        (job, _, step), (state, _, by) = fields[0].partition("."), fields[1].partition(" ")
        exit_code, signal = _exit(fields[2])
        for one in _members(job):
            if not step:
                nodes = "" if fields[3] == "None assigned" else fields[3]
                found[one] = JobState(state, by, nodes, exit_code, signal)
            elif one in found:
                steps = (*found[one].steps, Step(step, state, exit_code, signal))
                found[one] = replace(found[one], steps=steps)
    return found


def _detailed(job: str, state: JobState) -> JobState:
    """`state` with what the controller alone knows of a job that has ended."""
    text = output("scontrol", "-o", "show", "job", job) or ""
    fields = dict(re.findall(r"(\w+)=(\S*)", text.splitlines()[-1] if text else ""))
    exit_code, signal = _exit(fields.get("ExitCode", "0:0"))
    reason = fields.get("Reason", "")
    return replace(
        state, exit_code=exit_code, signal=signal, reason=reason if reason not in ("", "None") else state.reason
    )


def _exit(text: str) -> tuple[int, int]:
    code, _, signal = text.partition(":")
    return int(code) if code.isdecimal() else 0, int(signal) if signal.isdecimal() else 0


def _members(job: str) -> list[str]:
    """Of "12_[3-5,8%2]", what still waits of an array, the ids one by one."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    return [f"{match[1]}_{number}" for number in expanded(match[2])] if match else [job]


def expanded(ranges: str) -> list[int]:
    """The numbers of "3-5,8"."""
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        numbers += range(int(first), int(last or first) + 1)
    return numbers
