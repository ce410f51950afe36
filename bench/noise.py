"""The noise floor: how much two measurements of the same code differ on a system.

Measured by an A/A experiment: two variants whose recipes are equal, alternating like any others.
"""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import dataclass
from typing import Any

from bench.experiment import Experiment
from bench.interval import Interval, ratio_interval
from bench.speed_summary import pairs


@dataclass(frozen=True)
class NoiseFloor:
    """`deviation`: of the logarithm of a pair's ratio; `ratio`: of all pairs, which is 1 but for chance."""

    pairs: int
    deviation: float
    ratio: Interval
    source: str  # where it was measured: "this experiment", or a file

    @property
    def sentence(self) -> str:
        ratio = f"{self.ratio.value:.3f} [{self.ratio.low:.3f}, {self.ratio.high:.3f}]"
        text = (
            f"Two measurements of the same code differ by {100 * self.deviation:.1f} % here (deviation of "
            f"{self.pairs} A/A pairs in {self.source}; their ratio is {ratio})."
        )
        if not self.ratio.low <= 1 <= self.ratio.high:
            text += " That interval should hold 1: what comes first is favoured, or conditions changed."
        return text


UNKNOWN = (
    "The noise floor of this system is not known: no two variants have equal recipes, and no reference in "
    "bench/baselines is of this system. Run configs/noise_floor.yaml here once."
)


def own_noise_floor(experiment: Experiment) -> NoiseFloor | None:
    """That of the experiment's own A/A variants; None where it has none, or one pair of repeats only."""
    recipes: dict[str, Any] = {}
    for trial in experiment.timed:
        recipes.setdefault(trial.result.variant, _recipe(trial.result.config))
    for first, second in itertools.combinations(recipes, 2):
        if recipes[first] != recipes[second]:
            continue
        both = pairs(experiment, second, first)
        interval = ratio_interval(both)
        if interval is not None:
            deviation = statistics.stdev(math.log(a / b) for a, b in both)
            return NoiseFloor(len(both), deviation, interval, "this experiment")
    return None


def is_again(experiment: Experiment, variant: str) -> bool:
    """Whether the variant only repeats the recipe of one before it."""
    recipes = {trial.result.variant: _recipe(trial.result.config) for trial in experiment.timed}
    before = experiment.variants[: experiment.variants.index(variant)]
    return variant in recipes and any(recipes.get(name) == recipes[variant] for name in before)


def _recipe(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("name", "description")}
