"""What GPUs would execute: registers, memory accesses and instructions of the compiled losses, read from machine code.

Counts are those of the loop over full tiles: all that is executed for each element of a large tensor. The compiler is
the one that Triton brings along, so what is exact here is exact for that version of Triton.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from itertools import product
from typing import Any

import pytest

pytest.importorskip("triton", reason="there is no Triton here: nothing to compile with")

from conftest import shell_environment
from machine_code import Case, Code, compile_all

TARGETS = (80, 90, 100, 120)  # A100, H100 and H200, B200, RTX 50
PARAMETERS = {
    "wing": (10.0, 2.0),
    "soft_wing": (2.0, 20.0, 0.5),
    "smooth_l1": (1.0,),
    "adaptive_wing": (14.0, 0.5, 1.0, 2.1),
}
# No float32s
ODD = {"wing": (0.3, 0.7), "soft_wing": (0.3, 3.1, 0.7), "smooth_l1": (0.3,), "adaptive_wing": (14.1, 0.3, 0.7, 1.9)}
BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
# Of pred and target. The second is what autocast gives
DTYPES = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "bfloat16"),
    ("float64", "float64"),
)
HEATMAPS = (64, 98, 64, 64)
# Each is another way to find an element's weight
WEIGHTS: dict[str, dict[str, Any]] = {
    "each element": {"weight_shape": (64, 98, 2)},
    "each landmark of each sample": {"weight_shape": (64, 98, 1)},
    "each landmark": {"weight_shape": (98, 1)},
    "each coordinate of each landmark": {"weight_shape": (98, 2)},
    "one": {"weight_shape": ()},
    "each heatmap": {"weight_shape": (64, 98, 1, 1), "shape": HEATMAPS},
    "each landmark's heatmaps": {"weight_shape": (98, 1, 1), "shape": HEATMAPS},
}
LAYOUT = {weight["weight_shape"]: name for name, weight in WEIGHTS.items()}
# How many instructions an element's weight may cost, a little more than it does
COST = {
    "each element": 5,
    "each landmark of each sample": 8,
    "each landmark": 14,
    "each coordinate of each landmark": 10,
    "one": 4,
    "each heatmap": 14,
    "each landmark's heatmaps": 21,
}


def cases() -> list[Case]:
    found = []
    for capability, kind, (pred, target) in product(TARGETS, PARAMETERS, DTYPES):
        found.append(Case(capability, kind, PARAMETERS[kind], pred, target))
    found += [Case(90, kind, parameters, "float64", "float64") for kind, parameters in ODD.items()]
    for capability, dtype in product(TARGETS, ("float32", "float64")):
        found.append(Case(capability, "scale", (), dtype, dtype, factor=dtype))
    # How the variants are put together does not depend on the target, nor much on the member
    for kind, pred in product(PARAMETERS, ("float32", "bfloat16")):
        plain = (90, kind, PARAMETERS[kind], pred, "float32")
        found += [
            Case(*plain, grad=False),
            Case(*plain, factor="float32", value=False, skip=True),
            Case(*plain, reduction="none", grad=False),
            Case(*plain, reduction="none", factor="float32", value=False),
        ]
    for kind, pred in product(("wing", "adaptive_wing"), ("float32", "bfloat16")):
        plain = (90, kind, PARAMETERS[kind], pred, "float32")
        found.append(Case(*plain, factor="float32"))
        found += [Case(*plain, weight="float32", **weight) for weight in WEIGHTS.values()]
    for kind, place in product(PARAMETERS, ("each element", "each coordinate of each landmark")):
        plain = (90, kind, PARAMETERS[kind], "bfloat16", "bfloat16")
        found.append(Case(*plain, weight="bfloat16", **WEIGHTS[place]))
        found.append(Case(*plain, weight="float32", weighting="loss", **WEIGHTS[place]))
        plain = (90, kind, PARAMETERS[kind], "float32", "float32")
        found.append(Case(*plain, weight="float32", weighting="loss", **WEIGHTS[place]))
    for kind in PARAMETERS:  # the backward pass of float16, whose gradients are not kept
        plain = (90, kind, PARAMETERS[kind], "float16", "float32")
        found.append(Case(*plain, factor="float32", value=False))
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Case, Code]:
    todo = cases()
    environment = {**shell_environment(), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    return dict(zip(todo, compile_all(todo, environment), strict=True))


def layout(case: Case) -> str:
    return "none" if case.weight is None or case.weight_shape is None else LAYOUT[case.weight_shape]


def narrow(case: Case) -> bool:
    return BYTES[case.pred] == 2


def wide(case: Case) -> bool:
    return "float64" in (case.pred, case.target)


def summed(case: Case) -> bool:
    return case.kind != "scale" and case.value and case.reduction != "none"


def per_element(code: Code) -> float:
    assert code.calls == 0, "what a subroutine executes is not counted"
    return len(code.loop) / code.elements


def test_nothing_is_spilled(compiled: dict[Case, Code]) -> None:
    assert not {case: code.spilled for case, code in compiled.items() if code.spilled}


def test_a_thread_takes_at_most_64_registers(compiled: dict[Case, Code]) -> None:
    assert not {case: code.registers for case, code in compiled.items() if code.registers > 64}


def expected_accesses(case: Case, code: Code) -> tuple[Counter[str], int]:
    """(what a thread reads and writes of a full tile as widely as it can, how many weights it may read one by one)."""
    found: Counter[str] = Counter()
    suffixes = {16: ".128", 8: ".64", 4: ""}

    def access(opcode: str, dtype: str, elements: int = code.elements, together: int = 16) -> None:
        size = BYTES[dtype] * elements
        width = min(size, BYTES[dtype] * together, 16)
        found[opcode + suffixes[width]] += size // width

    access("LDG.E", case.pred)
    if case.kind != "scale":
        access("LDG.E", case.target)
    if case.kind == "scale" or case.grad:
        access("STG.E", case.pred)
    if case.reduction == "none" and case.value:
        access("STG.E", "float64" if wide(case) else "float32")
    if case.reduction == "none" and case.factor is not None:
        access("LDG.E", case.factor)
    place = layout(case)
    if case.weight is None or place == "none":
        return found, 0
    if place == "each element":
        access("LDG.E", case.weight)
    elif place == "each coordinate of each landmark":
        access("LDG.E", case.weight, together=4)  # 196 is a multiple of 4 and not of 8
    elif place == "each landmark of each sample" and narrow(case):
        access("LDG.E", case.weight, code.elements // 2)
    else:
        return found, 1 if place == "one" else code.elements
    return found, 0


def accesses(code: Code) -> Counter[str]:
    """To global memory, in the loop."""
    return Counter(opcode for opcode in code.loop if opcode.startswith(("LDG", "STG")))


def test_full_tiles_are_accessed_exactly_as_widely_as_the_dtypes_allow(compiled: dict[Case, Code]) -> None:
    wrong = {}
    for case, code in compiled.items():
        wanted, scalars = expected_accesses(case, code)
        rest = accesses(code) - wanted
        if wanted - accesses(code) or set(rest) - {"LDG.E"} or not min(scalars, 1) <= rest.total() <= scalars:
            wrong[case] = wanted, scalars, accesses(code)
    assert not wrong


def test_accesses_are_of_128_bits_but_for_these(compiled: dict[Case, Code]) -> None:
    def known(case: Case, code: Code) -> bool:
        if BYTES[case.pred] == 4 and BYTES[case.target] == 2:
            return True  # four elements of a thread are 64 bits of the target
        if case.kind == "adaptive_wing" and narrow(case) and code.group == 1:
            return True  # a logarithm and a power for each: registers for four elements
        if layout(case) == "each coordinate of each landmark":
            return case.weight == "bfloat16"  # its period allows 64 bits
        if layout(case) == "each landmark of each sample":
            return not narrow(case)  # pairs of eight elements are 128 bits, pairs of four are not read as such
        return layout(case) not in ("none", "each element")  # one by one

    narrower = {case for case, code in compiled.items() if set(accesses(code)) - {"LDG.E.128", "STG.E.128"}}
    assert narrower == {case for case, code in compiled.items() if known(case, code)}


def test_full_tiles_need_no_shared_memory_and_no_barrier(compiled: dict[Case, Code]) -> None:
    # Known: a thread reads eight elements of 16 bits at once and writes four losses at once
    known = {
        case
        for case, code in compiled.items()
        if narrow(case) and case.reduction == "none" and case.value and code.elements == 8
    }
    shared = ("LDS", "STS", "BAR", "SHFL", "LDSM", "STSM", "ATOMS")
    assert {case for case, code in compiled.items() if any(opcode.startswith(shared) for opcode in code.loop)} == known


def test_the_code_is_the_same_for_any_count_and_wherever_a_scale_or_ticket_lies(compiled: dict[Case, Code]) -> None:
    """The launcher compiles once for each case: what it has then must do for all."""
    assert not [case for case, code in compiled.items() if not code.same_for_all_launches]


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize(
    ("kind", "of_narrow", "limit"),
    [
        ("wing", False, 40),
        ("wing", True, 40),
        ("adaptive_wing", False, 75),
        ("adaptive_wing", True, 50),  # by instructions that the interpreter cannot run
        ("soft_wing", False, 71),  # a logarithm for each element
        ("soft_wing", True, 70),
        ("smooth_l1", False, 18),
        ("smooth_l1", True, 18),
    ],
)
def test_loss_and_gradient_take_few_instructions(
    compiled: dict[Case, Code], capability: int, kind: str, of_narrow: bool, limit: int
) -> None:
    for pred, target in DTYPES:
        case = Case(capability, kind, PARAMETERS[kind], pred, target)
        if wide(case) or narrow(case) != of_narrow:
            continue
        # Known: unpacking a 16-bit target takes what is over
        over = 2 if (kind, pred, target) == ("adaptive_wing", "float32", "bfloat16") else 0
        assert per_element(compiled[case]) <= limit + over, (pred, target)


@pytest.mark.parametrize(("parts", "limit"), [({"grad": False}, 25), ({"value": False, "skip": True}, 20)])
@pytest.mark.parametrize("pred", ["float32", "bfloat16"])
def test_what_is_not_asked_for_is_not_computed(
    compiled: dict[Case, Code], parts: dict[str, Any], limit: int, pred: str
) -> None:
    factor = None if parts.get("value", True) else "float32"
    case = Case(90, "wing", PARAMETERS["wing"], pred, "float32", factor=factor, **parts)
    assert per_element(compiled[case]) <= limit


def test_weights_cost_few_instructions(compiled: dict[Case, Code]) -> None:
    costs = {
        case: per_element(code) - per_element(compiled[Case(*plain_fields(case))])
        for case, code in compiled.items()
        if case.weight is not None and case.weighting == "input"
    }
    assert costs
    assert not {case: cost for case, cost in costs.items() if cost > COST[layout(case)]}


def plain_fields(case: Case) -> tuple[int, str, tuple[float, ...], str, str]:
    return case.capability, case.kind, case.parameters, case.pred, case.target


@pytest.mark.parametrize("pred", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "place", ["each element", "each landmark of each sample", "each coordinate of each landmark", "one"]
)
def test_the_weighted_wing_loss_takes_at_most_40_instructions(
    compiled: dict[Case, Code], pred: str, place: str
) -> None:
    """Not so with a weight for each landmark or heatmap, whose index takes a division: up to 51."""
    case = Case(90, "wing", PARAMETERS["wing"], pred, "float32", weight="float32", **WEIGHTS[place])
    assert per_element(compiled[case]) <= 40


def test_a_group_of_elements_shares_one_logarithm(compiled: dict[Case, Code]) -> None:
    """Each takes the exponent of its argument as an integer, which nothing else in the loop converts."""
    wrong = {}
    for case, code in compiled.items():
        if wide(case) or case.kind == "scale":
            continue
        logarithms = code.elements // code.group if case.value and case.kind != "smooth_l1" else 0
        if case.kind == "adaptive_wing" and "lg2" not in approximations(code):
            logarithms += code.elements  # each element's power
        found = sum(opcode.startswith("I2F") for opcode in code.loop)
        if found != logarithms:
            wrong[case] = logarithms, found
    assert not wrong


@pytest.mark.parametrize(("kind", "narrow_group"), [("wing", 8), ("adaptive_wing", 4)])  # 4: powers up to 2^31 fold
def test_a_group_is_as_large_as_what_a_thread_reads_and_float32_holds(
    compiled: dict[Case, Code], kind: str, narrow_group: int
) -> None:
    for pred, group in (("float32", 4), ("bfloat16", narrow_group)):
        assert compiled[Case(90, kind, PARAMETERS[kind], pred, "float32")].group == group


def approximations(code: Code) -> set[str]:
    return set(re.findall(r"\b(rcp|lg2|ex2)\.approx\.(?:ftz\.)?f32", code.ptx))


def test_approximate_instructions_are_used_where_the_result_can_bear_them(compiled: dict[Case, Code]) -> None:
    """rcp for gradients, lg2 for sums and gradients of 16-bit predictions, rcp and ex2 for the adaptive wing."""
    wrong = {}
    for case, code in compiled.items():
        wanted = set()
        if case.kind == "adaptive_wing" and not wide(case):
            wanted = {"rcp", "ex2", "lg2"} if narrow(case) and case.reduction != "none" else {"rcp", "ex2"}
        elif case.kind in ("wing", "soft_wing") and not wide(case) and case.grad:
            wanted = {"rcp"}
        if approximations(code) != wanted:
            wrong[case] = wanted, approximations(code)
    assert not wrong


@pytest.mark.parametrize("capability", TARGETS)
@pytest.mark.parametrize("kind", ["wing", "soft_wing"])
def test_each_reciprocal_of_a_float32_gradient_is_refined(
    compiled: dict[Case, Code], kind: str, capability: int
) -> None:
    """And divisions by the hardware's own approximation, div.full, are left to nobody but the sum's logarithm."""
    code = compiled[Case(capability, kind, PARAMETERS[kind], "float32", "float32")]
    reciprocals = re.findall(r"rcp\.approx\.(?:ftz\.)?f32 (%\w+),", code.ptx)
    assert reciprocals
    for register in reciprocals:
        assert re.search(rf"fma\.rn\.f32\s+%\w+, [^;]*{register}\b", code.ptx), register


@pytest.mark.parametrize("kind", ODD)
def test_float64_meets_no_constant_that_was_a_float32(compiled: dict[Case, Code], kind: str) -> None:
    """The interpreter, which takes Python's floats as they are, cannot tell."""
    code = compiled[Case(90, kind, ODD[kind], "float64", "float64")]
    doubles = {struct.unpack(">d", bytes.fromhex(digits))[0] for digits in re.findall(r"0d([0-9A-F]{16})", code.ptx)}
    rounded = {struct.unpack("f", struct.pack("f", value))[0] for value in ODD[kind]}
    assert set(ODD[kind]) & doubles
    assert not rounded & doubles


