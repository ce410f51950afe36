"""Why a job ended without success: the rank that failed first and its traceback, or what Slurm did to it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals, strsignal
from typing import Literal

from slurm.marks import Mark, read_marks, was_cancelled
from slurm.states import GONE, JobState, expanded

Kind = Literal["exception", "signal", "out_of_memory", "timeout", "node_fail", "preempted", "cancelled"]

TAIL_LINES = 40
_OUT_OF_MEMORY = re.compile(r"oom[-_ ]kill|out of memory|exceeded (job |step )?memory limit", re.IGNORECASE)
# The same, said on the node that it happened on
_OUT_OF_MEMORY_HERE = re.compile(r"oom[-_ ]kill|exceeded memory limit", re.IGNORECASE)
_TASKS = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")


@dataclass(frozen=True)
class Ending:
    """`message` is one sentence; `rank` the rank that failed first, where one did; `log` the last lines it printed."""

    kind: Kind
    message: str
    rank: int | None = None
    attempt: int = 0
    traceback: str | None = None
    log: str | None = None


def ending(state: JobState, folder: Path, job: str, ranks: int, minutes: int | None = None) -> Ending:
    """How `job`, whose files lie in `folder` and which is no longer alive, ended; it has not done its work."""
    if state.name == GONE and was_cancelled(folder, job):
        state = replace(state, name="CANCELLED")
    marks, texts = read_marks(folder, job, ranks), _outputs(folder, job)
    text = "".join(texts.values())
    kind, message = _of_state(state, text, minutes)
    # srun tells in order; a rank that another one took down may note an end of its own before it is killed
    first = _first_killed(text, range(ranks))
    told = _told([mark for mark in marks if first is None or mark.rank == first[0]])
    rank, how = told or first or (None, None)
    if kind == "out_of_memory":
        rank = _short_of_memory(texts, text, marks, rank)
    elif kind in ("exception", "signal") and how is not None:
        kind, message = how
    culprit = next((mark for mark in marks if mark.rank == rank), None)
    if kind in ("exception", "signal", "out_of_memory"):
        where = f" on {culprit.host}" if culprit is not None and kind != "exception" else ""
        message = (f"rank {rank} of {ranks}: " if rank is not None and ranks > 1 else "") + message + where
    return Ending(
        kind,
        message=message,
        rank=rank if ranks > 1 else None,
        attempt=max((mark.attempt for mark in marks), default=0),
        traceback=culprit.error if culprit is not None else None,
        log="".join(text.splitlines(keepends=True)[-TAIL_LINES:]) or None,
    )


def _of_state(state: JobState, texts: str, minutes: int | None) -> tuple[Kind, str]:
    names = {state.name, *(step.state for step in state.steps)}
    signal = state.signal or next((step.signal for step in state.steps if step.signal), 0)
    if "OUT_OF_MEMORY" in names or _OUT_OF_MEMORY.search(texts):
        return "out_of_memory", "out of memory"
    if state.name in ("TIMEOUT", "DEADLINE"):
        return "timeout", f"ran into its time limit{f' of {minutes} minutes' if minutes is not None else ''}"
    if state.name in ("NODE_FAIL", "BOOT_FAIL"):
        return "node_fail", f"a node failed ({state.nodes or 'not known which'})"
    if state.name == "PREEMPTED":
        return "preempted", "another job took its nodes"
    if state.name in ("CANCELLED", "REVOKED"):
        return "cancelled", "was cancelled" + (f" {state.reason}" if state.reason.startswith("by ") else "")
    if state.name == GONE:
        return "exception", "ended without a result, and Slurm does not know it any more"
    if signal:
        return "signal", f"killed by {_signal_name(signal)}"
    return "exception", f"ended with exit code {state.exit_code} and no result"


def _told(marks: Sequence[Mark]) -> tuple[int, tuple[Kind, str]] | None:
    """The first rank that noted a failure of its own."""
    failed = [mark for mark in marks if mark.exit_code]
    if not failed:
        return None
    first = min(failed, key=lambda mark: mark.ended or 0.0)
    last_line = (first.error or "").strip().rpartition("\n")[2]
    return first.rank, ("exception", last_line or f"ended with exit code {first.exit_code}")


def _first_killed(text: str, among: Collection[int]) -> tuple[int, tuple[Kind, str]] | None:
    """The first rank `among` these of which srun says that it ended badly."""
    for match in _TASKS.finditer(text):
        rank = next((number for number in expanded(match[2]) if number in among), None)
        if rank is None:
            continue
        what = match[3].strip()
        code = re.fullmatch(r"Exited with exit code (\d+)", what)
        if code:
            return rank, ("exception", f"ended with exit code {code[1]}")
        described = what.removesuffix(" (core dumped)")
        name = next((number.name for number in Signals if strsignal(number) == described), described)
        return rank, ("signal", f"killed by {name}")
    return None


def _short_of_memory(texts: dict[int, str], text: str, marks: Sequence[Mark], otherwise: int | None) -> int | None:
    """A rank of the node that ran out of memory: its step manager says so in the output of a rank there."""
    teller = next((rank for rank, own in texts.items() if _OUT_OF_MEMORY_HERE.search(own)), None)
    if teller is None:
        return otherwise
    host = next((mark.host for mark in marks if mark.rank == teller), None)
    there = {mark.rank for mark in marks if mark.host == host} or {teller}
    first = _first_killed(text, there)
    return first[0] if first is not None else teller


def _outputs(folder: Path, job: str) -> dict[int, str]:
    """By rank what Slurm, srun and the rank wrote into the job's own files; of what the function printed, nothing."""
    texts = {}
    for path in folder.glob(f"{job}_*_log.*"):
        number = path.name.removeprefix(f"{job}_").partition("_")[0]
        if number.isdecimal():
            with suppress(OSError):
                texts[int(number)] = path.read_text(errors="replace")
    return dict(sorted(texts.items()))


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"
