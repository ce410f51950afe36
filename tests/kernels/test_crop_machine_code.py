"""What GPUs would execute to crop faces, read from machine code. The compiler is the one that Triton brings along."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest

pytest.importorskip("triton", reason="there is no Triton here: nothing to compile with")

from conftest import shell_environment
from crop_machine_code import Case, Code, compile_all

TARGETS = (80, 90, 100, 120)  # A100, H100 and H200, B200, RTX 50
MODES = ("opencv4", "exact")
BYTES = {"float32": 4, "bfloat16": 2, "uint8": 1}
PUBLISHED = Case(90, "crop", channels=4)
TABLES = [Case(target, "tables", mode) for target in TARGETS for mode in MODES]
# 3 and 4 channels are stored in different ways; uint8 is stored as it is
OUTPUTS = ((3, "bfloat16"), (4, "bfloat16"), (4, "float32"), (3, "uint8"))
CROPS = [
    Case(target, "crop", mode, packed, channels, dtype)
    for target, mode, packed, (channels, dtype) in product(TARGETS, MODES, (False, True), OUTPUTS)
    if target == 90 or channels == 4  # how the variants are put together does not depend on the target
]
# 16 divides 7504, and a number of 1 is often a case of its own
LAUNCHES = [
    replace(case, regions=regions, aligned=aligned)
    for case in (PUBLISHED, replace(PUBLISHED, packed=True, mode="exact"), *TABLES[2:4])
    for regions, aligned in ((1, True), (7504, True), (7500, False))
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Code]:
    cases = [*CROPS, *TABLES, *LAUNCHES]
    environment = {**shell_environment(), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    return dict(zip(cases, compile_all(cases, environment), strict=True))


def test_nothing_is_spilled(compiled: dict[Case, Code]) -> None:
    assert not {case: code.spilled for case, code in compiled.items() if code.spilled}


def test_a_thread_takes_at_most_64_registers(compiled: dict[Case, Code]) -> None:
    assert not {case: code.registers for case, code in compiled.items() if code.registers > 64}


# Without tables 181 and 144 were counted, and 198 with float64 for each pixel
@pytest.mark.parametrize(
    ("mode", "packed", "limit"),
    [("opencv4", False, 126), ("opencv4", True, 114), ("exact", False, 140), ("exact", True, 117)],
)
def test_a_pixel_takes_few_instructions(compiled: dict[Case, Code], mode: str, packed: bool, limit: int) -> None:
    """All of the kernel is counted: there is no loop, and no branch but one to the end."""
    chosen = [case for case in CROPS if (case.mode, case.packed) == (mode, packed)]
    assert chosen
    for case in chosen:
        code = compiled[case]
        assert not [opcode for opcode in code.opcodes if opcode.startswith(("CALL", "BRX", "JMP"))], case
        assert len(code.opcodes) / code.pixels <= limit, case


def test_pixels_cost_no_float64(compiled: dict[Case, Code]) -> None:
    for case in CROPS:
        assert not re.search(r"\.[fb]64\b.*%fd|\.f64\b", compiled[case].ptx), case
        assert not [opcode for opcode in compiled[case].opcodes if re.match(r"D(ADD|MUL|FMA|SETP)|.*F64", opcode)], case


def test_a_packed_tap_is_one_load(compiled: dict[Case, Code]) -> None:
    for case in CROPS:
        found = Counter(opcode for opcode in compiled[case].opcodes if opcode.startswith("LDG"))
        if case.packed:
            assert not found["LDG.E.U8"], case
        else:
            assert found["LDG.E.U8"] == 4 * 3 * compiled[case].pixels, case


def test_four_channels_are_stored_128_bits_at_a_time(compiled: dict[Case, Code]) -> None:
    for case in CROPS:
        found = Counter(opcode for opcode in compiled[case].opcodes if opcode.startswith("STG"))
        pixels = compiled[case].pixels
        if case.channels == 4:
            assert found == {"STG.E.128": pixels * 4 * BYTES[case.dtype] // 16}, case
        else:
            assert found.total() == 3 * pixels, case


def test_tables_round_every_operation_to_nearest_by_itself(compiled: dict[Case, Code]) -> None:
    """As plain torch does. Neither may a multiply-add be fused (PTX lets no compiler fuse what says .rn), nor may the
    inverse's division be an approximation."""
    for case in TABLES:
        arithmetic = Counter(re.findall(r"\b((?:add|sub|mul|mad|fma|div|rcp)\.\S*f64)\b", compiled[case].ptx))
        assert set(arithmetic) == {"add.rn.f64", "sub.rn.f64", "mul.rn.f64", "div.rn.f64"}, case
        assert arithmetic["div.rn.f64"] == 1, case


def test_the_code_is_the_same_for_any_number_of_regions_and_wherever_they_lie(compiled: dict[Case, Code]) -> None:
    """The number of faces is the grid's alone, so a kernel is compiled once, before a graph is captured."""
    for case in LAUNCHES:
        assert compiled[case].ptx == compiled[replace(case, regions=7500, aligned=True)].ptx, case


def test_pixels_are_addressed_with_64_bits(compiled: dict[Case, Code]) -> None:
    """A region may be larger than 32 bits can count, and it may begin anywhere."""
    for case in CROPS:
        ptx = compiled[case].ptx
        taps = set(re.findall(r"ld\.global\.b(?:8|32) \{? ?%\w+ ?\}?, \[ (%rd\d+) \+ \d+ \]", ptx))
        assert len(taps) >= 4, case
        narrowed = re.findall(r"^\s*cvt\.u32\.u64 (%r\d+), (%rd\d+);", ptx, re.MULTILINE)
        assert not [source for _, source in narrowed if source in taps], case
