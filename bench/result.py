"""The result of one trial: the schemas of `result.json`, `throughput.json` and `levels.json`, version 1, and the only
code that reads or writes them.

The folder of a trial that trains holds

    result.json     `Result`; it exists if and only if the trial is done
    failure.json    in its place when the trial failed (`Failure`)
    faces.npz       per test face: nme (N,), predicted and true (N, 98, 2) in image pixels, center (N, 2),
                    side (N,) before padding, attributes (N, 6), attributes_known (6,), image (N,) paths
    curve.csv       step,epoch,learning_rate,loss,images_per_second: one line per logged step
    log.txt         everything the trial printed
    status.json     while it runs: phase, step, steps, loss, images_per_second

and that of a trial which measures speed throughput.json (`ThroughputResult`), failure.json, log.txt and status.json;
that of a trial of the levels of parity has levels.json (`LevelsResult`) in its place.

`bench/result.schema.json`, `bench/throughput.schema.json` and `bench/levels.schema.json` are the same schemas in JSON
Schema form. NME, failure rate and AUC are fractions. Numbers that do not exist (the NME of an empty subset) are null,
never NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from bench.interval import FEWEST_SAMPLES
from pose.errors import InputError
from pose.files import write_atomically
from pose.landmarks import ATTRIBUTES
from pose.recipe import Precision
from slurm.ending import Kind as EndingKind

SCHEMA_VERSION = 1  # rises with any change but a new field that has a default: bench/RESULTS.md
FIRST_VERSION = 1
# From a version to the next, for each that came before this one. Takes and gives the content of any kind of record.
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
RESULT = "result.json"
THROUGHPUT = "throughput.json"
LEVELS = "levels.json"
FAILURE = "failure.json"
SUBSETS = ("test", *ATTRIBUTES)  # of the test faces: all, and those with each attribute


class Record(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)  # a newer minor field does no harm


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite)]  # None where there is no number, or none that is finite
# Bounds keep what nothing measures, as a damaged file may say, from the arithmetic
Size = Annotated[Annotated[float, Field(ge=0, lt=1e100)] | None, BeforeValidator(_finite)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(gt=0, lt=2**63)]
Seconds = Annotated[float, Field(ge=0, lt=1e12)]
_SLOWEST, _FASTEST = 1e-12, 1e24
PerSecond = Annotated[float, Field(gt=_SLOWEST, lt=_FASTEST)]


def _with_sections(config: dict[str, Any]) -> dict[str, Any]:
    train = config.get("train", {})
    parallel = train.get("parallel", {}) if isinstance(train, dict) else {}
    for key, section in (("train", train), ("train.parallel", parallel)):
        if not isinstance(section, dict):
            raise ValueError(f"{key} is no mapping")
    return config


Config = Annotated[dict[str, Any], AfterValidator(_with_sections)]  # a resolved one


class Environment(Record):
    """Where and with what a trial ran."""

    commit: str | None  # of the code that ran; None outside a git checkout
    dirty: bool | None  # whether that checkout had uncommitted changes
    host: str
    platform: str
    python: str
    packages: dict[str, str]  # distribution -> version
    cpu: str
    cpus: int  # logical processors this process may use
    threads: int  # of torch within an operator
    gpu: str | None
    driver: str | None
    variables: dict[str, str]  # environment variables that change results or speed
    cuda: str | None = None  # that torch was built for
    job: str | None = None  # Slurm's number of it
    nodes: list[str] | None = None  # names of the job's nodes


class SubsetMetrics(Record):
    """One row of the NME table; all three are None for a subset without faces."""

    count: Count
    nme: Size  # mean over faces, fraction of the inter-ocular distance
    failure_rate: Size  # share of faces with an NME above 0.10
    auc: Size  # area under the CED up to 0.10, as a fraction of the best possible


class Throughput(Record):
    """Training speed in steady state: images per second over windows of steps, after the warm-up."""

    images_per_second: float  # median over windows
    windows: list[float]
    window_steps: Count
    warmup_steps: Count
    batch_size: Positive
    input_share: float | None  # share of the step time spent waiting for the input batch


class Timings(Record):
    """Wall-clock seconds of a trial's phases."""

    data: Seconds
    first_step: Seconds  # from the start of training to the end of its first step
    train: Seconds
    evaluate: Seconds
    total: Seconds


class Milestone(Record):
    """An evaluation on the way."""

    step: Count  # finished steps
    epoch: Count  # finished epochs
    seconds: Seconds  # from the start of the process until the evaluation was done
    nme: Size  # on the test set, a fraction


