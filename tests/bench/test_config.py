from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_recipe, write_yaml

from bench.config import Experiment, load_experiment
from bench.plan import plan
from pose.errors import InputError
from pose.recipe import OF_EXPERIMENTS, Recipe


def experiment(folder: Path, **top: Any) -> Path:
    return write_yaml(folder / "experiment.yaml", {**tiny_recipe(Path("faces")), **top})


def ids(path: Path, *settings: str) -> list[str]:
    return [trial.id for trial in plan(*load_experiment(path, settings), "faces")]


def test_a_recipe_alone_is_an_experiment_of_one_variant(tmp_path: Path) -> None:
    loaded, recipes = load_experiment(experiment(tmp_path))
    assert loaded.baseline == "baseline"
    assert loaded.seeds == [0]
    assert list(recipes) == ["baseline"]


def test_a_variant_is_the_recipe_with_its_overrides(tmp_path: Path) -> None:
    variants = {"plain": {}, "other": {"loss": {"kind": "smooth_l1"}, "train": {"lr": 1e-4}}}
    loaded, recipes = load_experiment(experiment(tmp_path, variants=variants))
    assert loaded.baseline == "plain"
    assert recipes["plain"].loss.kind == "wing"
    assert recipes["other"].loss.kind == "smooth_l1"
    assert recipes["other"].train.lr == 1e-4
    assert recipes["other"].train.batch_size == recipes["plain"].train.batch_size


def test_variants_of_a_file_replace_those_it_extends(tmp_path: Path) -> None:
    experiment(tmp_path, variants={"a": {}, "b": {"train": {"lr": 1e-4}}}, baseline="a")
    (tmp_path / "child.yaml").write_text("extends: experiment.yaml\nvariants: {c: {}, d: {}}\nbaseline: d\n")
    assert list(load_experiment(tmp_path / "child.yaml")[1]) == ["c", "d"]
    (tmp_path / "child.yaml").write_text("extends: experiment.yaml\nvariants: {c: {}}\n")
    with pytest.raises(InputError, match=r"experiment.yaml:\d+: baseline: no variant is called 'a' \(variants: c\)"):
        load_experiment(tmp_path / "child.yaml")
    (tmp_path / "child.yaml").write_text("extends: experiment.yaml\n")
    recipes = load_experiment(tmp_path / "child.yaml", ["variants.b.train.lr=1e-5"])[1]
    assert list(recipes) == ["a", "b"]
    assert recipes["b"].train.lr == 1e-5


def test_trials_run_seed_by_seed(tmp_path: Path) -> None:
    path = experiment(tmp_path, variants={"a": {}, "b": {"train": {"lr": 1e-4}}}, seeds=[3, 1])
    trials = plan(*load_experiment(path), "faces")
    assert [(trial.variant, trial.seed) for trial in trials] == [("a", 3), ("b", 3), ("a", 1), ("b", 1)]
    assert len({trial.id for trial in trials}) == 4


@pytest.mark.parametrize(
    "setting", ["train.lr=1e-3", "data.root=elsewhere", "input.size=96", "evaluate.flip_test=false"]
)
def test_a_trials_id_changes_with_what_can_change_its_result(tmp_path: Path, setting: str) -> None:
    path = experiment(tmp_path)
    assert ids(path) == ids(path)
    assert ids(path) != ids(path, setting)


@pytest.mark.parametrize("setting", ["description=other words", "train.checkpoint_every=2", "gates.op_error=false"])
def test_a_trials_id_does_not_change_with_what_cannot(tmp_path: Path, setting: str) -> None:
    path = experiment(tmp_path)
    assert ids(path) == ids(path, setting)


def test_a_trials_id_changes_with_the_faces(tmp_path: Path) -> None:
    loaded = load_experiment(experiment(tmp_path))
    assert plan(*loaded, "faces")[0].id != plan(*loaded, "other faces")[0].id


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"baseline": "b"}, "baseline: no variant is called 'b' (variants: baseline)"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names one twice"),
        ({"seeds": []}, "seeds: "),
        ({"seeds": [-1]}, "seeds.0: "),
        ({"variants": {}}, "variants: "),
        ({"variants": {"../x": {}}}, "variants.../x"),
        ({"variants": {"a": {"data": {"root": "x"}}}}, "variants.a.data: a variant may change input, model, loss"),
        ({"variants": {"a": {"loss": {"omga": 3}}}}, "variants.a.loss.omga: no such key; did you mean loss.omega?"),
        ({"gates": {"mean_shape": 1.0}}, "gates.mean_shape: no such key; did you mean gates.mean_shape_ratio?"),
        ({"seed": [1]}, "seed: no such key; did you mean seeds?"),
    ],
)
def test_a_wrong_experiment_is_answered_in_one_sentence(tmp_path: Path, top: dict[str, Any], message: str) -> None:
    path = experiment(tmp_path, **top)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_know_which_keys_are_an_experiments() -> None:
    assert set(Experiment.model_fields) - set(Recipe.model_fields) | {"trials"} == OF_EXPERIMENTS
