"""Files that cannot be believed: named, left out, never a stack trace, never a pass."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from records import OP_ERROR, levels_result, result, store, subset, throughput_result

import bench.result
from bench import parity, report, validate
from bench.config import Gates
from bench.experiment import read_experiment
from bench.export import experiment_json
from bench.gates import judge
from bench.launch import finished_result
from bench.plan import Trial
from bench.result import (
    LevelsResult,
    PredictionDifference,
    Result,
    ThroughputResult,
    Trajectory,
    read_record,
    read_result,
)
from pose.errors import InputError
from pose.recipe import Recipe

Damage = Callable[[Path], object]


def edited(**changes: object) -> Damage:
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(key: str) -> Damage:
    def remove(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return remove


def half_written(path: Path) -> None:
    path.rename(path.with_name(f".{path.name}.123.tmp"))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGES: dict[str, Damage] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "nul bytes": lambda path: path.write_bytes(bytes(path.stat().st_size)),  # what a crash leaves on some file systems
    "not utf-8": lambda path: path.write_bytes(b'{"trial": "\xff\xfe"}'),
    "an array": lambda path: path.write_text("[1, 2]"),
    "a number": lambda path: path.write_text("7"),
    "nested deeply": lambda path: path.write_text("[" * 100_000),
    "a number of 5000 digits": lambda path: path.write_text('{"steps": ' + "1" * 5000 + "}"),
    "another program's": lambda path: path.write_text('{"benchmarks": [], "version": "5.1"}'),
    "another experiment's": edited(experiment="other"),
    "another trial's": edited(trial="other-s0-0"),
    "of no variant": edited(variant="other"),
    "of a newer version": edited(schema_version=2),
    "of version true": edited(schema_version=True),
    "of version 1.0": edited(schema_version=1.0),
    "of version null": edited(schema_version=None),
    "without a key": without("environment"),
    "with a key of another type": edited(environment="host"),
    "half written": half_written,
    "a folder": a_folder,
    "a broken link": a_broken_link,
}


def records(folder: Path, file: str) -> Path:
    """An experiment of two trials with a file of this name each; returns the first one's."""
    if file == "throughput.json":
        store(folder, [throughput_result("a", 0, 100.0), throughput_result("b", 0, 110.0)], {
            "measure": "throughput", "throughput": {"repeats": 1, "windows": 10, "window_steps": 10},
        })  # fmt: skip
    elif file == "levels.json":
        store(folder, [result(variant="b"), levels_result("a"), result(variant="a")], {"baseline": "b"})
    else:
        store(folder, [result(variant="a"), result(variant="b")])
    return next(iter(sorted((folder / "trials").glob(f"a-*/{file}"))))


