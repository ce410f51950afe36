"""The rule of parity: fixed before trials run, and what a later change looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_recipe, write_yaml
from records import result, store

from bench.config import load_experiment
from bench.experiment import read_experiment
from bench.plan import plan
from bench.rule import changes, note_rule, rule_of
from bench.store import write_experiment
from bench.summary import cautions
from pose.errors import InputError


def config(folder: Path, **top: Any) -> Path:
    values = {
        **tiny_recipe(Path("faces")),
        "variants": {"a": {}, "b": {"loss": {"omega": 9.0}}},
        "seeds": [0, 1],
        **top,
    }
    return write_yaml(folder / "config.yaml", values)


def launch(path: Path, out: Path, *settings: str) -> None:
    """What a launcher does before any trial runs."""
    experiment, recipes = load_experiment(path, settings)
    write_experiment(experiment, plan(experiment, recipes, "faces"), out)


def finish(out: Path, count: int) -> None:
    """Leave so many results."""
    for trial in read_experiment(out).config["trials"][:count]:
        (out / "trials" / trial).mkdir(parents=True, exist_ok=True)
        (out / "trials" / trial / "result.json").write_text("{}")


def test_the_rule_is_there_before_any_trial_and_says_what_decides(tmp_path: Path) -> None:
    launch(config(tmp_path, parity={"margin": 0.1, "gating": ["test", "pose"]}), tmp_path / "out")
    (noted,) = read_experiment(tmp_path / "out").rules
    assert noted.results == 0
    rule = noted.rule
    assert (rule.margin, rule.alpha, rule.gating, rule.seeds) == (0.1, 0.05, ["test", "pose"], [0, 1])
    assert (rule.compared, rule.length, rule.weights) == ({"b": "a"}, "6 steps", "last")


def test_the_same_rule_is_noted_once_and_one_without_results_may_change(tmp_path: Path) -> None:
    path, out = config(tmp_path, parity={}), tmp_path / "out"
    launch(path, out)
    launch(path, out)
    assert len(read_experiment(out).rules) == 1
    launch(path, out, "parity.margin=0.2")
    assert changes(read_experiment(out).rules) == []


def test_a_change_after_results_is_shown_by_every_report_to_come(tmp_path: Path) -> None:
    path, out = config(tmp_path, parity={}), tmp_path / "out"
    launch(path, out)
    finish(out, 3)
    launch(path, out, "parity.margin=0.2", "seeds=[0,1,2]")
    launch(path, out, "parity.margin=0.2", "seeds=[0,1,2]")
    (sentence,) = [text for text in cautions(read_experiment(out)) if "rule" in text]
    assert sentence.startswith("The rule of parity was changed when 3 results were there")
    assert sentence.endswith("margin 0.05 → 0.2; seeds 0, 1 → 0, 1, 2.")


def test_a_margin_edited_into_the_stored_config_is_shown(tmp_path: Path) -> None:
    path, out = config(tmp_path, parity={}), tmp_path / "out"
    launch(path, out)
    stored = out / "experiment.yaml"
    stored.write_text(stored.read_text().replace("margin: 0.05", "margin: 0.5"))
    assert any(
        "is not the one that was noted" in text and "margin 0.05 → 0.5" in text
        for text in cautions(read_experiment(out))
    )


def test_a_rule_written_after_the_results_says_so(tmp_path: Path) -> None:
    store(tmp_path, [result(variant=v) for v in ("a", "b")])
    note_rule(rule_of(read_experiment(tmp_path).config), tmp_path, results=2)
    assert changes(read_experiment(tmp_path).rules) == [
        "The rule of parity was written when 2 results were there already."
    ]


def test_without_a_section_nothing_gates_and_with_one_the_test_set_does(tmp_path: Path) -> None:
    variants = {"variants": {"a": {}, "b": {}}, "baseline": "a", "seeds": [0]}
    assert rule_of(variants).gating == []
    assert rule_of({**variants, "parity": {}}).gating == ["test"]
    with pytest.raises(InputError, match=r"^there: margin: "):
        rule_of({**variants, "parity": {"margin": -1.0}}, "there")


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"parity": {"margin": 0}}, "parity.margin: "),
        ({"parity": {"alpha": 0.7}}, "parity.alpha: "),
        ({"parity": {"gating": ["tset"]}}, "'tset' is none of test, pose"),
        ({"parity": {"gating": ["test", "test"]}}, "names one twice"),
        ({"parity": {"against": {"c": "a"}}}, "parity.against.c: no variant is called 'c' (variants: a, b)"),
        ({"parity": {"against": {"b": "x"}}}, "parity.against.b: no variant is called 'x'"),
        ({"parity": {"against": {"b": "b"}}}, "a variant is not compared with itself"),
        ({"parity": {"margins": 1}}, "parity.margins: no such key; did you mean parity.margin?"),
        (
            {"measure": "throughput", "seeds": [0], "parity": {}},
            "goes with measure: training, and measure is throughput",
        ),
        ({"gates": {"speedup": {"b": 1.3}}}, "gates.speedup.b: wanted a variant beside the baseline"),
        ({"measure": "throughput", "seeds": [0], "gates": {"speedup": {"a": 1.3}}}, "gates.speedup.a: wanted"),
    ],
)
def test_what_cannot_be_a_rule_is_one_sentence_naming_file_and_key(
    tmp_path: Path, top: dict[str, Any], message: str
) -> None:
    path = config(tmp_path, **top)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert message in str(caught.value)
    assert "config.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_levels_come_last_need_the_weights_they_evaluate_and_change_with_either_recipe(tmp_path: Path) -> None:
    path = config(tmp_path, parity={})
    trials = plan(*load_experiment(path), "faces")
    assert [trial.measure for trial in trials] == ["training"] * 4 + ["levels"]
    levels = trials[-1]
    assert levels.id.startswith("b-levels-")
    assert levels.needs == (trials[0].id,) == (levels.weights,)
    assert levels.reference == trials[0].recipe
    assert [t.measure for t in plan(*load_experiment(path, ["parity.levels=false"]), "faces")] == ["training"] * 4
    for setting in ("parity.trajectory_steps=7", "variants.a.train.lr=1e-3", "variants.b.train.lr=1e-3"):
        assert plan(*load_experiment(path, [setting]), "faces")[-1].id != levels.id
    # Nothing that is only judged changes what was measured
    assert [t.id for t in plan(*load_experiment(path, ["parity.margin=0.2"]), "faces")] == [t.id for t in trials]
