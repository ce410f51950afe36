"""The machine code of the loss kernels for NVIDIA targets, on any machine: no GPU is needed.

`compile_all` runs this file in a process of its own, where Triton is the compiler even if it is the interpreter here.
ptxas and the disassembler come with Triton.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import accumulate, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import MockTensor

from kernels import loss_kernel as code
from kernels import loss_launch
from kernels.family import Loss, dtype_of_loss

ROOT = Path(__file__).resolve().parents[1]

_INSTRUCTION_BYTES = 16

# One that 16 divides, one that nothing does, one beyond 32 bits
COUNTS = (12_544, 12_545, 2**31 + 1025)


@dataclass(frozen=True)
class Case:
    """A launch of `loss_kernel`, or of `scale_kernel` where kind is "scale". dtypes by their names in torch."""

    capability: int  # 90 for sm_90
    kind: str
    parameters: tuple[float, ...]
    pred: str
    target: str
    reduction: str = "batchmean"
    weighting: str = "input"
    shape: tuple[int, ...] = (64, 98, 2)  # of pred; only a weight's layout depends on it
    weight: str | None = None
    weight_shape: tuple[int, ...] | None = None
    factor: str | None = None
    value: bool = True  # whether the loss is asked for
    grad: bool = True
    skip: bool = False


@dataclass(frozen=True)
class Code:
    block: int  # elements of a tile
    group: int  # elements that share a logarithm
    threads: int
    registers: int  # of a thread
    spilled: int  # bytes of a thread's stack and local memory
    opcodes: list[str] = field(repr=False)  # of the kernel, in order
    loop: list[str] = field(repr=False)  # of the loop over full tiles, in order
    calls: int  # of subroutines in that loop
    ptx: str = field(repr=False)  # for the first of COUNTS
    same_for_all_launches: bool  # of COUNTS elements, with aligned and unaligned numbers

    @property
    def elements(self) -> int:
        """Elements of a thread in a tile."""
        return self.block // self.threads


def compile_all(cases: Sequence[Case], environment: dict[str, str]) -> list[Code]:
    """The code of each case, by as many processes as there are cores. `environment`: without TRITON_INTERPRET."""
    run = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps([asdict(case) for case in cases]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )
    return [Code(**fields) for fields in json.loads(run.stdout)]


class _Driver:
    """What `JITFunction.warmup` asks of a driver."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class _Compiled(NamedTuple):
    block: int
    group: int
    threads: int
    usage: dict[str, int]  # REG, STACK, LOCAL of a thread
    instructions: bytes
    ptx: str
    same_for_all_launches: bool


def _compile(case: Case) -> _Compiled:
    try:
        return _compiled_as_launched(case)
    except Exception as error:
        error.add_note(str(case))
        raise


def _compiled_as_launched(case: Case) -> _Compiled:
    driver.set_active(_Driver(case.capability))
    kernel, variant, pointers, numbers = _launch_of(case)
    compiled = []
    for count, numbers_aligned in product(COUNTS, (True, False)):
        kernel.device_caches.clear()  # known by a device's index, which is the same for all targets
        given = [None if each is None else each.argument(numbers_aligned) for each in pointers]
        arguments = (*given, count, *numbers, variant.constants)
        compiled.append(kernel.warmup(*arguments, grid=(1,), num_warps=loss_launch._WARPS))
    first = compiled[0]
    cubin, ptx = first.asm["cubin"], first.asm["ptx"]
    usage = _output(knobs.nvidia.cuobjdump.path, "--dump-resource-usage", content=cubin)
    return _Compiled(
        block=variant.block,
        group=getattr(variant.constants, "group", 1),
        threads=32 * first.metadata.num_warps,
        usage={name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)},
        instructions=_section(cubin, f".text.{first.name}"),
        ptx=ptx,
        same_for_all_launches=all(each.asm["ptx"] == ptx for each in compiled),
    )


class _Pointer(NamedTuple):
    dtype: torch.dtype
    number: bool = False  # to one or a few, which may lie anywhere; the launcher sees to the alignment of others

    def argument(self, aligned: bool) -> MockTensor | torch.Tensor:
        return torch.empty(2, dtype=self.dtype)[1:] if self.number and not aligned else MockTensor(self.dtype)


