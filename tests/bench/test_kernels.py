from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.kernels import __main__ as program
from bench.kernels import run as kernel_run
from bench.kernels.cases import Case
from bench.kernels.clock import Recording
from bench.kernels.error import KernelError
from bench.kernels.result import KERNELS, KernelResult, read_kernel_result
from bench.kernels.run import KernelRun
from bench.kernels.table import FP32, Row, subjects
from pose.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
CASE = Case("wing", "loss_and_grad", *FP32, (4, 98, 2))
BACKWARD = Case("wing", "forward_backward", *FP32, (4, 98, 2))
ROWS = [
    Row("one_pass", "first", subjects(CASE, "eager"), wall=True),
    Row("small", "second", subjects(BACKWARD, "eager"), wall=True),
]


@pytest.fixture(autouse=True)
def small_rows_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernel_run, "cpu_rows", lambda: ROWS)


def run_of(folder: Path, **changes: Any) -> KernelRun:
    options = {"quick": True, "only": ("one_pass", "small"), "resume": False, "seed": 0, **changes}
    return KernelRun(folder / KERNELS, "python -m bench.kernels", **options)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """As from a shell in which nobody has set TRITON_INTERPRET."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    line = [sys.executable, "-m", "bench.kernels", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_table_is_unmeasured_and_says_so(tmp_path: Path) -> None:
    run = command("--out", str(tmp_path), "--only", "launches", "--only", "errors")
    assert run.returncode == 0, run.stderr
    assert "every figure of speed, launches and memory is unmeasured" in run.stdout
    result = read_kernel_result(tmp_path / KERNELS)
    assert result.failures == []
    given = f"python -m bench.kernels --out {tmp_path} --only launches --only errors"
    assert result.command == f"{given} --seed {result.seed}"  # drawn anew each time
    verdicts = {check.name: check.verdict for check in result.checks}
    interpreted = {name for name in verdicts if name.startswith(("wing family", "adaptive wing, fp32", "two runs"))}
    assert {verdicts[name] for name in interpreted} <= {"PASS", "SHORT"}
    assert {verdicts[name] for name in verdicts.keys() - interpreted} == {"unmeasured"}
    reasons = {check.name: check.how for check in result.checks}
    assert reasons["launches, loss and grad"].startswith("It needs a CUDA GPU")
    assert reasons["batch 64 to 512, loss and gradient"].startswith("Not asked for")


def test_rows_are_timed_and_the_file_holds_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_of(tmp_path).measure()
    assert read_kernel_result(tmp_path / KERNELS) == result
    assert [(m.mode, m.variant, m.clock) for m in result.measurements] == [
        ("loss_and_grad", "eager", "wall"),
        ("forward_backward", "eager", "wall"),
    ]
    assert all(len(m.seconds) == 8 and m.launches is None and m.peak_extra_bytes is None for m in result.measurements)
    assert result.environment.packages["torch"]
    assert {check.verdict for check in result.checks} == {"unmeasured"}
    printed = capsys.readouterr().out
    assert "[1/2] first" in printed
    assert "wing loss_and_grad eager, wall: " in printed


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = KernelRun.time_row

    def stopped(self: KernelRun, row: Row) -> None:
        if row.name == "second":
            raise KeyboardInterrupt
        real(self, row)

    monkeypatch.setattr(KernelRun, "time_row", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path).measure()
    before = read_kernel_result(tmp_path / KERNELS)
    assert [m.mode for m in before.measurements] == ["loss_and_grad"]

    monkeypatch.setattr(KernelRun, "time_row", real)
    after = run_of(tmp_path, resume=True, seed=1).measure()
    assert after.seed == before.seed == 0  # or its rows would be of different inputs
    assert after.measurements[0] == before.measurements[0]
    assert [m.mode for m in after.measurements] == ["loss_and_grad", "forward_backward"]
    assert after.started == before.started
    # Without it everything is measured anew
    again = run_of(tmp_path).measure()
    assert again.measurements[0] != before.measurements[0]


def test_only_a_result_of_the_same_code_on_the_same_machine_is_resumed(tmp_path: Path) -> None:
    run_of(tmp_path).measure()
    content = json.loads((tmp_path / KERNELS).read_text())
    content["environment"]["commit"] = "0" * 40
    (tmp_path / KERNELS).write_text(json.dumps(content))
    with pytest.raises(InputError, match="other code; leave out --resume"):
        run_of(tmp_path, resume=True)


def test_there_may_be_nothing_to_resume(tmp_path: Path) -> None:
    assert run_of(tmp_path, resume=True, only=("small",)).measure().measurements[0].mode == "forward_backward"


def test_a_variant_that_breaks_is_named_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(case: Case, variant: str, inputs: Any) -> Any:
        if variant == "compile":
            raise RuntimeError("no compiler\nand a long story")
        return lambda index: torch.zeros(3) + index

    monkeypatch.setattr(kernel_run, "build", build)
    monkeypatch.setattr(
        kernel_run, "cpu_rows", lambda: [Row("small", "r", subjects(CASE, "compile", "eager"), wall=True)]
    )
    result = run_of(tmp_path).measure()
    assert [m.variant for m in result.measurements] == ["eager"]
    assert result.failures == ["wing loss_and_grad float32 4x98x2 as compile: RuntimeError: no compiler"]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, fused: float = 1.0) -> None:
    """All that asks a GPU answers with fixed numbers; the run around it is real. Times are in microseconds."""
    row = Row("one_pass", "first", subjects(CASE, "eager", "triton"), wall=True, ceilings=True)
    monkeypatch.setattr(kernel_run, "gpu_rows", lambda sizes: [row])
    monkeypatch.setattr(kernel_run, "build", lambda case, variant, inputs, upstream=None: lambda index: index)
    monkeypatch.setattr(kernel_run, "record", lambda call, sets, effort: Recording(None, 1))  # type: ignore[arg-type]
    monkeypatch.setattr(
        kernel_run,
        "gpu_seconds",
        lambda recordings, effort: {name: [(number + 1) * 1e-6] for number, name in enumerate(recordings)},
    )
    monkeypatch.setattr(kernel_run, "graph_launches", lambda call: 2)
    monkeypatch.setattr(kernel_run, "peak_extra_bytes", lambda call: 99)
    monkeypatch.setattr(kernel_run, "profiled_launches", lambda call: None)
    monkeypatch.setattr(kernel_run, "waits_for_gpu", lambda call: False)
    monkeypatch.setattr(kernel_run, "rotation", lambda size, device: 1)
    monkeypatch.setattr(kernel_run, "error_bars", lambda gpu: [])
    monkeypatch.setattr(kernel_run, "kernel_error", lambda *_: KernelError(0.0, 0.0, True, True))


def gpu_run(folder: Path, only: tuple[str, ...]) -> KernelResult:
    run = run_of(folder, only=only)
    run.gpu = True
    return run.measure()


def test_gpu_times_launches_memory_and_ceilings_reach_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch)
    result = gpu_run(tmp_path, ("one_pass",))
    assert result.failures == []
    by_clock = [(m.variant, m.clock, m.launches, m.peak_extra_bytes) for m in result.measurements]
    assert by_clock == [(v, c, 2, 99) for c in ("gpu", "wall") for v in ("eager", "triton")]
    assert [m.seconds for m in result.measurements[:2]] == [[1e-6], [2e-6]]
    assert [(c.kind, round(c.bytes_per_second)) for c in result.ceilings] == [
        ("copy", round(8 * 784 / 3e-6)),
        ("add", round(12 * 784 / 4e-6)),
    ]


def test_more_launches_than_allowed_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)
    result = gpu_run(tmp_path, ("launches",))
    verdicts = {check.name: check.verdict for check in result.checks}
    assert verdicts["launches, loss and grad"] == "FAIL"  # 2 nodes, 1 allowed
    assert verdicts["launches, forward backward"] == "PASS"
    assert verdicts["host synchronisations"] == "PASS"
    monkeypatch.setattr(kernel_run, "profiled_launches", lambda call: 3)
    monkeypatch.setattr(kernel_run, "waits_for_gpu", lambda call: True)
    result = gpu_run(tmp_path, ("launches",))
    figures = {check.name: check.figure for check in result.checks}
    assert figures["launches, forward backward"] == 3  # the larger count
    assert figures["host synchronisations"] == 2


def test_a_recording_that_fails_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch)

    def record(call: Any, sets: int, effort: Any) -> Recording:
        if isinstance(call(0), torch.Tensor):
            raise RuntimeError("operation not permitted when stream is capturing")
        return Recording(None, 1)  # type: ignore[arg-type]

    monkeypatch.setattr(kernel_run, "record", record)
    result = gpu_run(tmp_path, ("one_pass",))
    assert [m.clock for m in result.measurements] == ["gpu", "gpu", "wall", "wall"]
    assert result.ceilings == []
    assert len(result.failures) == 2


def test_exit_code_is_1_when_a_limit_is_missed_and_on_a_gpu_when_something_is_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.main(["--quick", "--only", "small", "--out", str(tmp_path)]) == 0
    bad = KernelError(1.0, 1.0, True, True)
    monkeypatch.setattr(kernel_run, "kernel_error", lambda *_: bad)
    assert program.main(["--quick", "--only", "errors", "--out", str(tmp_path)]) == 1

    def broken(*_: Any) -> KernelError:
        raise RuntimeError("broken")

    monkeypatch.setattr(kernel_run, "kernel_error", broken)
    assert program.main(["--quick", "--only", "errors", "--out", str(tmp_path)]) == 0  # unmeasured, and it says so
    assert read_kernel_result(tmp_path / KERNELS).failures


def test_an_interpreted_kernel_is_not_timed_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(InputError, match="unset it"):
        program.main(["--out", str(tmp_path)])


def test_the_interpreter_is_switched_on_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    program._choose_interpreter(gpu=True)
    assert "TRITON_INTERPRET" not in os.environ
    program._choose_interpreter(gpu=False)
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_a_part_that_does_not_exist_is_refused_with_the_names_of_all() -> None:
    run = command("--only", "bandwith")
    assert run.returncode == 2
    assert "bandwith" in run.stderr
    assert "one_pass" in run.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_timed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = command("--out", str(tmp_path / "file" / "below"))
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in run.stderr
    assert "[1/" not in run.stdout


@pytest.mark.gpu
def test_the_whole_protocol_on_a_small_case_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # there is a GPU
    small = subjects(BACKWARD, "eager", "compile", "triton")
    row = Row("one_pass", "all", (*small, *subjects(CASE, "triton")), wall=True, ceilings=True)
    monkeypatch.setattr(kernel_run, "gpu_rows", lambda sizes: [row])
    result = run_of(tmp_path, only=("one_pass", "launches")).measure()
    assert result.failures == []
    assert len(result.measurements) == 8
    assert {c.kind for c in result.ceilings} == {"copy", "add"}
    launches = {(m.mode, m.variant): m.launches for m in result.measurements}
    assert launches["loss_and_grad", "triton"] == 1
    assert (launches["forward_backward", "eager"] or 0) > 10
    verdicts = {check.name: check.verdict for check in result.checks if "launches" in check.name}
    assert verdicts == {"launches, loss and grad": "PASS", "launches, forward backward": "PASS"}
