"""Run a function in fresh processes on this machine."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from slurm.call import Call
from slurm.ranks import Rank, end, environments, labelled

GRACE_SECONDS = 60.0  # from the request to stop on, for the function to save its state
FAILURE_GRACE_SECONDS = 5.0  # the same where another rank has failed: what could be saved needs that one


@dataclass(frozen=True)
class Finished:
    """How it ended: `exit_code`, or the `signal` that killed it; `tail` is the end of what was printed.

    Of several ranks: of `rank`, the first that failed, all others having been ended for it; None if all ended well,
    and then the tail is rank 0's.
    """

    exit_code: int
    signal: str | None
    seconds: float
    tail: str
    rank: int | None = None


def run_here(
    call: Call,
    *,
    ranks: int = 1,
    on_wait: Callable[[], None] = lambda: None,
    wait_seconds: float = 0.5,
) -> Finished:
    """Run `call` in a fresh interpreter and wait for it.

    The call's environment is added to this process's before the interpreter starts, so that it holds before anything
    is imported. All output is appended to its log. `on_wait` is called every `wait_seconds`. If this process is
    interrupted, the child is asked to stop (SIGTERM), given time to save, and then killed.

    With several `ranks` so many interpreters call it at the same time, told apart by torchrun's variables (RANK,
    WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); in the log, lines of rank r > 0 begin with
    "[rank r] ". The first that fails takes the others down: within seconds, since they may wait for it for ever.
    """
    started = time.monotonic()
    call.log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "slurm.child", call.function, call.argument]
    variables = {**os.environ, **call.environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _search_path()}
    ended: SimpleQueue[Rank] = SimpleQueue()
    running: list[Rank] = []
    with call.log.open("ab", buffering=0) as sink:
        try:
            for number, own in enumerate(environments(ranks, variables)):
                write = labelled(sink.write, number) if ranks > 1 else sink.write
                running.append(Rank(number, command, own, write, ended))
            failed = _first_failure(ended, ranks, on_wait, wait_seconds)
            if failed is not None:
                end([rank for rank in running if rank is not failed], FAILURE_GRACE_SECONDS)
        except BaseException:
            end(running, GRACE_SECONDS)
            raise
        finally:
            for rank in running:
                rank.kill()
    told = failed or running[0]
    return Finished(
        exit_code=told.exit_code,
        signal=told.signal,
        seconds=time.monotonic() - started,
        tail=told.tail,
        rank=failed.number if failed is not None else None,
    )


def _first_failure(
    ended: SimpleQueue[Rank], ranks: int, on_wait: Callable[[], None], wait_seconds: float
) -> Rank | None:
    """Wait for the first rank that fails, None once all have ended well."""
    for _ in range(ranks):
        while True:
            try:
                rank = ended.get(timeout=wait_seconds)
                break
            except Empty:
                on_wait()
        if rank.failed:
            return rank
    return None


def _search_path() -> str:
    """The child finds the packages this process runs, wherever it was started from."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return root + (os.pathsep + before if before else "")