def from_tile_number(ptx: str) -> tuple[set[str], list[str]]:
    """(registers that follow from the CTA's number once it has 64 bits, instructions that make fewer bits of them)."""
    instructions = re.findall(r"^\s*(?:@!?%p\d+\s+)?([a-z]\S*)\s+(%\w+), (.*);", ptx, re.MULTILINE)
    (program,) = {target for _, target, source in instructions if source == "%ctaid.x"}
    found = {target for name, target, source in instructions if name.startswith("cvt.") and source == program}
    size, dependent = 0, instructions[:0]
    while size < len(found):  # until the loop's registers are complete
        size = len(found)
        dependent = [each for each in instructions if found & set(re.findall(r"%\w+", each[2]))]
        found |= {target for _, target, _ in dependent if target.startswith("%rd")}
    narrowed = [f"{name} {target}, {source}" for name, target, source in dependent if re.match(r"%rs?\d", target)]
    return found, narrowed


def test_tiles_are_addressed_with_64_bits(compiled: dict[Case, Code]) -> None:
    """Unweighted: a weight's index is taken modulo its period, and is 32 bits from there on."""
    checked = [(case, code.ptx) for case, code in compiled.items() if layout(case) == "none"]
    assert checked
    for case, ptx in checked:
        registers, narrowed = from_tile_number(ptx)
        addresses = set(re.findall(r"\b(?:ld|st)\.global\.v[24]\.\w+ [^;]*?\[ (%rd\d+)", ptx))
        assert addresses, case
        assert addresses <= registers, case
        assert not narrowed, case
        assert re.search(rf"\b(?:shl\.b64|mul\.lo\.s64|mad\.lo\.s64)\s+%rd\d+, ({'|'.join(registers)}),", ptx), case


