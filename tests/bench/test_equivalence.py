"""The equivalence test: its error rates by simulation, and its agreement with statsmodels."""

from __future__ import annotations

import numpy as np
import pytest

from bench.equivalence import FEWEST_PAIRS, Tost, holm, pairs_needed, power, tost

MARGIN, ALPHA = 0.05, 0.05


def simulated(seed: int, runs: int, pairs: int, difference: float, sd: float = 0.025, rho: float = 0.0) -> list[Tost]:
    """Tests of two arms of normal NMEs, each with this `sd`, paired with correlation `rho`."""
    rng = np.random.default_rng(seed)
    common, *arms = rng.normal(0, sd, (3, runs, pairs))
    first, second = (np.sqrt(rho) * common + np.sqrt(1 - rho) * arm for arm in arms)
    return [tost(row.tolist(), MARGIN, ALPHA) for row in second + difference - first]


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


@pytest.mark.parametrize("difference", [MARGIN, -MARGIN])
@pytest.mark.parametrize(
    ("pairs", "sd", "rho"),
    [
        (5, 0.025, 0.0),  # the fewest that may pass
        (8, 0.025, 0.0),  # the recommended number
        (8, 0.025, 0.5),  # seeds that do matter
        (8, 0.005, 0.0),  # little noise: only the side at the margin can fail
        (20, 0.040, 0.0),
    ],
)
def test_a_difference_of_the_margin_passes_for_equivalent_in_at_most_five_and_a_half_percent(
    pairs: int, sd: float, rho: float, difference: float
) -> None:
    found = simulated(1, 20_000, pairs, difference, sd, rho)
    assert share([one.equivalent <= ALPHA for one in found]) <= 0.055
    assert share([one.different <= ALPHA for one in found]) <= 0.055


def test_no_difference_with_eight_seeds_passes_in_93_percent() -> None:
    assert share([one.equivalent <= ALPHA for one in simulated(2, 10_000, 8, 0.0)]) >= 0.93


@pytest.mark.parametrize("pairs", [3, 5, 8, 12])
@pytest.mark.parametrize("difference", [0.0, 0.03])
def test_the_interval_covers_the_difference_in_90_percent(pairs: int, difference: float) -> None:
    found = simulated(3, 10_000, pairs, difference)
    assert share([one.low <= difference <= one.high for one in found]) == pytest.approx(0.90, abs=0.015)


def test_the_p_values_say_what_the_interval_shows() -> None:
    for one in simulated(4, 2_000, 6, 0.03):
        assert (one.equivalent <= ALPHA) == (one.low > -MARGIN and one.high < MARGIN)
        assert (one.different <= ALPHA) == (one.low > MARGIN or one.high < -MARGIN)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 30])
def test_p_values_are_those_of_statsmodels(pairs: int) -> None:
    from statsmodels.stats.weightstats import ttost_paired

    rng = np.random.default_rng(pairs)
    for _ in range(50):
        old, new = rng.normal(4.64, 0.03, (2, pairs)) + rng.normal(0, 0.05, (2, 1))
        oracle = ttost_paired(new, old, -MARGIN, MARGIN)[0]
        assert tost((new - old).tolist(), MARGIN, ALPHA).equivalent == pytest.approx(oracle, abs=1e-10)


def test_without_any_scatter_the_mean_is_known() -> None:
    assert tost([0.0] * 5, MARGIN, ALPHA).equivalent == 0
    assert tost([0.06] * 5, MARGIN, ALPHA).equivalent == 1
    assert tost([0.06] * 5, MARGIN, ALPHA).different == 0
    assert tost([MARGIN] * 5, MARGIN, ALPHA).equivalent == 1  # at the margin it is neither
    assert tost([MARGIN] * 5, MARGIN, ALPHA).different == 1


def test_one_pair_is_no_test() -> None:
    with pytest.raises(ValueError, match="a test takes 2"):
        tost([0.0], MARGIN, ALPHA)


def test_holm_multiplies_by_the_claims_that_are_left() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_of_three_subsets_at_the_margin_any_passes_after_holm_in_at_most_five_and_a_half_percent() -> None:
    families = zip(*(simulated(seed, 20_000, 8, MARGIN) for seed in (5, 6, 7)), strict=True)
    passed = [
        min(holm({str(i): one.equivalent for i, one in enumerate(family)}).values()) <= ALPHA for family in families
    ]
    assert share(passed) <= 0.055


@pytest.mark.parametrize(("pairs", "sd", "difference"), [(5, 0.025, 0.0), (8, 0.025, 0.01), (12, 0.04, 0.0)])
def test_the_computed_power_is_that_of_simulations(pairs: int, sd: float, difference: float) -> None:
    found = share([one.equivalent <= ALPHA for one in simulated(8, 20_000, pairs, difference, sd)])
    assert power(pairs, sd * np.sqrt(2), difference, MARGIN, ALPHA) == pytest.approx(found, abs=0.012)


def test_the_pairs_needed_are_the_fewest_that_have_the_power() -> None:
    deviation = 0.03 * np.sqrt(2)
    needed = pairs_needed(deviation, 0.0, MARGIN, ALPHA)
    assert needed == 10
    assert power(needed, deviation, 0.0, MARGIN, ALPHA) >= 0.9 > power(needed - 1, deviation, 0.0, MARGIN, ALPHA)
    assert pairs_needed(1e-4, 0.0, MARGIN, ALPHA) == FEWEST_PAIRS
    assert pairs_needed(0.0, 0.0, MARGIN, ALPHA) == FEWEST_PAIRS


def test_no_number_of_pairs_shows_what_is_not_so() -> None:
    assert pairs_needed(0.02, MARGIN, MARGIN, ALPHA) is None
    assert pairs_needed(0.02, -0.2, MARGIN, ALPHA) is None
    assert pairs_needed(5.0, 0.0, MARGIN, ALPHA) is None
