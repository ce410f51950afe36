"""Files of reference values: what is read, what is refused, and what an update keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import store, throughput_result

from bench.compare import main
from bench.experiment import read_experiment
from bench.references import noise_floor, read_reference
from pose.errors import InputError

THROUGHPUT: dict[str, Any] = {"measure": "throughput", "throughput": {"repeats": 4, "windows": 10, "window_steps": 10}}


def speeds(folder: Path, drivers: tuple[str, ...] = ("1.0",) * 3, again: tuple[float, ...] = (), **more: Any) -> Path:
    """A variant in a repeat per driver, and for `again` a second one of the same recipe, so many times as fast."""
    records = [throughput_result("plain", r, 100.0 + r, **more) for r in range(len(drivers))]
    records += [throughput_result("again", r, (100.0 + r) * ratio, **more) for r, ratio in enumerate(again)]
    records = [
        one.model_copy(update={"environment": one.environment.model_copy(update={"driver": drivers[one.repeat]})})
        for one in records
    ]
    return store(folder, records, THROUGHPUT)


@pytest.fixture
def reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "h200.yaml"
    assert main([str(path), str(speeds(tmp_path / "first")), "--update"]) == 0
    capsys.readouterr()
    return path


def with_line(line: str) -> Callable[[str], str]:
    return lambda text: f"{text}{line}\n"


def with_first_interval(low: float, high: float) -> Callable[[str], str]:
    return lambda text: re.sub(r"interval:\n    - .*\n    - .*", f"interval: [{low}, {high}]", text, count=1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_line("schema_version: 1"), "schema_version is set twice"),
        (with_line("measured: 2020-13-45"), "is no timestamp"),  # a ValueError inside the YAML reader
        (with_line("measured: " + "1" * 5000), "is no int"),
        (with_line("extends: other.yaml"), "no such file"),
        (lambda text: text.replace("samples: 3", "samples: '3'", 1), "samples: Input should be a valid integer"),
        (lambda text: text.replace("- -5.0", "- 5.0", 1), "the lower one is at most 0"),
        (lambda text: text.replace("- -5.0", "- -500.0", 1), "nothing falls so far"),
        (with_first_interval(1.0, 2.0), "does not hold the value"),
        (with_first_interval(200.0, 50.0), "does not hold the value"),
        (lambda text: text[: len(text) // 2], "h200.yaml"),
        (lambda text: "[" * 100_000, "nested too deeply"),
        (lambda text: "", "no schema_version"),
    ],
)
def test_what_nobody_can_have_meant_is_refused_in_a_sentence(
    reference: Path, tmp_path: Path, damage: Callable[[str], str], message: str
) -> None:
    damaged = damage(reference.read_text())
    assert damaged != reference.read_text()
    reference.write_text(damaged)
    for more in ([], ["--update"]):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            main([str(reference), str(tmp_path / "first"), *more])
        assert str(caught.value).startswith(f"{reference}")
        assert "\n" not in str(caught.value)
        assert reference.read_text() == damaged  # bounds that were edited in it are not lost to an update


def test_a_wrong_key_is_named_with_its_line(reference: Path, tmp_path: Path) -> None:
    lines = reference.read_text().splitlines()
    place = next(number for number, line in enumerate(lines, start=1) if "samples: 3" in line)
    reference.write_text("\n".join(lines).replace("samples: 3", "samples: many", 1))
    with pytest.raises(InputError, match=rf"h200\.yaml:{place}: figures\.plain: training\.samples"):
        main([str(reference), str(tmp_path / "first")])


def test_a_file_that_builds_on_another_is_refused(reference: Path, tmp_path: Path) -> None:
    above = tmp_path / "above.yaml"
    above.write_text("extends: h200.yaml\n")
    with pytest.raises(InputError, match="stands alone"):
        read_reference(above)


def test_the_command_that_is_recorded_names_both_by_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    speeds(tmp_path / "results" / "new")
    main(["kept/h200.yaml", "results/new", "--update"])
    provenance = read_reference(tmp_path / "kept" / "h200.yaml").provenance
    assert provenance.command == "python -m bench.compare kept/h200.yaml results/new --update"
    assert provenance.source == "results/new"


@pytest.mark.parametrize("about", [{}, {"commit_info": {"id": 7, "dirty": "no"}}, {"datetime": 7}])
def test_what_a_foreign_file_does_not_tell_is_recorded_as_unknown(tmp_path: Path, about: dict[str, Any]) -> None:
    stats = {"median": 1.0, "iqr": 0.01, "rounds": 25}
    (tmp_path / "a.json").write_text(json.dumps({"benchmarks": [{"fullname": "it", "stats": stats}], **about}))
    main([str(tmp_path / "r.yaml"), str(tmp_path / "a.json"), "--update"])
    provenance = read_reference(tmp_path / "r.yaml").provenance
    assert (provenance.commit, provenance.dirty, provenance.measured) == (None, None, None)


AGAIN = (1.01, 0.99, 1.02)


def test_a_noise_floor_outlives_an_update_without_one_and_says_where_it_is_from(tmp_path: Path) -> None:
    path = tmp_path / "h200.yaml"
    main([str(path), str(speeds(tmp_path / "a", again=AGAIN)), "--update"])
    main([str(path), str(speeds(tmp_path / "b")), "--update"])
    kept = read_reference(path)
    assert kept.noise_floor is not None
    assert kept.noise_floor.pairs == 3
    assert kept.noise_floor.provenance is not None
    assert (kept.noise_floor.provenance.source, kept.provenance.source) == ("a", "b")


def test_a_noise_floor_never_passes_to_another_system(tmp_path: Path) -> None:
    path = tmp_path / "system.yaml"
    main([str(path), str(speeds(tmp_path / "a", again=AGAIN)), "--update"])
    main([str(path), str(speeds(tmp_path / "b", gpu="NVIDIA H100")), "--update", "--across-systems"])
    assert read_reference(path).noise_floor is None


def test_trials_of_two_systems_have_the_noise_floor_of_neither(tmp_path: Path) -> None:
    folder = tmp_path / "baselines"
    main([str(folder / "h200.yaml"), str(speeds(tmp_path / "a", again=AGAIN)), "--update"])
    assert noise_floor(read_experiment(speeds(tmp_path / "b")), folder) is not None
    assert noise_floor(read_experiment(speeds(tmp_path / "c", ("1.0", "2.0", "1.0"))), folder) is None


def test_a_reference_of_before_these_fields_opens(reference: Path) -> None:
    values = yaml.safe_load(reference.read_text())
    for one in values["figures"].values():
        del one["one_process"]
    del values["noise_floor"]
    reference.write_text(yaml.safe_dump(values))
    assert read_reference(reference).figures["plain: training"].one_process is False
