"""A throughput block: measurements that alternate within one allocation, each in fresh processes.

Every rank of the job runs `run_block`, which itself measures nothing and imports little: it starts one process after
the other, and nothing else of the block runs meanwhile. The ranks keep step by small files in the job's folder, which
all nodes share: rank 0 says that a measurement begins, each rank says how its process ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from pose.files import write_atomically
from slurm.call import ATTEMPT, JOB, Call
from slurm.ranks import Rank, end

FUNCTION = "bench.block:run_block"
GRACE_SECONDS = 5.0  # for a rank whose other one has failed
_POLL_SECONDS = 0.2
_STOPPED = 3


def block_call(calls: Sequence[Call], records: Sequence[Path], folder: Path) -> Call:
    """One call that makes all of `calls` one after the other; `records`: what each leaves when it is done.

    folder: of the job, shared with the nodes; the list is left there.
    """
    listed = [
        {
            "function": call.function,
            "argument": call.argument,
            "log": str(call.log),
            "environment": dict(call.environment),
            "record": str(record.absolute()),
        }
        for call, record in zip(calls, records, strict=True)
    ]
    path = folder / "block.json"
    write_atomically(path, json.dumps(listed, indent=1).encode())
    return Call(FUNCTION, str(path), folder / "block.log")


def run_block(argument: str) -> int:
    """Be one rank of a block. What failed has left its reason; that is no failure of the block."""
    path = Path(argument)
    measurements = json.loads(path.read_bytes())
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    stop = _Stop()
    steps = _Steps(path.parent / f"block-{os.environ.get(JOB, '0')}-{os.environ.get(ATTEMPT, '0')}", rank, ranks, stop)
    for number, one in enumerate(measurements):
        if steps.begin(number, run=not Path(one["record"]).exists()):
            _measure(one, number, rank, steps, stop)
        if stop.is_asked():
            return _STOPPED
    return 0


def _measure(one: Mapping[str, Any], number: int, rank: int, steps: _Steps, stop: _Stop) -> None:
    log = Path(one["log"])
    own_log = log.with_name(f"{log.stem}.rank-{rank}{log.suffix}") if rank else log
    environment = {**os.environ, **one["environment"], "PYTHONUNBUFFERED": "1"}
    if "MASTER_PORT" in environment:  # the one before may still be in the way
        environment["MASTER_PORT"] = str(10_000 + (int(environment["MASTER_PORT"]) + 17 * (number + 1)) % 20_000)
    ended: SimpleQueue[Rank] = SimpleQueue()
    own_log.parent.mkdir(parents=True, exist_ok=True)
    with own_log.open("ab", buffering=0) as sink:
        command = [sys.executable, "-m", "slurm.child", one["function"], one["argument"]]
        process = Rank(rank, command, environment, sink.write, ended)
        taken_down = False
        try:
            while True:
                with suppress(Empty):
                    ended.get(timeout=_POLL_SECONDS)
                    break
                if stop.is_asked() or steps.failed(number):
                    taken_down = True
                    end([process], GRACE_SECONDS)
                    break
        finally:
            process.kill()
    code = process.exit_code
    if code and not taken_down and not stop.is_asked():
        _tell(one, rank, steps.ranks, process)
    steps.end(number, code)


def _tell(one: Mapping[str, Any], rank: int, ranks: int, process: Rank) -> None:
    """Leave why, where the process could not itself."""
    from bench.result import FAILURE, Failure
    from bench.trial import write_if_first

    path = Path(one["argument"]) / FAILURE
    if path.exists():
        return
    cause = f"killed by {process.signal}" if process.signal else f"ended with exit code {process.exit_code}"
    failure = Failure(
        kind="signal" if process.signal else "exception",
        message=f"rank {rank} of {ranks}: {cause}" if ranks > 1 else cause,
        rank=rank if ranks > 1 else None,
        log=process.tail or None,
        job=os.environ.get(JOB),
        attempt=int(os.environ.get(ATTEMPT, "0")),
    )
    write_if_first(failure, path)


class _Stop:
    """Whether Slurm has announced the end: what dies then is no failure of its own, and nothing new begins."""

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def is_asked(self) -> bool:
        return self._asked


class _Steps:
    """How far the ranks of a block are, as files of the form PREFIX-NUMBER.what."""

    def __init__(self, prefix: Path, rank: int, ranks: int, stop: _Stop) -> None:
        self._prefix, self._rank, self.ranks, self._stop = prefix, rank, ranks, stop

    def begin(self, number: int, *, run: bool) -> bool:
        """Wait until all ranks are here; whether the measurement runs, as rank 0 says."""
        path = self._path(number, "begins")
        if self._rank == 0:
            before = number - 1
            while before >= 0 and any(self._code(before, rank) is None for rank in range(self.ranks)):
                if self._wait():
                    return False
            if not run:
                for rank in range(self.ranks):
                    write_atomically(self._path(number, f"rank-{rank}"), b"0")
            write_atomically(path, b"run" if run else b"skip")
        while not path.exists():
            if self._wait():
                return False
        return path.read_bytes() == b"run"

    def end(self, number: int, code: int) -> None:
        write_atomically(self._path(number, f"rank-{self._rank}"), str(code).encode())

    def failed(self, number: int) -> bool:
        """Whether another rank's process has ended badly."""
        return any(self._code(number, rank) for rank in range(self.ranks) if rank != self._rank)

    def _code(self, number: int, rank: int) -> int | None:
        try:
            return int(self._path(number, f"rank-{rank}").read_bytes())
        except (OSError, ValueError):
            return None

    def _path(self, number: int, what: str) -> Path:
        return self._prefix.with_name(f"{self._prefix.name}-{number}.{what}")

    def _wait(self) -> bool:
        """A moment; whether there is nothing to wait for any more."""
        time.sleep(_POLL_SECONDS)
        return self._stop.is_asked()
