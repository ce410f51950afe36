"""What a GPU check leaves: the schemas, version 1, of its parts' files and of `gpu_check.json`, which has them all."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from bench.kernels.result import Check, KernelResult, Samples
from bench.result import Count, Environment, LevelsResult, Positive, Record, Result, Seconds, ThroughputResult

GPU_CHECK = "gpu_check.json"

Stage = Literal["kernels", "throughput", "epochs"]
State = Literal["done", "unfinished", "failed", "not run"]


class TaskRecord(Record):
    """How a part of the check ended the last time it ran."""

    stage: Stage
    name: str
    state: State  # unfinished: stopped at the time limit, or not all of it begun; the same command goes on
    seconds: Seconds  # over all calls
    command: str
    detail: str = ""  # why it is not done


class Ledger(Record):
    """`tasks.json`: for which code and GPU the check is, and how its parts ended."""

    schema_version: Literal[1] = 1
    identity: dict[str, str | None]
    tasks: list[TaskRecord]


class Machine(Record):
    """Which machine ran the last part, with the GPU's clocks right after it."""

    schema_version: Literal[1] = 1
    environment: Environment
    device: dict[str, str | int | float | None]
    command: str


class TestOutcomes(Record):
    """Of the tests that run on a GPU."""

    __test__ = False  # pytest would take it for a test

    passed: Count
    skipped: Count
    failed: list[str]  # names; errors outside a test's own code as well
    seconds: Seconds


class Numerics(Record):
    """The kernels on random inputs of `seed` against float64, or bit for bit against the host."""

    schema_version: Literal[1] = 1
    gpu: str | None
    seed: int
    small: bool
    checks: list[Check]


class MemoryCheck(Record):
    """What a tool of NVIDIA's compute-sanitizer found in the kernels, and in one with a planted error."""

    schema_version: Literal[1] = 1
    tool: str
    found: Count | None  # None: it could not be run, or does not see the planted error, and `why` says so
    planted: Count | None
    why: str = ""
    seconds: Seconds


class CropSpeed(Record):
    """One way to make a batch, on the GPU's clock."""

    name: str
    judged: bool
    seconds: Samples  # per batch


class Crops(Record):
    schema_version: Literal[1] = 1
    gpu: str
    batch_size: Positive
    region_bytes: Positive  # of the faces' pixels, three bytes each, all together
    faces: Positive
    rows: Annotated[list[CropSpeed], Field(min_length=1)]


class KernelTime(Record):
    """A GPU kernel within a training step."""

    name: str
    group: str
    seconds: Seconds  # per step
    launches: float  # per step


class StepProfile(Record):
    """Where the GPU time of a variant's training step goes. The profiler itself slows a step's launches."""

    schema_version: Literal[1] = 1
    gpu: str
    variant: str
    batch_size: Positive
    steps: Positive
    seconds: Seconds  # of GPU work per step, all kernels together
    kernels: list[KernelTime]  # the longest first


class GpuCheck(Record):
    """`gpu_check.json`: the figures beside their targets, and every sample that they come from."""

    schema_version: Literal[1] = 1
    identity: dict[str, str | None]
    environment: Environment | None  # of the machine that ran the last part
    device: dict[str, str | int | float | None]
    command: str
    tasks: list[TaskRecord]
    checks: dict[Stage, list[Check]]
    tests: TestOutcomes | None
    numerics: Numerics | None
    memory: list[MemoryCheck]
    kernels: KernelResult | None
    crops: Crops | None
    profiles: list[StepProfile]
    throughput: list[ThroughputResult]
    time_to_nme: list[Result]
    parity: list[Result]
    levels: list[LevelsResult]
    verdicts: list[dict[str, Any]]  # of parity: `bench.nme_verdicts.Comparison`, by field
