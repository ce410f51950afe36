from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from bench.interval import mean_interval, median_interval, ratio_interval, student_t


# From printed tables of the t distribution, two-sided 95 % and 99 %: one odd, one even number of degrees and the limits
@pytest.mark.parametrize(
    ("degrees", "confidence", "quantile"),
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (4, 0.95, 2.776), (9, 0.95, 2.262), (30, 0.95, 2.042), (9, 0.99, 3.250)],
)
def test_quantiles_of_student_t_are_those_of_the_tables(degrees: int, confidence: float, quantile: float) -> None:
    assert student_t(degrees, confidence) == pytest.approx(quantile, abs=5e-4)  # printed to three digits


# What 1,500 simulations gave when the method was chosen: 95, 93 and 91 %; 400 deviate by 1.5 points (one sigma)
@pytest.mark.parametrize(("correlation", "covered"), [(0.0, 0.91), (0.5, 0.88), (0.7, 0.86)])
def test_the_interval_holds_the_median_of_windows_that_depend_on_their_neighbours(
    correlation: float, covered: float
) -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        noise = rng.normal(size=80)
        windows = [noise[0]]
        for value in noise[1:]:
            windows.append(correlation * windows[-1] + value)
        interval = median_interval([100 + value for value in windows[50:]])  # the first ones still know their start
        held += interval.low <= 100 <= interval.high
    assert covered <= held / 400 <= 0.99


def test_correlated_windows_get_a_wider_interval_than_the_same_ones_shuffled() -> None:
    windows = [math.sin(place / 6) for place in range(60)]
    shuffled = [windows[place] for place in np.random.default_rng(0).permutation(60)]
    slow, quick = median_interval(windows), median_interval(shuffled)
    assert slow.value == quick.value == statistics.median(windows)
    assert slow.high - slow.low > 1.5 * (quick.high - quick.low)


def test_equal_windows_have_an_interval_without_width() -> None:
    interval = median_interval([7.0] * 10)
    assert (interval.value, interval.low, interval.high) == (7.0, 7.0, 7.0)


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="9 samples; an interval takes 10"):
        median_interval([1.0] * 9)


def test_a_ratio_is_the_geometric_mean_of_its_pairs_with_the_t_interval_of_their_logarithms() -> None:
    interval = ratio_interval([(200, 100), (440, 110)])
    assert interval is not None
    assert interval.value == pytest.approx(math.sqrt(2 * 4))
    half = 12.706 * statistics.stdev([math.log(2), math.log(4)]) / math.sqrt(2)
    assert interval.low == pytest.approx(interval.value / math.exp(half), rel=1e-3)  # 12.706 has five digits
    assert interval.high == pytest.approx(interval.value * math.exp(half), rel=1e-3)


def test_one_pair_has_no_interval() -> None:
    assert ratio_interval([(2, 1)]) is None
    assert mean_interval([1.0]) is None