class OpError(Record):
    """Parity level 0: the loss as this trial computes it, against float64, on random landmarks."""

    dtype: str
    elements: Positive
    loss_relative: Size
    gradient_ulp: Size  # largest error in units in the last place of the gradient's dtype
    loss_relative_limit: Annotated[float, Field(gt=0)]
    gradient_ulp_limit: Annotated[float, Field(gt=0)]


class Failure(Record):
    """Why a trial ended without a result."""

    kind: Literal["input", "non_finite_loss", "exception", "signal", "interrupted"] | EndingKind
    message: str  # one sentence
    rank: int | None = None  # the one of several that failed; None where all alike had to end
    step: int | None = None
    faces: list[str] | None = None  # images of the batch, for a non-finite loss
    checkpoint: str | None = None  # the last good checkpoint
    traceback: str | None = None
    log: str | None = None
    job: str | None = None  # Slurm's number of it
    attempt: int = 0  # how often Slurm had put the job back into the queue
    lost_rank: bool = False  # what a rank met that had lost another: not the cause


def _with_test(table: dict[str, SubsetMetrics]) -> dict[str, SubsetMetrics]:
    if "test" not in table:
        raise ValueError("the row of the whole test set is missing")
    return table


class Result(Record):
    schema_version: Literal[1] = 1
    trial: str  # stable id: changes with everything in the config that can change the result
    experiment: str
    variant: str
    seed: int
    config: Config  # the variant's
    environment: Environment
    train_faces: Count
    test_faces: Count
    steps: Count
    resumed_at: Count = 0  # the step that the process which finished it went on from: its timings are of the rest
    final_loss: Measured
    metrics: Annotated[
        dict[str, SubsetMetrics], AfterValidator(_with_test)
    ]  # "test", then the subsets of pose.landmarks.ATTRIBUTES that are known
    mean_shape: Annotated[
        dict[str, SubsetMetrics], AfterValidator(_with_test)
    ]  # the same for predicting the mean training shape
    throughput: Throughput | None
    timings: Timings
    op_error: OpError
    started: str  # ISO 8601, UTC
    caches: Literal["cold", "warm"] | None = None  # of compiled code and decoded pixels; None: whatever lay around
    repeat: Count = 0  # of the same variant and seed with the same caches
    milestones: list[Milestone] = []  # evaluations of the process that finished the trial, in order
    process_seconds: float | None = None  # from the start of that process to the end of the last evaluation


class Estimate(Record):
    """A value and its 95 % confidence interval, by `bench.interval.median_interval`."""

    value: float
    low: float
    high: float


def _speed(found: Estimate) -> Estimate:
    if not _SLOWEST < found.value < _FASTEST:
        raise ValueError(f"{found.value} a second is no speed")
    return found


class Windows(Record):
    """Work of one kind, timed in windows of `steps` steps, each from the last one's end until the device was done."""

    steps: Positive  # in each window
    # Of each window, of the rank that took longest
    seconds: Annotated[list[Annotated[float, Field(gt=1e-12, lt=1e12)]], Field(min_length=FEWEST_SAMPLES)]
    warmup_steps: Count  # before the first window, of the same work
    warmup_seconds: Seconds
    images_per_second: Annotated[Estimate, AfterValidator(_speed)]  # median over windows, all ranks together


class Memory(Record):
    """The most memory in use until the end of the training windows, bytes, of the rank with most."""

    of: Literal["gpu", "process"]
    allocated: Count  # GPU: by torch's tensors; process: resident
    reserved: Count | None  # GPU: by torch's allocator, the pools of CUDA graphs included


class Gauges(Record):
    """What nvidia-smi said of the main rank's GPU."""

    sm_clock_mhz: float | None
    memory_clock_mhz: float | None
    power_w: float | None
    power_limit_w: float | None
    temperature_c: float | None


class ThroughputResult(Record):
    schema_version: Literal[1] = 1
    trial: str  # stable id: changes with everything in the config that can change the result, placement included
    experiment: str
    variant: str
    repeat: Count
    seed: int
    config: Config  # the variant's
    environment: Environment  # the main rank's
    train_faces: Count
    world_size: Positive
    batch_size: Positive  # faces per step, of all ranks together
    first_step_from_process: Seconds  # from the start of the process to the end of the first step
    first_step_from_stepper: Seconds  # the same from the making of loader, model, optimizer
    training: Windows  # whole steps with their input
    input_alone: Windows  # making batches and nothing else
    resident: Windows  # whole steps on noise that lies on the device
    input_share: Estimate  # 1 - resident / training seconds; below 0 where noise took longer
    memory: Memory
    gauges_before: Gauges | None  # just before the training windows; None on a CPU, or where nobody tells
    gauges_after: Gauges | None
    flops_per_image: Count  # forward and backward
    bytes_per_image: Count  # of activations, by the rule of `bench.work.bytes_per_image`
    peak_flops: Annotated[
        float | None, Field(gt=0)
    ]  # per second, of one GPU at this precision by its datasheet; None where not known
    bandwidth: PerSecond | None  # bytes, of copies on one GPU
    started: str  # ISO 8601, UTC
    seconds: Seconds  # of the process

    @property
    def model_flops_utilisation(self) -> float | None:
        """Share of the GPUs' peak arithmetic that the model's own operations make up."""
        return None if self.peak_flops is None else self._per_gpu * self.flops_per_image / self.peak_flops

    @property
    def floor_share(self) -> float | None:
        """Share of the speed at which memory traffic alone would take all the time."""
        return None if self.bandwidth is None else self._per_gpu * self.bytes_per_image / self.bandwidth

    @property
    def _per_gpu(self) -> float:
        return self.training.images_per_second.value / self.world_size


