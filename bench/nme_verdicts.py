"""Are the variants of an experiment the same, by their NMEs? One verdict per variant and subset.

Each variant is compared with the baseline, or those that `parity.against` names with what it says, seed by seed: the
same initial weights, the same faces in the same order. The difference in NME is judged by `bench.equivalence.tost`:

    EQUIVALENT      its interval lies within the margin, and there are at least 5 seeds
    DIFFERENT       its interval lies beyond the margin, or the variant's NME is not a number where the other's is
    INCONCLUSIVE    neither: more seeds would tell, and the verdict says how many

For the subsets that gate, the p values of either claim are those after Holm's correction over them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.equivalence import FEWEST_PAIRS, MOST_PAIRS, POWER, Tost, holm, pairs_needed, tost
from bench.experiment import CONFIG
from bench.result import SUBSETS
from bench.rule import Rule, rule_of

if TYPE_CHECKING:
    from bench.experiment import Experiment

State = Literal["EQUIVALENT", "DIFFERENT", "INCONCLUSIVE"]


@dataclass(frozen=True)
class Comparison:
    """One variant beside another on one subset; differences are the variant's less the other's, NME x 100."""

    variant: str
    reference: str
    subset: str
    gating: bool
    state: State
    planned: int  # seeds
    test: Tost | None  # None for fewer than two pairs
    differences: tuple[float, ...]  # by seed
    equivalent: float  # p values of both claims, of a gating subset after Holm's correction; 1 where not tested
    different: float
    more: int | None  # seeds that are missing for a power of 90 % if the true difference is the one seen
    more_if_equal: int | None  # the same if it is 0; both None where 1000 seeds are not enough, or nobody can tell
    sentence: str
    failure_rate: float | None  # mean difference x 100
    auc: float | None


def judged(rule: Rule, metrics: Mapping[str, Mapping[int, Mapping[str, tuple[float | None, ...]]]]) -> list[Comparison]:
    """Every comparison of `rule`, in its order, subset by subset.

    metrics: variant -> seed -> subset -> (NME, failure rate, AUC) of what is done, fractions, None for a number that
    does not exist or is not finite. A subset that no trial of a pair knows, or without faces, is left out.
    """
    found = []
    for variant, reference in rule.compared.items():
        new, old = metrics.get(variant, {}), metrics.get(reference, {})
        pairs = {subset: _pairs(rule, new, old, subset) for subset in SUBSETS}
        tests = {subset: _test(pair, rule) for subset, pair in pairs.items()}
        family = [subset for subset in rule.gating if tests[subset] is not None]
        corrected = {
            claim: holm({s: getattr(tests[s], claim) for s in family}) for claim in ("equivalent", "different")
        }
        # A subset that cannot be tested yet belongs to the family all the same
        size = max(len(rule.gating), 1)
        for subset in SUBSETS:
            gating = subset in rule.gating
            if pairs[subset].unknown and not gating:
                continue
            test = tests[subset]
            p = {
                claim: 1.0 if test is None else corrected[claim][subset] if gating else getattr(test, claim)
                for claim in ("equivalent", "different")
            }
            found.append(_comparison(rule, variant, reference, subset, pairs[subset], test, p, size if gating else 1))
    return found


def compare(experiment: Experiment) -> list[Comparison]:
    """The comparisons of an experiment that trains, by the rule in its config."""
    return judged(experiment_rule(experiment), _metrics(experiment))


def experiment_rule(experiment: Experiment) -> Rule:
    """The rule that an experiment's resolved config holds."""
    return rule_of(experiment.config, f"{experiment.folder / CONFIG}: parity")


@dataclass(frozen=True)
class _Pairs:
    differences: dict[int, float]  # seed -> NME x 100
    lost: tuple[int, ...]  # seeds whose variant has no number where the other has one
    broken: tuple[int, ...]  # seeds whose reference has none
    absent: tuple[int, ...]  # seeds that one of the two has not finished
    unknown: bool  # nobody knows who belongs to the subset, or nobody does
    failure_rate: float | None
    auc: float | None


def _pairs(
    rule: Rule,
    new: Mapping[int, Mapping[str, tuple[float | None, ...]]],
    old: Mapping[int, Mapping[str, tuple[float | None, ...]]],
    subset: str,
) -> _Pairs:
    differences: dict[int, float] = {}
    lost, broken, absent, unknown = [], [], [], 0
    others: list[list[float]] = [[], []]
    for seed in rule.seeds:
        if seed not in new or seed not in old:
            absent.append(seed)
            continue
        ours, theirs = new[seed].get(subset), old[seed].get(subset)
        if ours is None or theirs is None:
            unknown += 1
            continue
        for place, values in enumerate(others, start=1):
            a, b = ours[place], theirs[place]
            if a is not None and b is not None:
                values.append(100 * (a - b))
        if not _is_number(theirs[0]):
            broken.append(seed)
        elif not _is_number(ours[0]):
            lost.append(seed)
        else:
            assert ours[0] is not None
            assert theirs[0] is not None
            differences[seed] = 100 * (ours[0] - theirs[0])
    means = [statistics.fmean(values) if values else None for values in others]
    nobody = not differences and not lost and not broken
    return _Pairs(differences, tuple(lost), tuple(broken), tuple(absent), nobody and unknown > 0, *means)


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _test(pairs: _Pairs, rule: Rule) -> Tost | None:
    values = list(pairs.differences.values())
    return tost(values, rule.margin, rule.alpha) if len(values) > 1 else None


