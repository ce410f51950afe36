"""Asking Slurm's client commands, none of which is waited for for ever."""

from __future__ import annotations

import subprocess
import sys

ANSWER_SECONDS = 30.0


def output(*command: str, seconds: float | None = None, complaint_shown: bool = False) -> str | None:
    """What a client command prints, None where it is missing, fails or does not answer.

    seconds: how long it has for that, by default ANSWER_SECONDS.
    complaint_shown: whether what a failing one says goes to this process's own stderr.
    """
    try:
        patience = ANSWER_SECONDS if seconds is None else seconds
        run = subprocess.run(command, capture_output=True, text=True, timeout=patience, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if run.returncode == 0:
        return run.stdout
    if complaint_shown:
        print(run.stderr.strip(), file=sys.stderr)
    return None
