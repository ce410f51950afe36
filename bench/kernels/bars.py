"""The bars that figures of the core table must reach, and the verdict on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from bench.kernels.cases import PUBLISHED, Case, dtype
from bench.kernels.error import ErrorBar
from bench.kernels.result import Check, KernelResult, judged
from bench.kernels.table import (
    BATCHES,
    BF16,
    COMPILE,
    EAGER,
    FP32,
    HEATMAPS,
    MIXED,
    PAIRS,
    TRITON,
    Sizes,
    Subject,
    find,
    heatmaps,
    landmarks,
    size_name,
    wing,
)

Figure = Callable[[KernelResult], float | None]


@dataclass(frozen=True)
class Bar:
    """A figure of the table: the worst of its parts counts, and `beside` is shown next to them and not judged."""

    group: str
    name: str
    unit: str
    target: float
    limit: float
    how: str
    parts: dict[str, Figure]
    beside: dict[str, Figure] = field(default_factory=dict)
    higher_is_better: bool = True


def bars(sizes: Sizes) -> list[Bar]:
    """The table's bars, judged at `sizes`."""
    return [*_one_pass(sizes), *_backward(sizes), *_small(), *_weights(sizes), *_heatmaps()]


def _one_pass(sizes: Sizes) -> list[Bar]:
    marks = {"fp32": (92.0, 85.0), "bf16 pred + fp32 target": (90.0, 80.0), "bf16": (85.0, 75.0)}
    found = []
    for label, dtypes in PAIRS.items():
        cases = [wing("loss_and_grad", dtypes, landmarks(size)) for size in sizes.one_pass]
        found.append(_share_bar("one_pass", f"one pass, {label}", cases, *marks[label]))
    return found


def _weights(sizes: Sizes) -> list[Bar]:
    found = []
    for weight, text in (("landmark", "per landmark"), ("sample_landmark", "per sample and landmark")):
        cases = [wing("loss_and_grad", FP32, landmarks(size), weight=weight) for size in sizes.one_pass]
        found.append(_share_bar("weights", f"one pass, fp32, weights {text}", cases, 88, 80))
    return found


def _backward(sizes: Sizes) -> list[Bar]:
    found = []
    for baseline, label, dtypes, upstream, target, limit in (
        (EAGER, "fp32, upstream gradient 1", FP32, "one", 11.0, 9.0),
        (EAGER, "fp32, other upstream gradient", FP32, "other", 7.0, 6.0),
        (COMPILE, "fp32, upstream gradient 1", FP32, "one", 1.5, 1.35),
        (COMPILE, "bf16 pred + fp32 target, upstream gradient 1", MIXED, "one", 1.55, 1.35),
    ):
        cases = [wing("forward_backward", dtypes, landmarks(size), upstream=upstream) for size in sizes.compared]
        parts = {size_name(case): ratio(Subject(case, baseline), Subject(case, TRITON), "gpu") for case in cases}
        name = f"forward + backward against {baseline}, {label}"
        found.append(Bar("backward", name, "x", target, limit, "GPU time", parts))
    return found


def _small() -> list[Bar]:
    both = {f"batch {batch}": wing("forward_backward", FP32, (batch, 98, 2)) for batch in BATCHES}
    direct = {label: replace(case, mode="loss_and_grad") for label, case in both.items()}

    def over(
        baseline: str, slow: dict[str, Case], fast: dict[str, Case], clock: str, more: str = ""
    ) -> dict[str, Figure]:
        return {
            f"{label}{more}": ratio(Subject(case, baseline), Subject(fast[label], TRITON), clock)
            for label, case in slow.items()
        }

    times = {label: microseconds(Subject(case, TRITON)) for label, case in direct.items()}
    how = "GPU time of loss_and_grad"
    found = [Bar("small", "batch 64 to 512, loss and gradient", "us", 4, 6, how, times, higher_is_better=False)]
    for baseline, target, limit in ((EAGER, 8.0, 5.0), (COMPILE, 1.7, 1.3)):
        name = f"batch 64 to 512 against {baseline}, graph replay"
        how = f"GPU time, loss and gradient: {baseline} through .backward(), the kernel by loss_and_grad"
        beside = {
            **over(baseline, both, both, "gpu", ", both through .backward()"),
            **over(baseline, direct, direct, "gpu", ", both loss_and_grad"),
        }
        found.append(Bar("small", name, "x", target, limit, how, over(baseline, both, direct, "gpu"), beside))
    for baseline, target, limit in ((EAGER, 2.5, 2.0), (COMPILE, 1.5, 1.2)):
        name = f"batch 64 to 512 against {baseline}, host wall time"
        how = "host wall time without a graph, forward and .backward() of both"
        beside = over(baseline, direct, direct, "wall", ", both loss_and_grad")
        found.append(Bar("small", name, "x", target, limit, how, over(baseline, both, both, "wall"), beside))
    return found


