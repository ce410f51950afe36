"""Watch the kernels with a tool of NVIDIA's compute-sanitizer: accesses outside of tensors, races in shared memory.

The tool first has to find an error that was planted; one that does not, or that cannot be run here, leaves the figure
unmeasured. torch's allocator is told to keep no memory, so that every tensor has edges that the tool sees.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import run_command

if TYPE_CHECKING:
    from bench.gpu_check.result import MemoryCheck

EXIT_FOUND = 1
TOOLS = ("memcheck", "racecheck")
_BESIDE_CUDA = "/usr/local/cuda/bin"
_SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")
_SECONDS = 400.0  # a run; the tools slow kernels down a hundred times


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.memory_check", description=__doc__)
    parser.add_argument("--tool", choices=TOOLS, default="memcheck", help="default: memcheck")
    parser.add_argument("--out", type=Path, metavar="FILE", help="leave what was found there as JSON")
    options = parser.parse_args(arguments)
    from bench.result import write_record

    result = check(options.tool)
    if options.out is not None:
        write_record(result, options.out)
    found = f"{result.found} errors" if result.found is not None else f"not measured: {result.why}"
    print(f"{options.tool}: {found}")
    return EXIT_FOUND if result.found else 0


Watched = tuple[int, str]  # exit code, output
Watch = Callable[[str, Sequence[str]], Watched]  # of a tool's name and the Python program that it is to watch


def check(tool: str, watch: Watch | None = None) -> MemoryCheck:
    """Watch the planted error, then the kernels."""
    from bench.gpu_check.result import MemoryCheck

    begun = time.monotonic()
    planted = found = None
    why = ""
    try:
        watch = watch or _watcher()
        _, said = watch(tool, ["bench.gpu_check.planted", tool])
        planted = errors_in(said)
        if not planted:
            why = f"a planted error was not found: {_last(said)}"
        else:
            code, said = watch(tool, ["bench.gpu_check.numerics", "--small"])
            found = errors_in(said)
            print(said)
            if found == 0 and code:
                found, why = None, f"the kernels' own check ended with exit code {code} while it was watched"
            elif found is None:
                why = f"no summary: {_last(said)}"
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    return MemoryCheck(tool=tool, found=found, planted=planted, why=why, seconds=time.monotonic() - begun)


def errors_in(said: str) -> int | None:
    """The number in the tool's summaries, one of each process that it watched; None where it printed none."""
    found = [int(one or other) for one, other in _SUMMARY.findall(said)]
    return sum(found) if found else None


def _watcher() -> Watch:
    path = shutil.which("compute-sanitizer", path=os.pathsep.join((os.environ.get("PATH", ""), _BESIDE_CUDA)))
    if path is None:
        raise FileNotFoundError("compute-sanitizer, a part of NVIDIA's CUDA toolkit, is not installed here")

    def watch(tool: str, program: Sequence[str]) -> Watched:
        command = [path, "--tool", tool, "--print-limit", "20", sys.executable, "-m", *program]
        variables = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        ended = subprocess.run(
            command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
        return ended.returncode, ended.stdout

    return watch


def _last(said: str) -> str:
    lines = said.strip().splitlines()
    return lines[-1][:300] if lines else "nothing was printed"


if __name__ == "__main__":
    run_command(main)
