"""Were the windows of a measurement alike? What speaks against it, in words, and what to do about it.

Speed is summed up by a median with an interval that allows for neighbours that depend on each other; what is said here
tells why an interval is wide, and what it cannot know.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bench.result import ThroughputResult

CORRELATED = 0.5  # of neighbouring windows
DRIFT = 0.02  # from the first window to the last, in parts of the median
SURE = 0.01  # p value below which a drift, or a correlation, is no chance
OUTLIER = 5.0  # deviations, estimated from the median absolute one
FAR = 1.05  # times the median that an outlier is, too: where all windows are alike to a hair, any is one
SLOWED = 0.95  # of the clock before the windows
POWER_LIMIT = 0.98  # of the power limit
HOT = 85.0  # degrees Celsius
_NORMAL = 1.4826  # standard deviations per median absolute one of a normal distribution

Kind = Literal["correlation", "drift", "outliers", "clock", "power", "temperature"]


@dataclass(frozen=True)
class Finding:
    kind: Kind
    sentence: str  # what was seen, without whose windows they are
    advice: str


def findings(result: ThroughputResult) -> list[Finding]:
    """What was not steady about a trial's training windows, and its GPU meanwhile."""
    return [*of_windows(result.training.seconds), *_of_gauges(result)]


def of_windows(seconds: Sequence[float]) -> list[Finding]:
    """What was not steady about windows of equal work, in the order they were timed."""
    found = []
    median = statistics.median(seconds)
    far = [value for value in seconds if value > _fence(seconds) and value > FAR * median]
    if far:
        worst = max(far) / median
        found.append(
            Finding(
                "outliers",
                f"{len(far)} of {len(seconds)} windows took up to {worst:.2f} times the median",
                "something else ran then; the median leaves them out, and a quiet machine is without them",
            )
        )
    change, p = drift(seconds)
    if abs(change) > DRIFT and p < SURE:
        how = "slower" if change > 0 else "faster"
        found.append(
            Finding(
                "drift",
                f"windows got {how} by {100 * abs(change):.0f} % from the first to the last",
                "a longer warm-up (throughput.warmup_steps) if faster, locked clocks or better cooling if slower",
            )
        )
    else:  # a drift makes neighbours alike by itself
        r = correlation(seconds)
        if r > max(CORRELATED, 2.33 / math.sqrt(len(seconds))):
            worth = max(1, round(len(seconds) * (1 - r) / (1 + r)))
            found.append(
                Finding(
                    "correlation",
                    f"neighbouring windows depend on each other (correlation {r:.2f}): {len(seconds)} say as much as "
                    f"{worth} independent ones",
                    "the interval allows for it; longer windows (throughput.window_steps) or more repeats narrow it",
                )
            )
    return found


def correlation(values: Sequence[float]) -> float:
    """Of neighbours; 0 where all are equal but for their last bits."""
    mean = statistics.fmean(values)
    off = [value - mean for value in values]
    spread = sum(x * x for x in off)
    return sum(a * b for a, b in itertools.pairwise(off)) / spread if spread > 1e-18 * mean**2 else 0.0


def drift(values: Sequence[float]) -> tuple[float, float]:
    """The change from the first value to the last in parts of the median, and its p value.

    The median of all pairs' slopes (Theil and Sen), and the test of Mann (Econometrica 13, 1945) whether there is any
    trend, both deaf to outliers; the p value allows for neighbours that depend on each other by the effective number of
    values (Yue and Wang, Water Resour. Manage. 18, 2004).
    """
    count = len(values)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    slope = statistics.median((values[j] - values[i]) / (j - i) for i, j in pairs)
    rank = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in pairs)
    residual = [value - slope * place for place, value in enumerate(values)]
    r = max(0.0, correlation(residual))
    variance = count * (count - 1) * (2 * count + 5) / 18 * (1 + r) / (1 - min(r, 0.9))
    z = (abs(rank) - 1) / math.sqrt(variance) if rank else 0.0
    return slope * (count - 1) / statistics.median(values), math.erfc(max(z, 0.0) / math.sqrt(2))


def _fence(values: Sequence[float]) -> float:
    median = statistics.median(values)
    return median + OUTLIER * _NORMAL * statistics.median(abs(value - median) for value in values)


def _of_gauges(result: ThroughputResult) -> list[Finding]:
    before, after = result.gauges_before, result.gauges_after
    found: list[Finding] = []
    if before is None or after is None:
        return found
    clocks = before.sm_clock_mhz, after.sm_clock_mhz
    if clocks[0] is not None and clocks[1] is not None and clocks[1] < SLOWED * clocks[0]:
        found.append(
            Finding(
                "clock",
                f"the GPU's clock fell from {clocks[0]:.0f} to {clocks[1]:.0f} MHz",
                "lock it below that (nvidia-smi --lock-gpu-clocks), or compare variants of one allocation alone",
            )
        )
    power, limit = after.power_w, after.power_limit_w
    if power is not None and limit is not None and power >= POWER_LIMIT * limit:
        found.append(
            Finding(
                "power",
                f"the GPU ran at its power limit ({power:.0f} of {limit:.0f} W)",
                "its clock follows the power that a variant draws, and so does the ratio",
            )
        )
    if after.temperature_c is not None and after.temperature_c >= HOT:
        found.append(
            Finding(
                "temperature",
                f"the GPU was at {after.temperature_c:.0f} °C",
                "it may lower its clock; better cooling, or pauses between measurements",
            )
        )
    return found
