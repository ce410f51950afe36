from __future__ import annotations

from dataclasses import replace

import pytest
from records import result as trial_result

from bench.kernels.bars import Bar, bars, error_bars, extra_gradients, judge, microseconds, ratio, share
from bench.kernels.cases import Case
from bench.kernels.result import KernelResult
from bench.kernels.table import (
    FP32,
    MIXED,
    QUICK,
    Row,
    Sizes,
    Subject,
    ceiling,
    cpu_rows,
    find,
    gpu_rows,
    landmarks,
    measurement,
    subject_of,
)

CASE = Case("wing", "forward_backward", *FP32, (64, 98, 2))
EAGER, TRITON = Subject(CASE, "eager"), Subject(CASE, "triton")


def result(*subjects: tuple[Subject, str, float], peak: int | None = None) -> KernelResult:
    return KernelResult(
        environment=trial_result().environment,
        device={},
        ceilings=[],
        measurements=[
            measurement(subject, clock, [seconds], peak_extra_bytes=peak) for subject, clock, seconds in subjects
        ],
        checks=[],
        failures=[],
        started="",
        command="",
    )


def test_a_record_says_what_its_subject_was() -> None:
    m = measurement(TRITON, "gpu", [1.0], launches=2, peak_extra_bytes=3, first_call=4.0)
    assert subject_of(m) == TRITON
    assert (m.elements, m.model_bytes, m.launches, m.peak_extra_bytes, m.compile_seconds) == (12544, 150528, 2, 3, 4.0)
    assert measurement(EAGER, "gpu", [1.0], first_call=4.0).compile_seconds is None


def test_a_ceiling_is_bytes_over_seconds() -> None:
    found = ceiling(CASE, "add", 12, [2.0, 3.0, 4.0])
    assert (found.bytes_per_second, found.samples, found.elements) == (4.0, [6.0, 4.0, 3.0], 12544)


def test_the_figures_are_those_of_the_clock_they_name() -> None:
    found = result((EAGER, "gpu", 20e-6), (TRITON, "gpu", 4e-6), (EAGER, "wall", 90e-6), (TRITON, "wall", 30e-6))
    assert ratio(EAGER, TRITON, "gpu")(found) == pytest.approx(5)
    assert ratio(EAGER, TRITON, "wall")(found) == pytest.approx(3)
    assert microseconds(TRITON)(found) == pytest.approx(4)
    assert ratio(Subject(CASE, "compile"), TRITON, "gpu")(found) is None
    assert ratio(EAGER, Subject(replace(CASE, upstream="other"), "triton"), "gpu")(found) is None


def test_the_last_measurement_of_a_subject_counts() -> None:
    assert microseconds(TRITON)(result((TRITON, "gpu", 4e-6), (TRITON, "gpu", 8e-6))) == pytest.approx(8)


def test_the_share_is_of_the_better_ceiling_at_the_same_size() -> None:
    found = result((TRITON, "gpu", 4e-6))
    assert share(TRITON)(found) is None
    slow, fast = (ceiling(CASE, kind, 1, [1 / rate]) for kind, rate in (("copy", 2e10), ("add", 5e10)))  # type: ignore[arg-type]
    larger = ceiling(replace(CASE, shape=(128, 98, 2)), "copy", 1, [1e-12])
    found = found.model_copy(update={"ceilings": [slow, fast, larger]})
    assert share(TRITON)(found) == pytest.approx(100 * 150528 / 4e-6 / 5e10)


def test_extra_memory_is_in_gradients_of_preds_dtype() -> None:
    subject = Subject(replace(CASE, pred_dtype="bfloat16"), "triton")
    assert extra_gradients(subject)(result((subject, "gpu", 1.0), peak=3 * 12544)) == 1.5
    assert extra_gradients(subject)(result((subject, "gpu", 1.0))) is None


@pytest.mark.parametrize(("higher", "worst", "verdict"), [(True, 3.0, "SHORT"), (False, 6.0, "FAIL")])
def test_the_worst_part_of_a_bar_counts_and_what_stands_beside_it_does_not(
    higher: bool, worst: float, verdict: str
) -> None:
    parts = {"small": lambda _: 3.0, "large": lambda _: 6.0}
    bar = Bar("g", "n", "x", 4.0, 3.0 if higher else 5.0, "how", parts, {"beside": lambda _: 0.5}, higher)
    check = judge(bar, result(), "why")
    assert (check.figure, check.verdict) == (worst, verdict)
    assert check.how == "how. small: 3; large: 6. Not judged: beside: 0.5"


def test_a_bar_without_one_of_its_parts_is_unmeasured_and_says_which() -> None:
    bar = Bar("g", "n", "x", 4.0, 3.0, "how", {"small": lambda _: 9.0, "large": lambda _: None})
    check = judge(bar, result(), "no GPU")
    assert (check.figure, check.verdict) == (None, "unmeasured")
    assert check.how == "no GPU (large). how. small: 9"
    assert judge(replace(bar, parts={"large": lambda _: None}), result(), "no GPU").how == "no GPU. how"