class Trajectory(Record):
    """Two trainings beside each other, step by step, from the same weights and on the same faces.

    One value per step, after it; relative, all 0 for equal bits. `loss`: of the losses; `update`: the distance between
    the two sets of weights, in parts of how far the reference has gone from where both began; `length`: how much
    farther than the reference the other has gone from there.
    """

    loss: Annotated[list[Size], Field(min_length=1)]
    update: list[Size]
    length: list[Measured]
    growth: Size  # factor by which `update` grows per step, fitted to its logarithm; None where it is 0 somewhere

    @model_validator(mode="after")
    def _of_equal_length(self) -> Self:
        if not len(self.loss) == len(self.update) == len(self.length):
            raise ValueError(f"{len(self.loss)} losses, {len(self.update)} updates and {len(self.length)} lengths")
        return self


class PredictionDifference(Record):
    """The same weights through two prediction paths: distances between the points they say, in pixels of the crop."""

    faces: Positive
    largest: Size
    mean: Size
    nme: Measured  # of the variant's path less the reference's, a fraction


class LevelsResult(Record):
    """Parity below the NME: one variant beside what it is compared with, without training either to the end."""

    schema_version: Literal[1] = 1
    trial: str
    experiment: str
    variant: str
    seed: int
    config: Config  # the variant's
    reference: Config  # the same of what it is compared with
    environment: Environment
    op_errors: Annotated[list[OpError], Field(min_length=1)]  # by dtype and size, of the variant
    reference_op_errors: list[OpError]
    trajectory: Trajectory | None  # None where the two do not fit on the same ranks
    twin: Trajectory | None  # the reference beside itself with one weight moved by one ulp
    precision: Precision  # the coarser one of the two trainings
    evaluation: PredictionDifference
    yardstick: PredictionDifference  # the reference's path beside itself with every weight moved by one ulp
    weights: str  # the trial whose checkpoint was evaluated
    started: str  # ISO 8601, UTC
    seconds: Seconds


def write_record(record: Record, path: Path) -> None:
    """Write `record` as JSON so that readers see the whole file or none."""
    write_atomically(path, record.model_dump_json(indent=1).encode() + b"\n")


def read_result(path: Path) -> Result:
    """Read a `result.json`; anything else is an `InputError` naming the file."""
    return read_record(path, Result)


def read_throughput(path: Path) -> ThroughputResult:
    """Read a `throughput.json`; anything else is an `InputError` naming the file."""
    return read_record(path, ThroughputResult)


def read_levels(path: Path) -> LevelsResult:
    """Read a `levels.json`; anything else is an `InputError` naming the file."""
    return read_record(path, LevelsResult)


def read_failure(path: Path) -> Failure:
    """Read a `failure.json`; anything else is an `InputError` naming the file."""
    return read_record(path, Failure)


R = TypeVar("R", bound="Record")


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def read_record(path: Path, kind: type[R], content_of: Callable[[Path], Any] = _json) -> R:
    """Read a record of this `kind`, in this version of its schema or an older one.

    content_of: gives the file's JSON content. Anything else is an `InputError` naming the file.
    """
    try:
        content = content_of(path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a record")
    version = content.get("schema_version", SCHEMA_VERSION)
    if type(version) is not int or not FIRST_VERSION <= version <= SCHEMA_VERSION:
        raise InputError(f"{path}: schema version {version!r}, this program reads version {SCHEMA_VERSION}")
    for old in range(version, SCHEMA_VERSION):
        content = UPGRADES[old](content)
    return valid(kind, content, str(path))


def valid(kind: type[R], content: Any, where: str) -> R:
    """`content` as a record; what does not fit is an `InputError` that names the key, and `where` it stands."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {key}: {first['msg'].removeprefix('Value error, ')}") from None
