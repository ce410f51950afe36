"""The machine code of the crop's and the sampling's kernels for NVIDIA targets, on any machine: no GPU is needed.

`compile_all` runs this file in a process of its own, where Triton is the compiler even if it is the interpreter here.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Case:
    """A kernel for a target. kind: "crop", "tables" or "sample"; the rest is the crop's."""

    capability: int
    kind: str
    mode: str = "opencv4"
    packed: bool = False
    channels: int = 3
    dtype: str = "bfloat16"
    size: int = 256
    regions: int = 7500
    sampling: tuple[float, ...] = (0.5, 0.25, 30.0, 0.6)  # the fields of `kernels.Sampling`
    aligned: bool = True  # whether the caller's tensors, which may be views, begin at multiples of 16 bytes


@dataclass(frozen=True)
class Code:
    registers: int
    spilled: int
    pixels: int  # of a thread
    opcodes: list[str]
    ptx: str


def compile_all(cases: list[Case], environment: Mapping[str, str]) -> list[Code]:
    run = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr
    return [Code(**code) for code in json.loads(run.stdout)]


class _Driver:
    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def _compile(case: Case) -> Code:
    driver.set_active(_Driver(case.capability))
    kernel, arguments, options, pixels = _launch(case)
    kernel.device_caches.clear()  # known by a device's index, which is the same for all targets
    compiled = kernel.warmup(*arguments, grid=(1,), **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, listing = (
            subprocess.run(
                [knobs.nvidia.cuobjdump.path, what, cubin.name], capture_output=True, text=True, check=True
            ).stdout
            for what in ("--dump-resource-usage", "-sass")
        )
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    opcodes = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)", listing)
    return Code(
        registers=found["REG"],
        spilled=found["STACK"] + found["LOCAL"],
        pixels=pixels,
        opcodes=[opcode for opcode in opcodes if opcode != "NOP"],
        ptx=compiled.asm["ptx"],
    )


def _launch(case: Case) -> tuple[Any, tuple[Any, ...], dict[str, Any], int]:
    from kernels import Sampling, crop_launch, sample_launch

    def given_by_caller(dtype: torch.dtype) -> Any:
        return MockTensor(dtype) if case.aligned else torch.empty(2, dtype=dtype)[1:]

    whole = MockTensor(torch.int32)
    wide, real, bit = (given_by_caller(dtype) for dtype in (torch.int64, torch.float64, torch.bool))
    exact = case.mode == "exact"
    if case.kind == "sample":
        single = MockTensor(torch.float32)
        columns = (single, real, real, wide, 7500)
        given = (*columns, wide, wide, 2**40, wide, real, real, MockTensor(torch.bool), single, single)
        sampling = Sampling(*case.sampling)
        return sample_launch.sample_kernel, given, sample_launch.constants(sampling, 4097, case.size, 98), 0
    if case.kind == "tables":
        fraction = MockTensor(torch.float32) if exact else None
        given = (real, bit, wide, wide, wide, case.regions, whole, fraction)
        return crop_launch.tables_kernel, given, crop_launch.table_constants(case.size, exact), 0
    dtype = getattr(torch, case.dtype)
    pixel = torch.int32 if case.packed else torch.uint8
    normalize = dtype != torch.uint8
    given = (
        given_by_caller(pixel),
        *(wide, wide, wide, wide, case.regions, whole),
        MockTensor(torch.float32) if exact else None,
        MockTensor(dtype) if normalize and not exact else None,
        MockTensor(dtype),
    )
    options = crop_launch.constants(case.size, case.channels, pixel, dtype, exact, normalize)
    rows, columns = crop_launch.tile_of(case.size)
    return crop_launch.crop_kernel, given, options, rows * columns // (32 * options["num_warps"])  # type: ignore[operator]


if __name__ == "__main__":
    cases = [Case(**{**fields, "sampling": tuple(fields["sampling"])}) for fields in json.load(sys.stdin)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        json.dump([asdict(code) for code in pool.map(_compile, cases)], sys.stdout)
