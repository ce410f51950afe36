"""How long calls on tensors take, on the GPU's clock and on the host's. Knows nothing of what it times.

The GPU clock: many calls are recorded into one CUDA graph per subject and the graph is replayed between two events, so
that no gap of the host is in the time. The calls walk through copies of the inputs that together exceed the L2 cache
three times, and what they return is kept for as long, so outputs walk, too: nothing is found in a cache that a single
call would not find there. A graph can only be recorded of a call that never waits for the GPU.

The host's clock: batches of calls without a graph, synchronised before and after, which is what a training loop sees.

On both: warm-up by time and on the same inputs, since clocks depend on power and power on the data; then rounds in
which every subject has one turn, in an order that rotates, so that a drift of the clock meets all of them alike. The
samples are seconds per call, one per round; none is dropped.
"""

from __future__ import annotations

import gc
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Call = Callable[[int], Any]  # works on the set of inputs with this index, returns what it made

ROTATED = 3  # times the L2 cache that the inputs of a rotation come to
CPU_SETS = 2  # no cache is told apart there; two calls in a row see different inputs
FEWEST_CALLS, MOST_CALLS = 4, 200  # in a graph, unless a rotation needs more
MOST_SETS = 2048  # as many inputs of 64 faces as exceed the L2 of an H200 three times, and then some


@dataclass(frozen=True)
class Effort:
    """How much is measured: rounds, and seconds for the warm-up and for one turn of a subject (about)."""

    rounds: int = 30
    warmup: float = 0.2
    turn: float = 0.02


@dataclass(frozen=True)
class Recording:
    """Calls in a graph that can be replayed."""

    graph: torch.cuda.CUDAGraph
    calls: int


def rotation(set_bytes: int, device: torch.device) -> int:
    """How many copies of inputs (and outputs) of `set_bytes` to walk through; one is enough when it is large itself."""
    if device.type != "cuda":
        return CPU_SETS
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return copies_beyond(cache, set_bytes)


def copies_beyond(cache_bytes: int, set_bytes: int) -> int:
    """Copies of `set_bytes` that together come to `ROTATED` times `cache_bytes`, one at least."""
    return min(max(1, math.ceil(ROTATED * cache_bytes / set_bytes)), MOST_SETS)


def turns(subjects: int, rounds: int) -> Iterator[list[int]]:
    """The order of each round: rotated by one from round to round, and backwards in every other full rotation.

    Over 2 x `subjects` rounds each subject stands in each place twice, and its neighbours are on either side of it.
    """
    for number in range(rounds if subjects else 0):
        shift = number % subjects
        order = [*range(shift, subjects), *range(shift)]
        yield order[::-1] if number // subjects % 2 else order


def record(call: Call, sets: int, effort: Effort) -> Recording:
    """Warm `call` up and record it over `sets` sets of inputs. CUDA only.

    Raises whatever the call raises, and RuntimeError if it waits for the GPU.
    """
    single = capture(call, 1, 1)
    once = min(_replay_seconds(single) for _ in range(3))
    del single
    calls = calls_of_a_turn(once, sets, effort)
    return Recording(capture(call, calls, sets), calls)


def capture(call: Call, calls: int, sets: int, *, keep_graph: bool = False) -> torch.cuda.CUDAGraph:
    """A graph of `calls` calls that walk through `sets` sets of inputs; keep_graph: as of `torch.cuda.CUDAGraph`."""
    graph = torch.cuda.CUDAGraph(keep_graph=keep_graph)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    kept: deque[Any] = deque(maxlen=sets)
    # The outer context: when a capture fails, `torch.cuda.graph` leaves its stream the current one
    with torch.cuda.stream(stream):
        for index in range(2):  # on the stream of the capture, so that workspaces exist before it
            call(index % sets)
        with torch.cuda.graph(graph, stream=stream):
            for index in range(calls):
                kept.append(call(index % sets))
    torch.cuda.synchronize()
    return graph


def calls_of_a_turn(seconds: float, sets: int, effort: Effort) -> int:
    """Calls of `seconds` each for a graph: about a turn's worth within limits, and one full rotation at least."""
    return max(sets, min(MOST_CALLS, max(FEWEST_CALLS, math.ceil(effort.turn / max(seconds, 1e-7)))))


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def gpu_seconds(recordings: Mapping[str, Recording], effort: Effort) -> dict[str, list[float]]:
    """GPU seconds per call of each recording, `effort.rounds` samples, interleaved."""
    subjects = list(recordings.items())
    begun = time.perf_counter()
    while time.perf_counter() - begun < effort.warmup:
        for _, recording in subjects:
            recording.graph.replay()
        torch.cuda.synchronize()
    pending = []
    # Nothing waits in here: a replay is issued while the one before it runs, so its launch is not in its time
    for order in turns(len(subjects), effort.rounds):
        for number in order:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            subjects[number][1].graph.replay()
            end.record()
            pending.append((number, start, end))
    torch.cuda.synchronize()
    samples: dict[str, list[float]] = {name: [] for name, _ in subjects}
    for number, start, end in pending:
        name, recording = subjects[number]
        samples[name].append(start.elapsed_time(end) / 1e3 / recording.calls)
    return samples


def wall_seconds(
    calls: Mapping[str, Call],
    sets: int,
    effort: Effort,
    synchronize: Callable[[], object],
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Host seconds per call of each subject, `effort.rounds` samples, interleaved; each was called once before."""
    subjects = list(calls.items())

    def batch(call: Call, count: int) -> float:
        synchronize()
        begun = now()
        for index in range(count):
            call(index % sets)
        synchronize()
        return (now() - begun) / count

    samples: dict[str, list[float]] = {name: [] for name in calls}
    with _without_garbage_collection():
        once = [min(batch(call, 2) for _ in range(2)) for _, call in subjects]
        counts = [max(1, min(MOST_CALLS, math.ceil(effort.turn / max(seconds, 1e-7)))) for seconds in once]
        begun = now()
        while now() - begun < effort.warmup:
            for (_, call), count in zip(subjects, counts, strict=True):
                batch(call, count)
        for order in turns(len(subjects), effort.rounds):
            for number in order:
                name, call = subjects[number]
                samples[name].append(batch(call, counts[number]))
    return samples


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads within an operator; None leaves them as they are.

    With one thread a busy machine makes times longer; with several, operators wait for the slowest of them, and a loss
    of 12,544 elements was seen to take 0.5 or 250 ms.
    """
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronizer(device: torch.device) -> Callable[[], object]:
    """What waits until `device` has done all that was asked of it."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def ceiling_calls(first: Sequence[Tensor], second: Sequence[Tensor]) -> dict[Literal["copy", "add"], tuple[Call, int]]:
    """What no kernel on these inputs is expected to beat: name -> (call, bytes that it reads and writes).

    "add" is c = a + b with c in a's dtype; "copy" copies the tensor with the larger elements as it is. Outputs are
    overwritten in rotation.
    """
    wide = first if first[0].element_size() >= second[0].element_size() else second
    added, copied = [torch.empty_like(a) for a in first], [torch.empty_like(a) for a in wide]
    return {
        "copy": (lambda i: copied[i].copy_(wide[i]), 2 * wide[0].nbytes),
        "add": (lambda i: torch.add(first[i], second[i], out=added[i]), 2 * first[0].nbytes + second[0].nbytes),
    }
