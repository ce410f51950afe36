"""How fast a recipe trains: steps on real input, its input alone, and steps without input, each in steady state.

One process (or rank) does one trial, in this order: the first step; a warm-up; windows of steps on real input; then the
steps' input alone; then steps on noise that lies on the device, when nobody decodes ahead any more. A window begins
when the device is idle and ends when it has done what it was given; nothing waits for it within. Each kind of work has
a warm-up of its own, which is not in its windows: batches that workers made ahead are gone by then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from bench.config import ThroughputOptions
from bench.interval import median_interval
from bench.result import Estimate, Gauges, Memory, ThroughputResult, Windows
from pose.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from pose.distributed import Ranks

_SHORTEST = 0.05  # seconds of a window of input alone: a batch made on the device takes some tenths of a millisecond
_MOST = 200  # times `window_steps` that such a window may have for it

OnPhase = Callable[[str, int, int], None]  # phase, steps done, steps in all


class Steps(Protocol):
    """What is timed: a `pose.stepper.Stepper`."""

    def run(self, step: int) -> object: ...

    def input_only(self, step: int) -> object: ...

    def on_resident(self) -> object: ...

    def finish(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How many steps of what. `free`: any step's input can be had at any time, so that windows of it may grow."""

    options: ThroughputOptions
    ahead: int  # batches that are made ahead of the steps
    free: bool

    @property
    def warmup(self) -> int:
        return max(self.options.warmup_steps, self.ahead)

    @property
    def timed(self) -> int:
        return self.options.windows * self.options.window_steps

    @property
    def last(self) -> int:
        """Steps whose input is taken: the first one, warm-up and windows of training, the same of input alone."""
        more = self.options.window_steps + (_MOST - 1) * self.timed if self.free else 0
        return 1 + 2 * (self.warmup + self.timed) + more


def plan_of(recipe: Recipe, options: ThroughputOptions) -> Plan:
    """The plan of a trial of `recipe`."""
    from pose.loader import PREFETCH

    ahead = PREFETCH * recipe.input.workers if recipe.input.images == "disk" else 0
    return Plan(options, ahead, free=recipe.input.sampling == "device")


@dataclass(frozen=True)
class Phase:
    """Windows of `steps` steps, seconds each, after a warm-up."""

    steps: int
    seconds: list[float]
    warmup_steps: int
    warmup_seconds: float


@dataclass(frozen=True)
class Timed:
    first_step: float  # seconds
    training: Phase
    input_alone: Phase
    resident: Phase


def time_steps(
    steps: Steps,
    plan: Plan,
    *,
    slowest: Callable[[float], float] = lambda seconds: seconds,
    before: Callable[[], None] = lambda: None,
    after: Callable[[], None] = lambda: None,
    on_phase: OnPhase = lambda phase, done, of: None,
    now: Callable[[], float] = time.perf_counter,
) -> Timed:
    """Run the plan. slowest: of the seconds of all ranks; before, after: called around the training windows."""
    options = plan.options

    def spend(work: Callable[[int], object], numbers: Iterable[int]) -> float:
        begun = now()
        for number in numbers:
            work(number)
        steps.finish()
        return now() - begun

    def windows(name: str, work: Callable[[int], object], start: int, size: int) -> list[float]:
        seconds = []
        for window in range(options.windows):
            on_phase(name, window * size, options.windows * size)
            seconds.append(spend(work, range(start + window * size, start + (window + 1) * size)))
        return seconds

    on_phase("first step", 0, 1)
    first_step = spend(steps.run, [0])
    at = 1
    on_phase("warm-up", 0, plan.warmup)
    warmup_seconds = spend(steps.run, range(at, at + plan.warmup))
    at += plan.warmup
    before()
    seconds = windows("training", steps.run, at, options.window_steps)
    after()
    training = Phase(options.window_steps, seconds, plan.warmup, warmup_seconds)
    at += plan.timed

    on_phase("input alone", 0, plan.timed)
    warmup_seconds = spend(steps.input_only, range(at, at + plan.warmup))
    at += plan.warmup
    size = options.window_steps
    if plan.free:
        typical = slowest(spend(steps.input_only, range(at, at + size))) / size
        at += size
        size = min(max(size, math.ceil(_SHORTEST / max(typical, 1e-9))), _MOST * size)
    seconds = windows("input alone", steps.input_only, at, size)
    input_alone = Phase(size, seconds, plan.warmup, warmup_seconds)

    def resident(_: int) -> object:
        return steps.on_resident()

    on_phase("resident input", 0, plan.timed)
    warmup_seconds = spend(resident, range(options.warmup_steps))
    seconds = windows("resident input", resident, 0, options.window_steps)
    return Timed(
        first_step, training, input_alone, Phase(options.window_steps, seconds, options.warmup_steps, warmup_seconds)
    )


def windows_of(phase: Phase, batch_size: int) -> Windows:
    """The record of `phase`, with the images per second of all ranks together."""
    rates = [phase.steps * batch_size / seconds for seconds in phase.seconds]
    return Windows(**vars(phase), images_per_second=_estimate(rates))


