"""Which trials of a throughput or a time to NME run, in which order, under which ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_recipe, write_yaml

from bench import caches
from bench.config import load_experiment
from bench.plan import Trial, plan
from pose.errors import InputError

VARIANTS: dict[str, Any] = {"a": {}, "b": {"train": {"lr": 1e-4}}, "c": {"train": {"lr": 1e-3}}}


def experiment(folder: Path, measure: str = "throughput", **top: Any) -> Path:
    top = {"measure": measure, "variants": VARIANTS, **top}
    return write_yaml(folder / "experiment.yaml", {**tiny_recipe(Path("faces"), train=top.pop("train", {})), **top})


def trials(path: Path, *settings: str, faces: str = "faces") -> list[Trial]:
    return plan(*load_experiment(path, settings), faces)


def ids(path: Path, *settings: str, faces: str = "faces") -> list[str]:
    return [trial.id for trial in trials(path, *settings, faces=faces)]


def times(folder: Path, **train: Any) -> Path:
    train = {"steps": None, "epochs": 2, "evaluate_every": 1, **train}
    return experiment(folder, "time_to_nme", train=train, time_to_nme={"nme_x100": [10.0, 5.0]}, seeds=[4, 7])


def test_throughput_runs_every_other_repeat_backwards(tmp_path: Path) -> None:
    planned = trials(experiment(tmp_path, throughput={"repeats": 3}))
    assert [(trial.variant, trial.repeat) for trial in planned] == [
        *(("a", 0), ("b", 0), ("c", 0)),
        *(("c", 1), ("b", 1), ("a", 1)),
        *(("a", 2), ("b", 2), ("c", 2)),
    ]
    assert len({trial.id for trial in planned}) == 9


def test_throughput_without_its_section_has_the_defaults(tmp_path: Path) -> None:
    planned = trials(experiment(tmp_path))
    assert [trial.repeat for trial in planned] == [0, 0, 0, 1, 1, 1]
    assert planned[0].options is not None
    assert planned[0].options.windows == 20


@pytest.mark.parametrize(
    "setting",
    [
        "train.parallel.world_size=2",  # placement
        "train.device=auto",
        "input.sampling=device",
        "throughput.window_steps=3",
        "throughput.warmup_steps=3",
    ],
)
def test_a_throughputs_id_changes_with_what_can_change_its_speed(tmp_path: Path, setting: str) -> None:
    path = experiment(tmp_path)
    assert ids(path) == ids(path)
    assert not set(ids(path)) & set(ids(path, setting))
    assert not set(ids(path)) & set(ids(path, faces="other faces"))


def test_more_repeats_leave_those_that_ran_as_they_are(tmp_path: Path) -> None:
    path = experiment(tmp_path)
    assert set(ids(path)) < set(ids(path, "throughput.repeats=4"))


def test_a_time_to_nme_is_a_cold_trial_and_then_a_warm_one_with_its_caches(tmp_path: Path) -> None:
    planned = trials(times(tmp_path), "time_to_nme.repeats=2")
    assert [(t.variant, t.seed, t.repeat, t.caches) for t in planned[:4]] == [
        ("a", 4, 0, "cold"),
        ("a", 4, 0, "warm"),
        ("b", 4, 0, "cold"),
        ("b", 4, 0, "warm"),
    ]
    assert len(planned) == len({trial.id for trial in planned}) == 3 * 2 * 2 * 2
    assert all(cold.shared == warm.shared for cold, warm in zip(planned[::2], planned[1::2], strict=True))
    assert len({trial.shared for trial in planned}) == len(planned) / 2


def test_writing_checkpoints_takes_time_and_so_decides_a_time_to_nme(tmp_path: Path) -> None:
    path = times(tmp_path)
    assert not set(ids(path)) & set(ids(path, "train.checkpoint_every=1"))


@pytest.mark.parametrize(
    ("top", "message"),
    [
        (
            {"measure": "training", "throughput": {}},
            "throughput: goes with measure: throughput, and measure is training",
        ),
        (
            {"time_to_nme": {"nme_x100": [5.0]}},
            "time_to_nme: goes with measure: time_to_nme, and measure is throughput",
        ),
        ({"measure": "speed"}, "measure: "),
        ({"throughput": {"windows": 9}}, "throughput.windows: "),  # an interval takes ten
        ({"throughput": {"window": 30}}, "throughput.window: no such key; did you mean throughput.windows?"),
        ({"seeds": [0, 1]}, "seeds: speed is measured with one seed, in throughput.repeats processes per variant"),
        ({"measure": "time_to_nme"}, "time_to_nme.nme_x100: is missing, the NMEs to reach"),
        ({"measure": "time_to_nme", "time_to_nme": {"nme_x100": []}}, "time_to_nme.nme_x100: "),
        (
            {"measure": "time_to_nme", "time_to_nme": {"nme_x100": [5.0]}},
            "variant a: train.evaluate_every: is null, and time_to_nme looks at the evaluations during training",
        ),
    ],
)
def test_what_does_not_go_with_what_is_measured_is_answered_in_one_sentence(
    tmp_path: Path, top: dict[str, Any], message: str
) -> None:
    path = experiment(tmp_path, **top)
    with pytest.raises(InputError) as caught:
        load_experiment(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cold_trial_starts_empty_and_its_warm_one_with_what_it_left(tmp_path: Path) -> None:
    cold, warm = trials(times(tmp_path))[:2]
    out = tmp_path / "out"
    caches.prepare(cold, out)
    places = caches.variables(cold, out)
    assert places == caches.variables(warm, out)
    assert {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"} <= set(places)
    compiled = Path(places["TRITON_CACHE_DIR"]) / "kernel"
    compiled.write_text("")
    crops = Path(caches.with_crops(cold.recipe, cold.folder(out), cold.shared).input.cache)
    assert crops.is_dir()
    caches.note_filled(cold.shared, out)
    caches.prepare(warm, out)
    assert compiled.exists()
    assert caches.filled(warm.shared, out)
    caches.prepare(cold, out)
    assert not compiled.exists()
    assert not caches.filled(warm.shared, out)


def test_a_timed_training_does_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    (cold, *_), out = trials(times(tmp_path)), tmp_path / "out"
    cold.folder(out).mkdir(parents=True)
    (cold.folder(out) / "checkpoint.pt").write_bytes(b"")
    caches.prepare(cold, out)
    assert not (cold.folder(out) / "checkpoint.pt").exists()


def test_a_cold_trial_runs_again_only_while_its_warm_one_needs_caches_that_are_gone(tmp_path: Path) -> None:
    planned, out = trials(times(tmp_path)), tmp_path / "out"
    cold, warm = planned[:2]
    assert caches.wanted_again(cold, planned, out)
    assert not caches.wanted_again(warm, planned, out)
    caches.prepare(cold, out)
    caches.note_filled(cold.shared, out)
    assert not caches.wanted_again(cold, planned, out)
    caches.prepare(cold, out)
    warm.folder(out).mkdir(parents=True)
    warm.record(out).write_text("{}")
    assert not caches.wanted_again(cold, planned, out)


def test_a_training_has_no_caches_of_its_own(tmp_path: Path) -> None:
    (trial, *_) = trials(experiment(tmp_path, "training"))
    caches.prepare(trial, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert caches.variables(trial, tmp_path / "out") == {}
    assert caches.with_crops(trial.recipe, trial.folder(tmp_path), trial.shared) is trial.recipe
