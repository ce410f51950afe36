"""What the GPU did in a call, counted: launches, memory, waits of the host; and which GPU it was."""

from __future__ import annotations

import ctypes
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bench.kernels.clock import Call, capture


def peak_extra_bytes(call: Call) -> int:
    """Most memory allocated beyond what was before a call, while it runs and as it returns. CUDA only."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    made = call(0)
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del made
    return peak


def graph_launches(call: Call) -> int | None:
    """Kernels, copies and fills that a call puts into a graph; None where the driver does not say. CUDA only."""
    graph = capture(call, 1, 1, keep_graph=True)  # its handle is good for as long as it lives
    return gpu_nodes(graph.raw_cuda_graph())


def gpu_nodes(graph: int, library: str = "libcuda.so.1") -> int | None:
    """Kernels, copies and fills among the nodes of a graph, given its handle.

    Asked of the driver itself: the profiler would stay attached to the process and slow later launches.
    """
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_size_t()
        handle = ctypes.c_void_p(graph)
        if driver.cuGraphGetNodes(handle, None, ctypes.byref(count)):
            return None
        nodes = (ctypes.c_void_p * count.value)()
        if count.value and driver.cuGraphGetNodes(handle, nodes, ctypes.byref(count)):
            return None
        kind = ctypes.c_int()
        kinds = []
        for node in nodes:
            if driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)):
                return None
            kinds.append(kind.value)
    except (OSError, AttributeError):
        return None
    return sum(kind in (0, 1, 2) for kind in kinds)  # CU_GRAPH_NODE_TYPE_KERNEL, _MEMCPY, _MEMSET


def profiled_launches(call: Call) -> int | None:
    """Kernels, copies and fills that a call without a graph puts on the GPU, as the profiler saw them.

    None where it saw nothing: it cannot read every machine. CUDA only; leave it until all timing is done.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    call(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=activities) as profile:
        call(0)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        return device_events(json.loads(path.read_text(errors="replace"))) or None


def device_events(trace: Mapping[str, Any]) -> int:
    """GPU work in a trace of the profiler; the ranges it draws over that work do not count."""
    return sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in trace["traceEvents"])


def waits_for_gpu(call: Call) -> bool:
    """Whether a call makes the host wait for the GPU: torch is told to refuse, and asked whether it did. CUDA only."""
    call(0)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(0)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


# What is asked of nvidia-smi, which only reads, and what it is called in the result
_ASKED = {
    "clocks.sm": "clock_sm_mhz",
    "clocks.mem": "clock_memory_mhz",
    "clocks.max.sm": "clock_sm_max_mhz",
    "clocks.max.mem": "clock_memory_max_mhz",
    "power.limit": "power_limit_w",
    "driver_version": "driver",
}


def device_facts(device: torch.device) -> dict[str, str | int | float | None]:
    """Name, size and clocks of `device`; clocks are those of this moment, so ask after it has worked."""
    if device.type != "cuda":
        return {"name": "CPU"}
    about = torch.cuda.get_device_properties(device)
    facts: dict[str, str | int | float | None] = {
        "name": about.name,
        "capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
        "memory_bytes": about.total_memory,
        "l2_bytes": about.L2_cache_size,
        "cuda": torch.version.cuda,
    }
    identity = f"GPU-{str(about.uuid).removeprefix('GPU-')}"
    query = ["nvidia-smi", f"--id={identity}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        answer = ""
    return {**facts, **asked_facts(answer)}


def asked_facts(answer: str) -> dict[str, str | int | float | None]:
    """The line that nvidia-smi answers, by name; None for what it does not know."""
    values = [value.strip() for value in answer.split(",")]
    if len(values) != len(_ASKED):
        return dict.fromkeys(_ASKED.values())
    return {
        name: value if name == "driver" else _number(value) for name, value in zip(_ASKED.values(), values, strict=True)
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # "[N/A]"
