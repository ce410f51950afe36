"""The result of a kernel benchmark: the schema of `kernels.json`, version 1, and the only code that reads it.

A pytest-benchmark JSON is read as one, too: the `extra_info` of a kernel benchmark carries the fields of its wall-clock
`Measurement`, and `also` (further Measurements of the same case, those of the GPU clock), `ceilings`, `environment` and
`device`. Times are seconds per call, sizes bytes.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bench.result import Environment, Measured, Record, valid
from pose.errors import InputError

SCHEMA_VERSION = 1
KERNELS = "kernels.json"

Samples = Annotated[list[float], Field(min_length=1)]
CeilingKind = Literal["copy", "add"]  # b <- a; c <- a + b
Verdict = Literal["PASS", "SHORT", "FAIL", "unmeasured"]


class Measurement(Record):
    """One variant of one case on one clock."""

    loss: str  # "wing", "soft_wing", "smooth_l1", "adaptive_wing", "adaptive_wing_published" (the two-branch formula)
    mode: str  # "forward", "forward_backward", "loss_and_grad"
    variant: str  # "eager", "compile", "triton", "triton_interpreted" (says nothing about speed)
    pred_dtype: str  # "float32", "bfloat16", ...
    target_dtype: str
    shape: list[int]
    elements: int
    weight: str  # "none", "landmark", "sample_landmark", "element"
    upstream: str  # of forward_backward, the gradient that comes from above: "one", "other"
    clock: str  # "gpu" (replayed graph, rotated inputs), "wall" (host)
    seconds: Samples  # per call
    model_bytes: int  # that must move: each input read once, each output written once
    launches: int | None  # kernels, copies and fills on the GPU, counted; None where they were not
    peak_extra_bytes: int | None  # allocated beyond the inputs while the call runs
    compile_seconds: float | None = None  # the first call

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """20th and 80th percentile of the samples."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        fifths = statistics.quantiles(self.seconds, n=5, method="inclusive")
        return fifths[0], fifths[-1]

    @property
    def bytes_per_second(self) -> float:
        """What the model's bytes make of the median time."""
        return self.model_bytes / self.median


class Ceiling(Record):
    """Memory bandwidth measured in the same process: bytes read plus bytes written per second."""

    pred_dtype: str
    target_dtype: str
    kind: CeilingKind
    bytes_per_second: float  # median
    samples: Samples
    elements: int


class Check(Record):
    """A figure beside what it should be and what it must not miss."""

    name: str
    figure: Measured
    unit: str
    target: float
    limit: float
    higher_is_better: bool
    verdict: Verdict  # PASS: target met; SHORT: only the limit; FAIL: neither
    how: str  # what was measured, or why nothing was


class KernelResult(Record):
    schema_version: Literal[1] = 1
    environment: Environment
    device: dict[str, str | int | float | None]  # name, capability, multiprocessors, memory, driver, clocks, ...
    ceilings: list[Ceiling]
    measurements: list[Measurement]
    checks: list[Check]
    failures: list[str]  # what could not be measured, a sentence each
    started: str  # ISO 8601, UTC
    command: str  # that repeats it
    seed: int | None = None  # of the random inputs

    def ceiling(self, pred_dtype: str, target_dtype: str, elements: int) -> float | None:
        """Bytes per second that memory reached with these dtypes: at this size if it was measured, else at its best."""
        same = [c for c in self.ceilings if (c.pred_dtype, c.target_dtype) == (pred_dtype, target_dtype)]
        near = [c for c in same if c.elements == elements] or same
        return max((c.bytes_per_second for c in near), default=None)


def judged(
    name: str, figure: float | None, unit: str, target: float, limit: float, *, higher_is_better: bool, how: str
) -> Check:
    """The check of `figure` (None: unmeasured). A figure that is not finite is FAIL: it was measured and is no good."""

    def reaches(figure: float, bar: float) -> bool:
        return figure >= bar if higher_is_better else figure <= bar

    verdict: Verdict
    if figure is None:
        verdict = "unmeasured"
    else:
        finite = math.isfinite(figure)
        verdict = (
            "PASS" if finite and reaches(figure, target) else "SHORT" if finite and reaches(figure, limit) else "FAIL"
        )
    return Check(
        name=name,
        figure=figure,
        unit=unit,
        target=target,
        limit=limit,
        higher_is_better=higher_is_better,
        verdict=verdict,
        how=how,
    )


def read_kernel_result(path: Path) -> KernelResult:
    """Read a `kernels.json` or a pytest-benchmark JSON; anything else is an `InputError` naming the file."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if isinstance(content, dict) and isinstance(content.get("benchmarks"), list):
        return _from_pytest_benchmark(content, path)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version is None:
        raise InputError(f"{path}: neither the result of a kernel benchmark nor a pytest-benchmark JSON")
    if version != SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version}, this program reads version {SCHEMA_VERSION}")
    return valid(KernelResult, content, str(path))


def _from_pytest_benchmark(content: dict[str, Any], path: Path) -> KernelResult:
    """What `tests/benchmarks` left in a pytest-benchmark JSON; the other benchmarks in it are passed over."""
    measurements: list[Measurement] = []
    ceilings: dict[str, Ceiling] = {}
    about: dict[str, Any] = {}
    for name, extra in _kernel_benchmarks(content):
        where = f"{path}: benchmark {name}"
        for fields in (extra, *_list(extra, "also", where)):
            measurements.append(valid(Measurement, fields, where))
        for fields in _list(extra, "ceilings", where):
            ceiling = valid(Ceiling, fields, where)
            ceilings[ceiling.model_dump_json()] = ceiling  # the same ones in every benchmark
        about = about or extra
    if not measurements:
        raise InputError(f"{path}: holds no benchmark of a kernel")
    result = {
        "environment": about.get("environment"),
        "device": about.get("device", {}),
        "ceilings": list(ceilings.values()),
        "measurements": measurements,
        "checks": [],
        "failures": [],
        "started": content.get("datetime"),
        "command": shlex.join(["pytest", "--benchmark-only"]),
    }
    return valid(KernelResult, result, str(path))


def _kernel_benchmarks(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for benchmark in content["benchmarks"]:
        extra = benchmark.get("extra_info") if isinstance(benchmark, dict) else None
        if isinstance(extra, dict) and "model_bytes" in extra:
            yield str(benchmark.get("fullname", benchmark.get("name"))), extra


def _list(extra: dict[str, Any], key: str, where: str) -> list[Any]:
    value = extra.get(key, [])
    if not isinstance(value, list):
        raise InputError(f"{where}: {key}: wanted a list")
    return value
