"""Are paired results the same? Two one-sided t-tests, and how many pairs they take.

"p > 0.05" of an ordinary t-test is no evidence of equality: few or noisy pairs pass it whatever is true. Here equality
has to be shown: the differences' mean must lie within a margin, with a known risk of saying so wrongly (TOST:
Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", J. Pharmacokinet. Biopharm. 15,
1987).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FEWEST_PAIRS = 5  # below, nothing is called equivalent: a variance of so few says too little
POWER = 0.9
MOST_PAIRS = 1000  # that are thought about
_GRID = 4000  # points of the sample variance's distribution that the power is integrated over


@dataclass(frozen=True)
class Tost:
    """The mean of paired differences, with the interval that equivalence is read off, and the p values of both claims.

    The interval has the confidence 1 - 2 alpha: it lies within the margin exactly where `equivalent` is below alpha,
    and beyond it where `different` is. A deviation of 0 makes the mean known exactly.
    """

    pairs: int
    mean: float
    deviation: float  # of the differences
    low: float
    high: float
    equivalent: float  # p of "the true difference is at least the margin"
    different: float  # p of "the true difference is at most the margin", in the direction that was seen


def tost(differences: Sequence[float], margin: float, alpha: float) -> Tost:
    """Test finite paired `differences` against +- `margin`, each side at `alpha`. ValueError for fewer than 2."""
    from scipy.special import stdtr, stdtrit

    pairs = len(differences)
    if pairs < 2:
        raise ValueError(f"{pairs} pairs; a test takes 2")
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    error, degrees = deviation / math.sqrt(pairs), pairs - 1
    if error == 0:
        inside, outside = float(abs(mean) >= margin), float(abs(mean) <= margin)
        return Tost(pairs, mean, deviation, mean, mean, inside, outside)
    above, below = (mean + margin) / error, (mean - margin) / error
    half = float(stdtrit(degrees, 1 - alpha)) * error
    return Tost(
        pairs=pairs,
        mean=mean,
        deviation=deviation,
        low=mean - half,
        high=mean + half,
        equivalent=float(max(stdtr(degrees, -above), stdtr(degrees, below))),
        different=float(min(stdtr(degrees, -below), stdtr(degrees, above))),
    )


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted so that any claim of the family that is made below alpha is wrong with a probability of at most alpha.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6, 1979.
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def power(pairs: int, deviation: float, difference: float, margin: float, alpha: float) -> float:
    """The probability that `pairs` pairs are found equivalent, their differences being normal around `difference`.

    Exact: the normal probability that the mean falls where both tests reject, averaged over the distribution of the
    sample variance.
    """
    import numpy as np
    from scipy.special import chdtri, ndtr, stdtrit

    if deviation == 0:
        return float(abs(difference) < margin)
    degrees = pairs - 1
    middles = (np.arange(_GRID) + 0.5) / _GRID
    error = deviation / math.sqrt(pairs)
    seen = error * np.sqrt(chdtri(degrees, middles) / degrees)  # standard errors that samples show, equally probable
    room = margin - stdtrit(degrees, 1 - alpha) * seen
    inside = ndtr((room - difference) / error) - ndtr((-room - difference) / error)
    return float(np.where(room > 0, inside, 0.0).mean())


def pairs_needed(deviation: float, difference: float, margin: float, alpha: float, wanted: float = POWER) -> int | None:
    """How many pairs are found equivalent with probability `wanted`; None where 1000 are not enough."""

    def enough(pairs: int) -> bool:
        return power(pairs, deviation, difference, margin, alpha) >= wanted

    if abs(difference) >= margin or not enough(MOST_PAIRS):
        return None
    low, high = FEWEST_PAIRS - 1, MOST_PAIRS  # not enough, enough
    if enough(FEWEST_PAIRS):
        return FEWEST_PAIRS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
