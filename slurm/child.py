"""The other end of `slurm.here`: `python -m slurm.child package.module:name ARGUMENT`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback

from slurm.call import call_by_name

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> int:
    function, argument = sys.argv[1:]
    _follow_parent(os.getppid())
    return call_by_name(function, argument)


def _follow_parent(parent: int) -> None:
    """Have the kernel send SIGTERM when the launcher dies: nobody would wait for this process any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            sys.exit(128 + signal.SIGTERM)


def _rank() -> int:
    """`main` for one of several ranks. A failure ends it at once.

    The other ranks fail as its connections close. The interpreter closes them up to 0.7 s before its own end (measured
    with gloo on CPUs), and another rank that is quicker with its own would be taken for the cause.
    """
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(_rank() if "RANK" in os.environ else main())
