"""Verdicts on NME: what makes variants equivalent, different, or neither."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import result, store, subset

from bench.config import Gates
from bench.equivalence import tost
from bench.experiment import read_experiment
from bench.face_views import face_views
from bench.gates import judge
from bench.nme_verdicts import Comparison, compare, judged
from bench.parity import main
from bench.rule import Rule

SEEDS = list(range(8))
NOISE = [0.011, -0.021, 0.004, 0.017, -0.008, 0.002, -0.013, 0.009]  # of NME x 100


def rule(**changes: Any) -> Rule:
    values: dict[str, Any] = {
        "margin": 0.05, "alpha": 0.05, "gating": ["test"], "compared": {"new": "old"}, "seeds": SEEDS,
        "length": "2 steps",
    }  # fmt: skip
    return Rule(**{**values, **changes})


def metrics(differences: dict[str, list[float | None]], base: float = 4.64) -> dict[str, Any]:
    """NMEs of variant and reference whose differences x 100 these are, by subset; None: the variant has no number."""
    count = max(map(len, differences.values()))
    old = {
        seed: {name: (base / 100, 0.03, 0.5) for name, d in differences.items() if seed < len(d)}
        for seed in range(count)
    }
    new = {
        seed: {
            name: (None if d[seed] is None else (base + float(d[seed] or 0)) / 100, 0.02, 0.6)
            for name, d in differences.items()
            if seed < len(d)
        }
        for seed in range(count)
    }
    return {"old": old, "new": new}


def verdict(differences: list[float | None], **changes: Any) -> Comparison:
    return judged(rule(**changes), metrics({"test": differences}))[0]


def test_differences_within_the_margin_are_equivalent() -> None:
    one = verdict([*NOISE])
    assert (one.state, one.gating, one.more) == ("EQUIVALENT", True, None)
    assert one.test is not None
    assert one.test.mean == pytest.approx(np.mean(NOISE))
    assert "within ± 0.05" in one.sentence
    assert "8 pairs of seeds" in one.sentence
    assert one.failure_rate == pytest.approx(-1.0)
    assert one.auc == pytest.approx(10.0)


def test_a_shift_beyond_the_margin_is_different() -> None:
    one = verdict([d + 0.1 for d in NOISE])
    assert one.state == "DIFFERENT"
    assert "beyond ± 0.05" in one.sentence


def test_a_shift_that_is_sure_but_within_the_margin_is_equivalent() -> None:
    assert verdict([d / 10 + 0.02 for d in NOISE]).state == "EQUIVALENT"


def test_noise_beyond_the_margin_is_inconclusive_and_says_how_many_seeds_are_missing() -> None:
    one = verdict([7 * d for d in NOISE])
    assert one.state == "INCONCLUSIVE"
    assert one.more is not None
    assert one.more_if_equal is not None
    assert one.more >= one.more_if_equal > 0
    assert f"{one.more} more seeds would show equivalence with 90 % power" in one.sentence


def test_a_difference_that_no_number_of_seeds_would_explain_away_says_so() -> None:
    one = verdict([8 * d + 0.06 for d in NOISE])
    assert (one.state, one.more) == ("INCONCLUSIVE", None)
    assert "no number of seeds would show equivalence if the true difference is the one seen" in one.sentence


def test_a_difference_that_more_than_a_thousand_seeds_would_explain_away_says_so() -> None:
    one = verdict([30 * d + 0.03 for d in NOISE])
    assert (one.state, one.more) == ("INCONCLUSIVE", None)
    assert one.more_if_equal is not None
    assert "not even 1000 seeds would show equivalence if the true difference is the one seen" in one.sentence
    assert f"{one.more_if_equal} more would with 90 % power if it is 0" in one.sentence


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_fewer_than_five_seeds_are_never_equivalent(count: int) -> None:
    same: list[float | None] = [0.0] * count
    for differences in (same, [d / 100 for d in NOISE[:count]]):
        one = verdict(differences, seeds=list(range(count)))
        assert one.state == "INCONCLUSIVE"
        assert "fewer than 5 seeds never show equivalence" in one.sentence
        assert one.more == 5 - count


def test_five_runs_of_equal_bits_are_equivalent() -> None:
    one = verdict([0.0] * 5, seeds=list(range(5)))
    assert one.state == "EQUIVALENT"
    assert "equal to the last bit" in one.sentence


def test_two_seeds_can_show_a_large_difference() -> None:
    assert verdict([1.0, 1.01], seeds=[0, 1]).state == "DIFFERENT"


def test_a_variant_that_has_no_number_where_the_reference_has_one_is_different() -> None:
    one = verdict([*NOISE[:7], None])
    assert one.state == "DIFFERENT"
    assert "the NME of seed 7 is not a number, and old's is" in one.sentence


def test_a_reference_without_a_number_leaves_it_open() -> None:
    values = metrics({"test": [*NOISE]})
    values["old"][3]["test"] = (float("inf"), 1.0, 0.0)
    one = judged(rule(), values)[0]
    assert one.state == "INCONCLUSIVE"
    assert "the NME of old is not a number at seed 3" in one.sentence


def test_a_seed_that_is_not_finished_keeps_the_verdict_open() -> None:
    """Whoever leaves out the trial that crashed would choose his seeds after looking."""
    values = metrics({"test": [*NOISE]})
    del values["new"][5]
    one = judged(rule(), values)[0]
    assert one.state == "INCONCLUSIVE"
    assert "seed 5 of 8 not finished by both" in one.sentence
    assert one.test is not None
    assert one.test.pairs == 7


def test_pairs_are_of_equal_seeds_whatever_the_order() -> None:
    values = metrics({"test": [*NOISE]})
    values["new"] = dict(reversed(values["new"].items()))
    assert judged(rule(), values)[0].differences == pytest.approx(NOISE)


def test_a_subset_that_does_not_gate_is_tested_by_itself_and_one_that_gates_after_holm() -> None:
    noisy: list[float | None] = [4.6 * d for d in NOISE]
    plain = tost([float(d or 0) for d in noisy], 0.05, 0.05)
    assert 0.025 < plain.equivalent < 0.05  # passes alone, and not as one of two
    values = metrics({"test": noisy, "pose": noisy, "blur": noisy})
    alone = {one.subset: one for one in judged(rule(), values)}
    assert {name: one.state for name, one in alone.items()} == dict.fromkeys(("test", "pose", "blur"), "EQUIVALENT")
    together = {one.subset: one for one in judged(rule(gating=["test", "pose"]), values)}
    assert {name: one.state for name, one in together.items()} == {
        "test": "INCONCLUSIVE", "pose": "INCONCLUSIVE", "blur": "EQUIVALENT"
    }  # fmt: skip
    assert together["test"].equivalent == pytest.approx(2 * plain.equivalent)
    assert [one.gating for one in together.values()] == [True, True, False]


def test_a_gating_subset_that_nobody_knows_is_inconclusive_and_another_is_left_out() -> None:
    found = judged(rule(gating=["test", "pose"]), metrics({"test": [*NOISE]}))
    assert [(one.subset, one.state) for one in found] == [("test", "EQUIVALENT"), ("pose", "INCONCLUSIVE")]
    assert "which faces belong to the subset is not known" in found[1].sentence


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.03, 1.5), (0.05, 1.0), (0.1, 2.0)])
def test_the_verdict_is_that_of_the_test_on_simulated_experiments(shift: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        differences = (shift + rng.normal(0, 0.03 * scale, 8)).tolist()
        test = tost(differences, 0.05, 0.05)
        expected = (
            "DIFFERENT" if test.different <= 0.05 else "EQUIVALENT" if test.equivalent <= 0.05 else "INCONCLUSIVE"
        )
        assert verdict(differences).state == expected


# An experiment's folder


def experiment_of(folder: Path, differences: dict[str, list[float]], parity: dict[str, Any] | None) -> Path:
    """An experiment whose variants differ from `old` by so much, NME x 100, seed by seed."""
    results = [
        result(variant=name, seed=seed, metrics={"test": subset((4.64 + d) / 100)})
        for name, values in {"old": [0.0] * 8, **differences}.items()
        for seed, d in enumerate(values)
    ]
    config = {"baseline": "old", "train": {"steps": 5}, **({"parity": parity} if parity is not None else {})}
    return store(folder, results, config)


def test_the_command_judges_by_the_config_and_exits_with_one_unless_all_that_gates_is_equivalent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = experiment_of(tmp_path / "same", {"new": NOISE}, {})
    assert main([str(same)]) == 0
    assert "EQUIVALENT" in capsys.readouterr().out
    open_ = experiment_of(tmp_path / "open", {"new": [6 * d for d in NOISE]}, {})
    assert main([str(open_)]) == 1
    assert "more seeds would show equivalence" in " ".join(capsys.readouterr().out.split())
    wide = experiment_of(tmp_path / "wide", {"new": [6 * d for d in NOISE]}, {"margin": 0.5})
    assert main([str(wide)]) == 0
    informs = experiment_of(tmp_path / "informs", {"new": [1 + d for d in NOISE]}, None)
    assert main([str(informs)]) == 0
    assert "DIFFERENT" in capsys.readouterr().out


def test_gates_of_parity_pass_only_for_equivalent(tmp_path: Path) -> None:
    folder = experiment_of(tmp_path, {"new": NOISE, "open": [6 * d for d in NOISE], "far": [1 + d for d in NOISE]}, {})
    gates = judge(Gates(op_error=False), read_experiment(folder))
    assert [(gate.variant, gate.passed, gate.inconclusive) for gate in gates] == [
        ("new", True, False), ("open", False, True), ("far", False, False)
    ]  # fmt: skip


def test_a_variant_is_compared_with_what_the_config_names(tmp_path: Path) -> None:
    folder = experiment_of(
        tmp_path, {"new": [1 + d for d in NOISE], "newer": [1 - d for d in NOISE]}, {"against": {"newer": "new"}}
    )
    found = {(one.variant, one.reference): one.state for one in compare(read_experiment(folder))}
    assert found == {("newer", "new"): "EQUIVALENT"}  # and no others


def test_the_bootstrap_over_faces_is_paired_and_sees_the_choice_of_faces_alone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = rng.gamma(4, 0.012, 400)
    change = rng.normal(0.0005, 0.002, 400)
    results = [result(variant=name, seed=seed) for name in ("old", "new") for seed in (0, 1)]
    folder = store(tmp_path, results, {"baseline": "old"}, nme={"old": old, "new": old + change})
    (view, *subsets), problems = face_views(read_experiment(folder), resamples=4000)
    assert problems == []
    assert (view.variant, view.subset, view.faces) == ("new", "test", 400)
    assert view.interval.value == pytest.approx(100 * change.mean())
    half = 1.645 * 100 * change.std() / np.sqrt(400)
    assert view.interval.high - view.interval.low == pytest.approx(2 * half, rel=0.05)
    assert view.better == pytest.approx((change < 0).mean())
    assert {one.subset for one in subsets} == {"pose", "blur"}  # those whose faces are known