@pytest.mark.parametrize("file", ["result.json", "throughput.json", "levels.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_named_and_its_trial_is_missing(tmp_path: Path, file: str, damage: str) -> None:
    path = records(tmp_path, file)
    whole = read_experiment(tmp_path)
    assert whole.missing == ()
    DAMAGES[damage](path)
    experiment = read_experiment(tmp_path)
    assert experiment.done == whole.done - 1
    assert experiment.missing == (path.parent.name,)
    assert [path.name in problem for problem in experiment.problems] == [True]
    assert all("\n" not in problem for problem in experiment.problems)
    assert all(gate.variant != "a" or file == "levels.json" for gate in judge(Gates(), experiment) if gate.passed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_report_survives_a_damaged_result_and_says_so(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records(tmp_path, "result.json")
    DAMAGES[damage](path)
    assert report.main([str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 trials is done, 1 missing" in said or "1 of 2 trials are done, 1 missing" in said
    name = ".result.json.123.tmp" if damage == "half written" else "result.json"
    assert f"warning: trials/a-s0-0123456789/{name}" in said
    assert parity.main([str(tmp_path)]) == 0  # nothing gates here
    assert "EQUIVALENT" not in capsys.readouterr().out


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in JSON content; of a list that and its first value."""
    if path:
        yield path
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*path, key))
    elif isinstance(content, list) and content:
        yield from places(content[0], (*path, 0))


def replaced(content: Any, path: tuple[Any, ...], value: object) -> Any:
    content = copy.deepcopy(content)
    within = content
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    return content


@pytest.mark.parametrize("file", ["result.json", "throughput.json", "levels.json"])
def test_no_value_that_cannot_be_makes_a_gate_pass_or_ends_in_a_stack_trace(tmp_path: Path, file: str) -> None:
    far = OP_ERROR.model_copy(update={"loss_relative": 1.0})
    way = Trajectory(loss=[0.5] * 3, update=[1.9] * 3, length=[0.4] * 3, growth=1.0)
    away = PredictionDifference(faces=3, largest=9.0, mean=4.0, nme=0.1)
    failing: dict[str, list[Result | ThroughputResult | LevelsResult]] = {
        "result.json": [result(variant="a", metrics={"test": subset(0.24)}, op_error=far)],
        "throughput.json": [throughput_result(v, r, s + r) for v, s in (("b", 100.0), ("a", 90.0)) for r in (0, 1)],
        "levels.json": [result(variant="b"), levels_result("a", op_errors=[far], trajectory=way, evaluation=away)],
    }
    config = {"throughput": {"repeats": 2}, "measure": "throughput"} if file == "throughput.json" else {}
    store(tmp_path, failing[file], config)
    gates = Gates(
        op_error=True, mean_shape_ratio=0.5, trajectory=True, evaluation=True,
        speedup={"a": 1.5} if file == "throughput.json" else {},
    )  # fmt: skip
    wanted = {"result.json": 2, "throughput.json": 1, "levels.json": 3}[file]
    assert [gate.passed for gate in judge(gates, read_experiment(tmp_path)) if gate.variant == "a"] == [False] * wanted
    path = next(iter(sorted((tmp_path / "trials").glob(f"a-*/{file}"))))
    content = json.loads(path.read_text())
    for place in places({**content, "environment": {}}):
        for value in (None, -1, [], "x", 1e308) if "limit" not in str(place[-1]) else (None, -1, 0, [], "x"):
            if value == 1e308 and place[0] == "mean_shape":
                continue  # a bad one is easily beaten
            path.write_text(json.dumps(replaced(content, place, value)))
            experiment = read_experiment(tmp_path)
            passed = [gate for gate in judge(gates, experiment) if gate.passed and gate.variant == "a"]
            assert not passed, (place, value, passed)
            assert experiment_json(experiment)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a folder"])
def test_a_trial_whose_result_is_damaged_is_not_done(tmp_path: Path, damage: str) -> None:
    recipe = Recipe.model_validate(
        {"name": "fake", "data": {"kind": "wflw", "root": ""}, "loss": {"kind": "wing"}, "train": {"steps": 1}}
    )
    path = records(tmp_path, "result.json")
    trial = Trial(path.parent.name, "fake", "a", 0, recipe)
    assert finished_result(trial, tmp_path) is not None
    DAMAGES[damage](path)
    assert finished_result(trial, tmp_path) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "null"])
def test_an_nme_that_is_not_a_number_fails_every_gate_on_it(tmp_path: Path, value: str) -> None:
    store(tmp_path, [result(variant=v, seed=s) for v in ("b", "a") for s in range(6)], {"parity": {}, "baseline": "b"})
    path = tmp_path / "trials/a-s3-0123456789/result.json"
    content = json.loads(path.read_text())
    content["metrics"]["test"]["nme"] = "HERE"
    path.write_text(json.dumps(content).replace('"HERE"', value))
    gates = judge(Gates(mean_shape_ratio=0.5), read_experiment(tmp_path))
    lost = [gate for gate in gates if not gate.passed]
    assert [gate.gate for gate in lost] == ["beats the mean shape", "NME parity, test"]
    assert "the NME of seed 3 is not a number" in lost[1].detail


@pytest.mark.parametrize(
    "content", ["", "[", "{}", "[1]", '[{"gate": "x"}]', '[{"gate": "x", "variant": "a", "passed": "NaN"}]', "\xff"]
)
def test_damaged_gates_show_no_gate(tmp_path: Path, content: str) -> None:
    records(tmp_path, "result.json")
    (tmp_path / "gates.json").write_text(content, encoding="latin-1")
    experiment = read_experiment(tmp_path)
    assert experiment.gates == ()
    assert len(experiment.problems) == 1
    assert experiment.problems[0].startswith("gates.json: ")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "name: [",
        "- a",
        "name: x",
        "\x00",
        '{"name": "x", "variants": {}, "baseline": "a", "seeds": ["0"], "trials": []}',
        '{"name": "x", "variants": {}, "baseline": "a", "seeds": [0], "trials": ["a-s0-0", "a-s0-0"]}',
    ],
)
def test_a_damaged_config_is_one_sentence(tmp_path: Path, content: str) -> None:
    records(tmp_path, "result.json")
    (tmp_path / "experiment.yaml").write_text(content)
    with pytest.raises(InputError, match=r"experiment\.yaml") as caught:
        read_experiment(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "empty", "an array", "of version null"])
def test_a_damaged_failure_is_named_and_its_trial_missing(tmp_path: Path, damage: str) -> None:
    path = records(tmp_path, "result.json")
    path.unlink()
    failure = path.with_name("failure.json")
    failure.write_text('{"kind": "signal", "message": "killed by SIGKILL"}')
    assert len(read_experiment(tmp_path).failures) == 1
    DAMAGES[damage](failure)
    experiment = read_experiment(tmp_path)
    assert experiment.failures == ()
    assert experiment.missing == (path.parent.name,)
    assert "failure.json" in experiment.problems[0]


def test_a_damaged_rule_is_named_by_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records(tmp_path, "result.json")
    (tmp_path / "parity.json").write_text('{"rules": [')
    assert report.main([str(tmp_path)]) == 0
    assert "warning: parity.json: " in capsys.readouterr().out


def test_a_record_of_an_older_version_is_upgraded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = records(tmp_path, "result.json")
    edited(schema_version=-1, steps="five")(path)
    monkeypatch.setattr(bench.result, "FIRST_VERSION", -1)
    upgrades = {
        -1: lambda content: {**content, "steps": {"five": 5}[content["steps"]]},
        0: lambda content: {**content, "steps": content["steps"] * 10, "schema_version": 1},
    }
    monkeypatch.setattr(bench.result, "UPGRADES", upgrades)
    assert read_result(path).steps == 50


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [("*/trials/*/result.json", Result), ("*/trials/*/throughput.json", ThroughputResult)],
)
def test_the_committed_results_of_earlier_versions_of_this_code_still_open(
    pattern: str, kind: type[Result] | type[ThroughputResult]
) -> None:
    paths = sorted((Path(bench.result.__file__).parent / "baselines").glob(pattern))
    assert paths
    for path in paths:
        assert read_record(path, kind).trial == path.parent.name


def test_a_field_of_a_newer_program_does_no_harm(tmp_path: Path) -> None:
    path = records(tmp_path, "levels.json")
    before = read_record(path, LevelsResult)
    edited(colour="green")(path)
    assert read_record(path, LevelsResult) == before


# The validator


def test_the_validator_names_every_problem_and_exits_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = records(tmp_path, "result.json")
    assert validate.main([str(tmp_path), str(path)]) == 0
    capsys.readouterr()
    DAMAGES["truncated"](path)
    (tmp_path / "parity.json").write_text("{}")
    other = next(tmp_path.glob("trials/b-*"))
    (other / "curve.csv").write_text("step,loss\n1,x\n")
    (other / "faces.npz").write_bytes(b"PK")
    assert validate.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    for name in ("result.json", "parity.json", "curve.csv", "faces.npz"):
        assert name in said
    assert said.splitlines()[-1] == f"{tmp_path}: 4 problems"


def test_the_validator_refuses_what_is_neither_experiment_nor_record(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the folder of an experiment"):
        validate.main([str(tmp_path)])
    with pytest.raises(InputError, match="no such file or folder"):
        validate.main([str(tmp_path / "result.json")])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not a record by its name"):
        validate.main([str(tmp_path / "other.json")])


# The index


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """An experiment of 300 trials, all written a minute ago."""
    store(tmp_path, [result(variant="a", seed=seed) for seed in range(300)])
    for path in tmp_path.glob("trials/*/result.json"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))
    return tmp_path


def test_the_index_gives_what_the_files_say_and_comes_back_when_it_is_missing(large: Path) -> None:
    plain = read_experiment(large)
    assert (large / "index.jsonl").exists()
    assert read_experiment(large) == plain
    (large / "index.jsonl").unlink()
    assert read_experiment(large) == plain
    assert (large / "index.jsonl").exists()


@pytest.mark.parametrize("content", [b"", b"[1]\n[", b"[2]\n", b"\x00\xff", b'[1]\n["a", "b"]\n'])
def test_a_damaged_index_is_made_again(large: Path, content: bytes) -> None:
    plain = read_experiment(large)
    (large / "index.jsonl").write_bytes(content)
    assert read_experiment(large) == plain
    assert (large / "index.jsonl").read_bytes().count(b"\n") == 301


def test_a_file_that_changed_is_read_again_and_one_that_is_gone_is_missing(large: Path) -> None:
    read_experiment(large)
    changed, gone = (large / f"trials/a-s{seed}-0123456789/result.json" for seed in (7, 8))
    edited(final_loss=0.125)(changed)
    gone.unlink()
    experiment = read_experiment(large)
    assert experiment.results[7].result.final_loss == 0.125
    assert experiment.missing == (gone.parent.name,)
    DAMAGES["truncated"](changed)
    assert "result.json" in read_experiment(large).problems[0]


def test_a_file_of_this_moment_is_not_indexed_since_it_may_change_within_the_clocks_tick(tmp_path: Path) -> None:
    store(tmp_path, [result(variant="a", seed=seed) for seed in range(300)])
    read_experiment(tmp_path)
    index = tmp_path / "index.jsonl"
    assert not index.exists() or index.read_bytes().count(b"\n") < 301


def test_a_folder_that_cannot_be_written_is_read_without_an_index(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr("bench.index.write_atomically", refuse)
    assert read_experiment(large).done == 300
    assert not (large / "index.jsonl").exists()


def test_a_small_experiment_has_no_index(tmp_path: Path) -> None:
    records(tmp_path, "result.json")
    read_experiment(tmp_path)
    assert not (tmp_path / "index.jsonl").exists()
