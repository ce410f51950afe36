"""The report of measured speeds, from results made up beforehand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import result, throughput_result
from test_report import Page

from bench.experiment import read_experiment
from bench.interval import Interval
from bench.report import build, main
from bench.result import Failure, Gauges, Milestone, SubsetMetrics, ThroughputResult, write_record
from bench.speed_summary import headline, scaling_rows, speed_cautions, speed_rows, time_rows
from pose.errors import InputError

Maker = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """A function that writes the folder of an experiment that measured `results`."""

    def made(*results: ThroughputResult, repeats: int = 2, **top: Any) -> Path:
        folder = tmp_path / "fake"
        variants = list(dict.fromkeys(one.variant for one in results))
        config = {
            "name": "fake",
            "measure": "throughput",
            "throughput": {"warmup_steps": 5, "window_steps": 10, "windows": 10, "repeats": repeats},
            "variants": {variant: {} for variant in variants},
            "baseline": variants[0],
            "seeds": [0],
            "trials": [one.trial for one in results],
            **top,
        }
        folder.mkdir()
        (folder / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        for one in results:
            write_record(one, folder / "trials" / one.trial / "throughput.json")
        return folder

    return made


def two_variants(**changes: Any) -> list[ThroughputResult]:
    speeds = {"loader": (1500, 1600), "fast": (4500, 5000)}
    return [
        throughput_result(variant, repeat, speed, **changes)
        for variant, both in speeds.items()
        for repeat, speed in enumerate(both)
    ]


def page_of(folder: Path) -> Page:
    return Page(build(folder).read_text(encoding="utf-8"))


def printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(folder)]) == 0
    return capsys.readouterr().out


def test_a_ratio_is_paired_by_repeat_and_speeds_span_their_processes_intervals(make: Maker) -> None:
    loader, fast = speed_rows(read_experiment(make(*two_variants())))
    assert loader.ratio is None
    assert fast.speed.value == pytest.approx(math.sqrt(4500 * 5000))
    assert (fast.speed.low, fast.speed.high) == (4500 * 0.99, 5000 * 1.01)
    assert fast.ratio is not None
    assert fast.ratio.value == pytest.approx(math.sqrt(3 * 3.125))
    half = 12.706 * math.log(3.125 / 3) / math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom; of two pairs
    assert fast.ratio.interval is not None
    assert fast.ratio.interval.high == pytest.approx(fast.ratio.value * math.exp(half), rel=1e-4)  # 12.706 is rounded


def test_repeats_that_only_one_variant_finished_make_no_pair(make: Maker) -> None:
    _, fast = speed_rows(read_experiment(make(*two_variants()[:3])))
    assert fast.ratio is not None
    assert fast.ratio.value == pytest.approx(3.0)
    assert (fast.ratio.pairs, fast.ratio.interval) == (1, None)


def test_a_variant_without_a_repeat_that_the_baseline_finished_has_no_ratio(make: Maker) -> None:
    first, *_, last = two_variants()
    _, fast = speed_rows(read_experiment(make(first, last)))
    assert fast.ratio is None


def test_a_rows_gain_is_over_the_row_above_with_the_same_batch(make: Maker) -> None:
    rows = speed_rows(
        read_experiment(
            make(
                *ranks("loader", 1, 256, 1500, 1500),
                *ranks("cache", 1, 256, 3000, 3000),
                *ranks("small_eager", 1, 64, 2000, 2000),
                *ranks("small_graph", 1, 64, 2800, 2800),
            )
        )
    )
    assert rows[0].gain is rows[2].gain is None
    assert [row.gain.value for row in rows if row.gain is not None] == pytest.approx([2.0, 1.4])


def test_the_page_shows_each_variant_with_its_batch_and_the_gpu_by_name(make: Maker) -> None:
    page = page_of(make(*two_variants()))
    assert "4 of 4 trials are done; no gate was judged." in page.text
    assert "On NVIDIA H200: fast 4,743 images per second, batch 256; loader 1,549, batch 256;" in page.text
    assert page.row("loader")[0] == "loader baselinebatch 256, 2 repeats"
    assert page.row("loader")[1:3] == ["1,549 [1,485, 1,616]", "1"]
    assert page.row("fast")[1].startswith("4,743 [4,455, 5,050]")
    # share of input; the larger of two allocators; 4,750 x 31.7e9 / 989e12; 4,750 x 508e6 / 4.3e12
    assert page.row("fast")[4:] == ["20.0 % [19.0, 21.0]", "24.00 GB", "15.2 %", "56.1 %"]
    assert page.row("fast", 1)[3:] == ["9.5 s", "3.2 s", "2.0 s"]
    assert page.tags.count("svg") == 1
    assert page.labels == ["Training speed, images per second on NVIDIA H200: loader 1,549; fast 4,743."]
    assert "script" not in page.tags
    assert len(page.ids) == len(set(page.ids))


def test_without_a_gpu_ratios_come_first_and_speeds_are_this_machines(
    make: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(*two_variants(gpu=None))
    page = page_of(folder)
    head = next(row for row in page.rows if "images/s, this machine" in row)
    assert head.index("ratio") < head.index("images/s, this machine")
    assert page.row("fast")[1].startswith("3.06 [")
    assert page.row("fast")[-2:] == ["–", "–"]
    assert "On a CPU neither the utilisation nor the share of the bandwidth floor is known." in page.text
    assert page.labels == ["Training speed, speed, loader = 1: loader 1; fast 3.06."]
    assert "images per second" not in page.text[: page.text.index("Training speed")]  # none in the headline
    shown = printed(folder, capsys)
    assert shown.index("ratio") < shown.index("images/s")
    assert "this machine" in shown


def test_a_gpu_of_no_table_is_named_where_its_utilisation_is_missing(make: Maker) -> None:
    page = page_of(make(*two_variants(gpu="Some GPU", peak_flops=None)))
    assert page.row("fast")[-2:] == ["–", "56.1 %"]
    assert "The utilisation of Some GPU is not known: its peak at that precision is in no table here." in page.text


def test_one_repeat_has_no_interval_and_the_page_says_so(make: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(*two_variants()[::2], repeats=1)
    assert page_of(folder).row("fast")[2] == "3.00"
    assert "One repeat: no interval around a ratio." in printed(folder, capsys)


def ranks(variant: str, world_size: int, batch_size: int, *speeds: float, **changes: Any) -> list[ThroughputResult]:
    return [
        throughput_result(variant, repeat, speed, world_size=world_size, batch_size=batch_size, **changes)
        for repeat, speed in enumerate(speeds)
    ]


def test_scaling_is_weak_beside_as_many_faces_per_rank_and_strong_beside_as_many_in_all(make: Maker) -> None:
    rows = scaling_rows(
        read_experiment(
            make(
                *ranks("one", 1, 256, 4000, 4000),
                *ranks("two", 2, 512, 7600, 7600),
                *ranks("two_strong", 2, 256, 6000, 6000),
                *ranks("three_odd", 3, 300, 9000, 9000),  # neither: it has nobody to stand beside
            )
        )
    )
    assert [(row.variant, row.alone, row.kind) for row in rows] == [
        ("two", "one", "weak"),
        ("two_strong", "one", "strong"),
    ]
    assert [row.efficiency.value for row in rows] == pytest.approx([0.95, 0.75])
    assert rows[0].efficiency.interval == Interval(*[pytest.approx(0.95)] * 3)


def test_variants_that_differ_in_more_than_ranks_do_not_stand_beside_each_other(make: Maker) -> None:
    other = {"train": {"batch_size": 512, "device": "auto", "parallel": {"world_size": 2}, "precision": "bf16"}}
    folder = make(*ranks("one", 1, 256, 4000), *ranks("two", 2, 512, 7600, config=other), repeats=1)
    assert scaling_rows(read_experiment(folder)) == []
    assert "Scaling" not in page_of(folder).text


def test_page_and_terminal_show_scaling(make: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(*ranks("one", 1, 256, 4000, 4000), *ranks("two", 2, 512, 7600, 7600))
    row = page_of(folder).row("two", 2)
    assert row == ["two", "one", "weak", "2", "512", "7,600 [7,524, 7,676]", "0.95 [0.95, 0.95]"]
    assert page_of(folder).row("two")[0] == "twobatch 512 over 2 ranks, 2 repeats"
    assert "0.95 [0.95, 0.95]" in printed(folder, capsys)


def test_a_wide_interval_and_a_clock_that_fell_are_warned_of(make: Maker) -> None:
    cold = Gauges(sm_clock_mhz=1400, memory_clock_mhz=3201, power_w=700, power_limit_w=700, temperature_c=90)
    unsteady = throughput_result("fast", 0, 4500, spread=0.2, gauges_after=cold)
    warned = " ".join(speed_cautions(read_experiment(make(throughput_result("loader", 0, 1500), unsteady))))
    assert "The speed varied between windows or processes: fast (± 20 %)." in warned
    assert "fast (repeat 0): the GPU's clock fell from 1980 to 1400 MHz. What helps: lock it below that" in warned
    assert "fast (repeat 0): the GPU ran at its power limit (700 of 700 W)" in warned


def test_steady_measurements_cause_no_warning(make: Maker) -> None:
    assert "Warnings" not in page_of(make(*two_variants()[::2], repeats=1)).text


def test_csv_has_a_line_per_trial_with_the_results_numbers(make: Maker) -> None:
    folder = make(*two_variants())
    build(folder)
    with (folder / "report.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        one = json.loads((folder / row["result"]).read_text())
        assert (row["trial"], row["variant"], int(row["repeat"])) == (one["trial"], one["variant"], one["repeat"])
        assert float(row["images_per_second"]) == one["training"]["images_per_second"]["value"]
        assert float(row["input_alone_low"]) == one["input_alone"]["images_per_second"]["low"]
        assert float(row["input_share_high"]) == one["input_share"]["high"]
        assert int(row["memory_reserved"]) == 24_000_000_000


def test_trials_without_a_result_and_damaged_ones_are_named(make: Maker, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(*two_variants())
    lost, broken = folder / "trials/fast-r0-0123456789", folder / "trials/fast-r1-0123456789"
    (lost / "throughput.json").unlink()
    write_record(Failure(kind="signal", message="killed by SIGKILL"), lost / "failure.json")
    path = broken / "throughput.json"
    path.write_text(path.read_text().replace('"repeat": 1', '"repeat": "one"'))
    page = page_of(folder)
    assert "2 of 4 trials are done, 1 failed, 1 missing; no gate was judged." in page.text
    assert "killed by SIGKILL" in page.text
    assert "trials/fast-r1-0123456789/throughput.json: repeat: " in page.text
    assert "killed by SIGKILL" in printed(folder, capsys)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"experiment": "fake"', '"experiment": "other"', 'belongs to the experiment "other"'),
        ('"trial": "fast-r1', '"trial": "fast-r2', "belongs to the trial"),
        ('"schema_version": 1', '"schema_version": 2', "schema version 2"),
        ('"world_size": 1,\n "batch_size"', '"batch_size"', "world_size: Field required"),
    ],
)
def test_a_result_of_elsewhere_is_left_out(make: Maker, old: str, new: str, said: str) -> None:
    folder = make(*two_variants())
    path = folder / "trials/fast-r1-0123456789/throughput.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    experiment = read_experiment(folder)
    assert experiment.done == 3
    assert said in " ".join(experiment.problems)


def test_without_any_result_there_is_still_a_page(make: Maker) -> None:
    folder = make(*two_variants())
    for path in folder.glob("trials/*/throughput.json"):
        path.unlink()
    page = page_of(folder)
    assert "0 of 4 trials are done, 4 missing; no gate was judged." in page.text
    assert "svg" not in page.tags


def test_two_builds_give_the_same_bytes(make: Maker) -> None:
    folder = make(*two_variants())
    first = build(folder).read_bytes(), (folder / "report.csv").read_bytes()
    assert (build(folder).read_bytes(), (folder / "report.csv").read_bytes()) == first


def test_a_config_without_how_speed_was_measured_is_refused(make: Maker) -> None:
    with pytest.raises(InputError, match=r"experiment\.yaml: throughput: missing"):
        read_experiment(make(*two_variants(), throughput=None))


def test_names_are_escaped(make: Maker) -> None:
    folder = make(*two_variants(), description="</p><script>alert(1)</script>")
    page = page_of(folder)
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def trained(caches: str, seed: int, *milestones: tuple[float, float]) -> Any:
    name = f"fast-s{seed}-{caches}0-0123456789"
    evaluated = [
        Milestone(step=place, epoch=place, seconds=seconds, nme=nme)
        for place, (seconds, nme) in enumerate(milestones, start=1)
    ]
    metrics = {"test": SubsetMetrics(count=3, nme=0.1 if caches == "cold" else 0.2, failure_rate=0.0, auc=0.5)}
    return result(
        trial=name, variant="fast", seed=seed, caches=caches, milestones=evaluated, process_seconds=500.0,
        metrics=metrics, config={"train": {"batch_size": 256}},
    )  # fmt: skip


@pytest.fixture
def times(tmp_path: Path) -> Path:
    """The folder of a time to NME with two seeds: the second one's warm trial misses the lower NME."""
    trials = [
        trained("cold", 0, (40, 0.12), (80, 0.08), (120, 0.09)),
        trained("warm", 0, (20, 0.12), (60, 0.08), (100, 0.07)),
        trained("cold", 1, (50, 0.10), (90, 0.07), (130, 0.07)),
        trained("warm", 1, (30, 0.10), (70, 0.09), (110, 0.085)),
    ]
    folder = tmp_path / "times"
    config = {
        **{"name": "e", "measure": "time_to_nme", "time_to_nme": {"nme_x100": [10.0, 8.0], "repeats": 1}},
        **{"variants": {"fast": {}}, "baseline": "fast", "seeds": [0, 1], "trials": [one.trial for one in trials]},
    }
    folder.mkdir()
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for one in trials:
        write_record(one, folder / "trials" / one.trial / "result.json")
    return folder


