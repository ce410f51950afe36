"""What the result of a kernel benchmark says: its verdict, its variants side by side, and what to be wary of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.kernels.result import Ceiling, Check, KernelResult, Measurement

LOSSES = {
    "wing": "Wing",
    "soft_wing": "Soft wing",
    "smooth_l1": "Smooth L1",
    "adaptive_wing": "Adaptive wing",
    "adaptive_wing_published": "Adaptive wing, published formula",
}
MODES = {
    "forward": "forward",
    "forward_backward": "forward and backward",
    "loss_and_grad": "loss and gradient in one call",
}
WEIGHTS = {
    "none": "",
    "landmark": "weight per landmark",
    "sample_landmark": "weight per sample and landmark",
    "element": "weight per element",
}
UPSTREAMS = {"one": "", "other": "upstream gradient not 1"}
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float64": "fp64"}
CLOCKS = {"gpu": "GPU time", "wall": "host wall time"}
VARIANTS = ("eager", "compile", "triton")
FUSED = "triton"
INTERPRETED = "triton_interpreted"
# The two-branch formula is the same function: the kernel of one evaluation is what takes its place
REPLACED_BY = {"adaptive_wing_published": "adaptive_wing"}

UNSTABLE = 0.2  # width of the spread over the median; above it a ratio of two medians is good to one digit only


@dataclass(frozen=True)
class Facet:
    """What measurements of different sizes, variants and clocks have in common."""

    loss: str
    mode: str
    pred_dtype: str
    target_dtype: str
    weight: str
    upstream: str

    @property
    def dtypes(self) -> str:
        return dtypes_text(self.pred_dtype, self.target_dtype)

    @property
    def inputs(self) -> str:
        """Dtypes, and weight and upstream gradient where they are not the plain ones."""
        more = (WEIGHTS.get(self.weight, self.weight), UPSTREAMS.get(self.upstream, self.upstream))
        return ", ".join((self.dtypes, *filter(None, more)))

    @property
    def rank(self) -> tuple[tuple[int, str], ...]:
        """Sorts as the names above are listed, and what is not listed by name after them."""
        pairs = (
            (self.loss, LOSSES),
            (self.mode, MODES),
            (self.pred_dtype, DTYPES),
            (self.target_dtype, DTYPES),
            (self.weight, WEIGHTS),
            (self.upstream, UPSTREAMS),
        )
        return tuple((place_in(name, tuple(known)), name) for name, known in pairs)


@dataclass(frozen=True)
class Comparison:
    """One facet at one size on one clock; of a variant that was measured twice the later measurement counts."""

    facet: Facet
    clock: str
    shape: tuple[int, ...]
    elements: int
    timed: dict[str, Measurement] = field(default_factory=dict)  # variant -> measurement


@dataclass(frozen=True)
class Ratio:
    """Time of a baseline over the time of another variant: above 1 the other is faster."""

    value: float
    distinct: bool  # whether the 20th to 80th percentiles of the two times leave a gap


@dataclass(frozen=True)
class Cost:
    """What a variant of a facet takes beside time."""

    launches: tuple[int, int] | None  # fewest and most over the sizes
    extra_bytes: int | None  # at the largest size at which they were measured
    extra_elements: int  # that size
    first_call: float | None  # seconds, the longest over the sizes


@dataclass(frozen=True)
class Verdict:
    state: Literal["passed", "failed", "ungated"]
    sentence: str


def verdict(result: KernelResult) -> Verdict:
    """How many figures meet their target, only their limit, or neither; and how many nobody knows."""
    verdicts = [check.verdict for check in result.checks]
    passed, short, failed, unmeasured = (verdicts.count(v) for v in ("PASS", "SHORT", "FAIL", "unmeasured"))
    fact = "; the machine has no GPU" if result.environment.gpu is None else ""
    if not verdicts:
        return Verdict("ungated", "Measurements only: no figure was judged against a target.")
    if unmeasured == len(verdicts):
        everything = "The only figure is" if len(verdicts) == 1 else f"All {len(verdicts)} figures are"
        return Verdict("ungated", f"{everything} unmeasured{fact}.")
    parts = [f"{passed} of {len(verdicts)} figures {'meets its target' if passed == 1 else 'meet their targets'}"]
    if short:
        parts.append(f"{short} only {'its limit' if short == 1 else 'their limits'}")
    if failed:
        parts.append(f"{failed} {'misses its limit' if failed == 1 else 'miss their limits'}")
    if unmeasured:
        parts.append(f"{unmeasured} {'is' if unmeasured == 1 else 'are'} unmeasured{fact}")
    state: Literal["passed", "ungated"] = "passed" if passed == len(verdicts) else "ungated"
    return Verdict("failed" if failed else state, f"{', '.join(parts)}.")


def sorted_checks(result: KernelResult) -> list[Check]:
    """Missed limits first, then missed targets, then what is met, then what is unmeasured; else in the file's order."""
    order = ("FAIL", "SHORT", "PASS", "unmeasured")
    return sorted(result.checks, key=lambda check: order.index(check.verdict))


