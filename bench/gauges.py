"""The state of a GPU and of this process, as far as they tell."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from bench.result import Gauges

_COLUMNS = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "temperature_c": "temperature.gpu",
}


def gpu_gauges() -> Gauges | None:
    """Clocks, power and temperature of the current GPU now; None where nvidia-smi does not tell."""
    import torch

    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    command = [f"--query-gpu={','.join(_COLUMNS.values())}", "--format=csv,noheader,nounits"]
    command += [f"--id=GPU-{uuid}"] if uuid is not None else []
    try:
        ended = subprocess.run(["nvidia-smi", *command], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return read_gauges(ended.stdout) if ended.returncode == 0 else None


def read_gauges(line: str) -> Gauges | None:
    """What nvidia-smi printed; a column that it does not know for this GPU ("[N/A]") is None."""
    cells = line.strip().split(",")
    if len(cells) != len(_COLUMNS):
        return None
    values: dict[str, float | None] = {}
    for name, cell in zip(_COLUMNS, cells, strict=True):
        try:
            values[name] = float(cell)
        except ValueError:
            values[name] = None
    return Gauges(**values)


def process_age(at_least: float) -> float:
    """Seconds since this process was started, interpreter and imports included; `at_least` where nobody knows."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # the line's 22nd word
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return at_least
    return max(age, at_least)


def peak_resident_bytes() -> int:
    """The most main memory that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
