"""The parts of a GPU check: for each a command, how much time it needs, and what it leaves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.checkout import CODE
from bench.gpu_check import evidence
from bench.gpu_check.memory_check import TOOLS
from bench.gpu_check.result import Stage

CONFIGS = CODE / "configs"
THROUGHPUT_CONFIG = CONFIGS / "gpu_throughput.yaml"
PROFILED = ("eager", "compiled")  # variants of it: what the GPU does in a step without and with torch.compile
FAST = "packed"  # the variant with the input of the full fast path
MISSING = 3  # exit code of bench.run: there are trials to come
_TEST_PROCESSES = 8  # each has a context on the GPU, half a gigabyte

Command = Callable[[Path, float], list[str]]  # of the check's folder and the seconds left


@dataclass(frozen=True)
class Task:
    """`leaves` is there once it has come to its end, with one of the exit codes `ends`.

    needs: seconds that have to be left for it to begin. always: it prepares what others of its stage use, on this
    machine, and so runs before them each time.
    """

    stage: Stage
    name: str
    command: Command
    leaves: str
    needs: float = 30.0
    ends: tuple[int, ...] = (0, 1)
    always: bool = False


def tasks() -> list[Task]:
    """All of them, in their order."""
    return [
        Task("kernels", "tests", _tests, evidence.TESTS, needs=60.0),
        Task("kernels", "numerics", _numerics, evidence.NUMERICS),
        Task("kernels", "losses", _losses, f"{evidence.LOSSES}/kernels.json"),
        *(Task("kernels", tool, _memory(tool), f"{tool}.json", needs=60.0) for tool in TOOLS),
        Task("throughput", "faces", _faces, "", ends=(0,), always=True),
        Task("throughput", "crops", _crops, evidence.CROPS),
        Task("throughput", "throughput", _throughput, f"{evidence.THROUGHPUT}/gates.json", needs=160.0),
        *(Task("throughput", f"profile_{v}", _profile(v), evidence.profile_file(v)) for v in PROFILED),
        Task("epochs", "faces_again", _faces, "", ends=(0,), always=True),
        Task("epochs", "time_to_nme", _time_to_nme, f"{evidence.TIME_TO_NME}/gates.json", needs=460.0),
        Task("epochs", "parity", _parity, f"{evidence.PARITY}/gates.json", needs=200.0),
    ]


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def _tests(out: Path, left: float) -> list[str]:
    processes = min(_TEST_PROCESSES, len(os.sched_getaffinity(0)))
    return python(
        *("pytest", "-m", "gpu", "-n", str(processes), "--dist", "worksteal", "-q"),
        *("-p", "no:cacheprovider", f"--junitxml={out / evidence.TESTS}", str(CODE / "tests")),
    )


def _numerics(out: Path, left: float) -> list[str]:
    return python("bench.gpu_check.numerics", "--out", str(out / evidence.NUMERICS))


def _memory(tool: str) -> Command:
    def command(out: Path, left: float) -> list[str]:
        return python("bench.gpu_check.memory_check", "--tool", tool, "--out", str(out / f"{tool}.json"))

    return command


def _losses(out: Path, left: float) -> list[str]:
    return python("bench.kernels", "--resume", "--out", str(out / evidence.LOSSES))


def _faces(out: Path, left: float) -> list[str]:
    """The synthetic faces, and the crop cache of the variants that use one."""
    return python("pose.prepare", str(THROUGHPUT_CONFIG), "--split", "train")


def _throughput(out: Path, left: float) -> list[str]:
    return _experiment(THROUGHPUT_CONFIG, out / evidence.THROUGHPUT, left, longest=150.0)


def _crops(out: Path, left: float) -> list[str]:
    return python(
        *("bench.gpu_check.crop_speed", str(THROUGHPUT_CONFIG), "--variant", FAST),
        *("--out", str(out / evidence.CROPS)),
    )


def _profile(variant: str) -> Command:
    def command(out: Path, left: float) -> list[str]:
        path = out / evidence.profile_file(variant)
        return python("bench.gpu_check.step_profile", str(THROUGHPUT_CONFIG), "--variant", variant, "--out", str(path))

    return command


def _time_to_nme(out: Path, left: float) -> list[str]:
    return _experiment(CONFIGS / "time_to_nme.yaml", out / evidence.TIME_TO_NME, left, longest=500.0)


def _parity(out: Path, left: float) -> list[str]:
    return _experiment(CONFIGS / "gpu_parity.yaml", out / evidence.PARITY, left, longest=180.0)


def _experiment(config: Path, out: Path, left: float, longest: float) -> list[str]:
    """longest: seconds of a trial; none begins that would probably be stopped. The first one does in any case."""
    within = f"{max(1.0, left - longest):.0f}"
    return python("bench.run", str(config), "--out", str(out), "--start-within", within)
