"""A trial of several ranks, one of which does in its third step what `FAULT` in the environment says, as "1 raise"."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

from bench import trial


def interrupt_launcher() -> None:
    """Have it interrupted, and go on when the request to stop that follows has been noted."""
    noted = []
    handler: Any = signal.getsignal(signal.SIGTERM)

    def note(*arguments: Any) -> None:
        handler(*arguments)
        noted.append(True)

    signal.signal(signal.SIGTERM, note)
    os.kill(os.getppid(), signal.SIGTERM)
    while not noted:  # asleep, since any thread may be the one that the signal wakes
        time.sleep(0.01)
    signal.signal(signal.SIGTERM, handler)


def run_trial(argument: str) -> int:
    from pose.stepper import Stepper

    rank, how = os.environ["FAULT"].split()
    real = Stepper.run

    def run(stepper: Stepper, step: int) -> Any:
        if step == 2 and os.environ["RANK"] == rank:
            if how == "raise":
                raise ValueError("broken on purpose")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "exit":
                os._exit(7)
            if how == "interrupt":
                interrupt_launcher()
        if step == 2 and os.environ.get("DEAF") == os.environ["RANK"]:
            while True:  # as in a collective whose other side never comes: no signal is heard
                ctypes.CDLL(None).sleep(3600)
        return real(stepper, step)

    Stepper.run = run  # type: ignore[method-assign]
    return trial.run_trial(argument)