def _heatmaps() -> list[Bar]:
    ours, published = heatmaps("forward_backward"), heatmaps("forward_backward", PUBLISHED)
    kernel, label = Subject(ours, TRITON), "x".join(map(str, HEATMAPS))
    found = []
    for name, baseline, target, limit in (
        ("eager, published formula", Subject(published, EAGER), 28.0, 20.0),
        ("compile, published formula", Subject(published, COMPILE), 5.0, 3.0),
        ("compile, our formula", Subject(ours, COMPILE), 1.5, 1.2),
    ):
        how = "GPU time, forward and .backward() of both, fp32"
        parts = {label: ratio(baseline, kernel, "gpu")}
        found.append(Bar("heatmap", f"adaptive wing against {name}", "x", target, limit, how, parts))
    how = "peak memory beyond the inputs over the gradient's size, forward and .backward()"
    # 2 %: the loss, the workspace, and up to 1 MiB (1 %) that the allocator does not split off a block
    memory = Bar(
        "heatmap",
        "adaptive wing, extra memory in gradients",
        "x",
        1.02,
        1.02,
        how,
        {label: extra_gradients(kernel)},
        higher_is_better=False,
    )
    return [*found, memory]


def _share_bar(group: str, name: str, cases: Sequence[Case], target: float, limit: float) -> Bar:
    how = "GPU time of loss_and_grad; ceiling: the better of a copy and c = a + b of this size"
    parts = {size_name(case): share(Subject(case, TRITON)) for case in cases}
    beside = {f"{size_name(case)}, TB/s": bandwidth(Subject(case, TRITON)) for case in cases}
    return Bar(group, f"{name}, share of the copy bandwidth", "%", target, limit, how, parts, beside)


def share(subject: Subject) -> Figure:
    """Percent of the ceiling that was measured at the subject's size."""

    def figure(result: KernelResult) -> float | None:
        case, found = subject.case, find(result, subject, "gpu")
        best = result.ceiling(case.pred_dtype, case.target_dtype, case.elements)
        return 100 * found.bytes_per_second / best if found and best else None

    return figure


def bandwidth(subject: Subject) -> Figure:
    def figure(result: KernelResult) -> float | None:
        found = find(result, subject, "gpu")
        return found.bytes_per_second / 1e12 if found else None

    return figure


def ratio(slow: Subject, fast: Subject, clock: str) -> Figure:
    """How many times as fast `fast` is."""

    def figure(result: KernelResult) -> float | None:
        first, second = find(result, slow, clock), find(result, fast, clock)
        return first.median / second.median if first and second else None

    return figure


def microseconds(subject: Subject) -> Figure:
    def figure(result: KernelResult) -> float | None:
        found = find(result, subject, "gpu")
        return found.median * 1e6 if found else None

    return figure


def extra_gradients(subject: Subject) -> Figure:
    """Peak memory beyond the inputs, in sizes of the gradient."""

    def figure(result: KernelResult) -> float | None:
        found = find(result, subject, "gpu")
        if found is None or found.peak_extra_bytes is None:
            return None
        return found.peak_extra_bytes / (dtype(subject.case.pred_dtype).itemsize * found.elements)

    return figure


def judge(bar: Bar, result: KernelResult, reason: str) -> Check:
    """The bar's check; where a part is missing the figure is unmeasured, because of `reason`."""
    figures = {label: figure(result) for label, figure in bar.parts.items()}
    known = [value for value in figures.values() if value is not None]
    missing = [label for label, value in figures.items() if value is None]
    figure = None if missing else (min if bar.higher_is_better else max)(known)
    beside = {label: value for label, part in bar.beside.items() if (value := part(result)) is not None}
    shown = "; ".join(f"{label}: {value:.3g}" for label, value in figures.items() if value is not None)
    more = "; ".join(f"{label}: {value:.3g}" for label, value in beside.items())
    how = ". ".join(filter(None, [bar.how, shown, more and f"Not judged: {more}"]))
    if missing:
        how = f"{reason} ({', '.join(missing)}). {how}" if known else f"{reason}. {how}"
    return judged(bar.name, figure, bar.unit, bar.target, bar.limit, higher_is_better=bar.higher_is_better, how=how)


def error_bars(gpu: bool) -> list[ErrorBar]:
    """The interpreter gets small cases: it takes about 30 ms for 1,000 elements."""
    shapes = [(64, 98, 2), landmarks(2**24)] if gpu else [(64, 98, 2)]
    modes = ("loss_and_grad", "forward_backward")

    def over(losses: Sequence[str], *pairs: tuple[str, str], **more: str) -> tuple[Case, ...]:
        return tuple(Case(x, m, *p, s, **more) for x in losses for m in modes for p in pairs for s in shapes)

    fp32 = (
        *over(("wing", "soft_wing", "smooth_l1"), FP32),
        *over(("wing",), FP32, weight="landmark"),
        *over(("wing",), FP32, weight="sample_landmark"),
        *(wing("forward_backward", FP32, shape, upstream="other") for shape in shapes),
    )
    # The interpreter cuts float32 to bfloat16 (1 ulp at most), and 4 ulp of float32 are 6e-5 of bfloat16
    rounded = 1.0 if gpu else 1.0001
    maps = HEATMAPS if gpu else (1, 98, 16, 16)
    return [
        ErrorBar("wing family, fp32", fp32, 4.0),
        ErrorBar("wing family, 16-bit gradients", over(("wing",), MIXED, BF16, ("float16", "float32")), rounded),
        ErrorBar("adaptive wing, fp32", tuple(heatmaps(mode, shape=maps) for mode in modes), 64.0, True),
    ]
