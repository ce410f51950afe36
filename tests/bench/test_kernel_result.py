from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from records import result as trial_result

from bench.kernels.result import (
    Ceiling,
    KernelResult,
    Measurement,
    judged,
    read_kernel_result,
)
from bench.result import write_record
from pose.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def measurement(**changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "loss": "wing", "mode": "loss_and_grad", "variant": "triton", "pred_dtype": "float32",
        "target_dtype": "float32", "shape": [64, 98, 2], "elements": 12544, "weight": "none", "upstream": "one",
        "clock": "gpu", "seconds": [2e-6, 3e-6, 4e-6], "model_bytes": 150528, "launches": 1, "peak_extra_bytes": 50688,
    }  # fmt: skip
    return Measurement.model_validate({**values, **changes})


def kernel_result(**changes: Any) -> KernelResult:
    values: dict[str, Any] = {
        "environment": trial_result().environment, "device": {"name": "made up"}, "ceilings": [],
        "measurements": [measurement()], "checks": [], "failures": [], "started": "2026-01-01T00:00:00+00:00",
        "command": "python -m bench.kernels",
    }  # fmt: skip
    return KernelResult.model_validate({**values, **changes})


def ceiling(rate: float, elements: int, kind: str = "copy", dtype: str = "float32") -> Ceiling:
    return Ceiling.model_validate(
        {
            "pred_dtype": dtype,
            "target_dtype": "float32",
            "kind": kind,
            "bytes_per_second": rate,
            "samples": [rate],
            "elements": elements,
        }
    )


def test_median_spread_and_bandwidth_come_from_the_samples() -> None:
    m = measurement(seconds=[5.0, 1.0, 2.0, 4.0, 3.0, 100.0], model_bytes=7)
    assert m.median == 3.5
    assert m.spread == (2.0, 5.0)
    assert m.bytes_per_second == 2.0
    assert measurement(seconds=[2.0]).spread == (2.0, 2.0)


@pytest.mark.parametrize(
    ("figure", "higher", "verdict"),
    [
        (11.0, True, "PASS"), (10.99, True, "SHORT"), (9.0, True, "SHORT"), (8.99, True, "FAIL"),
        (4.0, False, "PASS"), (4.01, False, "SHORT"), (6.0, False, "SHORT"), (6.01, False, "FAIL"),
        (None, True, "unmeasured"), (math.inf, True, "FAIL"), (math.nan, True, "FAIL"), (-math.inf, False, "FAIL"),
    ],
)  # fmt: skip
def test_a_figure_passes_at_its_target_and_fails_beyond_its_limit(
    figure: float | None, higher: bool, verdict: str
) -> None:
    target, limit = (11.0, 9.0) if higher else (4.0, 6.0)
    check = judged("x", figure, "us", target, limit, higher_is_better=higher, how="")
    assert check.verdict == verdict
    assert check.figure == (figure if figure is not None and math.isfinite(figure) else None)


def test_the_ceiling_is_the_better_one_of_the_same_dtypes_and_size() -> None:
    result = kernel_result(
        ceilings=[
            ceiling(3.0, 16, "copy"),
            ceiling(4.0, 16, "add"),
            ceiling(9.0, 64),
            ceiling(8.0, 16, dtype="bfloat16"),
        ]
    )
    assert result.ceiling("float32", "float32", 16) == 4.0
    assert result.ceiling("float32", "float32", 64) == 9.0
    assert result.ceiling("float32", "float32", 32) == 9.0  # not measured at this size: the best of all
    assert result.ceiling("bfloat16", "float32", 16) == 8.0
    assert result.ceiling("bfloat16", "bfloat16", 16) is None


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = kernel_result(
        ceilings=[ceiling(1e12, 16)],
        checks=[judged("x", math.inf, "us", 1, 2, higher_is_better=False, how="made up")],
        device={"name": "made up", "multiprocessors": 132, "clock_sm_mhz": 1980.5, "driver": None},
    )
    write_record(result, tmp_path / "kernels.json")
    assert read_kernel_result(tmp_path / "kernels.json") == result
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not JSON"),
        ('{"schema_version": 1, "envi', "not JSON"),
        ("[1]", "neither the result of a kernel benchmark nor a pytest-benchmark JSON"),
        ('{"trial": "a-s0"}', "neither the result of a kernel benchmark"),
        ('{"schema_version": 2}', "schema version 2, this program reads version 1"),
        ('{"schema_version": 1}', "environment: Field required"),
        ('{"benchmarks": []}', "holds no benchmark of a kernel"),
        ('{"benchmarks": [{"extra_info": {}}, 3]}', "holds no benchmark of a kernel"),
        ('{"benchmarks": [{"fullname": "a", "extra_info": {"model_bytes": 1}}]}', "benchmark a: loss: Field required"),
    ],
)
def test_a_file_that_is_no_kernel_result_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "kernels.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_kernel_result(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read_kernel_result(tmp_path / "none.json")


def test_a_time_without_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    content = json.loads(kernel_result().model_dump_json())
    content["measurements"][0]["seconds"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"measurements\.0\.seconds"):
        read_kernel_result(path)


def test_both_clocks_and_the_ceilings_are_read_from_a_pytest_benchmark_json(tmp_path: Path) -> None:
    wall, gpu = measurement(clock="wall", seconds=[9e-6]), measurement()
    extra = {
        **wall.model_dump(),
        "also": [gpu.model_dump()],
        "ceilings": [ceiling(1e12, 16).model_dump()],
        "environment": trial_result().environment.model_dump(),
        "device": {"name": "made up"},
    }
    other = {"fullname": "reading a list", "extra_info": {}}
    content = {"datetime": "2026-01-01T00:00:00", "benchmarks": [other, {"fullname": "a", "extra_info": extra}] * 2}
    path = tmp_path / "0001.json"
    path.write_text(json.dumps(content))
    result = read_kernel_result(path)
    assert result.measurements == [wall, gpu] * 2
    assert result.ceilings == [ceiling(1e12, 16)]
    assert result.device == {"name": "made up"}
    assert (result.checks, result.started) == ([], "2026-01-01T00:00:00")


def test_what_pytest_benchmark_saves_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "saved.json"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--benchmark-only",
        "-q",
        f"--benchmark-json={path}",
        "-p",
        "no:cacheprovider",
    ]
    chosen = ["-k", "wing-forward_backward-float32-64x98x2-eager and not soft", "tests/benchmarks/test_losses.py"]
    # Beside other workers of xdist pytest-benchmark would measure nothing; this pytest has none
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run([*command, *chosen], cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stdout
    result = read_kernel_result(path)
    wall = result.measurements[0]
    assert (wall.loss, wall.mode, wall.variant, wall.clock) == ("wing", "forward_backward", "eager", "wall")
    assert wall.shape == [64, 98, 2]
    saved = json.loads(path.read_text())["benchmarks"][0]
    # pytest-benchmark's own figure: the same calls
    assert wall.median == pytest.approx(saved["stats"]["median"])
    assert len(wall.seconds) == saved["stats"]["rounds"]
    assert saved["group"] == "wing forward_backward float32 64x98x2"
    assert result.environment.packages["torch"]