def _launch_of(case: Case) -> tuple[Any, loss_launch.Variant, list[_Pointer | None], tuple[float, ...]]:
    """(kernel, variant, its pointers, its numbers after the count)."""
    pred, target, weight, factor = map(_dtype, (case.pred, case.target, case.weight, case.factor))
    assert pred is not None
    assert target is not None
    if case.kind == "scale":
        assert factor is not None
        return code.scale_kernel, loss_launch._scaling(pred, factor), [_Pointer(pred), _Pointer(factor, True)], ()
    inner, period = 1, 0
    if weight is not None and case.weight_shape is not None:
        shaped = (torch.empty(shape, device="meta") for shape in (case.weight_shape, case.shape))
        _, inner, period = loss_launch._flat_weight(*shaped)
    loss = Loss(case.kind, case.parameters, case.reduction, case.weighting)
    launch = loss_launch._Case(
        loss, pred, target, weight, factor, case.value, case.grad, case.skip, inner, period, cuda=True
    )
    reduced = loss.reduction != "none"
    of_loss = dtype_of_loss(torch.empty(0, dtype=pred), torch.empty(0, dtype=target))
    pointers = [
        _Pointer(pred),
        _Pointer(target),
        None if weight is None else _Pointer(weight),
        None if factor is None else _Pointer(factor, number=reduced),
        _Pointer(of_loss) if case.value else None,
        _Pointer(pred) if case.grad else None,
        _Pointer(torch.float64, number=True) if case.value and reduced else None,
        _Pointer(torch.int32, number=True) if case.value and reduced else None,
    ]
    return code.loss_kernel, loss_launch._variant(launch), pointers, (1.0, 1.0)


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


def _section(elf: bytes, name: str) -> bytes:
    """Content of a section of a 64-bit ELF file."""
    (headers,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, strings = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, headers + size * place) for place in range(count)]
    names = sections[strings][4]
    for label, _, _, _, offset, length in sections:
        if elf[names + label :].startswith(name.encode() + b"\0"):
            return elf[offset : offset + length]
    raise ValueError(f"no section {name}")


class _Instruction(NamedTuple):
    address: int
    opcode: str
    aims: list[int]  # addresses among its operands


_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*);")


def _disassemble(compiled: Sequence[_Compiled]) -> list[Code]:
    """All of one target at once: the disassembler takes longer to start than to do this."""
    target = re.search(r"^\.target sm_(\w+)", compiled[0].ptx, re.MULTILINE)
    assert target is not None
    everything = b"".join(each.instructions for each in compiled)
    listing = _output(knobs.nvidia.nvdisasm.path, "--binary", f"SM{target[1]}", content=everything)
    instructions = [
        _Instruction(int(address, 16), opcode, [int(aim, 16) for aim in re.findall(r"\b0x[0-9a-f]+", operands)])
        for address, opcode, operands in _LINE.findall(listing)
        if opcode != "NOP"
    ]
    ends = list(accumulate(len(each.instructions) for each in compiled))
    places = [0, *(bisect_left(instructions, end, key=lambda one: one.address) for end in ends)]
    return [_code(each, instructions[slice(*part)]) for each, part in zip(compiled, pairwise(places), strict=True)]


def _code(compiled: _Compiled, instructions: Sequence[_Instruction]) -> Code:
    loop = _loop_over_tiles(instructions)
    exits = loop[-1].address + _INSTRUCTION_BYTES  # sm_80 leaves a loop by a call that does not return
    calls = [each for each in loop if each.opcode.startswith("CALL") and exits not in each.aims]
    return Code(
        block=compiled.block,
        group=compiled.group,
        threads=compiled.threads,
        registers=compiled.usage["REG"],
        spilled=compiled.usage["STACK"] + compiled.usage["LOCAL"],
        opcodes=[each.opcode for each in instructions],
        loop=[each.opcode for each in loop],
        calls=len(calls),
        ptx=compiled.ptx,
        same_for_all_launches=compiled.same_for_all_launches,
    )


def _loop_over_tiles(instructions: Sequence[_Instruction]) -> list[_Instruction]:
    """From where a branch leads back to, up to that branch: the only such range that reads global memory."""
    loops = []
    for branch in instructions:
        if branch.opcode.startswith("BRA") and branch.aims and branch.aims[-1] < branch.address:
            body = [each for each in instructions if branch.aims[-1] <= each.address <= branch.address]
            if any(each.opcode.startswith("LDG") for each in body):
                loops.append(body)
    if len(loops) != 1:
        raise ValueError(f"{len(loops)} loops read global memory; wanted one")
    return loops[0]


def _output(*command: str, content: bytes) -> str:
    """What a command prints of a file."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def _all(cases: Sequence[Case]) -> list[Code]:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        compiled = list(zip(cases, pool.map(_compile, cases), strict=True))
        targets = sorted({case.capability for case in cases})
        groups = [[each for case, each in compiled if case.capability == target] for target in targets]
        codes = {target: iter(found) for target, found in zip(targets, pool.map(_disassemble, groups), strict=True)}
    return [next(codes[case.capability]) for case in cases]


def _case(fields: dict[str, Any]) -> Case:
    tuples: dict[str, Any] = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Case(**{**fields, **tuples})


if __name__ == "__main__":
    json.dump([asdict(code) for code in _all([_case(fields) for fields in json.load(sys.stdin)])], sys.stdout)