def input_share(training: Sequence[float], resident: Sequence[float]) -> Estimate:
    """1 - resident / training, from the seconds per step of their windows.

    Both medians' logarithms have an interval; half the width of their difference's is the root of the sum of squares.
    """
    found = [median_interval([math.log(value) for value in seconds]) for seconds in (resident, training)]
    ratio = found[0].value - found[1].value
    half = math.hypot(*(interval.high - interval.value for interval in found))
    low, value, high = (1 - math.exp(ratio + sign * half) for sign in (1, 0, -1))
    return Estimate(value=value, low=low, high=high)


def measure(
    recipe: Recipe, spec: dict[str, Any], ranks: Ranks, on_phase: OnPhase = lambda phase, done, of: None
) -> ThroughputResult | None:
    """Measure a trial as its `spec` says, on all ranks at once; the result on the main rank, None on the others."""
    begun, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    from bench.environment import environment
    from bench.gauges import gpu_gauges, peak_resident_bytes, process_age
    from bench.limits import copy_bandwidth, peak_flops
    from bench.work import bytes_per_image, flops_per_image
    from pose.data.source import load_split
    from pose.precision import pixel_dtype
    from pose.stepper import Stepper

    options = ThroughputOptions.model_validate(spec["options"])
    plan = plan_of(recipe, options)
    on_gpu = ranks.device.type == "cuda"
    faces = load_split(recipe.data, "train")
    made = time.perf_counter()
    stepper = Stepper(recipe, faces, seed=spec["seed"], ranks=ranks, last=plan.last)
    gauges: list[Gauges | None] = []
    memory: list[float] = []

    def gauge() -> None:
        if on_gpu and ranks.main:
            gauges.append(gpu_gauges())
        ranks.any(False)  # nobody's first window waits for the main rank to have read them

    def after() -> None:
        gauge()
        memory[:] = _peak_memory(ranks.device) if on_gpu else [float(peak_resident_bytes())]

    with closing(stepper), stepper.settings():
        building = time.perf_counter() - made
        age_before_first = process_age(time.perf_counter() - begun)
        timed = time_steps(
            stepper,
            plan,
            slowest=lambda seconds: _largest(ranks, [seconds])[0],
            before=gauge,
            after=after,
            on_phase=on_phase if ranks.main else lambda phase, done, of: None,
        )
    first_from_process, first_from_stepper = _largest(
        ranks, [age_before_first + timed.first_step, building + timed.first_step]
    )
    phases = [_of_all_ranks(phase, ranks) for phase in (timed.training, timed.input_alone, timed.resident)]
    training, input_alone, resident = (windows_of(phase, recipe.train.batch_size) for phase in phases)
    memory = _largest(ranks, memory)
    del stepper
    bandwidth = copy_bandwidth() if on_gpu and ranks.main else None
    if not ranks.main:
        return None
    where = environment()
    return ThroughputResult(
        trial=spec["id"],
        experiment=spec["experiment"],
        variant=spec["variant"],
        repeat=spec["repeat"],
        seed=spec["seed"],
        config=spec["recipe"],
        environment=where,
        train_faces=len(faces),
        world_size=ranks.world_size,
        batch_size=recipe.train.batch_size,
        first_step_from_process=first_from_process,
        first_step_from_stepper=first_from_stepper,
        training=training,
        input_alone=input_alone,
        resident=resident,
        input_share=input_share(
            [seconds / training.steps for seconds in training.seconds],
            [seconds / resident.steps for seconds in resident.seconds],
        ),
        memory=Memory(
            of="gpu" if on_gpu else "process",
            allocated=round(memory[0]),
            reserved=round(memory[1]) if on_gpu else None,
        ),
        gauges_before=gauges[0] if gauges else None,
        gauges_after=gauges[-1] if gauges else None,
        flops_per_image=flops_per_image(recipe.model.backbone, recipe.input.size),
        bytes_per_image=bytes_per_image(
            recipe.model.backbone, recipe.input.size, pixel_dtype(recipe.train.precision).itemsize
        ),
        peak_flops=peak_flops(where.gpu, recipe.train.precision) if where.gpu and on_gpu else None,
        bandwidth=bandwidth,
        started=started,
        seconds=process_age(time.perf_counter() - begun),
    )


def _peak_memory(device: torch.device) -> list[float]:
    import torch

    return [float(torch.cuda.max_memory_allocated(device)), float(torch.cuda.max_memory_reserved(device))]


def _of_all_ranks(phase: Phase, ranks: Ranks) -> Phase:
    warmup, *seconds = _largest(ranks, [phase.warmup_seconds, *phase.seconds])
    return Phase(phase.steps, seconds, phase.warmup_steps, warmup)


def _largest(ranks: Ranks, values: Sequence[float]) -> list[float]:
    """Of each value the largest that a rank has."""
    import torch

    table = torch.zeros(ranks.world_size, len(values), dtype=torch.float64, device=ranks.device)
    table[ranks.rank] = torch.tensor(values, dtype=torch.float64)
    largest: list[float] = ranks.sum_(table).amax(0).tolist()
    return largest


def _estimate(samples: Sequence[float]) -> Estimate:
    """Of positive samples, on a scale of factors: no interval reaches below 0."""
    found = median_interval([math.log(sample) for sample in samples])
    return Estimate(value=math.exp(found.value), low=math.exp(found.low), high=math.exp(found.high))
