from __future__ import annotations

import contextlib
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bench.kernels import clock
from bench.kernels.clock import (
    FEWEST_CALLS,
    MOST_CALLS,
    MOST_SETS,
    Effort,
    Recording,
    calls_of_a_turn,
    capture,
    ceiling_calls,
    copies_beyond,
    cpu_threads,
    gpu_seconds,
    record,
    rotation,
    turns,
    wall_seconds,
)

MIB = 2**20


def test_every_subject_stands_in_every_place_equally_often_and_has_neighbours_on_both_sides() -> None:
    orders = list(turns(3, 6))
    assert orders == [[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1], [1, 0, 2]]
    places = Counter((place, subject) for order in orders for place, subject in enumerate(order))
    assert set(places.values()) == {2}
    followers = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(followers.values()) == {2}


def test_without_subjects_there_are_no_turns() -> None:
    assert list(turns(0, 5)) == []


@pytest.mark.parametrize(
    ("size", "copies"),
    [
        (60 * MIB, 3),
        (60 * MIB - 1, 4),
        (180 * MIB, 1),
        (10**12, 1),
        (1, MOST_SETS),
    ],
)
def test_inputs_are_copied_until_they_exceed_the_cache_three_times(size: int, copies: int) -> None:
    assert copies_beyond(60 * MIB, size) == copies


def test_a_training_batch_of_64_can_exceed_the_largest_cache() -> None:
    assert copies_beyond(60 * MIB, 12 * 64 * 98 * 2) < MOST_SETS


@pytest.mark.parametrize(
    ("seconds", "sets", "calls"),
    [
        (1e-3, 1, 20),  # a turn's worth
        (1e-6, 1, MOST_CALLS),
        (1.0, 1, FEWEST_CALLS),
        (1e-3, 50, 50),  # one rotation at least
        (1e-6, 1254, 1254),
        (0.0, 1, MOST_CALLS),
    ],
)
def test_a_graph_holds_a_turn_of_calls_and_a_full_rotation(seconds: float, sets: int, calls: int) -> None:
    assert calls_of_a_turn(seconds, sets, Effort(turn=0.02)) == calls


class Time:
    """A clock that only moves when a subject is called, and a protocol of what happened."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.events: list[Any] = []

    def now(self) -> float:
        return self.seconds

    def call(self, name: str, seconds: float) -> Any:
        def called(index: int) -> None:
            assert not gc.isenabled(), "a collection would be in the time"
            self.seconds += seconds
            self.events.append((name, index))

        return called


def test_wall_time_is_per_call_of_synchronised_batches_in_turns() -> None:
    time = Time()
    calls = {"fast": time.call("fast", 0.25), "slow": time.call("slow", 2.0)}
    effort = Effort(rounds=4, warmup=20.0, turn=1.0)
    samples = wall_seconds(calls, 3, effort, lambda: time.events.append("synchronise"), time.now)
    assert samples == {"fast": [0.25] * 4, "slow": [2.0] * 4}
    fast = ["synchronise", *(("fast", index) for index in (0, 1, 2, 0)), "synchronise"]  # four make a turn
    slow = ["synchronise", ("slow", 0), "synchronise"]
    assert time.events[-4 * (len(fast) + len(slow)) :] == [*fast, *slow, *slow, *fast, *slow, *fast, *fast, *slow]
    # 9 s for the first estimate, 20 s or more of warm-up, then the rounds
    assert time.seconds >= 9 + 20 + 4 * (4 * 0.25 + 2.0)
    assert gc.isenabled()


def test_collections_are_switched_on_again_after_a_failure() -> None:
    def broken(_: int) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        wall_seconds({"a": broken}, 1, Effort(), lambda: None)
    assert gc.isenabled()


def test_gpu_time_is_a_replay_between_events_divided_by_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = {"now": 0.0}  # milliseconds
    replayed: list[str] = []

    class Graph:
        def __init__(self, name: str, milliseconds: float) -> None:
            self.name, self.milliseconds = name, milliseconds

        def replay(self) -> None:
            replayed.append(self.name)
            gpu["now"] += self.milliseconds

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = gpu["now"]

        def elapsed_time(self, end: Event) -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    recordings: Any = {"a": Recording(Graph("a", 2.0), 4), "b": Recording(Graph("b", 30.0), 10)}  # type: ignore[arg-type]
    samples = gpu_seconds(recordings, Effort(rounds=4, warmup=0.0))
    assert samples["a"] == pytest.approx([0.5e-3] * 4)
    assert samples["b"] == pytest.approx([3e-3] * 4)
    assert replayed == ["a", "b", "b", "a", "b", "a", "a", "b"]


class FakeCuda:
    """As much of torch.cuda as a capture needs; says what happens on which stream, and inside which graph."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current, self.capturing = "default", False
        cuda = self

        class Stream:
            def wait_stream(self, other: Any) -> None:
                assert other == "default"

        @contextlib.contextmanager
        def stream(_: Stream) -> Iterator[None]:
            before, cuda.current = cuda.current, "side"
            try:
                yield
            finally:
                cuda.current = before

        @contextlib.contextmanager
        def graph(_: Any, stream: Stream) -> Iterator[None]:
            cuda.capturing = True
            yield  # as torch does it: nothing is restored after a failure
            cuda.capturing = False

        for name, value in {
            "Stream": Stream,
            "stream": stream,
            "graph": graph,
            "CUDAGraph": lambda keep_graph: keep_graph,
            "current_stream": lambda: cuda.current,
            "synchronize": lambda: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_a_call_is_warmed_up_on_the_stream_that_records_it_and_its_outputs_live_for_a_rotation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda(monkeypatch)
    seen: list[tuple[int, bool, str]] = []
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def call(index: int) -> torch.Tensor:
        nonlocal most
        seen.append((index, cuda.capturing, cuda.current))
        made = torch.zeros(1)
        if cuda.capturing:
            alive.add(made)
            most = max(most, len(alive))
        return made

    assert capture(call, 5, 3, keep_graph=True) is True
    assert seen == [(i, False, "side") for i in (0, 1)] + [(i, True, "side") for i in (0, 1, 2, 0, 1)]
    assert most == 3 + 1  # a rotation's, and the one that is being made
    assert not alive
    assert cuda.current == "default"


def test_a_capture_that_fails_leaves_the_stream_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)

    def call(_: int) -> None:
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        capture(call, 5, 3)
    assert cuda.current == "default"


