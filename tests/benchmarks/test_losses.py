"""How long the losses take: every loss in every variant, mode and dtype, from a training batch to what fills a GPU.

pytest-benchmark shows the host's wall time per call, of batches that are synchronised at both ends. `extra_info` has
the fields of a `bench.kernels.result.Measurement`, so that `bench.report` reads the JSON file; on a GPU, `also` has the
same case on the GPU's clock (variants interleaved, `bench.kernels.clock`) and `ceilings` the measured bandwidth.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.environment import environment
from bench.kernels.cases import LOSSES, MODES, PUBLISHED, Case, build, make_inputs, triton_variant
from bench.kernels.clock import (
    MOST_CALLS,
    Call,
    Effort,
    ceiling_calls,
    cpu_threads,
    gpu_seconds,
    record,
    rotation,
    synchronizer,
)
from bench.kernels.counts import device_facts, graph_launches, peak_extra_bytes
from bench.kernels.table import (
    BF16,
    COMPILE,
    EAGER,
    FP32,
    INTERPRETED,
    MIXED,
    Subject,
    ceiling,
    landmarks,
    measurement,
)

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
EFFORT = Effort(rounds=20) if GPU else Effort(rounds=8, turn=0.01)
FUSED = triton_variant()

BATCH = (64, 98, 2)
DTYPES = (FP32, MIXED, BF16) if GPU else (FP32, MIXED)
SHAPES = (BATCH, (4096, 98, 2), landmarks(2**24), landmarks(2**26)) if GPU else (BATCH, (4096, 98, 2))
HEATMAPS = ((64, 98, 64, 64),) if GPU else ((1, 98, 16, 16), (1, 98, 64, 64))
# On a CPU two things are kept to these: the interpreter (30 ms for 1,000 elements), and compiling for a second dtype
SMALLEST = (SHAPES[0], HEATMAPS[0])
EAGER_NEEDS = 20  # times a case's own bytes, for what eager keeps in between


def cases() -> Iterator[Case]:
    for loss, mode, dtypes in itertools.product((*LOSSES, PUBLISHED), MODES, DTYPES):
        if loss == PUBLISHED and (mode == "loss_and_grad" or dtypes != FP32):
            continue  # it has no such call, and is there for comparison only
        for shape in HEATMAPS if loss.startswith("adaptive") else SHAPES:
            if GPU or dtypes == FP32 or shape in SMALLEST:
                yield Case(loss, mode, *dtypes, shape)


def variants(case: Case) -> list[str]:
    fused = case.loss != PUBLISHED and (GPU or case.shape in SMALLEST)
    return [EAGER, COMPILE, *([FUSED] if fused else [])]


PARAMETERS = [
    pytest.param(case, variant, id=f"{case} {variant}".replace(" ", "-").replace("/", "-"))
    for case in cases()
    for variant in variants(case)
]


class Prepared:
    """Inputs of a case, and the variants' calls once they have been asked for."""

    def __init__(self, case: Case) -> None:
        torch.compiler.reset()  # or the next size would be compiled for all sizes
        self.case = case
        self.sets = rotation(case.smallest_rotated_bytes, DEVICE)
        self.inputs = make_inputs(case, self.sets, DEVICE)
        self.calls: dict[str, tuple[Call, float]] = {}

    def call(self, variant: str) -> tuple[Call, float]:
        """The variant's call, compiled, and the seconds that its first run took."""
        if variant not in self.calls:
            begun = synchronised()
            call = build(self.case, variant, self.inputs)
            call(0)
            self.calls[variant] = call, synchronised() - begun
        return self.calls[variant]


def synchronised() -> float:
    synchronizer(DEVICE)()
    return time.perf_counter()


prepared = functools.lru_cache(maxsize=1)(Prepared)  # variants of a case run one after the other


@functools.lru_cache(maxsize=1)
def on_the_gpu(case: Case) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Measurements of all variants on the GPU's clock, and the ceilings, taken in the same rounds; as JSON."""
    ready = prepared(case)
    ceilings = ceiling_calls(ready.inputs.pred, ready.inputs.target)
    calls = {variant: ready.call(variant)[0] for variant in variants(case)}
    calls |= {kind: call for kind, (call, _) in ceilings.items()}
    seconds = gpu_seconds({name: record(call, ready.sets, EFFORT) for name, call in calls.items()}, EFFORT)
    measured = {
        variant: measurement(
            Subject(case, variant),
            "gpu",
            seconds[variant],
            launches=graph_launches(calls[variant]),
            peak_extra_bytes=peak_extra_bytes(calls[variant]),
            first_call=ready.call(variant)[1],
        ).model_dump()
        for variant in variants(case)
    }
    return measured, [ceiling(case, kind, moved, seconds[kind]).model_dump() for kind, (_, moved) in ceilings.items()]


@pytest.fixture(scope="module")
def about() -> Iterator[dict[str, Any]]:
    """What it ran on; on a CPU all is timed on one thread."""
    with cpu_threads(None if GPU else 1):
        yield {"environment": environment().model_dump(), "device": device_facts(DEVICE)}


@pytest.mark.benchmark(timer=synchronised)
@pytest.mark.parametrize(("case", "variant"), PARAMETERS)
def test_time_of_a_loss(benchmark: Any, case: Case, variant: str, about: dict[str, Any]) -> None:
    if GPU and EAGER_NEEDS * case.model_bytes > torch.cuda.get_device_properties(DEVICE).total_memory:
        pytest.skip("too large for this GPU's memory")
    if variant == COMPILE and not GPU and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler for the CPU, and there is none")
    if variant == FUSED and not GPU and FUSED != INTERPRETED:
        pytest.skip("the fused kernels need a GPU, or TRITON_INTERPRET=1")
    ready = prepared(case)
    call, first_call = ready.call(variant)
    begun = synchronised()
    value = call(0)
    once = synchronised() - begun
    loss = value[0] if isinstance(value, tuple) else value
    assert torch.isfinite(loss), "what is timed is wrong"

    index = itertools.cycle(range(ready.sets))
    benchmark.group = str(case)
    benchmark.pedantic(
        lambda: call(next(index)),
        rounds=3 if variant == INTERPRETED else EFFORT.rounds,
        iterations=max(1, min(MOST_CALLS, math.ceil(EFFORT.turn / once))),
        warmup_rounds=1,
    )
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = list(benchmark.stats.stats.data)
    wall = measurement(Subject(case, variant), "wall", seconds, first_call=first_call)
    benchmark.extra_info.update(wall.model_dump(), **about)
    if GPU:
        measured, ceilings = on_the_gpu(case)
        benchmark.extra_info.update(also=[measured[variant]], ceilings=ceilings)