def test_the_last_cta_sees_every_partial_sum(compiled: dict[Case, Code]) -> None:
    """All threads' stores, barrier, one thread's release and acquire, barrier, loads that pass by the first cache."""
    for case, code in compiled.items():
        if not summed(case):
            continue
        ticket = r"\batom\.global\.gpu\.acq_rel\.add\.u32"
        assert len(re.findall(ticket, code.ptx)) == 1, case
        before, after = re.split(ticket, code.ptx)
        order = r"\b(?:ld\.global\.cg|ld\.global|st\.global|bar\.sync)\b"
        assert re.findall(order, before)[-2:] == ["st.global", "bar.sync"], case
        assert re.match(r"(?:bar\.sync )+ld\.global\.cg\b", " ".join(re.findall(order, after))), case
        fence = next(place for place, opcode in enumerate(code.opcodes) if opcode.startswith("MEMBAR"))
        taken = next(place for place, opcode in enumerate(code.opcodes) if opcode.startswith("ATOMG"))
        assert fence < taken, case


def test_nothing_is_counted_where_no_loss_is_summed(compiled: dict[Case, Code]) -> None:
    others = {case: code for case, code in compiled.items() if not summed(case)}
    assert others
    in_ptx = r"\b(?:atom|red|fence|membar)\.|\bld\.global\.cg\b"
    assert not [case for case, code in others.items() if re.search(in_ptx, code.ptx)]
    opcodes = {opcode for code in others.values() for opcode in code.opcodes}
    assert not [opcode for opcode in opcodes if opcode.startswith(("MEMBAR", "ATOM", "RED."))]
