"""Which state of the code runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from slurm.snapshot import recorded_commit

CODE = Path(__file__).resolve().parents[1]  # the folder of the four packages
PACKAGES = ("bench", "kernels", "pose", "slurm")


def checkout(root: Path) -> tuple[str | None, bool | None]:
    """Commit of the code and whether it was changed since; (None, None) where the code is no git checkout.

    Of a copy that was made for jobs, those of the checkout it was made from.
    """
    recorded = recorded_commit(root)
    if recorded is not None:
        return recorded
    if not (root / ".git").exists():
        return None, None
    commit = output("git", "-C", str(root), "rev-parse", "HEAD")
    return commit, bool(output("git", "-C", str(root), "status", "--porcelain")) if commit else None


def output(*command: str) -> str | None:
    """The first line that a command prints, None where it fails or prints nothing."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip().splitlines()[0] if run.returncode == 0 and run.stdout.strip() else None
