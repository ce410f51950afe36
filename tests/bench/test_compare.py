"""Measurements of two days beside each other: what is a regression, and what cannot be compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import result, store, subset, throughput_result
from test_kernel_result import kernel_result, measurement

from bench.compare import Change, compared, main
from bench.figures import MARGINS, Figure, read_source
from bench.interval import Interval, median_interval
from bench.noise import own_noise_floor
from bench.references import default_bounds, noise_floor, read_reference
from bench.result import Memory, write_record
from pose.errors import InputError

THROUGHPUT: dict[str, Any] = {"measure": "throughput", "throughput": {"repeats": 4, "windows": 10, "window_steps": 10}}


def figure(value: float, half: float | None = 0.01, better: str = "higher", **changes: Any) -> Figure:
    interval = Interval(value, value * (1 - half), value * (1 + half)) if half is not None else None
    return Figure("speed", value, interval, "images/s", better, 5, {}, **changes)  # type: ignore[arg-type]


def verdict(base: Figure, new: Figure | None, bounds: tuple[float | None, float | None] = (-5.0, None)) -> str:
    return compared(base, new, bounds, percent=True).verdict


@pytest.mark.parametrize(
    ("new", "half", "expected"),
    [
        (100.0, 0.01, "same"),
        (97.0, 0.01, "same"),  # slower, and surely by less than the bound
        (96.0, 0.02, "unclear"),  # the interval lies across the bound
        (94.0, 0.02, "unclear"),  # a point beyond the bound is no regression
        (90.0, 0.01, "REGRESSION"),
        (90.0, None, "unclear"),  # of a single sample nothing is
        (112.0, 0.01, "better"),
        (103.0, 0.01, "same"),
        (112.0, None, "unclear"),
        (100.0, None, "unclear"),  # nor is it shown to be the same
    ],
)
def test_a_regression_is_an_interval_wholly_beyond_the_bound(new: float, half: float | None, expected: str) -> None:
    assert verdict(figure(100.0), figure(new, half)) == expected


def test_of_a_time_more_is_worse() -> None:
    times = {"better": "lower"}
    assert verdict(figure(1.0, **times), figure(1.2, **times), (None, 5.0)) == "REGRESSION"
    assert verdict(figure(1.0, **times), figure(0.8, **times), (None, 5.0)) == "better"
    assert verdict(figure(1.0, **times), figure(1.02, **times), (None, 5.0)) == "same"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_or_is_gone_is_never_a_pass(value: float) -> None:
    assert verdict(figure(100.0), figure(value, None)) == "REGRESSION"
    assert verdict(figure(100.0), None) == "MISSING"


def test_independent_intervals_combine_on_a_logarithmic_scale() -> None:
    change = compared(figure(100.0, 0.03), figure(100.0, 0.04), (-5.0, None), percent=True)
    assert change.low is not None
    half = math.hypot(math.log(0.97), math.log(0.96))  # the wider side of each
    assert change.low == pytest.approx(100 * (math.exp(-half) - 1))


def test_an_nme_is_judged_in_its_own_points() -> None:
    base = Figure("nme", 4.64, Interval(4.64, 4.62, 4.66), "NME x 100", "lower", 8, {})
    for value, expected in ((4.65, "same"), (4.69, "unclear"), (4.80, "REGRESSION"), (4.50, "better")):
        new = Figure("nme", value, Interval(value, value - 0.02, value + 0.02), "NME x 100", "lower", 8, {})
        change: Change = compared(base, new, (None, 0.05), percent=False)
        assert change.verdict == expected, value
        assert change.change == pytest.approx(value - 4.64)


# The command


def speeds(folder: Path, base: float = 100.0, wiggle: float = 0.002, **changes: Any) -> Path:
    """Two variants in four repeats; the second is half as fast again."""
    records = [
        throughput_result(name, repeat, base * factor * (1 + wiggle * (repeat - 1.5)), **changes)
        for repeat in range(4)
        for name, factor in (("plain", 1.0), ("fast", 1.5))
    ]
    records = [one.model_copy(update={"config": {**one.config, "loss": one.variant}}) for one in records]
    return store(folder, records, THROUGHPUT)


def test_two_experiments_are_compared_figure_by_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, same, slow = speeds(tmp_path / "a"), speeds(tmp_path / "b", 100.5), speeds(tmp_path / "c", 80.0)
    assert main([str(old), str(same)]) == 0
    assert "same" in capsys.readouterr().out
    assert main([str(old), str(slow)]) == 1
    said = capsys.readouterr().out
    assert "fast: training" in said
    assert "REGRESSION" in said
    assert main([str(old), str(slow), "--tolerance", "50"]) == 0


def test_every_format_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, slow = speeds(tmp_path / "a"), speeds(tmp_path / "c", 80.0)
    assert main([str(old), str(slow), "--format", "json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    found = {row["name"]: row["verdict"] for row in rows}
    assert found["plain: training"] == "REGRESSION"
    assert found["plain: memory"] == "same"
    assert main([str(old), str(slow), "--format", "csv"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("name,unit,base,new,change,low,high,")
    assert len(lines) == len(rows) + 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gpu": "NVIDIA H100"}, "GPU NVIDIA H200 and NVIDIA H100"),
        ({"batch_size": 128}, "batch 256 and 128"),
        ({"world_size": 2}, "world size 1 and 2"),
    ],
)
def test_what_ran_under_other_conditions_is_refused_naming_what_differs(
    tmp_path: Path, changes: dict[str, Any], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old, other = speeds(tmp_path / "a"), speeds(tmp_path / "b", **changes)
    with pytest.raises(InputError) as caught:
        main([str(old), str(other)])
    assert named in str(caught.value)
    assert "--across-systems" in str(caught.value)
    assert main([str(old), str(other), "--across-systems"]) == 0
    assert f"compared across {named}" in capsys.readouterr().err


def test_a_variant_that_is_gone_fails_and_a_new_one_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = speeds(tmp_path / "a")
    one = store(tmp_path / "b", [throughput_result("plain", r, 100.0 + r / 10) for r in range(4)], THROUGHPUT)
    assert main([str(both), str(one)]) == 1
    assert "MISSING" in capsys.readouterr().out
    assert main([str(one), str(both)]) == 0
    assert "4 figures of" in capsys.readouterr().err


def test_trainings_are_compared_by_nme_and_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(folder: Path, nme: float) -> Path:
        metrics = [{"test": subset(nme + s / 1e5), "blur": subset(2 * nme + s / 1e5)} for s in range(5)]
        return store(folder, [result(seed=s, metrics=metrics[s]) for s in range(5)])

    old, worse = trained(tmp_path / "a", 0.0464), trained(tmp_path / "b", 0.0475)
    assert main([str(old), str(old)]) == 0
    assert main([str(old), str(worse)]) == 1
    capsys.readouterr()
    assert main([str(old), str(worse), "--format", "json", "--margin", "0.5"]) == 0
    names = {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert names == {f"a: {m}, {s}" for m in ("NME x 100", "FR@10", "AUC@10") for s in ("test", "blur")}


def measured(folder: Path, speeds: list[float], **changes: Any) -> Path:
    return store(folder, [throughput_result("a", r, speed, **changes) for r, speed in enumerate(speeds)], THROUGHPUT)


def test_memory_that_doubles_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = Memory(of="gpu", allocated=2 * 10**10, reserved=48 * 10**9)
    old, new = measured(tmp_path / "a", [100, 101]), measured(tmp_path / "b", [100, 101], memory=more)
    assert main([str(old), str(new), "--format", "json"]) == 1
    found = {row["name"]: row["verdict"] for row in json.loads(capsys.readouterr().out)}
    assert found["a: memory"] == "REGRESSION"


def test_one_repeat_is_judged_by_its_windows_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, slow = measured(tmp_path / "a", [100.0]), measured(tmp_path / "b", [80.0])
    assert main([str(old), str(slow)]) == 1
    assert "of one process" in capsys.readouterr().err
    (training,) = (one for one in read_source(old).figures if one.name == "a: training")
    assert training.interval == Interval(100.0, 99.0, 101.0)
    assert training.one_process
    both = measured(tmp_path / "c", [100.0, 100.1])
    main([str(both), str(both)])
    assert "of one process" not in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["base", "new"])
def test_a_trial_that_cannot_be_read_hides_no_figure(tmp_path: Path, damaged: str) -> None:
    paths = {name: speeds(tmp_path / name) for name in ("base", "new")}
    for path in paths[damaged].glob("trials/fast-r*/throughput.json"):
        path.write_text("{")
    with pytest.raises(InputError, match=r"trials/fast-r0-\w+/throughput\.json: not JSON"):
        main([str(paths["base"]), str(paths["new"])])


def test_repeats_on_another_driver_are_seen_whichever_they_are(tmp_path: Path) -> None:
    old, mixed = measured(tmp_path / "a", [100, 101]), tmp_path / "b"
    records = [throughput_result("a", r, 100.0 + r) for r in range(2)]
    newer = records[1].environment.model_copy(update={"driver": "575.2"})
    store(mixed, [records[0], records[1].model_copy(update={"environment": newer})], THROUGHPUT)
    with pytest.raises(InputError, match=r"driver 1\.0 and 1\.0 / 575\.2"):
        main([str(old), str(mixed)])


def test_a_failure_rate_that_was_0_can_get_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trained(folder: Path, rate: float) -> Path:
        row = subset(0.0464).model_copy(update={"failure_rate": rate})
        return store(folder, [result(seed=seed, metrics={"test": row}) for seed in range(3)])

    old, worse = trained(tmp_path / "a", 0.0), trained(tmp_path / "b", 0.01)
    assert main([str(old), str(old)]) == 0
    capsys.readouterr()
    assert main([str(old), str(worse), "--format", "json"]) == 1
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["a: FR@10, test"]["verdict"] == "REGRESSION"
    assert rows["a: FR@10, test"]["change"] == pytest.approx(1.0)


def test_the_margin_of_an_auc_is_what_an_nmes_makes_of_it() -> None:
    margins = {unit: default_bounds(replace(figure(5.0), unit=unit), 5.0, 0.05) for unit in MARGINS}
    assert margins["NME x 100"] == ((-0.05, None), False)
    # AUC = mean(max(0, 1 - NME / 0.10)): 0.0005 more of an NME is 0.005 less, 0.5 in percent
    assert margins["%"] == ((-0.5, None), False)


def test_kernels_are_compared_but_for_the_interpreted_ones(tmp_path: Path) -> None:
    samples = [1e-6 * (1 + place % 3 / 1000) for place in range(12)]
    kinds = ("eager", "triton", "triton_interpreted")
    for name, factor in (("a", 1.0), ("b", 1.5)):
        times = [measurement(variant=kind, seconds=[factor * one for one in samples]) for kind in kinds]
        write_record(kernel_result(measurements=times), tmp_path / name / "kernels.json")
    figures = read_source(tmp_path / "a").figures
    assert len(figures) == 2
    assert all(one.interval is not None and one.interval.low <= one.value <= one.interval.high for one in figures)
    assert main([str(tmp_path / "a"), str(tmp_path / "a" / "kernels.json")]) == 0
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1


def pytest_benchmark(path: Path, median: float, **stats: Any) -> Path:
    content = {
        "machine_info": {"node": "host", "cpu": {"brand_raw": "processor"}},
        "commit_info": {"id": "a" * 40, "dirty": False},
        "datetime": "2026-01-01T00:00:00+00:00",
        "version": "5.1",
        "benchmarks": [
            {"fullname": "test_x.py::test_it", "stats": {"median": median, "iqr": 0.01, "rounds": 25, **stats}}
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_pytest_benchmarks_are_read_too(tmp_path: Path) -> None:
    old, slow = pytest_benchmark(tmp_path / "a.json", 1.0), pytest_benchmark(tmp_path / "b.json", 1.3)
    (one,) = read_source(old).figures
    assert one.interval is not None
    assert one.interval.high - one.value == pytest.approx(1.57 * 0.01 / 5)
    assert one.fingerprint == {"CPU": "processor"}
    assert main([str(old), str(old)]) == 0
    assert main([str(old), str(slow)]) == 1


def test_the_rounds_themselves_are_used_where_they_were_saved(tmp_path: Path) -> None:
    few = pytest_benchmark(tmp_path / "few.json", 3.0, rounds=7, data=[1.0, 2.0, 3.0, 3.0, 3.0, 4.0, 9.0])
    many = [1.0 + place % 5 / 100 for place in range(30)]
    saved = pytest_benchmark(tmp_path / "many.json", 1.02, rounds=30, data=many)
    assert [one.interval for path in (few, saved) for one in read_source(path).figures] == [
        Interval(3.0, 1.0, 9.0),
        median_interval(many),
    ]


@pytest.mark.parametrize(
    "stats", [{"rounds": math.inf}, {"rounds": "25"}, {"rounds": 0}, {"iqr": None}, {"data": 1}, {"iqr": True}]
)
def test_stats_that_are_none_are_one_sentence_naming_the_benchmark(tmp_path: Path, stats: dict[str, Any]) -> None:
    old, new = pytest_benchmark(tmp_path / "a.json", 1.0), pytest_benchmark(tmp_path / "b.json", 1.0, **stats)
    with pytest.raises(InputError, match=rf"b\.json: benchmarks\.0\.stats: {next(iter(stats))}"):
        main([str(old), str(new)])


def test_a_time_of_0_is_no_time(tmp_path: Path) -> None:
    old, new = pytest_benchmark(tmp_path / "a.json", 1.0), pytest_benchmark(tmp_path / "b.json", 0.0)
    assert main([str(old), str(new)]) == 1


def test_a_benchmark_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = pytest_benchmark(tmp_path / "a.json", 1.0)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "benchmarks": content["benchmarks"] * 2}))
    with pytest.raises(InputError, match="is there twice"):
        main([str(path), str(path)])


@pytest.mark.parametrize(
    "content", [b"", b"[", b"[1]", b"{}", b"\x00", b"\xff", b'{"benchmarks": []}', b'{"benchmarks": [1]}',
                b'{"benchmarks": [{"stats": {"median": "x"}}]}'],
)  # fmt: skip
def test_a_file_that_is_neither_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.json") as caught:
        main([str(path), str(path)])
    assert "\n" not in str(caught.value)


# Reference values


def test_a_reference_keeps_values_units_bounds_and_where_they_are_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, old = tmp_path / "h200.yaml", speeds(tmp_path / "a")
    assert main([str(path), str(old), "--update"]) == 0
    reference = read_reference(path)
    assert reference.system == {"GPU": "NVIDIA H200", "driver": "1.0", "torch": "2.11.0"}
    one = reference.figures["fast: training"]
    assert (one.unit, one.better, one.samples, one.bounds, one.bounds_in) == (
        "images/s", "higher", 4, [-5.0, None], "percent"
    )  # fmt: skip
    assert one.value == pytest.approx(150.0, rel=1e-4)
    assert one.workload == {"batch": "256", "precision": "fp32", "world size": "1"}
    provenance = reference.provenance
    assert (provenance.commit, provenance.dirty, provenance.host) == ("a" * 40, False, "host")
    assert main([str(path), str(old)]) == 0
    assert main([str(path), str(speeds(tmp_path / "b", 80.0))]) == 1
    capsys.readouterr()


def test_bounds_that_were_edited_by_hand_count_and_stay(tmp_path: Path) -> None:
    path, old, slow = tmp_path / "h200.yaml", speeds(tmp_path / "a"), speeds(tmp_path / "b", 80.0)
    main([str(path), str(old), "--update"])
    values = yaml.safe_load(path.read_text())
    for one in values["figures"].values():
        one["bounds"] = [-30.0, None]
    path.write_text(yaml.safe_dump(values))
    assert main([str(path), str(slow)]) == 0
    main([str(path), str(slow), "--update"])
    after = read_reference(path)
    assert after.figures["plain: training"].bounds == [-30.0, None]
    assert after.figures["plain: training"].value == pytest.approx(80.0, rel=1e-4)


def test_what_is_not_complete_or_no_number_becomes_no_reference(tmp_path: Path) -> None:
    path, old = tmp_path / "h200.yaml", speeds(tmp_path / "a")
    main([str(path), str(old), "--update"])
    before = path.read_bytes()
    next(old.glob("trials/fast-r0-*/throughput.json")).write_text("{")
    with pytest.raises(InputError, match="is not complete"):
        main([str(path), str(old), "--update"])
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"kept in a \.yaml file"):
        main([str(old), str(old), "--update"])


def test_another_systems_reference_is_not_overwritten_by_mistake(tmp_path: Path) -> None:
    path = tmp_path / "system.yaml"
    main([str(path), str(speeds(tmp_path / "a")), "--update"])
    other = speeds(tmp_path / "b", gpu="NVIDIA H100")
    with pytest.raises(InputError, match="GPU NVIDIA H200 and NVIDIA H100"):
        main([str(path), str(other), "--update"])
    assert main([str(path), str(other), "--update", "--across-systems"]) == 0
    assert read_reference(path).system["GPU"] == "NVIDIA H100"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(schema_version=2), "schema version 2, this program reads version 1"),
        (lambda v: v.pop("schema_version"), "not a file of reference values"),
        (lambda v: v.update(colour="green"), "colour: "),
        (lambda v: v["figures"]["plain: training"].update(value="fast"), "figures.plain: training.value: "),
        (lambda v: v["figures"]["plain: training"].update(bounds=[1.0]), "figures.plain: training.bounds: "),
        (lambda v: v["figures"]["plain: training"].update(value=math.nan), "figures.plain: training.value: "),
    ],
)
def test_a_reference_that_is_none_is_one_sentence_naming_file_and_key(
    tmp_path: Path, change: Any, message: str
) -> None:
    path, old = tmp_path / "h200.yaml", speeds(tmp_path / "a")
    main([str(path), str(old), "--update"])
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(InputError) as caught:
        main([str(path), str(old)])
    assert message in str(caught.value)
    assert "h200.yaml" in str(caught.value)


# The noise floor


def same_twice(folder: Path, ratios: list[float], gpu: str = "NVIDIA H200") -> Path:
    records = [
        throughput_result(name, repeat, 100.0 * (ratio if name == "again" else 1.0), gpu=gpu)
        for repeat, ratio in enumerate(ratios)
        for name in ("plain", "again", "fast")
    ]
    records = [
        one.model_copy(update={"config": {**one.config, "name": one.variant, "extra": one.variant == "fast"}})
        for one in records
    ]
    return store(folder, records, THROUGHPUT)


def test_two_variants_of_equal_recipes_give_the_noise_floor(tmp_path: Path) -> None:
    from bench.experiment import read_experiment

    ratios = [1.01, 0.99, 1.02, 0.985]
    floor = own_noise_floor(read_experiment(same_twice(tmp_path, ratios)))
    assert floor is not None
    logs = [math.log(ratio) for ratio in ratios]
    mean = sum(logs) / 4
    assert floor.pairs == 4
    assert floor.deviation == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in logs) / 3))
    assert floor.ratio.low < 1 < floor.ratio.high
    assert "differ by 1.6 % here (deviation of 4 A/A pairs in this experiment" in floor.sentence
    assert "should hold 1" not in floor.sentence


def test_an_a_a_ratio_that_is_not_one_is_said(tmp_path: Path) -> None:
    from bench.experiment import read_experiment

    floor = own_noise_floor(read_experiment(same_twice(tmp_path, [1.05, 1.051, 1.049, 1.05])))
    assert floor is not None
    assert "That interval should hold 1" in floor.sentence


def test_a_systems_noise_floor_is_kept_with_its_reference_and_found_by_other_experiments(tmp_path: Path) -> None:
    from bench.experiment import read_experiment

    folder = tmp_path / "baselines"
    folder.mkdir()
    main([str(folder / "h200.yaml"), str(same_twice(tmp_path / "a", [1.01, 0.99, 1.02, 0.985])), "--update"])
    (folder / "damaged.yaml").write_text("schema_version: [")
    other = read_experiment(speeds(tmp_path / "b"))
    assert own_noise_floor(other) is None
    floor = noise_floor(other, folder)
    assert floor is not None
    assert floor.source == "bench/baselines/h200.yaml"
    assert floor.pairs == 4
    assert noise_floor(read_experiment(speeds(tmp_path / "c", gpu="NVIDIA H100")), folder) is None
