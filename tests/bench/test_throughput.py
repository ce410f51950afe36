"""What is timed, in which order, and what is made of it; with a clock that moves only when work is done."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml

from bench.config import ThroughputOptions
from bench.result import ThroughputResult, read_throughput
from bench.throughput import Phase, Plan, input_share, plan_of, time_steps, windows_of
from pose.recipe import Recipe

OPTIONS = ThroughputOptions(warmup_steps=3, window_steps=2, windows=10)
COST = {"run": 0.5, "input": 0.125, "resident": 0.25, "finish": 1.0}  # seconds; sums of them are exact


class FakeSteps:
    """Work that takes its time on a clock of its own."""

    def __init__(self, **cost: float) -> None:
        self.cost = {**COST, **cost}
        self.time = 0.0
        self.done: list[tuple[str, int]] = []

    def _do(self, what: str, step: int = -1) -> None:
        self.done.append((what, step))
        self.time += self.cost[what]

    def run(self, step: int) -> None:
        self._do("run", step)

    def input_only(self, step: int) -> None:
        self._do("input", step)

    def on_resident(self) -> None:
        self._do("resident")

    def finish(self) -> None:
        self._do("finish")

    def of(self, what: str) -> list[int]:
        return [step for name, step in self.done if name == what]


def timed(steps: FakeSteps, plan: Plan, **more: Any) -> Any:
    return time_steps(steps, plan, now=lambda: steps.time, **more)


def test_windows_hold_their_steps_and_the_wait_for_the_device_and_nothing_of_the_warm_up() -> None:
    steps = FakeSteps()
    found = timed(steps, Plan(OPTIONS, ahead=0, free=False))
    assert found.first_step == 0.5 + 1.0
    assert found.training == Phase(2, [2 * 0.5 + 1.0] * 10, 3, 3 * 0.5 + 1.0)
    assert found.input_alone == Phase(2, [2 * 0.125 + 1.0] * 10, 3, 3 * 0.125 + 1.0)
    assert found.resident == Phase(2, [2 * 0.25 + 1.0] * 10, 3, 3 * 0.25 + 1.0)


def test_input_is_taken_step_by_step_and_no_further_than_planned() -> None:
    # A feed of worker processes starts anew where steps do not follow each other, and ends at the last one planned
    plan = Plan(OPTIONS, ahead=0, free=False)
    steps = FakeSteps()
    timed(steps, plan)
    taken = steps.of("run") + steps.of("input")
    assert taken == list(range(1 + 3 + 20 + 3 + 20)) == list(range(plan.last))


def test_nothing_waits_for_the_device_within_a_window() -> None:
    steps = FakeSteps()
    timed(steps, Plan(OPTIONS, ahead=0, free=False))
    assert Counter(name for name, _ in steps.done)["finish"] == 1 + 3 * (1 + 10)  # first step; warm-ups and windows


def test_batches_that_workers_made_ahead_are_gone_before_the_windows() -> None:
    plan = Plan(OPTIONS, ahead=8, free=False)
    found = timed(FakeSteps(), plan)
    assert (found.training.warmup_steps, found.input_alone.warmup_steps) == (8, 8)
    assert found.resident.warmup_steps == 3  # takes no batches


def test_windows_of_a_quick_input_grow_as_the_slowest_rank_needs() -> None:
    plan = Plan(OPTIONS, ahead=0, free=True)
    steps = FakeSteps(input=1 / 1024, finish=0.0)
    found = timed(steps, plan, slowest=lambda seconds: 2 * seconds)
    assert found.input_alone.steps == math.ceil(0.05 * 1024 / 2)
    assert max(steps.of("input")) < plan.last
    assert steps.of("input") == sorted(steps.of("input"))
    fixed = timed(FakeSteps(input=1 / 1024, finish=0.0), Plan(OPTIONS, ahead=0, free=False))
    assert fixed.input_alone.steps == 2


def test_an_input_that_takes_no_time_at_all_ends_too() -> None:
    steps = FakeSteps(input=0.0, finish=0.001)
    plan = Plan(OPTIONS, ahead=0, free=True)
    timed(steps, plan)
    assert max(steps.of("input")) < plan.last


def test_the_gauges_are_read_around_the_training_windows() -> None:
    steps = FakeSteps()
    seen: list[tuple[str, int]] = []
    timed(
        steps,
        Plan(OPTIONS, ahead=0, free=False),
        before=lambda: seen.append(("before", len(steps.of("run")))),
        after=lambda: seen.append(("after", len(steps.of("run")))),
    )
    assert seen == [("before", 1 + 3), ("after", 1 + 3 + 20)]
    assert not [step for step in steps.of("input") if step < 24]


@pytest.mark.parametrize(
    ("input", "ahead", "free"),
    [
        ({"images": "disk", "sampling": "workers", "workers": 3}, 12, False),
        ({"images": "disk", "sampling": "host", "workers": 2}, 8, False),
        ({"images": "disk", "sampling": "workers", "workers": 0}, 0, False),
        ({"images": "memory", "sampling": "host", "workers": 3}, 0, False),  # workers have nothing to do
        ({"images": "memory", "sampling": "device"}, 0, True),
    ],
)
def test_what_is_made_ahead_depends_on_the_input(input: dict[str, Any], ahead: int, free: bool) -> None:
    plan = plan_of(Recipe.model_validate(tiny_recipe(Path(), input=input)), OPTIONS)
    assert (plan.ahead, plan.free) == (ahead, free)


def test_images_per_second_are_of_all_ranks_and_their_interval_stays_positive() -> None:
    even = windows_of(Phase(2, [0.5] * 10, 1, 1.0), batch_size=64)
    assert even.images_per_second.value == pytest.approx(2 * 64 / 0.5)
    seconds = [0.01] * 4 + [9.0] * 4 + [0.5] * 2
    wild = windows_of(Phase(2, seconds, 1, 1.0), batch_size=64)
    assert 0 < wild.images_per_second.low < wild.images_per_second.value < wild.images_per_second.high
    assert wild.seconds == seconds


def test_the_inputs_share_is_what_noise_on_the_device_saves() -> None:
    share = input_share([0.2] * 10, [0.15] * 10)
    assert (share.value, share.low, share.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_share_below_nothing_is_shown_as_it_is() -> None:
    share = input_share([0.2, 0.21] * 10, [0.22, 0.23] * 10)
    assert share.low < share.value < 0
    assert share.value < share.high


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", *map(str, arguments)]
    variables = {**shell_environment(), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=variables, check=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, face_set: Path) -> tuple[Path, Path, str]:
    """A measurement with real processes: (config, folder, what was printed)."""
    folder = tmp_path_factory.mktemp("throughput")
    device = {"sampling": "device", "impl": "reference"}
    values = {
        **tiny_recipe(face_set, train={"schedule": "constant"}),
        "measure": "throughput",
        "throughput": {"warmup_steps": 1, "window_steps": 1, "windows": 10, "repeats": 1},
        "variants": {
            "workers": {"input": {"images": "disk", "sampling": "workers", "workers": 1}},
            "device": {"input": device},
            "two": {"input": device, "train": {"batch_size": 8, "parallel": {"world_size": 2}}},
        },
    }
    path = write_yaml(folder / "experiment.yaml", values)
    ended = run(path, "--out", folder / "out")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return path, folder / "out", ended.stdout


def results(out: Path) -> dict[str, ThroughputResult]:
    found = [read_throughput(path) for path in out.glob("trials/*/throughput.json")]
    return {result.variant: result for result in found}


def test_every_variant_leaves_all_its_windows(measured: tuple[Path, Path, str]) -> None:
    _, out, _ = measured
    found = results(out)
    assert set(found) == {"workers", "device", "two"}
    for result in found.values():
        for phase in (result.training, result.input_alone, result.resident):
            assert len(phase.seconds) == 10
            assert min(phase.seconds) > 0
            assert phase.images_per_second.low <= phase.images_per_second.value <= phase.images_per_second.high
        assert result.first_step_from_process > result.first_step_from_stepper > 0
        assert result.memory.of == "process"
        assert result.memory.allocated > 10e6  # the interpreter alone
        assert (result.peak_flops, result.bandwidth, result.gauges_before) == (None, None, None)
        assert result.train_faces == 12
    assert found["workers"].training.warmup_steps == 4  # as many batches as its worker makes ahead
    assert (found["two"].world_size, found["two"].batch_size) == (2, 8)


def test_a_measurement_is_reported_and_scaling_is_found(measured: tuple[Path, Path, str]) -> None:
    _, out, printed = measured
    assert "3 of 3 trials are done; no gate was judged." in printed
    assert "Training speed, ratios first" in printed
    assert [line.split()[:4] for line in printed.splitlines() if " weak " in line] == [["two", "device", "weak", "2"]]
    assert (out / "report.html").exists()


def test_a_measurement_that_is_done_is_not_repeated(measured: tuple[Path, Path, str]) -> None:
    path, out, _ = measured
    ended = run(path, "--out", out)
    assert ended.returncode == 0
    assert ended.stdout.count("done before") == 3


def test_wrong_input_of_a_measurement_exits_with_2_and_one_sentence(measured: tuple[Path, Path, str]) -> None:
    path, out, _ = measured
    ended = run(path, "--out", out.with_name("other"), "--set", "train.batch_size=64")
    assert ended.returncode == 2
    assert "train.batch_size" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_time_to_nme_trains_cold_and_warm_and_keeps_every_evaluation(face_set: Path, tmp_path: Path) -> None:
    values = {
        **tiny_recipe(face_set, input={"images": "cache"}, train={"steps": None, "epochs": 2, "evaluate_every": 1}),
        "measure": "time_to_nme",
        "time_to_nme": {"nme_x100": [1e6, 1e-6]},  # one that any model reaches, one that none does
        "gates": {"op_error": False},
    }
    ended = run(write_yaml(tmp_path / "experiment.yaml", values), "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    content = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "out").glob("trials/*/result.json"))]
    assert [one["caches"] for one in content] == ["cold", "warm"]
    for one in content:
        assert [milestone["epoch"] for milestone in one["milestones"]] == [1, 2]
        first, last = (milestone["seconds"] for milestone in one["milestones"])
        assert 0 < first < last < one["process_seconds"]
    assert content[0]["milestones"][-1]["nme"] == content[1]["milestones"][-1]["nme"]
    (crops,) = (tmp_path / "out").glob("caches/*/crops")
    assert any(crops.iterdir())
    assert "not reached" in ended.stdout