def _comparison(
    rule: Rule,
    variant: str,
    reference: str,
    subset: str,
    pairs: _Pairs,
    test: Tost | None,
    p: Mapping[str, float],
    family: int,
) -> Comparison:
    planned, count = len(rule.seeds), len(pairs.differences)
    more = if_equal = None
    state: State = "INCONCLUSIVE"
    seen = _seen(test, pairs, rule)
    if pairs.lost:
        state = "DIFFERENT"
        sentence = f"the NME of {_seeds(pairs.lost)} is not a number, and {reference}'s is"
    elif p["different"] <= rule.alpha:
        state, sentence = "DIFFERENT", f"{seen}, beyond ± {rule.margin:g}"
    elif pairs.broken:
        sentence = f"the NME of {reference} is not a number at {_seeds(pairs.broken)}"
    elif pairs.absent and planned > count:
        sentence = f"{_seeds(pairs.absent)} of {planned} not finished by both; so far {seen}"
    elif pairs.unknown:
        sentence = "which faces belong to the subset is not known, or none does"
    elif count < FEWEST_PAIRS:
        sentence = f"{seen}; fewer than {FEWEST_PAIRS} seeds never show equivalence"
    elif p["equivalent"] <= rule.alpha:
        state, sentence = "EQUIVALENT", f"{seen}, within ± {rule.margin:g}"
    else:
        sentence = f"{seen}, partly beyond ± {rule.margin:g}"
    if state == "INCONCLUSIVE":
        more, if_equal, advice = _missing(test, planned, rule, family)
        sentence += advice
    return Comparison(
        variant=variant,
        reference=reference,
        subset=subset,
        gating=subset in rule.gating,
        state=state,
        planned=planned,
        test=test,
        differences=tuple(pairs.differences.values()),
        equivalent=p["equivalent"],
        different=p["different"],
        more=more,
        more_if_equal=if_equal,
        sentence=sentence,
        failure_rate=pairs.failure_rate,
        auc=pairs.auc,
    )


def _seen(test: Tost | None, pairs: _Pairs, rule: Rule) -> str:
    if test is None:
        one = next(iter(pairs.differences.values()), None)
        return "no pair of seeds" if one is None else f"one pair of seeds, {signed(one)}"
    if not any(pairs.differences.values()):
        return f"equal to the last bit in {test.pairs} pairs of seeds"
    level = round(100 * (1 - 2 * rule.alpha))
    return f"{signed(test.mean)} [{signed(test.low)}, {signed(test.high)}] ({level} %, {test.pairs} pairs of seeds)"


def _missing(test: Tost | None, planned: int, rule: Rule, family: int) -> tuple[int | None, int | None, str]:
    """How many more seeds than planned it takes, and that in words."""
    if test is None:
        short = max(FEWEST_PAIRS - planned, 0)
        advice = f"; at least {short} more {_plural(short, 'seed')} wanted" if short else ""
        return (short or None), (short or None), advice
    # The correction is not known before the other subsets' p values are: the smallest alpha it may come to
    alpha = rule.alpha / family
    seen, equal = (pairs_needed(test.deviation, d, rule.margin, alpha) for d in (test.mean, 0.0))
    more, if_equal = (None if needed is None else max(needed - planned, 0) for needed in (seen, equal))
    percent = f"{100 * POWER:.0f} %"
    if more is not None:
        if not more:
            return more, if_equal, ""
        other = f" ({if_equal} if it is 0)" if if_equal is not None and if_equal < more else ""
        advice = (
            f"; {more} more {_plural(more, 'seed')} would show equivalence with {percent} power if the true "
            f"difference is the one seen{other}"
        )
    elif if_equal is not None:
        none = "no number of" if abs(test.mean) >= rule.margin else f"not even {MOST_PAIRS}"
        other = f", {if_equal} more would with {percent} power if it is 0" if if_equal else ""
        advice = f"; {none} seeds would show equivalence if the true difference is the one seen{other}"
    else:
        advice = f"; not even {MOST_PAIRS} seeds would be enough: the margin is too small for results that vary so much"
    return more, if_equal, advice


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _seeds(seeds: Sequence[int], shown: int = 4) -> str:
    listed = ", ".join(map(str, seeds[:shown])) + (f" and {len(seeds) - shown} more" if len(seeds) > shown else "")
    return f"{_plural(len(seeds), 'seed')} {listed}"


def signed(value: float, digits: int = 3) -> str:
    """A difference in points: "+0.021", with the minus sign as wide as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _metrics(experiment: Experiment) -> dict[str, dict[int, dict[str, tuple[float | None, ...]]]]:
    table: dict[str, dict[int, dict[str, tuple[float | None, ...]]]] = {}
    for variant in experiment.variants:
        table[variant] = {
            trial.result.seed: {
                subset: (row.nme, row.failure_rate, row.auc)
                for subset, row in trial.result.metrics.items()
                if row.count
            }
            for trial in experiment.of_variant(variant)
        }
    return table