def real(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Those whose times say something about speed."""
    return [m for m in measurements if m.variant != INTERPRETED]


def interpreted(result: KernelResult) -> list[Measurement]:
    return [m for m in result.measurements if m.variant == INTERPRETED]


def variants(result: KernelResult) -> list[str]:
    """The variants that were timed for real, in the order of `VARIANTS`, unknown ones after them."""
    return sorted({m.variant for m in real(result.measurements)}, key=lambda v: (place_in(v, VARIANTS), v))


def clocks(result: KernelResult) -> list[str]:
    """The clocks that something was timed on for real."""
    return sorted({m.clock for m in real(result.measurements)}, key=lambda c: (place_in(c, tuple(CLOCKS)), c))


def comparisons(result: KernelResult) -> list[Comparison]:
    """Every case and clock that was timed for real: by facet, then by size, the GPU clock first."""
    found: dict[tuple[Facet, str, tuple[int, ...]], Comparison] = {}
    for m in real(result.measurements):
        key = (facet_of(m), m.clock, tuple(m.shape))
        found.setdefault(key, Comparison(*key, m.elements)).timed[m.variant] = m
    for (facet, clock, shape), case in found.items():
        other = REPLACED_BY.get(facet.loss)
        if other and FUSED not in case.timed:
            kernel = found.get((replace(facet, loss=other), clock, shape))
            if kernel and FUSED in kernel.timed:
                case.timed[FUSED] = kernel.timed[FUSED]
    order = tuple(CLOCKS)
    return sorted(found.values(), key=lambda c: (c.facet.rank, c.elements, c.shape, place_in(c.clock, order)))


def facet_of(m: Measurement) -> Facet:
    # Without a backward pass nothing comes from above
    upstream = m.upstream if m.mode == "forward_backward" else "one"
    return Facet(m.loss, m.mode, m.pred_dtype, m.target_dtype, m.weight, upstream)


def ratio(case: Comparison, variant: str, baseline: str) -> Ratio | None:
    """How many times as fast as `baseline` the variant is; None where one of them was not timed."""
    new, old = case.timed.get(variant), case.timed.get(baseline)
    if new is None or old is None:
        return None
    (new_low, new_high), (old_low, old_high) = new.spread, old.spread
    return Ratio(old.median / new.median, new_high < old_low or old_high < new_low)


def pairs(result: KernelResult) -> list[tuple[str, str]]:
    """Which variants are put over which baselines: the fused kernel over the others, without it compile over eager."""
    present = variants(result)
    if FUSED in present:
        return [(FUSED, baseline) for baseline in ("eager", "compile") if baseline in present]
    return [("compile", "eager")] if {"compile", "eager"} <= {*present} else []


def share(result: KernelResult, m: Measurement) -> float | None:
    """The measured ceiling's share that `m` reaches; None on another clock than the GPU's, or without a ceiling."""
    best = result.ceiling(m.pred_dtype, m.target_dtype, m.elements) if m.clock == "gpu" else None
    return m.bytes_per_second / best if best else None


def ceilings(result: KernelResult) -> list[tuple[str, int, dict[str, Ceiling]]]:
    """Dtypes, elements and the best ceiling of each kind there."""
    table: dict[tuple[str, int], dict[str, Ceiling]] = {}
    for one in result.ceilings:
        row = table.setdefault((dtypes_text(one.pred_dtype, one.target_dtype), one.elements), {})
        if one.kind not in row or row[one.kind].bytes_per_second < one.bytes_per_second:
            row[one.kind] = one
    return [(dtypes, elements, row) for (dtypes, elements), row in sorted(table.items(), key=lambda item: item[0])]


def costs(result: KernelResult) -> dict[Facet, dict[str, Cost]]:
    """Launches, extra memory and first call of each facet's variants, as far as they were counted."""
    table: dict[Facet, dict[str, list[Measurement]]] = {}
    for case in comparisons(result):
        for variant, m in case.timed.items():
            table.setdefault(case.facet, {}).setdefault(variant, []).append(m)
    return {
        facet: {variant: _cost(measurements) for variant, measurements in row.items()}
        for facet, row in table.items()
        if any(
            known is not None
            for measurements in row.values()
            for m in measurements
            for known in (m.launches, m.peak_extra_bytes, m.compile_seconds)
        )
    }


def cost_columns(table: Mapping[Facet, Mapping[str, Cost]]) -> dict[str, list[str]]:
    """Of each thing that was counted, the variants that it is known of."""
    found = [(variant, cost) for row in table.values() for variant, cost in row.items()]
    known = {
        "launches": {variant for variant, cost in found if cost.launches is not None},
        "extra memory": {variant for variant, cost in found if cost.extra_bytes is not None},
        "first call": {variant for variant, cost in found if cost.first_call is not None},
    }
    return {what: sorted(names, key=lambda v: (place_in(v, VARIANTS), v)) for what, names in known.items()}


def headline(result: KernelResult) -> str:
    """Per clock the range of every ratio; for want of a fused kernel's time, that there is none."""
    sentences = []
    for clock in clocks(result):
        of_clock = [one for one in comparisons(result) if one.clock == clock]
        parts: list[str] = []
        for variant, baseline in pairs(result):
            found = [r.value for one in of_clock if (r := ratio(one, variant, baseline))]
            if found:
                low, high = ratio_text(min(found)), ratio_text(max(found))
                span = low if low == high else f"{low} to {high}"
                count = f"{len(found)} {'case' if len(found) == 1 else 'cases'}"
                parts.append(f"{span} as fast as {baseline} ({count})")
        if parts:
            name = CLOCKS.get(clock, clock)
            sentences.append(f"{name[0].upper()}{name[1:]}: {variant} is {' and '.join(parts)}.")
    if FUSED not in variants(result):
        ran = " It ran in Triton's interpreter, which says nothing about speed." if interpreted(result) else ""
        sentences.append(f"No fused kernel was timed.{ran}")
    return " ".join(sentences)


def cautions(result: KernelResult) -> list[str]:
    """What makes these figures hard to trust or to repeat."""
    found = []
    if result.environment.dirty:
        found.append("Uncommitted changes were in the checkout.")
    seen: set[tuple[object, ...]] = set()
    twice = []
    for m in real(result.measurements):
        key = (facet_of(m), tuple(m.shape), m.variant, m.clock)
        if key in seen:
            twice.append(_described(m))
        seen.add(key)
    if twice:
        found.append(f"Measured more than once, the last one counts: {_some(twice)}.")
    unsteady = [m for m in real(result.measurements) if (m.spread[1] - m.spread[0]) > UNSTABLE * m.median]
    if unsteady:
        found.append(
            f"The times of {len(unsteady)} of {len(real(result.measurements))} measurements spread over more than "
            f"{100 * UNSTABLE:.0f} % of their median ({_some([_described(m) for m in unsteady])}): their ratios are "
            "rough; measure again without other load on the machine."
        )
    alone = [m for m in real(result.measurements) if len(m.seconds) == 1]
    if alone:
        found.append(f"One sample only, so no spread: {_some([_described(m) for m in alone])}.")
    return found


def place_in(name: str, known: Sequence[str]) -> int:
    """Where a name stands in a list; behind all others where it does not."""
    return known.index(name) if name in known else len(known)


def in_unit(seconds: float) -> tuple[float, str]:
    """A time as a number below 1000 and the unit of it: 3.1e-6 is (3.1, "µs")."""
    for unit, scale in (("ns", 1e-9), ("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return seconds / scale, unit
    return seconds, "s"


def time_text(seconds: float) -> str:
    """Seconds to three digits: "3.10 µs"."""
    value, unit = in_unit(seconds)
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"


def spread_text(m: Measurement) -> str:
    """Half the width of the spread, in percent of the median; nothing for a single sample."""
    low, high = m.spread
    percent = 50 * (high - low) / m.median
    return "" if len(m.seconds) == 1 else f"± {percent:.1f} %" if percent < 9.95 else f"± {percent:.0f} %"


def ratio_text(value: float) -> str:
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}×"


def bytes_text(count: float) -> str:
    for unit, scale in (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30)):
        if abs(count) < 1000 * scale or unit == "GiB":
            break
    value = count / scale
    return f"{value:.0f} {unit}" if unit == "B" or abs(value) >= 99.95 else f"{value:.3g} {unit}"


def figure_text(value: float | None, unit: str) -> str:
    """A check's figure, target or limit with its unit."""
    if value is None:
        return "–"
    number = f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{number}×" if unit == "x" else f"{number} {'µs' if unit == 'us' else unit}".strip()


def bound_text(check: Check, value: float) -> str:
    """A target or limit: what the figure has to be at least, or at most."""
    # "relative" says how the figure was formed and is no unit
    unit = "" if check.unit == "relative" else check.unit
    return f"{'≥' if check.higher_is_better else '≤'} {figure_text(value, unit)}"


def rate_text(bytes_per_second: float) -> str:
    value = bytes_per_second / 1e9
    return f"{value / 1e3:.3f} TB/s" if value >= 999.5 else f"{value:.3g} GB/s"


def dtypes_text(pred: str, target: str) -> str:
    """ "fp32", or "bf16 / fp32" where prediction and target differ."""
    pred, target = DTYPES.get(pred, pred), DTYPES.get(target, target)
    return pred if pred == target else f"{pred} / {target}"


def shape_text(shape: Sequence[int]) -> str:
    return " × ".join(f"{length:,}" for length in shape)


def _described(m: Measurement) -> str:
    facet = facet_of(m)
    loss, mode, clock = LOSSES.get(m.loss, m.loss), MODES.get(m.mode, m.mode), CLOCKS.get(m.clock, m.clock)
    return f"{loss}, {mode}, {facet.inputs}, {shape_text(m.shape)}, {m.variant}, {clock}"


def _cost(measurements: Sequence[Measurement]) -> Cost:
    launches = [m.launches for m in measurements if m.launches is not None]
    largest = max(
        (m for m in measurements if m.peak_extra_bytes is not None), key=lambda m: m.elements, default=measurements[0]
    )
    first = [m.compile_seconds for m in measurements if m.compile_seconds is not None]
    return Cost(
        launches=(min(launches), max(launches)) if launches else None,
        extra_bytes=largest.peak_extra_bytes,
        extra_elements=largest.elements,
        first_call=max(first, default=None),
    )


def _some(names: Sequence[str], shown: int = 3) -> str:
    """Names that may hold commas, the first few of them."""
    return "; ".join(names[:shown]) + (f"; and {len(names) - shown} more" if len(names) > shown else "")
