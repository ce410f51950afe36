"""Time the fused losses beside eager PyTorch and torch.compile, and hold the figures to what they must reach.

The core table needs a CUDA GPU and takes a few minutes there. Without one, what a CPU can do is done: the host's clock
of eager and compiled losses at small sizes, on one thread, and the kernels' errors in Triton's interpreter, whose times
say nothing; every figure of speed, launches and memory is then listed as unmeasured. The result file is written after
every row.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from pose.errors import InputError, run_command

EXIT_MISSED = 1
GROUPS = ("one_pass", "weights", "backward", "small", "heatmap", "others", "errors", "launches")

EPILOG = """exit codes: 0 no limit is missed (what is unmeasured misses none); 1 a limit is missed, or something could
not be measured on a GPU; 2 the input is wrong or the output cannot be written; 130 interrupted: what is done is kept"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--out", type=Path, default=Path("results/kernels"), metavar="DIR", help="default: results/kernels"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest of the large sizes, fewer rounds")
    parser.add_argument(
        "--only",
        action="append",
        choices=GROUPS,
        metavar="NAME",
        help=f"one part of the table, or several: {', '.join(GROUPS)}",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the inputs; default: another one each time, noted in the result"
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep the rows that an interrupted run of the same code left in DIR"
    )
    options = parser.parse_args(arguments)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
        given += ["--seed", str(options.seed)]
    return _run(options, shlex.join(["python", "-m", "bench.kernels", *given]))


def _run(options: argparse.Namespace, command: str) -> int:
    import torch

    gpu = torch.cuda.is_available()
    _choose_interpreter(gpu)  # before anything imports triton

    from bench.kernels.clock import cpu_threads
    from bench.kernels.report import show
    from bench.kernels.result import KERNELS
    from bench.kernels.run import KernelRun
    from bench.store import claim

    file = options.out / KERNELS
    with claim(options.out), cpu_threads(None if gpu else 1):
        only = options.only or GROUPS
        run = KernelRun(file, command, quick=options.quick, only=only, resume=options.resume, seed=options.seed)
        result = run.measure()
    show(result)
    if not gpu:
        print(
            "no CUDA GPU here: every figure of speed, launches and memory is unmeasured; the kernels run in Triton's "
            "interpreter, where their errors can be measured and their times say nothing"
        )
    print(f"result: {file} (a page of it: python -m bench.report {shlex.quote(str(file))})")
    missed = any(check.verdict == "FAIL" for check in result.checks)
    return EXIT_MISSED if missed or (gpu and result.failures) else 0


def _choose_interpreter(gpu: bool) -> None:
    if not gpu:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    elif os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y"):
        raise InputError("TRITON_INTERPRET is set: an interpreted kernel has no speed to measure; unset it")


if __name__ == "__main__":
    run_command(main)