def test_the_time_to_an_nme_is_that_of_the_first_evaluation_at_or_under_it(times: Path) -> None:
    cold, warm = time_rows(read_experiment(times))
    assert (cold.caches, warm.caches) == ("cold", "warm")
    assert cold.seconds == ((80 + 50) / 2, (80 + 90) / 2)  # an NME of exactly 10 counts
    assert warm.seconds == ((60 + 30) / 2, None)
    assert warm.reached == (2, 1)
    assert cold.total == 500.0


def test_page_terminal_and_csv_show_times_and_what_was_not_reached(
    times: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = printed(times, capsys)
    assert "reached by 1" in shown
    page = Page((times / "report.html").read_text())
    assert page.row("fast")[1:] == ["cold", "256", "65.0 s", "85.0 s", "8 min 20 s"]
    assert page.row("fast", 1)[1:] == ["warm", "256", "45.0 s", "reached by 1", "8 min 20 s"]
    with (times / "times.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2
    assert [row["seconds"] for row in rows if row["trial"].startswith("fast-s1-warm")] == ["30.0", ""]


def test_a_warm_trial_counts_for_times_and_not_as_another_seed(times: Path) -> None:
    experiment = read_experiment(times)
    assert len(experiment.results) == 4
    assert [trial.result.caches for trial in experiment.of_variant("fast")] == ["cold", "cold"]


def test_a_failed_cold_trial_is_shown_with_its_variant_and_seed(times: Path) -> None:
    folder = times / "trials/fast-s1-cold0-0123456789"
    (folder / "result.json").unlink()
    write_record(Failure(kind="exception", message="broken"), folder / "failure.json")
    (failed,) = read_experiment(times).failures
    assert (failed.variant, failed.seed) == ("fast", 1)


def test_a_variant_is_called_the_fastest_only_where_its_interval_says_so(make: Maker) -> None:
    noisy = [
        throughput_result(variant, repeat, speed, gpu=None)
        for variant, both in {"loader": (1000, 1000), "other": (1500, 1000)}.items()
        for repeat, speed in enumerate(both)
    ]
    wanted = "No variant is measurably faster than loader: other is 1.22"
    assert headline(read_experiment(make(*noisy))).startswith(wanted)


def test_a_variant_whose_interval_is_above_one_is_called_the_fastest(make: Maker) -> None:
    assert headline(read_experiment(make(*two_variants(gpu=None)))).startswith("Fastest: fast is 3.06")
