"""The page of a kernel benchmark, from results made up of a cost model and small random numbers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from test_report import Page

from bench.kernels.result import KernelResult, Measurement, judged
from bench.kernels.summary import time_text
from bench.report import build, main
from bench.result import write_record
from pose.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
SHAPES = ((64, 98, 2), (4096, 98, 2), (1 << 20,), (1 << 24,))
FP32, MIXED, BF16 = ("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")
SIZE = {"float32": 4, "bfloat16": 2}
# Launch and bytes per element, as multiples of the fused kernel's: the made-up machine's cost model
COST = {"eager": (12.0, 13.0), "compile": (3.0, 1.7), "triton": (1.0, 1.0), "triton_interpreted": (1e4, 1e4)}
PEAK = 4e12  # bytes per second of the made-up machine


def measurement(
    rng: np.random.Generator,
    variant: str,
    shape: Sequence[int],
    dtypes: tuple[str, str] = FP32,
    clock: str = "gpu",
    **changes: Any,
) -> Measurement:
    elements = prod(shape)
    model_bytes = elements * (2 * SIZE[dtypes[0]] + SIZE[dtypes[1]])
    launch, traffic = COST[variant]
    seconds = launch * (2.5e-6 if clock == "gpu" else 9e-6) + traffic * model_bytes / (0.92 * PEAK)
    values: dict[str, Any] = {
        "loss": "wing",
        "mode": "forward_backward",
        "variant": variant,
        "pred_dtype": dtypes[0],
        "target_dtype": dtypes[1],
        "shape": list(shape),
        "elements": elements,
        "weight": "none",
        "upstream": "one",
        "clock": clock,
        "seconds": list(seconds * rng.uniform(0.98, 1.02, 9)),
        "model_bytes": model_bytes,
        "launches": {"eager": 22, "compile": 3, "triton": 2}.get(variant) if clock == "gpu" else None,
        "peak_extra_bytes": 4 * elements if clock == "gpu" else None,
        "compile_seconds": 8.5 if variant == "compile" else None,
    }
    return Measurement(**(values | changes))


def result(measurements: Sequence[Measurement], *, gpu: bool = True, **changes: Any) -> KernelResult:
    pairs = sorted({(m.pred_dtype, m.target_dtype) for m in measurements}) if gpu else []
    values: dict[str, Any] = {
        "environment": {
            "commit": "c" * 40,
            "dirty": False,
            "host": "host",
            "platform": "Linux",
            "python": "3.11.2",
            "packages": {"torch": "2.11.0"},
            "cpu": "some processor",
            "cpus": 2,
            "threads": 1,
            "gpu": "Made-up GPU" if gpu else None,
            "driver": "1.2.3" if gpu else None,
            "variables": {},
        },
        "device": {"name": "Made-up GPU", "multiprocessors": 132, "sm_clock_mhz": None} if gpu else {"name": None},
        "ceilings": [
            {
                "pred_dtype": pred,
                "target_dtype": target,
                "kind": kind,
                "bytes_per_second": peak,
                "samples": [0.99 * peak, peak, 1.01 * peak],
                "elements": 1 << 26,
            }
            for pred, target in pairs
            for kind, peak in (("copy", PEAK), ("add", 0.97 * PEAK))
        ],
        "measurements": list(measurements),
        "checks": [],
        "failures": [],
        "started": "2026-01-01T00:00:30Z",
        "command": "python -m bench.kernels",
    }
    return KernelResult.model_validate(values | changes)


def full_result() -> KernelResult:
    """What a GPU gives: several losses, modes, dtypes, weights, upstream gradients, sizes and both clocks."""
    rng = np.random.default_rng(3)
    found = []
    for clock in ("gpu", "wall"):
        for variant in ("eager", "compile", "triton"):
            for loss in ("wing", "soft_wing", "smooth_l1"):
                for mode in ("forward", "forward_backward", "loss_and_grad"):
                    for dtypes in (FP32, MIXED, BF16):
                        for shape in SHAPES if clock == "gpu" else SHAPES[:2]:
                            found.append(measurement(rng, variant, shape, dtypes, clock, loss=loss, mode=mode))
            for change in ({"weight": "landmark"}, {"upstream": "other"}):
                found += [measurement(rng, variant, shape, FP32, clock, **change) for shape in SHAPES]
            heatmaps = (64, 98, 64, 64)
            for loss in ("adaptive_wing", "adaptive_wing_published"):
                if (loss, variant) != ("adaptive_wing_published", "triton"):
                    found.append(measurement(rng, variant, heatmaps, FP32, clock, loss=loss))
    checks = [
        judged("bandwidth, fp32", 93.25, "%", 92, 85, higher_is_better=True, how="one pass at 2^24 elements"),
        judged("bandwidth, bf16", 80.5, "%", 85, 75, higher_is_better=True, how="one pass at 2^24 elements"),
        judged("batch 64", 7.25, "us", 4, 6, higher_is_better=False, how="replayed graph"),
        judged("against eager", 11.5, "x", 11, 9, higher_is_better=True, how="upstream gradient 1"),
        judged("loss against float64", 1.25e-8, "relative", 3e-7, 3e-7, higher_is_better=False, how="largest error"),
        judged("another GPU", None, "bits", 0, 0, higher_is_better=False, how="only one GPU is here"),
    ]
    return result(found, checks=checks, failures=["One GPU is here, so two were not compared."])


def some_result() -> KernelResult:
    """Three variants of one case at several sizes."""
    rng = np.random.default_rng(5)
    return result([measurement(rng, v, s) for v in ("eager", "compile", "triton") for s in SHAPES])


def cpu_result() -> KernelResult:
    """What a machine without a GPU gives: wall times of eager and compile, and kernels that were interpreted."""
    rng = np.random.default_rng(4)
    shapes = ((64, 98, 2), (512, 98, 2))
    found = [measurement(rng, v, s, clock="wall", loss=x) for v in ("eager", "compile") for s in shapes for x in LOSSES]
    found += [measurement(rng, "triton_interpreted", shapes[0], clock="wall", loss=loss) for loss in LOSSES]
    checks = [
        judged(name, None, "%", 92, 85, higher_is_better=True, how="no GPU: nothing was launched")
        for name in ("bandwidth, fp32", "bandwidth, bf16")
    ]
    return result(found, gpu=False, checks=checks, failures=["GPU time was not measured: there is no GPU."])


LOSSES = ("wing", "smooth_l1")


class KernelPage(Page):
    def under(self, heading: str, table: int = 0) -> list[list[str]]:
        """The rows below the one that only says `heading`, in the `table`-th table that has it."""
        starts = [place for place, row in enumerate(self.rows) if row == [heading]]
        return self.rows[starts[table] + 1 :]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, KernelPage]:
    """The folder and the page of `full_result`, which takes seconds to draw."""
    folder = tmp_path_factory.mktemp("full")
    return folder, page_of(full_result(), folder)


def page_of(one: KernelResult, folder: Path) -> KernelPage:
    write_record(one, folder / "kernels.json")
    return KernelPage(build(folder).read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside_and_runs_nothing(full: tuple[Path, KernelPage]) -> None:
    folder, page = full
    text = (folder / "kernels.html").read_text(encoding="utf-8")
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|\bon[a-z]+=", text)
    for reference in page.references:
        assert reference.removeprefix("#") in page.ids if reference.startswith("#") else (folder / reference).exists()
    for target in re.findall(r"url\(([^)]*)\)", text):
        assert target.startswith("#")
        assert target[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"\bnan\b|\bNone\b|\bUndefined\b", page.text)


def test_the_verdict_stands_first_and_missed_limits_lead_the_table(full: tuple[Path, KernelPage]) -> None:
    _, page = full
    sentence = "3 of 6 figures meet their targets, 1 only its limit, 1 misses its limit, 1 is unmeasured."
    assert page.text.index(sentence) < page.text.index("GPU time: triton is") < page.text.index("Figures beside")
    assert page.rows[1:7] == [
        ["batch 64", "✗ FAIL", "7.25 µs", "≤ 4 µs", "≤ 6 µs", "replayed graph"],
        ["bandwidth, bf16", "△ SHORT", "80.5 %", "≥ 85 %", "≥ 75 %", "one pass at 2^24 elements"],
        ["bandwidth, fp32", "✓ PASS", "93.25 %", "≥ 92 %", "≥ 85 %", "one pass at 2^24 elements"],
        ["against eager", "✓ PASS", "11.5×", "≥ 11×", "≥ 9×", "upstream gradient 1"],
        ["loss against float64", "✓ PASS", "1.25e-08 relative", *["≤ 3e-07"] * 2, "largest error"],
        ["another GPU", "unmeasured", "–", "≤ 0 bits", "≤ 0 bits", "only one GPU is here"],
    ]
    assert "One GPU is here, so two were not compared." in page.text


@pytest.mark.parametrize(
    ("figures", "state", "said"),
    [
        ((12.0,), "passed", "1 of 1 figures meets its target."),
        ((12.0, 10.0), "ungated", "1 of 2 figures meets its target, 1 only its limit."),
        ((12.0, None), "ungated", "1 of 2 figures meets its target, 1 is unmeasured."),
        ((8.0, None), "failed", "0 of 2 figures meet their targets, 1 misses its limit, 1 is unmeasured."),
        ((float("nan"),), "failed", "0 of 1 figures meet their targets, 1 misses its limit."),
        ((None,), "ungated", "The only figure is unmeasured."),
        ((), "ungated", "Measurements only: no figure was judged against a target."),
    ],
)
def test_nothing_passes_that_was_not_measured_or_missed_its_target(
    tmp_path: Path, figures: tuple[float | None, ...], state: str, said: str
) -> None:
    one = measurement(np.random.default_rng(0), "triton", (64, 98, 2))
    checks = [judged(str(n), f, "x", 11, 9, higher_is_better=True, how="") for n, f in enumerate(figures)]
    write_record(result([one], checks=checks), tmp_path / "kernels.json")
    text = build(tmp_path).read_text()
    assert f'<p class="verdict {state}">{said}</p>' in text


def test_ratios_are_those_of_the_medians_and_shares_those_of_the_ceiling_at_the_same_size(tmp_path: Path) -> None:
    one = some_result()
    small = one.ceilings[0].model_copy(
        update={"pred_dtype": "float32", "target_dtype": "float32", "bytes_per_second": PEAK / 2, "elements": 12544}
    )
    one = one.model_copy(update={"ceilings": [*one.ceilings, small]})
    page = page_of(one, tmp_path)

    def of(variant: str, shape: Sequence[int]) -> Measurement:
        return next(m for m in one.measurements if (m.variant, m.shape) == (variant, list(shape)))

    rows = page.under("Wing: forward and backward")
    for row, (shape, peak) in zip(rows, ((SHAPES[0], PEAK / 2), (SHAPES[1], PEAK)), strict=False):
        eager, compiled, fused = (of(variant, shape) for variant in ("eager", "compile", "triton"))
        assert row[0] == "fp32"
        assert row[2] == f"{eager.median / fused.median:.1f}×"
        assert row[3] == f"{compiled.median / fused.median:.2f}×"
        assert row[4] == f"{100 * fused.model_bytes / median(fused.seconds) / peak:.1f} %"
        assert [cell.split(" ±")[0] for cell in row[5:]] == [time_text(m.median) for m in (eager, compiled, fused)]


def test_the_published_formula_is_put_beside_the_kernel_that_replaces_it(full: tuple[Path, KernelPage]) -> None:
    one = full_result()
    heat = {m.loss + m.variant: m for m in one.measurements if m.loss.startswith("adaptive") and m.clock == "gpu"}
    value = heat["adaptive_wing_publishedeager"].median / heat["adaptive_wingtriton"].median
    row = full[1].under("Adaptive wing, published formula: forward and backward")[0]
    assert row[:3] == ["fp32", "64 × 98 × 64 × 64 = 25,690,112", f"{value:.1f}×"]


def test_a_ratio_within_the_spread_is_marked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fused, eager = (measurement(rng, v, SHAPES[0], seconds=[1e-6, 2e-6, 3e-6]) for v in ("triton", "eager"))
    compiled = measurement(rng, "compile", SHAPES[0], seconds=[3.1e-6, 3.2e-6, 3.3e-6])
    page = page_of(result([fused, eager, compiled]), tmp_path)
    row = page.under("Wing: forward and backward")[0]
    assert row[2:4] == ["≈ 1.00×", "1.60×"]
    assert "spread over more than 20 % of their median" in page.text


def test_panels_compare_variants_on_one_scale_and_leave_out_what_has_one_size(full: tuple[Path, KernelPage]) -> None:
    folder, page = full
    latency = [label for label in page.labels if label.startswith("Time per call")]
    # three losses x three modes x three pairs of dtypes, and two more of the wing loss; heatmaps have one size
    assert len(latency) == 27 + 2
    assert not any("daptive" in label for label in latency)
    bandwidth = [label for label in page.labels if label.startswith("Share of the bandwidth ceiling")]
    assert len(bandwidth) == 9 + 2  # modes x pairs of dtypes, and the same two
    assert all(("Soft wing" in label) == ("weight" not in label and "upstream" not in label) for label in bandwidth)
    svgs = (folder / "kernels.html").read_text().split("<svg")[1:]
    ticks = {tuple(re.findall(r">([0-9.]+ (?:µs|ms))</text>", s)) for s in svgs if 'aria-label="Time per call' in s}
    assert len(ticks) == 1
    assert len(ticks.pop()) >= 2


def test_one_size_is_a_table_without_a_chart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    page = page_of(result([measurement(rng, v, (64, 98, 2)) for v in ("eager", "compile", "triton")]), tmp_path)
    assert not page.labels
    assert "No case was timed at several sizes" in page.text
    assert "its shares of the ceiling stand in the table" in page.text
    assert len(page.under("Wing: forward and backward")[0]) == 2 + 2 + 1 + 3  # inputs and shape, ratios, share, times


def test_a_variant_that_is_missing_costs_its_columns_and_no_more(tmp_path: Path) -> None:
    some = some_result()
    left = [m for m in some.measurements if m.variant != "compile"]
    page = page_of(
        some.model_copy(update={"measurements": left, "failures": ["torch.compile needs a compiler."]}), tmp_path
    )
    assert "torch.compile needs a compiler." in page.text
    assert "vs compile" not in page.text
    assert len(page.labels) == 2  # latency and bandwidth
    assert not any("compile" in label for label in page.labels)


def test_a_variant_that_is_missing_in_one_case_leaves_a_gap_there(tmp_path: Path) -> None:
    found = some_result().measurements
    page = page_of(result([m for m in found if (m.variant, m.elements) != ("triton", 12544)]), tmp_path)
    first, second = page.under("Wing: forward and backward")[:2]
    assert first[2:5] == ["–", "–", "–"]
    assert second[2].endswith("×")


def test_without_a_gpu_everything_is_unmeasured_and_the_page_says_why(tmp_path: Path) -> None:
    page = page_of(cpu_result(), tmp_path)
    assert "All 2 figures are unmeasured; the machine has no GPU." in page.text
    assert "Not measured: a share of the bandwidth ceiling is judged by GPU time" in page.text
    assert "Launches and extra memory were not counted: that takes a GPU." in page.text
    assert page.under("Wing: forward and backward", table=1)[0] == ["fp32", "8.50 s"]  # torch.compile's first call
    assert not re.search(r"\bnan\b|\bNone\b|\bUndefined\b", page.text)
    assert page.row("bandwidth, fp32")[1:3] == ["unmeasured", "–"]
    assert not re.search("PASS|FAIL|SHORT", "".join(cell for row in page.rows for cell in row))
    assert sum(label.startswith("Time per call") for label in page.labels) == len(LOSSES)


def test_interpreted_kernels_are_listed_and_given_neither_time_nor_ratio_nor_line(tmp_path: Path) -> None:
    page = page_of(cpu_result(), tmp_path)
    listed = [row for row in page.rows if row[-1] == "interpreted: says nothing about speed"]
    assert [row[:4] for row in listed] == [
        [loss, "forward and backward", "fp32", "64 × 98 × 2"] for loss in ("Wing", "Smooth L1")
    ]
    assert not any("triton" in label for label in page.labels)
    assert "vs eager" in page.text  # compile's
    assert "tritonvs" not in page.text
    times = [time_text(m.median) for m in cpu_result().measurements if m.variant == "triton_interpreted"]
    assert not any(text in page.text for text in times)


def test_launches_memory_and_first_calls_are_listed_per_variant(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = [measurement(rng, v, s) for v in ("eager", "compile", "triton") for s in SHAPES[:2]]
    found[3] = found[3].model_copy(update={"launches": 4})  # compile at the larger size
    page = page_of(result(found), tmp_path)
    memory = "3.06 MiB 4 B/element"  # 4 bytes x 4096 x 98 x 2, the larger size
    assert page.under("Wing: forward and backward", table=1)[0] == [
        "fp32",
        "22",
        "3 – 4",
        "2",
        memory,
        memory,
        memory,
        "8.50 s",
    ]


def test_a_measurement_that_stands_there_twice_counts_once_and_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = [measurement(rng, v, (64, 98, 2)) for v in ("eager", "triton")]
    again = found[0].model_copy(update={"seconds": [1e-3]})
    page = page_of(result([*found, again]), tmp_path)
    assert page.under("Wing: forward and backward")[0][-2] == "1.00 ms"
    assert (
        "Measured more than once, the last one counts: Wing, forward and backward, fp32, 64 × 98 × 2, eager"
        in page.text
    )
    assert "One sample only, so no spread: Wing" in page.text


def test_names_that_nobody_planned_for_are_shown_as_they_are_and_escaped(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    strange = {"loss": "<b>$x$", "mode": "inference", "weight": "per <i>", "pred_dtype": "float8", "launches": None}
    found = [measurement(rng, "eager", s, clock="sun", **strange) for s in SHAPES]
    found += [measurement(rng, "eager", s, **strange, upstream="minus") for s in SHAPES]
    page = page_of(result(found, command="run </pre><script>alert(1)</script>"), tmp_path)
    assert not {"b", "i", "script"} & set(page.tags)
    assert ["<b>$x$: inference"] in page.rows
    assert page.row("float8 / fp32, per <i>")
    assert "<script>alert(1)</script>" in page.text


def pytest_benchmark_json(path: Path) -> Path:
    """As `pytest --benchmark-json` writes it: an unrelated benchmark first, then kernels; GPU times ride along."""
    environment = full_result().environment.model_dump()
    rng = np.random.default_rng(0)
    benchmarks: list[dict[str, Any]] = [{"name": "test_loading", "extra_info": {}, "stats": {"median": 1.0}}]
    for variant in ("eager", "compile", "triton"):
        for shape in SHAPES[:3]:
            extra = measurement(rng, variant, shape, clock="wall").model_dump()
            extra |= {"also": [measurement(rng, variant, shape).model_dump()], "environment": environment, "device": {}}
            extra["ceilings"] = [one.model_dump() for one in full_result().ceilings]
            benchmarks.append({"name": f"test_losses[{variant}]", "extra_info": extra, "stats": {"median": 1.0}})
    path.write_text(json.dumps({"datetime": "2026-01-01T00:00:30+00:00", "benchmarks": benchmarks, "version": "5.3.1"}))
    return path


def test_a_pytest_benchmark_file_gets_a_page_of_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pytest_benchmark_json(tmp_path / "0001_made-up.json")
    assert main([str(file)]) == 0
    printed = capsys.readouterr().out
    page = Page((tmp_path / "0001_made-up.html").read_text())
    assert "Measurements only: no figure was judged against a target." in page.text
    assert "Measurements only" in printed
    assert str(tmp_path / "0001_made-up.html") in printed
    assert sum(label.startswith("Time per call") for label in page.labels) == 1
    assert "host wall time 9" in next(label for label in page.labels if "triton, host wall time" in label)
    assert "pytest --benchmark-only" in page.text


def test_the_terminal_shows_every_figure_with_its_verdict_in_plain_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = some_result().model_copy(update={"checks": full_result().checks, "failures": full_result().failures})
    write_record(some, tmp_path / "kernels.json")
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.isascii()
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert lines[0].startswith("3 of 6 figures meet their targets")
    assert "FAIL 7.25 us <= 4 us <= 6 us batch 64" in lines
    assert "PASS 11.5x >= 11x >= 9x against eager" in lines
    assert "unmeasured - <= 0 bits <= 0 bits another GPU" in lines
    assert "not measured: One GPU is here, so two were not compared." in lines
    assert lines[-1] == f"report: {tmp_path / 'kernels.html'}"


def test_two_builds_give_the_same_bytes_whatever_the_order_of_sets(tmp_path: Path) -> None:
    file = pytest_benchmark_json(tmp_path / "some.json")
    pages = []
    for seed in ("1", "2"):
        command = [sys.executable, "-m", "bench.report", str(file)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, capture_output=True, check=True, cwd=ROOT, env=environment)
        pages.append((tmp_path / "some.html").read_bytes())
    assert pages[0] == pages[1]


def test_a_folder_that_holds_both_is_the_experiment_it_is_called(tmp_path: Path) -> None:
    write_record(cpu_result(), tmp_path / "kernels.json")
    (tmp_path / "experiment.yaml").write_text("just text")
    with pytest.raises(InputError, match="not an experiment"):
        build(tmp_path)
    assert build(tmp_path / "kernels.json") == tmp_path / "kernels.html"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda text: text[: len(text) // 2], "not JSON"),  # a copy that was cut off
        (lambda text: "", "not JSON"),
        (lambda text: "[1, 2]", "neither the result of a kernel benchmark"),
        (lambda text: '{"name": "somebody else\'s"}', "neither the result of a kernel benchmark"),
        (lambda text: '{"benchmarks": []}', "holds no benchmark of a kernel"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "schema version 9"),
        (lambda text: text.replace('"elements": 12544', '"elements": "many"', 1), "elements"),
        (lambda text: re.sub(r'"seconds": \[[^]]*\]', '"seconds": [0.0]', text, count=1), "seconds"),
        (lambda text: text.replace('"elements": 12544', '"elements": 0', 1), "elements"),
        (None, "cannot be read"),  # no such file
    ],
)
def test_the_command_says_in_one_sentence_why_a_file_cannot_be_used(
    tmp_path: Path, content: Callable[[str], str] | None, said: str
) -> None:
    file = tmp_path / "some.json"
    if content is not None:
        write_record(cpu_result(), file)
        file.write_text(content(file.read_text()))
    command = [sys.executable, "-m", "bench.report", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(file) in done.stderr
    assert said in done.stderr
    assert not done.stdout
    assert not file.with_suffix(".html").exists()


def test_a_report_is_built_without_torch(tmp_path: Path) -> None:
    write_record(cpu_result(), tmp_path / "kernels.json")
    code = "import sys; from bench.report import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.1e-6, "3.10 µs"), (9.999e-6, "10.0 µs"), (9.997e-4, "1.00 ms"), (4.2e-8, "42.0 ns"), (12.5, "12.5 s")],
)
def test_times_have_three_digits_and_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
