"""One run of the kernel benchmarks: rows are timed, errors and launches counted, and the file is written after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from bench.environment import environment
from bench.kernels.bars import bars, error_bars, judge
from bench.kernels.cases import Case, Inputs, build, make_inputs
from bench.kernels.clock import (
    Call,
    Effort,
    Recording,
    ceiling_calls,
    gpu_seconds,
    record,
    rotation,
    synchronizer,
    wall_seconds,
)
from bench.kernels.counts import device_facts, graph_launches, peak_extra_bytes, profiled_launches, waits_for_gpu
from bench.kernels.error import KernelError, error_checks, kernel_error
from bench.kernels.result import (
    Ceiling,
    Check,
    KernelResult,
    Measurement,
    judged,
    read_kernel_result,
)
from bench.kernels.summary import spread_text, time_text
from bench.kernels.table import (
    FP32,
    INTERPRETED,
    QUICK,
    TRITON,
    Row,
    Sizes,
    Subject,
    ceiling,
    cpu_rows,
    find,
    gpu_rows,
    measurement,
    subject_of,
)
from bench.result import write_record
from pose.errors import InputError

T = TypeVar("T")
ONCE = Effort(rounds=5, warmup=0.0, turn=0.0)  # of what is run for its numbers, not for its time
LAUNCHES = {"loss_and_grad": 1, "forward_backward": 2}


@dataclass
class Ready:
    """A subject whose call has run once: all is compiled."""

    subject: Subject
    call: Call
    first_call: float  # seconds
    launches: int | None = None
    peak_extra_bytes: int | None = None


class KernelRun:
    """What has been measured so far, and the file that holds it."""

    def __init__(self, file: Path, command: str, *, quick: bool, only: Sequence[str], resume: bool, seed: int) -> None:
        self.file, self.command, self.only, self.seed = file, command, only, seed
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if self.gpu else torch.device("cpu")
        self.sizes = QUICK if quick else Sizes()
        self.effort = Effort(rounds=8, warmup=0.05, turn=0.01) if quick else Effort()
        self.environment = environment()
        self.facts = device_facts(self.device)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.measurements: list[Measurement] = []
        self.ceilings: list[Ceiling] = []
        self.errors: dict[Case, KernelError] = {}
        self.eager_errors: dict[Case, KernelError] = {}
        self.launches: dict[str, tuple[int, str]] = {}  # mode -> launches and how they were counted
        self.waits: dict[str, bool] = {}  # mode -> whether the host waits for the GPU
        self.failures: list[str] = []
        self.ended = False
        if resume and file.exists():
            self._resume()

    def _resume(self) -> None:
        before = read_kernel_result(self.file)
        if before.environment != self.environment or before.device.get("name") != self.facts["name"]:
            raise InputError(f"{self.file}: measured elsewhere or with other code; leave out --resume to start anew")
        self.measurements, self.ceilings, self.started = before.measurements, before.ceilings, before.started
        if before.seed is not None:
            self.seed, self.command = before.seed, before.command

    def measure(self) -> KernelResult:
        """Time every row that was asked for, then count errors and launches; the file is written after each."""
        rows = [row for row in (gpu_rows(self.sizes) if self.gpu else cpu_rows()) if row.group in self.only]
        for number, row in enumerate(rows):
            print(f"[{number + 1}/{len(rows)}] {row.name}", flush=True)
            if self.has(row):
                print("  measured before")
                continue
            self.attempt(row.name, partial(self.time_row, row))
            self.save()
            if self.gpu:
                torch.cuda.empty_cache()
                if number == 0:
                    self.facts = device_facts(self.device)  # clocks as they are right after work
        if "errors" in self.only:
            self.count_errors()
        if "launches" in self.only and self.gpu:
            self.count_launches()
        self.ended = True
        self.save()
        return self.result()

    def attempt(self, what: str, work: Callable[[], T]) -> T | None:
        """Do `work`. What stops it is noted in the result, and the run goes on: one broken variant costs no other."""
        try:
            return work()
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "")
            self.failures.append(f"{what}: {type(error).__name__}: {reason[:300]}")
            print(f"  not measured: {self.failures[-1]}", flush=True)
            return None

    def has(self, row: Row) -> bool:
        """Whether all that the row measures is there already."""
        result = self.result()
        clocks = [clock for clock, wanted in (("gpu", self.gpu), ("wall", row.wall)) if wanted]
        case = row.subjects[0].case
        beneath = [c for c in self.ceilings if (c.pred_dtype, c.target_dtype) == (case.pred_dtype, case.target_dtype)]
        return all(find(result, subject, clock) for subject in row.subjects for clock in clocks) and (
            not (row.ceilings and self.gpu) or any(c.elements == case.elements for c in beneath)
        )

    def time_row(self, row: Row) -> None:
        self.measurements = [m for m in self.measurements if subject_of(m) not in row.subjects]
        torch.compiler.reset()  # or the next row's shapes would make the code general
        effort = ONCE if any(subject.variant == INTERPRETED for subject in row.subjects) else self.effort
        sets = rotation(min(subject.case.smallest_rotated_bytes for subject in row.subjects), self.device)
        inputs = make_inputs(row.subjects[0].case, sets, self.device, self.seed)
        ready: dict[str, Ready] = {}
        for subject in row.subjects:
            found = self.attempt(str(subject), partial(self.get_ready, subject, inputs))
            if found is not None:
                ready[str(subject)] = found
        if self.gpu:
            self.time_on_gpu(row, ready, inputs, sets)
        if row.wall:
            calls = {name: one.call for name, one in ready.items()}
            for name, seconds in wall_seconds(calls, sets, effort, synchronizer(self.device)).items():
                self.note("wall", ready[name], seconds)

    def get_ready(self, subject: Subject, inputs: Inputs) -> Ready:
        begun = time.perf_counter()
        call = build(subject.case, subject.variant, inputs)
        call(0)
        synchronizer(self.device)()
        return Ready(subject, call, time.perf_counter() - begun)

    def time_on_gpu(self, row: Row, ready: Mapping[str, Ready], inputs: Inputs, sets: int) -> None:
        ceilings = ceiling_calls(inputs.pred, inputs.target) if row.ceilings else {}
        calls = {name: one.call for name, one in ready.items()} | {kind: call for kind, (call, _) in ceilings.items()}
        recordings: dict[str, Recording] = {}
        for name, call in calls.items():
            recorded = self.attempt(f"{name}, on the GPU's clock", partial(record, call, sets, self.effort))
            if recorded is not None:
                recordings[name] = recorded
        samples = gpu_seconds(recordings, self.effort)
        for name, one in ready.items():
            if name in recordings:
                one.launches, one.peak_extra_bytes = graph_launches(one.call), peak_extra_bytes(one.call)
                self.note("gpu", one, samples[name])
        for kind, (_, moved) in ceilings.items():
            if kind in recordings:
                self.ceilings.append(ceiling(row.subjects[0].case, kind, moved, samples[kind]))
                print(f"  {kind}: {self.ceilings[-1].bytes_per_second / 1e12:.3f} TB/s", flush=True)

    def note(self, clock: str, one: Ready, seconds: list[float]) -> None:
        m = measurement(
            one.subject,
            clock,
            seconds,
            launches=one.launches,
            peak_extra_bytes=one.peak_extra_bytes,
            first_call=one.first_call,
        )
        self.measurements.append(m)
        print(f"  {m.loss} {m.mode} {m.variant}, {clock}: {time_text(m.median)} {spread_text(m)}", flush=True)

    def count_errors(self) -> None:
        variant = TRITON if self.gpu else INTERPRETED
        for bar in error_bars(self.gpu):
            print(f"errors: {bar.name}", flush=True)
            for case in bar.cases:
                self.errors |= self.error(case, variant)
                if bar.no_worse_than_eager:
                    self.eager_errors |= self.error(case, "eager")
            self.save()

    def error(self, case: Case, variant: str) -> dict[Case, KernelError]:
        inputs = make_inputs(case, 1, self.device, self.seed)
        found = self.attempt(f"errors of {case} as {variant}", partial(kernel_error, case, variant, inputs))
        return {} if found is None else {case: found}

    def count_launches(self) -> None:
        """Of the kernel alone: the upstream gradient is handed in, or autograd would launch a fill for it."""
        print("launches", flush=True)
        one = torch.ones((), device=self.device)
        for mode in LAUNCHES:
            case = Case("wing", mode, *FP32, (64, 98, 2))
            call = build(case, TRITON, make_inputs(case, 1, self.device), one if mode == "forward_backward" else None)
            nodes = self.attempt(f"launches of {case}, in a graph", partial(graph_launches, call))
            seen = self.attempt(f"launches of {case}, profiled", partial(profiled_launches, call))
            waits = self.attempt(f"waits of {case}", partial(waits_for_gpu, call))
            counts = [count for count in (nodes, seen) if count is not None]
            if counts:
                self.launches[mode] = max(counts), f"nodes of a recorded graph: {nodes}, seen by the profiler: {seen}"
            if waits is not None:
                self.waits[mode] = waits

    def result(self) -> KernelResult:
        figures = KernelResult(
            environment=self.environment,
            device=self.facts,
            ceilings=self.ceilings,
            measurements=self.measurements,
            checks=[],
            failures=self.failures,
            started=self.started,
            command=self.command,
            seed=self.seed,
        )
        return figures.model_copy(update={"checks": self.checks(figures)})

    def save(self) -> None:
        write_record(self.result(), self.file)

    def checks(self, figures: KernelResult) -> list[Check]:
        found = [judge(bar, figures, self.reason(bar.group)) for bar in bars(self.sizes)]
        for mode, bound in LAUNCHES.items():
            count, how = self.launches.get(mode, (None, self.reason("launches")))
            name = f"launches, {mode.replace('_', ' ')}"
            found.append(judged(name, count, "", bound, bound, higher_is_better=False, how=how))
        waits = sum(self.waits.values()) if self.waits.keys() == LAUNCHES.keys() else None
        how = "calls that make the host wait for the GPU" if waits is not None else self.reason("launches")
        found.append(judged("host synchronisations", waits, "", 0, 0, higher_is_better=False, how=how))
        how = "largest of the errors against float64"
        if not self.gpu:
            how += ", in Triton's interpreter: code that it cannot run is unmeasured"
        reason = self.reason("errors")
        return [*found, *error_checks(error_bars(self.gpu), self.errors, self.eager_errors, how, reason)]

    def reason(self, group: str) -> str:
        """Why figures of a group are unmeasured, where they are."""
        if group not in self.only:
            return "Not asked for"
        if not self.gpu and group != "errors":
            return "It needs a CUDA GPU"
        return "It could not be measured" if self.ended else "The run has not come to it"
