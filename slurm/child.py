"""The other end of `slurm.here`: `python -m slurm.child package.module:name ARGUMENT`."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    function, argument = sys.argv[1:]
    _follow_parent(os.getppid())
    module, _, name = function.partition(":")
    return int(getattr(importlib.import_module(module), name)(argument))


def _follow_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the launcher dies: nobody would wait for this process any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
