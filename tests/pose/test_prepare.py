from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, tiny_recipe, write_yaml

from pose.errors import InputError
from pose.prepare import main


def test_both_splits_are_made_once_and_a_run_finds_them(
    face_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "cache")
    values = tiny_recipe(face_set, input={"images": "cache", "cache": out}, train={"augment": {"scale": 0.1}})
    recipe = write_yaml(tmp_path / "recipe.yaml", {**values, "variants": {"a": {}}, "seeds": [0]})  # an experiment's
    assert main([str(recipe)]) == 0
    first = capsys.readouterr().out
    assert "train: 12 faces" in first
    assert "test: 6 faces" in first
    assert first.count("made in") == first.count("MB/s") == 2
    folders = sorted(folder.name for folder in (tmp_path / "cache").iterdir())
    assert main([str(recipe)]) == 0
    assert capsys.readouterr().out.count("there already") == 2
    assert main([str(recipe), "--check"]) == 0
    assert capsys.readouterr().out.count("every byte as it should be") == 2

    plain = write_yaml(tmp_path / "plain.yaml", values)
    line = [sys.executable, "-m", "pose.train", str(plain), "--out", str(tmp_path / "run")]
    subprocess.run(line, cwd=REPOSITORY, check=True, capture_output=True)
    assert sorted(folder.name for folder in (tmp_path / "cache").iterdir()) == folders


def test_a_folder_of_data_will_do(face_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(face_set), "--split", "test", "--out", str(tmp_path), "--workers", "1"]) == 0
    assert "test: 6 faces" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere: no such folder or file"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["SET", "--scale", "1"], "--scale 1.0: 0 to 1 (excluded) is wanted"),
        (["SET", "--workers", "0"], "--workers 0: at least one is wanted"),
        (["SET", "--set", "input.size=64"], "--set input.size=64: goes with a recipe"),
        (["SET", "--check"], "holds no finished crop cache; run pose.prepare"),
    ],
)
def test_what_cannot_be_prepared_is_refused_in_a_sentence(
    face_set: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    split = ["--split", "test", "--out", str(tmp_path / "cache")]
    given = [str(face_set) if argument == "SET" else argument for argument in arguments]
    with pytest.raises(InputError) as caught:
        main([*given, *split])
    assert sentence in str(caught.value)


def test_a_misspelt_key_is_no_experiments(face_set: Path, tmp_path: Path) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", {**tiny_recipe(face_set), "inptu": {"images": "cache"}, "seeds": [0]})
    with pytest.raises(InputError, match=r"inptu.*did you mean input\?"):
        main([str(recipe), "--out", str(tmp_path / "cache")])
