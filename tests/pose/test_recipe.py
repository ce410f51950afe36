from __future__ import annotations

from pathlib import Path

import pytest

from pose.errors import InputError
from pose.recipe import load_recipe
from pose.yaml_layers import read_layers

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
WING = CONFIGS / "deeppose_res50_wflw_wing.yaml"


def test_the_published_recipe_is_the_published_one() -> None:
    recipe = load_recipe(CONFIGS / "deeppose_res50_wflw.yaml")
    assert recipe.model.backbone == "resnet50"
    assert recipe.model.pretrained == "IMAGENET1K_V1"
    assert not recipe.model.start_at_mean_shape
    assert recipe.loss.kind == "smooth_l1"
    train = recipe.train
    assert (train.epochs, train.batch_size, train.micro_batch, train.lr) == (210, 512, 64, 5e-4)
    assert (train.schedule, train.warmup, train.precision, train.lr_scaling) == ("published", 500, "fp32", "none")
    assert vars(train.augment) == {"flip": 0.5, "scale": 0.25, "rotation": 30.0, "rotation_probability": 0.6}
    assert (recipe.input.size, recipe.input.crop) == (256, "opencv4")
    assert recipe.evaluate.flip_test
    assert recipe.evaluate.flip_shift == 0


def test_the_two_published_models_differ_in_the_loss_alone() -> None:
    plain, wing = (load_recipe(CONFIGS / f"deeppose_res50_wflw{name}.yaml").model_dump() for name in ("", "_wing"))
    differing = {key for key in plain if plain[key] != wing[key]}
    assert differing == {"name", "description", "loss"}
    assert wing["loss"]["omega"] == 10
    assert wing["loss"]["epsilon"] == 2


def test_every_config_is_valid() -> None:
    from bench.config import load_experiment

    for path in sorted(CONFIGS.glob("*.yaml")):
        load_experiment(path)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("los.omega=5", "--set los.omega: los.omega: no such key; did you mean loss?"),
        ("loss.omga=5", "--set loss.omga: loss.omga: no such key; did you mean loss.omega?"),
        ("loss.omega=ten", "--set loss.omega: loss.omega: must be a valid number (given: 'ten')"),
        ("loss.omega=-1", "must be greater than 0"),
        ("loss.omega=.nan", "must be a finite number"),
        ("loss.kind=wingg", "loss.kind: 'wingg' is none of wing, soft_wing, smooth_l1; did you mean wing?"),
        ("train.precision=fp15", "'fp15' is none of fp64, fp32, tf32, bf16, fp16; did you mean fp16?"),
        ("train.batch_size=2.5", "must be a valid integer (given: 2.5)"),
        ("train.batch_size=true", "must be a valid integer"),
        ("train.batch_size=100", "batch_size 100 is not a multiple of micro_batch 64"),
        ("train.steps=10", "one of 'epochs' and 'steps' is wanted, the other null"),
        ("train.lr_batch_size=null", None),
        ("train.augment.flip=2", "must be less than or equal to 1"),
        ("train=5", "a mapping of keys to values is wanted (given: 5)"),
        ("data.kind=synthetic", None),
        ("model.backbone=resnet51", "did you mean resnet50?"),
        ("variants.a={}", "variants: this is an experiment; run it with python -m bench.run"),
        ("loss", "key.path=value is wanted"),
        ("train.lr=[", "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_answered_in_one_sentence(setting: str, message: str | None) -> None:
    if message is None:
        load_recipe(WING, [setting])
        return
    with pytest.raises(InputError) as caught:
        load_recipe(WING, [setting])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_scaled_learning_rate_needs_the_batch_size_it_was_meant_for() -> None:
    with pytest.raises(InputError, match="lr_scaling 'linear' needs lr_batch_size"):
        load_recipe(WING, ["train.lr_scaling=linear", "train.lr_batch_size=null"])


def test_an_error_names_the_file_and_line_that_set_the_value(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(WING.read_text().replace("deeppose_res50_wflw.yaml", str(WING)))
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nname: child\n\nloss:\n  omega: ten\n")
    with pytest.raises(InputError, match=r"child.yaml:5: loss.omega: must be a valid number"):
        load_recipe(tmp_path / "child.yaml")


def test_a_mapping_of_another_kind_replaces_the_one_below() -> None:
    recipe = load_recipe(WING, ["loss.kind=smooth_l1", "loss.beta=0.5"])
    assert recipe.loss.model_dump() == {"kind": "smooth_l1", "beta": 0.5, "impl": "auto", "gradient": "autograd"}


@pytest.mark.parametrize("text", ["5e-4", "5E-4", "0.0005", "5.0e-4"])
def test_numbers_in_scientific_notation_are_numbers(text: str) -> None:
    assert load_recipe(WING, [f"train.lr={text}"]).train.lr == 5e-4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r":2: a is set twice"),
        ("a: &x {b: 1}\nc: *x\n", r"anchors and aliases are not supported"),
        ("a: [1\n", r"not YAML"),
        ("- a\n", r"a mapping of keys to values is wanted"),
        ("extends: missing.yaml\n", r":1: extends: .*missing.yaml: no such file"),
        ("extends: [a]\n", r":1: extends: the name of one file is wanted"),
        ("extends: config.yaml\n", r"'extends' leads back to this file"),
        ("a: !!python/object/apply:os.system ['true']\n", r":1: a: the tag .*os.system is not supported"),
        ("? [a]\n: 1\n", r"plain keys are wanted"),
        ("a: 2020-13-45\n", r":1: a: "),
    ],
)
def test_a_file_that_cannot_be_a_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_layers(path)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.yaml: no such file"):
        load_recipe(tmp_path / "none.yaml")


def test_settings_are_laid_over_the_file_and_do_not_change_it() -> None:
    assert load_recipe(WING, ["train.lr=1e-3", "loss.omega=3"]).loss.model_dump()["omega"] == 3.0
    assert load_recipe(WING).loss.model_dump()["omega"] == 10.0
