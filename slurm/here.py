"""Run a function in a fresh process on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

TAIL_LINES = 40
GRACE_SECONDS = 60.0  # after SIGTERM, for the function to save its state


@dataclass(frozen=True)
class Finished:
    """How the process ended: `exit_code`, or the `signal` that killed it; `tail` is the end of what it printed."""

    exit_code: int
    signal: str | None
    seconds: float
    tail: str


def run_here(
    function: str,
    argument: str,
    *,
    environment: Mapping[str, str],
    log: Path,
    on_wait: Callable[[], None] = lambda: None,
    wait_seconds: float = 0.5,
) -> Finished:
    """Call `function` ("package.module:name") with `argument` in a fresh interpreter and wait for it.

    `environment` is added to this process's before the interpreter starts, so that it holds before anything is
    imported. All output is appended to `log`. `on_wait` is called every `wait_seconds`. The function's return
    value is the exit code. If this process is interrupted, the child is asked to stop (SIGTERM), given time to
    save, and then killed.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab", buffering=0) as sink:
        child = subprocess.Popen(
            [sys.executable, "-m", "slurm.child", function, argument],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _search_path()},
            start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on in order
        )
        tail: deque[bytes] = deque(maxlen=TAIL_LINES)
        pump = threading.Thread(target=_pump, args=(child, sink.write, tail), daemon=True)
        pump.start()
        try:
            while True:
                try:
                    child.wait(timeout=wait_seconds)
                    break
                except subprocess.TimeoutExpired:
                    on_wait()
        except BaseException:
            _stop(child)
            raise
        finally:
            pump.join(timeout=5)
    code = child.returncode
    return Finished(
        exit_code=code if code >= 0 else 128 - code,
        signal=signal.Signals(-code).name if code < 0 else None,
        seconds=time.monotonic() - started,
        tail=b"".join(tail).decode(errors="replace"),
    )


def _pump(child: subprocess.Popen[bytes], write: Callable[[bytes], object], tail: deque[bytes]) -> None:
    assert child.stdout is not None
    writable = True
    for line in child.stdout:
        tail.append(line)
        if writable:
            try:
                write(line)
            except OSError:  # a full disk must not block the child; the tail is kept
                writable = False


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(timeout=GRACE_SECONDS)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            child.kill()
            child.wait()


def _search_path() -> str:
    """The child finds the packages this process runs, wherever it was started from."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return root + (os.pathsep + before if before else "")
