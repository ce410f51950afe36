"""The rows of the kernel benchmarks' core table: what is timed side by side, and the records that come of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.kernels.cases import PUBLISHED, Case
from bench.kernels.result import Ceiling, CeilingKind, KernelResult, Measurement

FP32, MIXED, BF16 = ("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")
PAIRS = {"fp32": FP32, "bf16 pred + fp32 target": MIXED, "bf16": BF16}
BATCHES = (64, 512)
HEATMAPS = (64, 98, 64, 64)
EAGER, COMPILE, TRITON, INTERPRETED = "eager", "compile", "triton", "triton_interpreted"


@dataclass(frozen=True)
class Subject:
    case: Case
    variant: str

    def __str__(self) -> str:
        return f"{self.case} as {self.variant}"


@dataclass(frozen=True)
class Row:
    """Subjects that are timed in the same rounds, on the same inputs: one shape, the same dtypes and kind of weight."""

    group: str
    name: str
    subjects: tuple[Subject, ...]
    wall: bool = False  # the host's clock beside the GPU's
    ceilings: bool = False  # a copy and an addition among the subjects


def landmarks(elements: int) -> tuple[int, int, int]:
    """Shape of as many faces as have `elements` coordinates at least; a multiple of 4 faces, as batches are."""
    return 4 * math.ceil(elements / (4 * 98 * 2)), 98, 2


def subjects(case: Case, *variants: str) -> tuple[Subject, ...]:
    return tuple(Subject(case, variant) for variant in variants)


def wing(mode: str, dtypes: tuple[str, str], shape: tuple[int, ...], **more: str) -> Case:
    return Case("wing", mode, *dtypes, shape, **more)


def heatmaps(mode: str, loss: str = "adaptive_wing", shape: tuple[int, ...] = HEATMAPS) -> Case:
    return Case(loss, mode, *FP32, shape)


@dataclass(frozen=True)
class Sizes:
    """Elements: of one pass, of the comparisons with eager and torch.compile, and of what is shown beside them."""

    one_pass: tuple[int, ...] = (2**24, 2**26, 2**28)
    compared: tuple[int, ...] = (2**24, 2**26)
    beside: int = 2**26


QUICK = Sizes((2**24,), (2**24,), 2**24)


def gpu_rows(sizes: Sizes) -> list[Row]:
    rows = []
    for size in sizes.one_pass:
        for label, dtypes in PAIRS.items():
            case = wing("loss_and_grad", dtypes, landmarks(size))
            rows.append(Row("one_pass", f"one pass, {label}, {size_name(case)}", subjects(case, TRITON), ceilings=True))
    for weight in ("landmark", "sample_landmark"):
        for size in sizes.one_pass:
            case = wing("loss_and_grad", FP32, landmarks(size), weight=weight)
            name = f"one pass, fp32, weight per {weight}, {size_name(case)}"
            rows.append(Row("weights", name, subjects(case, TRITON), ceilings=True))
    for label, dtypes, upstream in (("fp32", FP32, "one"), ("fp32", FP32, "other"), ("mixed", MIXED, "one")):
        for size in sizes.compared:
            case = wing("forward_backward", dtypes, landmarks(size), upstream=upstream)
            name = f"forward and backward, {label}, upstream {upstream}, {size_name(case)}"
            rows.append(Row("backward", name, subjects(case, EAGER, COMPILE, TRITON)))
    rows += [small_row(batch, TRITON) for batch in BATCHES]
    rows.append(heatmap_row(HEATMAPS, TRITON))
    rows.append(_beside("others", wing("forward", FP32, landmarks(sizes.beside))))
    for loss in ("soft_wing", "smooth_l1"):
        rows.append(_beside("others", Case(loss, "forward_backward", *FP32, landmarks(sizes.beside))))
    return rows


def cpu_rows() -> list[Row]:
    """What a machine without a GPU can time; the kernel in the interpreter is apart, since its times say nothing."""
    calls = tuple(wing(mode, FP32, (64, 98, 2)) for mode in ("forward_backward", "loss_and_grad"))
    return [
        *(small_row(batch) for batch in BATCHES),
        heatmap_row((1, *HEATMAPS[1:])),
        Row("small", "interpreted kernel, batch 64", tuple(Subject(c, INTERPRETED) for c in calls), wall=True),
    ]


def small_row(batch: int, *more: str) -> Row:
    calls = (wing(mode, FP32, (batch, 98, 2)) for mode in ("forward_backward", "loss_and_grad"))
    timed = tuple(subject for case in calls for subject in subjects(case, EAGER, COMPILE, *more))
    return Row("small", f"batch {batch}", timed, wall=True)


def heatmap_row(shape: tuple[int, ...], *more: str) -> Row:
    timed = (
        *subjects(heatmaps("forward_backward", PUBLISHED, shape), EAGER, COMPILE),
        *subjects(heatmaps("forward_backward", shape=shape), EAGER, COMPILE, *more),
        *subjects(heatmaps("loss_and_grad", shape=shape), COMPILE, *more),
    )
    return Row("heatmap", f"heatmaps {'x'.join(map(str, shape))}", timed, wall=not more)


def _beside(group: str, case: Case) -> Row:
    name = f"{case.loss} {case.mode}, fp32, {size_name(case)}"
    return Row(group, name, subjects(case, EAGER, COMPILE, TRITON))


def size_name(case: Case) -> str:
    return f"2^{math.floor(math.log2(case.elements))}"


def subject_of(m: Measurement) -> Subject:
    case = Case(m.loss, m.mode, m.pred_dtype, m.target_dtype, tuple(m.shape), m.weight, m.upstream)
    return Subject(case, m.variant)


def measurement(
    subject: Subject,
    clock: str,
    seconds: list[float],
    *,
    launches: int | None = None,
    peak_extra_bytes: int | None = None,
    first_call: float | None = None,
) -> Measurement:
    """The record of a subject's times. first_call: its seconds, compilation included; eager compiles nothing."""
    case = subject.case
    return Measurement(
        loss=case.loss,
        mode=case.mode,
        variant=subject.variant,
        pred_dtype=case.pred_dtype,
        target_dtype=case.target_dtype,
        shape=list(case.shape),
        elements=case.elements,
        weight=case.weight,
        upstream=case.upstream,
        clock=clock,
        seconds=seconds,
        model_bytes=case.model_bytes,
        launches=launches,
        peak_extra_bytes=peak_extra_bytes,
        compile_seconds=None if subject.variant == EAGER else first_call,
    )


def ceiling(case: Case, kind: CeilingKind, moved: int, seconds: Sequence[float]) -> Ceiling:
    """The record of a copy or addition of a case's inputs that moves `moved` bytes."""
    samples = [moved / second for second in seconds]
    return Ceiling(
        pred_dtype=case.pred_dtype,
        target_dtype=case.target_dtype,
        kind=kind,
        bytes_per_second=statistics.median(samples),
        samples=samples,
        elements=case.elements,
    )


def find(result: KernelResult, subject: Subject, clock: str) -> Measurement | None:
    """The measurement of `subject`; the last one, should there be several."""
    return next((m for m in reversed(result.measurements) if m.clock == clock and subject_of(m) == subject), None)