def test_ceilings_copy_the_wider_tensor_and_add_into_the_dtype_of_the_first() -> None:
    first = [torch.full((3, 4), 2.0, dtype=torch.bfloat16)] * 2
    second = [torch.full((3, 4), 0.5)] * 2
    calls = ceiling_calls(first, second)
    copy, copied = calls["copy"]
    assert copied == 12 * (4 + 4)
    assert torch.equal(copy(1), second[1])
    assert copy(1) is not second[1]
    add, moved = calls["add"]
    assert moved == 12 * (2 + 4 + 2)
    assert add(0).dtype == torch.bfloat16
    assert add(0).unique().tolist() == [2.5]
    assert add(0).data_ptr() != add(1).data_ptr()  # outputs rotate, too


def test_threads_are_as_before_after_a_failure() -> None:
    before = torch.get_num_threads()

    @cpu_threads(before + 1)
    def broken() -> None:
        raise ValueError(torch.get_num_threads())

    with pytest.raises(ValueError, match=str(before + 1)):
        broken()
    assert torch.get_num_threads() == before
    with cpu_threads(None):
        assert torch.get_num_threads() == before


def test_a_cpu_alternates_between_two_inputs() -> None:
    assert rotation(1, torch.device("cpu")) == clock.CPU_SETS == 2


@pytest.mark.gpu
def test_the_gpu_clock_sees_twice_the_work_take_about_twice_the_time() -> None:
    device = torch.device("cuda")
    size = 2**26
    inputs = [torch.rand(size, device=device) for _ in range(rotation(8 * size, device))]
    effort = Effort(rounds=6, warmup=0.05)
    calls = {"one": lambda i: inputs[i] + 1, "half": lambda i: inputs[i][: size // 2] + 1}
    samples = gpu_seconds({name: record(call, len(inputs), effort) for name, call in calls.items()}, effort)
    assert {name: len(values) for name, values in samples.items()} == {"one": 6, "half": 6}
    # Bandwidth-bound, so 2; wide enough for a GPU that others use as well
    assert 1.4 < min(samples["one"]) / min(samples["half"]) < 2.8


@pytest.mark.gpu
def test_a_call_that_waits_for_the_gpu_cannot_be_recorded() -> None:
    values = torch.rand(8, device="cuda")
    with pytest.raises(RuntimeError):
        record(lambda _: values.sum().item(), 1, Effort(rounds=1, warmup=0.0))
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert record(lambda _: values.sum(), 1, Effort(rounds=1, warmup=0.0)).calls >= FEWEST_CALLS
