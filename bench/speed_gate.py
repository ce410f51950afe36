"""Is a variant at least so many times as fast? Decided by where the interval lies, never by the point."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bench.interval import ratio_interval, student_t

MOST_PAIRS = 1000  # that are thought about


@dataclass(frozen=True)
class SpeedVerdict:
    """`more`: how many more pairs would let the interval clear the factor, at the ratio and scatter that were seen."""

    state: Literal["PASSED", "FAILED", "INCONCLUSIVE"]
    sentence: str
    more: int | None = None


def at_least(pairs: Sequence[tuple[float, float]], factor: float) -> SpeedVerdict:
    """Judge the ratios of `pairs`, first to second, each pair being one repeat's two processes.

    PASSED where the 95 % interval of the ratio lies at or above `factor`: a claim that is wrong in 2.5 % of all
    experiments at most. FAILED where it lies below, or a speed is no positive number.
    """
    if any(not (math.isfinite(value) and value > 0) for pair in pairs for value in pair):
        return SpeedVerdict("FAILED", "a speed is not a number above 0")
    interval = ratio_interval(pairs)
    if interval is None:
        seen = f"one pair, {pairs[0][0] / pairs[0][1]:.3f}" if pairs else "no pair of repeats"
        return SpeedVerdict("INCONCLUSIVE", f"{seen}; an interval takes at least 2 repeats")
    seen = f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] ({len(pairs)} pairs)"
    if interval.low >= factor:
        return SpeedVerdict("PASSED", seen)
    if interval.high < factor:
        return SpeedVerdict("FAILED", seen)
    more = _more(pairs, factor)
    advice = (
        f"; {more} more {'repeat' if more == 1 else 'repeats'} would tell if the ratio is the one seen"
        if more is not None
        else "; the ratio seen is too close to the factor for repeats to tell"
    )
    return SpeedVerdict("INCONCLUSIVE", seen + advice, more)


def _more(pairs: Sequence[tuple[float, float]], factor: float) -> int | None:
    logs = [math.log(first / second) for first, second in pairs]
    distance, deviation = abs(statistics.fmean(logs) - math.log(factor)), statistics.stdev(logs)
    for count in range(len(pairs) + 1, MOST_PAIRS):
        if student_t(count - 1) * deviation / math.sqrt(count) < distance:
            return count - len(pairs)
    return None
