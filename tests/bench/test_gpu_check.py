"""The GPU check without a GPU: its parts run under a time limit, what they leave is judged, and bad input is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPOSITORY, shell_environment, tiny_recipe
from records import result, store, subset, throughput_result, windows

from bench.config import load_experiment
from bench.gpu_check import crop_speed, evidence, figures, memory_check, numerics, run, step_profile, tasks
from bench.gpu_check.crop_speed import JUDGED, calls_of
from bench.gpu_check.merge import merged
from bench.gpu_check.result import GPU_CHECK, Crops, CropSpeed, GpuCheck, Ledger, MemoryCheck, Numerics
from bench.gpu_check.tasks import Task
from bench.gpu_check.variant import recipe_of
from bench.kernels import clock
from bench.kernels.clock import Effort
from bench.kernels.result import Check, judged
from bench.result import Milestone, read_record, write_record
from bench.validate import problems_of
from pose.data.wflw import load_wflw
from pose.distributed import Ranks
from pose.errors import InputError
from pose.feed import DeviceFeed, open_feed
from pose.order import BatchOrder
from pose.recipe import Recipe

HERE = {"code": "0", "gpu": "NVIDIA H200"}


# ------------------------------------------------------------------------------------ running under a time limit


def program(text: str) -> tasks.Command:
    """A part that is a line of Python; `out` and `left` are what the check hands it."""
    return lambda out, left: [sys.executable, "-c", f"out, left = {str(out)!r}, {left}; import os, sys, time; {text}"]


def leaving(name: str, more: str = "", **options: Any) -> Task:
    text = f"open(out + '/{name}', 'a').write('x'); print('hello from {name}'); {more}"
    return Task("kernels", name, program(text), name, **{"needs": 0.0, **options})


def go(parts: Sequence[Task], out: Path, limit: float = 60.0, **options: Any) -> dict[str, str]:
    out.mkdir(exist_ok=True)
    ledger = run.run(parts, parts, out, options.pop("identity", HERE), limit, **options)
    assert read_record(out / evidence.LEDGER, Ledger) == ledger
    return {task.name: task.state for task in ledger.tasks}


def times(out: Path, name: str) -> int:
    """How often a part of `leaving` has run."""
    return len((out / name).read_text()) if (out / name).exists() else 0


def test_parts_run_in_their_order_once_and_their_output_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [leaving("a"), leaving("b", "sys.exit(1)")]  # 1: a figure misses its limit, which is an end
    assert go(parts, tmp_path) == {"a": "done", "b": "done"}
    said = capsys.readouterr().out
    assert said.index("hello from a") < said.index("hello from b")
    assert (tmp_path / "logs/b.txt").read_text() == "hello from b\n"
    assert go(parts, tmp_path) == {"a": "done", "b": "done"}
    assert (times(tmp_path, "a"), times(tmp_path, "b")) == (1, 1)


def test_a_part_that_fails_is_told_costs_no_other_and_comes_last_the_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Task("kernels", "bad", program("sys.exit('error: no such thing')"), "bad", needs=0.0, ends=(0,))
    killed = Task("kernels", "killed", program("os.kill(os.getpid(), 9)"), "killed", needs=0.0)
    silent = Task("kernels", "silent", program("pass"), "what it does not leave", needs=0.0)
    late = leaving("late", needs=1e9)
    assert go([bad, killed, silent, late], tmp_path) == {
        **dict.fromkeys(("bad", "killed", "silent"), "failed"),
        "late": "not run",
    }
    details = {task.name: task.detail for task in read_record(tmp_path / evidence.LEDGER, Ledger).tasks}
    assert details["bad"] == "exit code 1: error: no such thing"
    assert details["killed"] == "killed by SIGKILL"
    assert details["silent"] == "exit code 0"
    capsys.readouterr()
    mended = [leaving("bad"), killed, silent, leaving("late")]
    assert go(mended, tmp_path)["bad"] == "done"
    said = capsys.readouterr().out
    assert said.index("== late") < said.index("== bad")


def test_a_part_is_stopped_at_the_limit_and_goes_on_with_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 1.0)
    slow = leaving("slow", "time.sleep(0 if os.path.getsize(out + '/slow') > 1 else 60)")
    parts = [slow, leaving("after", needs=5.0)]
    assert go(parts, tmp_path, limit=3.0) == {"slow": "unfinished", "after": "not run"}
    assert "after: left for the next time" in capsys.readouterr().out
    before = read_record(tmp_path / evidence.LEDGER, Ledger).tasks[0]
    assert before.detail == "stopped at the time limit"
    assert go(parts, tmp_path) == {"slow": "done", "after": "done"}
    after = read_record(tmp_path / evidence.LEDGER, Ledger).tasks[0]
    assert after.seconds > before.seconds  # over all calls


def test_what_prepares_a_stage_runs_before_each_call_that_uses_it_and_is_no_part(tmp_path: Path) -> None:
    prepare = leaving("prepare", always=True)
    other = replace(leaving("other", always=True), stage="epochs")
    first, second = leaving("first"), leaving("second", needs=1e9)
    assert go([prepare, first, second, other], tmp_path) == {"first": "done", "second": "not run", "prepare": "done"}
    assert go([prepare, first, leaving("second"), other], tmp_path)["second"] == "done"
    assert times(tmp_path, "prepare") == 2
    go([prepare, first, second, other], tmp_path)
    assert (times(tmp_path, "prepare"), times(tmp_path, "other")) == (2, 0)  # nothing used them


def test_a_check_of_other_code_or_another_gpu_is_refused(tmp_path: Path) -> None:
    go([leaving("a")], tmp_path)
    with pytest.raises(InputError, match=r"tasks\.json: a check of something else \(code, gpu differs\)"):
        go([leaving("a")], tmp_path, identity={"code": "1", "gpu": "NVIDIA B200"})


@pytest.mark.parametrize("failed", [False, True])
def test_an_experiment_that_lacks_trials_is_unfinished_or_failed_by_what_it_left(tmp_path: Path, failed: bool) -> None:
    folder = store(tmp_path / "throughput", [throughput_result("loader", 0, 1500.0)])
    config = yaml.safe_load((folder / "experiment.yaml").read_text())
    config["trials"].append("fast-r0-0123456789")
    (folder / "experiment.yaml").write_text(json.dumps(config))
    (folder / "gates.json").write_text("[]")
    if failed:
        broken = {"kind": "exception", "message": "RuntimeError: capture failed"}
        (folder / "trials/fast-r0-0123456789").mkdir()
        (folder / "trials/fast-r0-0123456789/failure.json").write_text(json.dumps(broken))
    part = Task("throughput", "throughput", program("sys.exit(3)"), "throughput/gates.json", needs=0.0)
    assert go([part], tmp_path) == {"throughput": "failed" if failed else "unfinished"}
    detail = read_record(tmp_path / evidence.LEDGER, Ledger).tasks[0].detail
    expected = "fast-r0-0123456789: RuntimeError: capture failed" if failed else "not all of it was begun"
    assert detail == expected


# -------------------------------------------------------------------------------------------------- its parts


def test_the_variants_that_figures_are_of_are_in_the_config() -> None:
    experiment, recipes = load_experiment(tasks.THROUGHPUT_CONFIG)
    named = {figures.LOADER, figures.SMALL_EAGER, figures.SMALL_GRAPH, tasks.FAST, *tasks.PROFILED}
    assert named <= recipes.keys()
    assert experiment.baseline == figures.LOADER
    assert {recipes[name].train.batch_size for name in recipes if not name.startswith("small")} == {figures.BATCH}
    fast = recipes[tasks.FAST].input
    assert (fast.crop, fast.pixel_bytes, fast.channels) == ("opencv4", 4, 4)  # as JUDGED says
    graph, eager = (recipes[name] for name in (figures.SMALL_GRAPH, figures.SMALL_EAGER))
    assert graph.train.model_copy(update={"graph": False}) == eager.train
    assert (graph.input, graph.loss) == (eager.input, eager.loss)


def test_the_parity_experiment_compares_nothing_but_what_the_fast_path_changes() -> None:
    experiment, recipes = load_experiment(tasks.CONFIGS / "gpu_parity.yaml")
    reference, fast = recipes["reference"], recipes["fast"]
    assert experiment.compared == {"fast": "reference"}
    assert len(experiment.seeds) >= 5
    plain = (reference.loss.impl, reference.input.impl, reference.train.compile, reference.train.graph)
    assert plain == ("reference", "reference", "off", False)
    for same in ("epochs", "batch_size", "lr", "schedule", "augment"):
        assert getattr(fast.train, same) == getattr(reference.train, same)
    assert fast.evaluate == reference.evaluate
    assert fast.data == load_experiment(tasks.THROUGHPUT_CONFIG)[1][tasks.FAST].data  # one crop cache for both


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
@pytest.mark.parametrize("name", ["numerics", "throughput", "crops", "profile_eager", "time_to_nme"])
def test_each_parts_program_takes_its_arguments_and_says_that_there_is_no_gpu(tmp_path: Path, name: str) -> None:
    (part,) = (task for task in tasks.tasks() if task.name == name)
    ended = subprocess.run(
        part.command(tmp_path, 500.0), cwd=tmp_path, env=_outside(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "unrecognized" not in ended.stderr
    assert ended.stderr.startswith("error: ")
    assert "GPU" in ended.stderr


def test_a_variant_that_is_not_there_is_told_beside_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(InputError, match=r"--variant fast: .*gpu_throughput\.yaml has loader, eager, graph"):
        recipe_of(tasks.THROUGHPUT_CONFIG, "fast")
    assert recipe_of(tasks.THROUGHPUT_CONFIG, tasks.FAST).input.pixel_bytes == 4


def _outside() -> dict[str, str]:
    return {**shell_environment(), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


JUNIT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite name="pytest" errors="1"
failures="1" skipped="1" tests="4" time="12.5">
<testcase classname="tests.a" name="test_good" time="1"/>
<testcase classname="tests.a" name="test_bad[x-1]" time="1"><failure message="no">text</failure></testcase>
<testcase classname="tests.a" name="test_worse" time="1"><error message="no">text</error></testcase>
<testcase classname="tests.a" name="test_none" time="1"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def test_outcomes_of_tests_are_read_and_errors_count_as_failures(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(JUNIT)
    found = evidence.read_tests(tmp_path / "tests.xml")
    assert (found.passed, found.skipped, found.seconds) == (1, 1, 12.5)
    assert found.failed == ["tests.a.test_bad[x-1]", "tests.a.test_worse"]


@pytest.mark.parametrize("content", ["", "<testsuites", '<testsuite time="long"/>'])
def test_what_is_no_result_of_tests_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tests.xml").write_text(content)
    with pytest.raises(InputError, match=r"tests\.xml: not the result of a pytest run"):
        evidence.read_tests(tmp_path / "tests.xml")


def test_the_tests_of_a_gpu_are_those_marked_and_those_on_the_device() -> None:
    script = (
        "import torch; torch.cuda.is_available = lambda: True\n"
        "import pytest, sys\n"
        "sys.exit(pytest.main(['--collect-only', '-q', '-m', 'gpu', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    files = [str(REPOSITORY / "tests/kernels" / name) for name in ("test_loss_launch.py", "test_modules.py")]
    line = [sys.executable, "-c", script, *files]
    ended = subprocess.run(line, cwd=REPOSITORY, env=_outside(), capture_output=True, text=True, check=True)
    assert "test_many_launches_on_several_streams_at_once_are_each_right" in ended.stdout  # marked
    assert "test_a_module_runs_the_kernel_that_it_is_told_to" in ended.stdout  # on whatever `device` is
    assert "test_options_reach_the_function" not in ended.stdout


# ---------------------------------------------------------------------------------------- numerics, compute-sanitizer


def test_crops_and_draws_are_those_of_the_host(device: torch.device) -> None:
    checks = [*numerics.crop_checks(device, 1, small=True), *numerics.draw_checks(device, 1, small=True)]
    assert len(checks) == 10
    assert [check.name for check in checks if check.verdict != "PASS"] == []


def test_losses_are_within_their_limits_of_float64(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.kernels.cases.LOSSES", ("wing",))
    monkeypatch.setattr(numerics, "_DTYPES", (("float32", "float32"), ("bfloat16", "float32")))
    checks = numerics.loss_checks(device, 3, small=True)
    assert [check.verdict for check in checks] == ["PASS"] * 6


@pytest.mark.parametrize(("defect", "wrong"), [("crop", 9), ("draw", 1), ("loss", 1), ("gradient", 1)])
def test_a_planted_defect_is_found(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, defect: str, wrong: int
) -> None:
    import kernels

    def fused_changed(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
        def changed(*given: Any, impl: str, **options: Any) -> Any:
            found = function(*given, impl=impl, **options)
            return change(found) if impl == "triton" else found

        return changed

    def one_off(crops: torch.Tensor) -> torch.Tensor:
        crops[0, 0, 5, 7] += 1
        return crops

    if defect == "crop":
        monkeypatch.setattr(kernels, "crop_faces", fused_changed(kernels.crop_faces, one_off))
        checks = numerics.crop_checks(device, 1, small=True)
    elif defect == "draw":
        rounded = fused_changed(kernels.sample_faces, lambda found: found._replace(matrix=found.matrix * (1 + 2e-16)))
        monkeypatch.setattr(kernels, "sample_faces", rounded)
        checks = numerics.draw_checks(device, 1, small=True)
    else:
        factors = (1 + 1e-6, 1) if defect == "loss" else (1, 1 + 1e-6)  # of loss and gradient
        monkeypatch.setattr("bench.kernels.cases.LOSSES", ("wing",))
        monkeypatch.setattr(numerics, "_DTYPES", (("float32", "float32"),))
        pair = fused_changed(
            kernels.wing_loss_and_grad, lambda found: tuple(one * by for one, by in zip(found, factors, strict=True))
        )
        monkeypatch.setattr(kernels, "wing_loss_and_grad", pair)
        checks = numerics.loss_checks(device, 1, small=True)
    assert sum(check.verdict != "PASS" for check in checks) == wrong


CLEAN = "========= COMPUTE-SANITIZER\nfine\n========= ERROR SUMMARY: 0 errors\n"
PLANTED = "========= Invalid __global__ write\n========= ERROR SUMMARY: 1 error\n"
RACES = "========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 warnings)\n"


@pytest.mark.parametrize(
    ("planted", "kernels", "code", "found", "why"),
    [
        (PLANTED, CLEAN, 0, 0, ""),
        (PLANTED, PLANTED, 0, 1, ""),
        (PLANTED, PLANTED, 1, 1, ""),
        (CLEAN, CLEAN, 0, None, "a planted error was not found: ========= ERROR SUMMARY: 0 errors"),
        ("Device not supported", CLEAN, 0, None, "a planted error was not found: Device not supported"),
        (PLANTED, CLEAN, 1, None, "the kernels' own check ended with exit code 1 while it was watched"),
        (PLANTED, "Killed", 137, None, "no summary: Killed"),
    ],
)
def test_a_tool_that_misses_a_planted_error_says_nothing_about_the_kernels(
    planted: str, kernels: str, code: int, found: int | None, why: str
) -> None:
    def watch(tool: str, run: Sequence[str]) -> tuple[int, str]:
        assert tool == "memcheck"
        return (1, planted) if run[0].endswith("planted") else (code, kernels)

    seen = memory_check.check("memcheck", watch)
    assert (seen.found, seen.why) == (found, why)


def test_the_summaries_of_both_tools_are_read() -> None:
    assert [memory_check.errors_in(text) for text in (CLEAN, PLANTED, RACES, "nothing")] == [0, 1, 3, None]
    assert memory_check.errors_in(CLEAN + PLANTED) == 1  # of several processes


def test_without_the_tool_the_figure_is_unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(memory_check, "_BESIDE_CUDA", str(tmp_path))
    seen = memory_check.check("racecheck")
    assert seen.found is None
    assert "is not installed here" in seen.why


def test_the_tool_is_called_with_an_allocator_that_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(
        '#!/bin/sh\necho "$2 $PYTORCH_NO_CUDA_MEMORY_CACHING" >>'
        f' {tmp_path}/called\ncase "$*" in *planted*) n=2;; *) n=0;; esac\necho "ERROR SUMMARY: $n errors"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen = memory_check.check("memcheck")
    assert (seen.planted, seen.found) == (2, 0)
    assert (tmp_path / "called").read_text() == "memcheck 1\n" * 2


# ------------------------------------------------------------------------------------------- crops, profile


def test_crops_are_timed_of_the_batches_that_training_makes(face_set: Path) -> None:
    values = tiny_recipe(face_set, input={"crop": "opencv4", "sampling": "device", "channels": 4, "impl": "reference"})
    recipe, faces = Recipe.model_validate(values), load_wflw(face_set, "train")
    order = BatchOrder(len(faces), 4, 0, drop_last=True)
    feed = open_feed(recipe, faces, 0, order, Ranks(), 3)
    assert isinstance(feed, DeviceFeed)
    calls = calls_of(feed, 3)
    first, second = calls[JUDGED](0), calls[JUDGED](1)
    assert first.shape == (4, 4, 64, 64)
    assert torch.equal(first, feed.batch(0).pixels)
    assert torch.equal(second, feed.batch(1).pixels)  # other faces
    assert torch.equal(calls[JUDGED](3), first)
    assert {call(2)[0].shape[0] for name, call in calls.items() if name.startswith("crop")} <= {3, 4}


def test_each_way_to_make_a_batch_is_timed_and_one_is_judged(face_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(call: Callable[[int], Any], sets: int, effort: Effort) -> int:
        assert sets == crop_speed.BATCHES
        return sum(call(index) is not None for index in range(sets))

    monkeypatch.setattr(clock, "record", record)
    monkeypatch.setattr(clock, "gpu_seconds", lambda recordings, effort: {name: [1.0, 2.0] for name in recordings})
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    values = tiny_recipe(face_set, input={"crop": "opencv4", "sampling": "device", "channels": 4, "pixel_bytes": 4})
    recipe, faces = Recipe.model_validate(values), load_wflw(face_set, "train")
    found = crop_speed.measure(recipe, faces, Effort(), torch.device("cpu"))
    assert (found.batch_size, found.faces, len(found.rows)) == (4, len(faces), 6)
    assert [row.name for row in found.rows if row.judged] == [JUDGED]


def test_a_profile_is_of_steps_in_steady_state(face_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_profile, "WARMUP", 1)
    monkeypatch.setattr(step_profile, "STEPS", 2)
    recipe = Recipe.model_validate(tiny_recipe(face_set, train={"steps": 3}))
    trace = step_profile.profile(recipe, load_wflw(face_set, "train"), torch.device("cpu"))
    steps = [event for event in trace["traceEvents"] if str(event.get("name")).startswith("Optimizer.step")]
    assert len(steps) == 2
    assert step_profile.summed(trace, 2, "a", 4, "none").kernels == []  # a CPU's work is no GPU's


KERNELS = {  # as they are called on NVIDIA GPUs
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64": "convolution",
    "void cudnn::bn_fw_tr_1C11_kernel_NCHW<float>": "batch norm",
    "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::Var>": "batch norm",
    "triton_poi_fused__native_batch_norm_legit_functional_add_relu_7": "batch norm",
    "triton_red_fused_convert_element_type_3": "fused by Inductor",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdam>": "optimizer",
    "loss_kernel": "loss",
    "crop_kernel": "input",
    "Memcpy DtoD (Device -> Device)": "copies and fills",
    "void at::native::vectorized_elementwise_kernel<4, at::native::threshold>": "elementwise",
    "void at::native::max_pool_forward_nhwc<c10::BFloat16>": "pooling",
    "something else": "other",
}


@pytest.mark.parametrize(("kernel", "group"), KERNELS.items())
def test_kernels_are_grouped_by_their_names(kernel: str, group: str) -> None:
    assert step_profile.group_of(kernel) == group


def test_a_profile_adds_up_the_gpus_work_per_step() -> None:
    def event(name: str, microseconds: float, category: str = "kernel") -> dict[str, Any]:
        return {"name": name, "dur": microseconds, "cat": category}

    events = [event("loss_kernel", 10.0)] * 2 + [event("Memset", 4.0, "gpu_memset")]
    trace = {"traceEvents": [*events, event("aten::add", 1e6, "cpu_op"), {"name": "a mark"}]}
    found = step_profile.summed(trace, 2, "eager", 256, "NVIDIA H200")
    assert found.seconds == pytest.approx(12e-6)
    rows = [(one.name, one.group, one.seconds, one.launches) for one in found.kernels]
    assert rows == [("loss_kernel", "loss", pytest.approx(1e-5), 1.0), ("Memset", "copies and fills", 2e-6, 0.5)]
    text = "\n".join(step_profile.lines(found))
    assert "0.012 ms of GPU work a step" in text
    assert "83.3 %" in text


# ------------------------------------------------------------------------------------------------ figures


def check_of(checks: Sequence[Check], name: str) -> Check:
    (one,) = (check for check in checks if name in check.name)
    return one


def speeds(folder: Path, **changed: float) -> Path:
    """An experiment in which `fast` has just what the targets ask for; `changed`: other speeds, by variant."""
    wanted = {"loader": 1500, "eager": 4000, "packed": 4500, "small_eager": 2000, "small_graph": 2800, **changed}
    records = []
    for variant, speed in wanted.items():
        batch = 64 if variant.startswith("small") else 256
        changes = {
            "batch_size": batch,
            "input_share": {"value": 0.015, "low": 0.01, "high": 0.02},
            "input_alone": windows(300_001, batch_size=batch),
        }
        records += [throughput_result(variant, repeat, speed, **changes) for repeat in (0, 1)]
    return store(folder, records, {"measure": "throughput", "throughput": {"repeats": 2}})


def all_figures(out: Path, why: str = "It was not run") -> dict[str, list[Check]]:
    return dict(figures.figures(evidence.read_evidence(out), lambda name: why))  # type: ignore[arg-type]


def test_of_an_empty_check_every_figure_is_unmeasured_and_says_why(tmp_path: Path) -> None:
    checks = [check for stage in all_figures(tmp_path).values() for check in stage]
    assert len(checks) == 13
    assert {check.verdict for check in checks} == {"unmeasured"}
    assert {check.how for check in checks} == {"It was not run"}


def test_training_figures_are_of_the_fastest_variant_and_meet_their_targets_exactly(tmp_path: Path) -> None:
    speeds(tmp_path / "throughput")
    checks = all_figures(tmp_path)["throughput"]
    assert [(check.figure, check.verdict) for check in checks[:5]] == [
        (pytest.approx(4500), "PASS"),
        (pytest.approx(3), "PASS"),
        (pytest.approx(300_001), "PASS"),
        (pytest.approx(1.5), "PASS"),
        (pytest.approx(1.4), "PASS"),
    ]
    assert all("packed, batch 256" in check.how for check in checks[:4])
    assert "small_graph against small_eager: 1.40" in checks[4].how


@pytest.mark.parametrize(
    ("changed", "name", "verdict"),
    [
        ({"packed": 4499, "eager": 0.5}, "augmentation in the loop", "SHORT"),
        ({"packed": 3399, "eager": 3399}, "augmentation in the loop", "FAIL"),
        ({"loader": 1501}, "16-worker DataLoader", "SHORT"),
        ({"loader": 2251}, "16-worker DataLoader", "FAIL"),
        ({"small_graph": 2799}, "whole-step graph", "SHORT"),
        ({"small_graph": 2399}, "whole-step graph", "FAIL"),
    ],
)
def test_a_speed_that_misses_its_target_or_its_limit_is_short_or_fails(
    tmp_path: Path, changed: dict[str, float], name: str, verdict: str
) -> None:
    speeds(tmp_path / "throughput", **changed)
    assert check_of(all_figures(tmp_path)["throughput"], name).verdict == verdict


def test_a_variant_that_is_missing_leaves_its_figures_unmeasured(tmp_path: Path) -> None:
    store(
        tmp_path / "throughput",
        [throughput_result("loader", 0, 1500.0), throughput_result("small_graph", 0, 3000.0, batch_size=64)],
        {"measure": "throughput", "throughput": {"repeats": 2}},
    )
    assert {check.verdict for check in all_figures(tmp_path)["throughput"]} == {"unmeasured"}


def test_the_crop_that_is_judged_is_the_fast_paths(tmp_path: Path) -> None:
    rows = [CropSpeed(name="fast one", judged=True, seconds=[256e-6, 250e-6, 400e-6])]
    rows += [CropSpeed(name="other", judged=False, seconds=[1.0])]
    crops = Crops(gpu="NVIDIA H200", batch_size=256, region_bytes=10**9, faces=7500, rows=rows)
    write_record(crops, tmp_path / "crops.json")
    one = check_of(all_figures(tmp_path)["throughput"], "crop kernel alone")
    assert (one.figure, one.verdict) == (pytest.approx(1_000_000), "PASS")
    assert "other: 256" in one.how


def trained(folder: Path, **minutes: float) -> None:
    """A time to NME with cold, warm or both caches."""
    config = {"train": {"batch_size": 256}}
    ids = []
    for caches, value in minutes.items():
        name = f"fast-s0-{caches}0-0123456789"
        ids.append(name)
        reached = [Milestone(step=290, epoch=10, seconds=60.0, nme=0.09)]
        record = result(
            trial=name, experiment="fake", variant="fast", caches=caches, milestones=reached, config=config,
            process_seconds=60 * value,
        )  # fmt: skip
        write_record(record, folder / "trials" / name / "result.json")
    values = {
        "name": "fake", "measure": "time_to_nme", "time_to_nme": {"nme_x100": [10, 6]}, "variants": {"fast": {}},
        "baseline": "fast", "seeds": [0], "trials": ids,
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("minutes", "figure", "verdict"),
    [
        ({"cold": 8.0, "warm": 6.5}, 6.5, "PASS"),
        ({"cold": 8.0, "warm": 6.6}, 6.6, "SHORT"),
        ({"cold": 9.0, "warm": 8.6}, 8.6, "FAIL"),
        ({"cold": 8.0}, None, "unmeasured"),
    ],
)
def test_the_time_of_210_epochs_is_that_with_warm_caches(
    tmp_path: Path, minutes: dict[str, float], figure: float | None, verdict: str
) -> None:
    (tmp_path / "time_to_nme").mkdir()
    trained(tmp_path / "time_to_nme", **minutes)
    (one,) = (check for check in all_figures(tmp_path)["epochs"] if "210 epochs" in check.name)
    assert (one.figure, one.verdict) == (figure and pytest.approx(figure), verdict)
    assert f"{minutes['cold']:.2f} min" in one.how
    if figure is not None:
        assert "NME 10 after 60 s, NME 6 not reached" in one.how


def paired(folder: Path, differences: Sequence[float], planned: int = 8) -> None:
    """Trainings of `reference` and `fast` whose NMEs x 100 differ by `differences`, seed by seed."""
    records = []
    for seed, difference in enumerate(differences):
        for variant, nme in (("reference", 0.06), ("fast", 0.06 + difference / 100)):
            metrics = {"test": subset(nme)}
            records.append(result(variant=variant, seed=seed, metrics=metrics, config={"train": {"epochs": 20}}))
    ids = [f"{v}-s{seed}-0123456789" for seed in range(planned) for v in ("reference", "fast")]
    top = {"parity": {"margin": 0.05}, "seeds": list(range(planned)), "trials": ids, "train": {"epochs": 20}}
    store(folder, records, top)


@pytest.mark.parametrize(
    ("differences", "verdict", "said"),
    [
        ([0.01, -0.01, 0.005, -0.005, 0.0, 0.01, -0.01, 0.0], "PASS", "EQUIVALENT"),
        ([1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.01, 0.99], "FAIL", "DIFFERENT"),
        ([0.2, -0.2, 0.3, -0.3, 0.1, -0.1, 0.2, -0.2], "FAIL", "INCONCLUSIVE"),  # all is done, and it does not hold
        ([0.01, -0.01, 0.005, -0.005, 0.0], "unmeasured", "INCONCLUSIVE"),  # three seeds are to come
    ],
)
def test_the_figure_of_parity_says_what_its_verdict_says(
    tmp_path: Path, differences: Sequence[float], verdict: str, said: str
) -> None:
    paired(tmp_path / "parity", differences)
    one = check_of(all_figures(tmp_path)["epochs"], "NME x 100, fast less reference")
    assert one.verdict == verdict
    assert one.how.startswith(said)


def test_tests_numerics_and_tools_count_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "tests.xml").write_text(JUNIT)
    good, bad = (
        judged(f"figure {n}", value, "ulp", 4, 4, higher_is_better=False, how="") for n, value in enumerate((1.0, 5.0))
    )
    write_record(Numerics(gpu="g", seed=7, small=False, checks=[good, bad]), tmp_path / "numerics.json")
    write_record(MemoryCheck(tool="memcheck", found=0, planted=1, seconds=1), tmp_path / "memcheck.json")
    write_record(MemoryCheck(tool="racecheck", found=None, planted=0, why="no", seconds=1), tmp_path / "racecheck.json")
    checks = all_figures(tmp_path)["kernels"]
    assert [(check.figure, check.verdict) for check in checks[:4]] == [
        (2, "FAIL"),
        (1, "FAIL"),
        (0, "PASS"),
        (None, "unmeasured"),
    ]
    assert "tests.a.test_bad[x-1]; tests.a.test_worse" in checks[0].how
    assert "seed 7: figure 1" in checks[1].how
    assert checks[3].how == "no"


# ---------------------------------------------------------------------------------------------- the whole


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "bench.gpu_check", *arguments]
    return subprocess.run(line, cwd=cwd, env=_outside(), capture_output=True, text=True, check=False)


def test_one_file_holds_every_sample_and_can_be_judged_anywhere(tmp_path: Path) -> None:
    out = tmp_path / "check"
    broken = Task("throughput", "throughput", program("sys.exit('error: broke')"), "", needs=0.0, ends=(0,))
    go([leaving("tests"), broken], out)
    speeds(out / "throughput")
    paired(out / "parity", [0.01, -0.01])
    whole = merged(out)
    assert read_record(out / GPU_CHECK, GpuCheck) == whole
    assert problems_of(out / GPU_CHECK) == []
    assert len(whole.throughput) == 10
    assert len(whole.throughput[0].training.seconds) == 10
    assert [one.variant for one in whole.parity] == ["reference", "reference", "fast", "fast"]
    assert {one["state"] for one in whole.verdicts} == {"INCONCLUSIVE"}
    ended = command("--out", str(out), "--judge", cwd=tmp_path)
    assert ended.returncode == 3, ended.stderr
    assert "PASS" in ended.stdout
    assert "throughput: failed, " in ended.stdout
    assert ended.stdout.splitlines()[-1].endswith(f"are unmeasured: {out / GPU_CHECK}")
    assert ended.stdout.isascii()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            (),
            "error: no CUDA GPU here: this measures one",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU"),
        ),
        (("--only", "speed"), "error: --only speed: the parts are tests, numerics, losses"),
        (("--limit", "0"), "error: --limit 0: more than 0 seconds are wanted"),
        (("--judge",), "results/gpu_check: no GPU check was begun here"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    ended = command(*arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not (tmp_path / "results").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    out = tmp_path / "check"
    go([leaving("tests")], out)
    (out / "crops.json").write_text("{")
    ended = command("--out", str(out), "--judge", cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {out}/crops.json: not JSON")