def measured(rows: list[Row], group: str | None = None) -> KernelResult:
    """As if all subjects of all rows, or of one group's, had been timed."""
    rows = [row for row in rows if group in (None, row.group)]
    found = result(*((s, clock, 1e-6) for row in rows for s in row.subjects for clock in ("gpu", *["wall"] * row.wall)))
    ceilings = [
        ceiling(row.subjects[0].case, kind, 1, [1e-12])  # type: ignore[arg-type]
        for row in rows
        if row.ceilings
        for kind in ("copy", "add")
    ]
    everything = [m.model_copy(update={"peak_extra_bytes": 1}) for m in found.measurements]
    return found.model_copy(update={"ceilings": ceilings, "measurements": everything})


@pytest.mark.parametrize("sizes", [Sizes(), QUICK], ids=["whole", "quick"])
def test_the_rows_of_a_bars_group_measure_all_that_it_is_judged_by(sizes: Sizes) -> None:
    for bar in bars(sizes):
        check = judge(bar, measured(gpu_rows(sizes), bar.group), "why")
        assert check.verdict != "unmeasured", check.how
        assert all(figure(measured(gpu_rows(sizes), bar.group)) is not None for figure in bar.beside.values())


def test_a_cpu_measures_nothing_that_a_bar_is_judged_by() -> None:
    measured_there = measured(cpu_rows())
    on_a_cpu = [m for m in measured_there.measurements if m.clock == "wall"]
    assert on_a_cpu
    found = measured_there.model_copy(update={"measurements": on_a_cpu, "ceilings": []})
    assert {judge(bar, found, "why").verdict for bar in bars(Sizes())} == {"unmeasured"}


@pytest.mark.parametrize("rows", [gpu_rows(Sizes()), cpu_rows()], ids=["gpu", "cpu"])
def test_subjects_of_a_row_can_share_their_inputs(rows: list[Row]) -> None:
    for row in rows:
        alike = {
            (s.case.shape, s.case.pred_dtype, s.case.target_dtype, s.case.weight, s.case.loss.startswith("adaptive"))
            for s in row.subjects
        }
        assert len(alike) == 1, row.name
        assert len(set(row.subjects)) == len(row.subjects), row.name
    assert len({row.name for row in rows}) == len(rows)


def test_large_sizes_are_whole_batches_of_faces() -> None:
    for size in (2**24, 2**26, 2**28):
        faces, points, axes = landmarks(size)
        assert (points, axes, faces % 4) == (98, 2, 0)
        assert 0 <= faces * 196 - size < 4 * 196


def test_every_fused_case_that_is_timed_has_a_case_of_its_kind_whose_error_is_checked() -> None:
    checked = {
        (case.loss, case.pred_dtype, case.target_dtype, case.weight) for bar in error_bars(True) for case in bar.cases
    }
    timed = {
        (s.case.loss, s.case.pred_dtype, s.case.target_dtype, s.case.weight)
        for row in gpu_rows(Sizes())
        for s in row.subjects
        if s.variant == "triton"
    }
    assert timed <= checked
    assert ("wing", *MIXED, "none") in timed


def test_the_bars_are_those_of_the_table() -> None:
    marks = {bar.name: (bar.target, bar.limit) for bar in bars(Sizes())}
    assert marks == {
        "one pass, fp32, share of the copy bandwidth": (92, 85),
        "one pass, bf16 pred + fp32 target, share of the copy bandwidth": (90, 80),
        "one pass, bf16, share of the copy bandwidth": (85, 75),
        "forward + backward against eager, fp32, upstream gradient 1": (11, 9),
        "forward + backward against eager, fp32, other upstream gradient": (7, 6),
        "forward + backward against compile, fp32, upstream gradient 1": (1.5, 1.35),
        "forward + backward against compile, bf16 pred + fp32 target, upstream gradient 1": (1.55, 1.35),
        "batch 64 to 512, loss and gradient": (4, 6),
        "batch 64 to 512 against eager, graph replay": (8, 5),
        "batch 64 to 512 against compile, graph replay": (1.7, 1.3),
        "batch 64 to 512 against eager, host wall time": (2.5, 2),
        "batch 64 to 512 against compile, host wall time": (1.5, 1.2),
        "one pass, fp32, weights per landmark, share of the copy bandwidth": (88, 80),
        "one pass, fp32, weights per sample and landmark, share of the copy bandwidth": (88, 80),
        "adaptive wing against eager, published formula": (28, 20),
        "adaptive wing against compile, published formula": (5, 3),
        "adaptive wing against compile, our formula": (1.5, 1.2),
        "adaptive wing, extra memory in gradients": (1.02, 1.02),
    }


def test_find_tells_clocks_apart() -> None:
    found = result((TRITON, "wall", 1.0))
    assert find(found, TRITON, "wall") is not None
    assert find(found, TRITON, "gpu") is None
