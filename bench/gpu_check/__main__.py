"""Measure on one GPU all that only a GPU can show, and hold it to its targets: kernels, training speed, 210 epochs.

Three stages, each of several parts: "kernels" (the tests that run on a GPU, every kernel on fresh random inputs,
compute-sanitizer, the losses' table), "throughput" (training speed from a DataLoader to the full fast path, the crop
alone, where a step's time goes) and "epochs" (time to NME over 210 epochs, the fast path's NME beside the reference's).
A call ends within its time limit; the same call again goes on where it stopped. One file holds every sample.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from bench.gpu_check.result import GpuCheck

EXIT_MISSED, EXIT_MISSING = 1, 3
LIMIT = 520.0
STAGES = ("kernels", "throughput", "epochs")

EPILOG = """exit codes: 0 all parts are done and no figure misses its limit; 1 one does; 2 the input is wrong, there is
no GPU, or the output cannot be written; 3 parts are to come, or failed: the same command goes on; 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu_check"), metavar="DIR", help="default: results/gpu_check"
    )
    parser.add_argument(
        "--stage", action="append", choices=STAGES, help="one stage, or several; default: all, in this order"
    )
    parser.add_argument("--only", action="append", metavar="PART", help="one part of them, or several")
    parser.add_argument(
        "--limit",
        type=float,
        default=LIMIT,
        metavar="SECONDS",
        help=f"stop after so long, and go on with the next call; default: {LIMIT:.0f}",
    )
    parser.add_argument("--judge", action="store_true", help="run nothing: read DIR again, on any machine")
    options = parser.parse_args(arguments)
    if options.limit <= 0:
        raise InputError(f"--limit {options.limit:g}: more than 0 seconds are wanted")
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join(["python", "-m", "bench.gpu_check", *given])
    out = options.out.absolute()
    if options.judge:
        return _judge(out)
    return _run(out, options.stage or STAGES, options.only, options.limit, command)


def _run(out: Path, stages: Sequence[str], only: Sequence[str] | None, limit: float, command: str) -> int:
    from bench.gpu_check.tasks import tasks

    wanted = [task for task in tasks() if task.stage in stages and (not only or task.always or task.name in only)]
    known = [task.name for task in tasks() if not task.always]
    for name in only or ():
        if name not in known:
            raise InputError(f"--only {name}: the parts are {', '.join(known)}")
    import torch

    if not torch.cuda.is_available():
        raise InputError("no CUDA GPU here: this measures one (--judge reads what was measured elsewhere)")
    from bench.gpu_check.merge import identity, merged, note_machine
    from bench.gpu_check.run import run
    from bench.gpu_check.show import show
    from bench.store import claim

    with claim(out):
        run(wanted, tasks(), out, identity(), limit)
        note_machine(out, command)
        result = merged(out)
    show(result, out)
    return _exit_code(result)


def _judge(out: Path) -> int:
    from bench.gpu_check.merge import merged
    from bench.gpu_check.show import show

    result = merged(out)
    show(result, out)
    return _exit_code(result)


def _exit_code(result: GpuCheck) -> int:
    if any(task.state != "done" for task in result.tasks):
        return EXIT_MISSING
    missed = any(check.verdict == "FAIL" for checks in result.checks.values() for check in checks)
    return EXIT_MISSED if missed else 0


if __name__ == "__main__":
    run_command(main)
