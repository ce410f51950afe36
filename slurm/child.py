"""The other end of `slurm.here`: `python -m slurm.child package.module:name ARGUMENT`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from typing import NoReturn

from slurm.call import call_by_name
from slurm.leave import leave

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


def _rank() -> NoReturn:
    """`main` for one of several ranks."""
    try:
        code = main()
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    leave(code)


if __name__ == "__main__":
    sys.exit(_rank() if "RANK" in os.environ else main())
