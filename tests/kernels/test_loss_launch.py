"""Launching the loss kernels: what reaches the driver, what concurrent launches share, and what only a GPU can show."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import kernels

pytest.importorskip("triton", reason="there is no Triton here: nothing to launch")

from recorded_launches import record

from kernels import loss_launch

# ---------------------------------------------------------------------------------------------- what is launched


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    return record()


def test_later_launches_hand_over_what_the_compiling_one_did(recorded):
    # The first goes through Triton's binder, which sorts arguments by name; later ones are positional
    for case, (first, second, third) in recorded["first_and_later_launches"].items():
        assert len(first) == 1, case
        assert first == second == third, case
        assert len(first[0]["arguments"]) == len(first[0]["signature"]), case


def test_every_argument_is_of_the_type_that_was_compiled_for(recorded):
    types = {"*fp32": "torch.float32", "*fp64": "torch.float64", "*i32": "torch.int32", "i64": "int", "fp64": "float"}
    for case, launches in recorded["first_and_later_launches"].items():
        [launch] = launches[-1]
        for wanted, given in zip(launch["signature"], launch["arguments"], strict=True):
            if wanted == "constexpr":
                assert given[0] in ("NoneType", "Constants", "int"), case
            else:
                assert types[wanted] in given, case


@pytest.mark.parametrize(
    ("call", "compiled"),
    [
        ("the first", 1),
        ("one element more", 0),
        ("one element", 0),
        ("another shape", 0),
        ("another order in memory", 0),
        ("not aligned", 0),
        ("another denominator", 0),
        ("beyond 32 bits", 0),
        ("16 bits", 1),
        ("other parameters", 1),
        ("a weight for each", 1),
        ("a weight for each of other sizes", 0),
        ("a weight for each landmark", 1),
    ],
)
def test_a_kernel_is_compiled_for_a_new_case_and_not_for_a_new_size(call, compiled, recorded):
    assert recorded["compilations"][call] == compiled


def test_the_grid_is_the_number_of_tiles_up_to_a_limit(recorded):
    limits = {"loss_kernel": 2048, "scale_kernel": 1024}
    assert {kernel for _, kernel, _, _ in recorded["grids"]} == set(limits)
    for count, kernel, block, grid in recorded["grids"]:
        assert grid == [min(-(-count // block), limits[kernel]), 1, 1], (count, kernel)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_one_launch_for_loss_and_gradient_and_one_more_for_backward(dtype, recorded):
    launches = recorded["launches_of_public_calls"]
    assert launches[f"{dtype}: forward"] == ["loss_kernel"]
    assert launches[f"{dtype}: loss_and_grad"] == ["loss_kernel"]
    # Two roundings to 16 bits are one too many: such a gradient is computed again where upstream is not 1
    backward = "loss_kernel" if "16" in dtype else "scale_kernel"
    assert launches[f"{dtype}: forward and backward"] == ["loss_kernel", backward]
    assert launches[f"{dtype}: reduction none, forward and backward"] == ["loss_kernel", "loss_kernel"]
    assert launches[f"{dtype}: the second backward"] == ["loss_kernel"]


def test_nothing_is_launched_for_an_empty_tensor(recorded):
    assert recorded["launches_of_public_calls"]["empty: forward and backward"] == []


@pytest.mark.parametrize(
    ("case", "copied"),
    [
        ("contiguous", set()),
        ("both dense in another order", set()),
        ("weight expanded", set()),
        ("weight of each sample", set()),
        ("weight of each coordinate", set()),
        ("target in another order", {"target"}),
        ("pred not aligned", {"pred"}),
        ("weight not aligned", {"weight"}),
    ],
)
def test_inputs_are_read_where_they_lie_unless_they_cannot_be(case, copied, recorded):
    found = recorded["memory_that_is_read"][case]
    assert {name for name in ("pred", "target", "weight") if not found[name]} == copied
    assert found["aligned"]


# ---------------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("upstream", [1.0, 2.0])
def test_an_upstream_gradient_of_1_leaves_the_stored_gradient_untouched(upstream, dtype, device):
    pred = torch.rand(3, 98, 2, device=device).to(dtype).requires_grad_()
    loss = kernels.wing_loss(pred, torch.rand(3, 98, 2, device=device), impl="triton")
    stored = next(value for value in vars(loss.grad_fn).values() if isinstance(value, Tensor))
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    # A signalling NaN: any arithmetic, a product with 1 too, would set its quiet bit
    pattern = {2: 0x7FA0, 4: 0x7FA00000, 8: 0x7FF4000000000000}[dtype.itemsize]
    stored.view(integers).fill_(pattern)
    (gradient,) = torch.autograd.grad(loss, pred, torch.tensor(upstream, dtype=loss.dtype, device=device))
    assert gradient.data_ptr() == stored.data_ptr()
    assert (gradient.view(integers) == pattern).all() == (upstream == 1.0)


# ---------------------------------------------------------------------------------------------- the workspace


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Streams, devices and captures that are only said to be there; the memory is the CPU's."""
    state = SimpleNamespace(streams=threading.local(), capturing=False, waited=0)

    class Stream:
        @property
        def cuda_stream(self) -> int:
            return getattr(state.streams, "now", 0)

        def synchronize(self) -> None:
            state.waited += 1

    def on_cpu(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *sizes, device=None, **options: create(*sizes, **options)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Stream())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: Stream().cuda_stream, raising=False)
    monkeypatch.setattr(torch, "empty", on_cpu(torch.empty))
    monkeypatch.setattr(torch, "zeros", on_cpu(torch.zeros))
    monkeypatch.setattr(loss_launch, "_workspaces", {})

    def workspace(stream: int = 0, capturing: bool = False, device: int = 0, programs: int = 2048) -> Any:
        state.streams.now, state.capturing = stream, capturing
        return loss_launch._partials_and_ticket(torch.device("cuda", device), programs)

    state.workspace = workspace
    return state


def ranges(pair: tuple[Tensor, Tensor]) -> Iterator[range]:
    for tensor in pair:
        yield range(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def assert_disjoint(pairs: list[tuple[Tensor, Tensor]]) -> None:
    found = sorted((each for pair in pairs for each in ranges(pair)), key=lambda each: each.start)
    assert len(found) == 2 * len(pairs)
    for before, after in pairwise(found):
        assert before.stop <= after.start
    for partials, ticket in pairs:
        assert partials.dtype == torch.float64
        assert ticket.dtype == torch.int32
        assert ticket.tolist() == [0]


def test_each_stream_has_memory_of_its_own_however_many_there_are(fake_cuda):
    first = {stream: fake_cuda.workspace(stream) for stream in range(100)}
    assert_disjoint(list(first.values()))
    assert min(len(partials) for partials, _ in first.values()) >= 2048
    for stream, pair in first.items():  # found again, not made again
        again = fake_cuda.workspace(stream)
        assert [each.data_ptr() for each in again] == [each.data_ptr() for each in pair]
    assert fake_cuda.waited == 1  # for the zeros, before any other stream can use them


def test_each_launch_in_a_graph_has_memory_of_its_own(fake_cuda, monkeypatch):
    monkeypatch.setattr(loss_launch._Workspace, "TICKETS", 16)
    # Graphs that were captured on one stream may run at once, and beside launches on that stream
    pairs = [fake_cuda.workspace(stream) for stream in (1, 2)]
    pairs += [fake_cuda.workspace(stream, capturing=True) for stream in (1, 2) for _ in range(20)]  # more than 16, too
    pairs += [fake_cuda.workspace(stream) for stream in (3, 4)]
    assert_disjoint(pairs)


def test_a_capture_allocates_nothing_that_outlives_it(fake_cuda):
    pairs = [fake_cuda.workspace(capturing=True, programs=7) for _ in range(3)]
    assert_disjoint(pairs)
    assert [len(partials) for partials, _ in pairs] == [7] * 3
    assert not loss_launch._workspaces
    loss_launch.prepare(torch.device("cuda", 0))
    assert not loss_launch._workspaces
    assert fake_cuda.waited == 0
    fake_cuda.capturing = False
    loss_launch.prepare(torch.device("cuda", 0))
    assert list(loss_launch._workspaces) == [0]


def test_devices_share_nothing(fake_cuda):
    assert_disjoint([fake_cuda.workspace(stream=5, device=device) for device in range(3)])
    assert sorted(loss_launch._workspaces) == [0, 1, 2]


def test_threads_that_start_at_once_on_streams_of_their_own_share_nothing(fake_cuda):
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(200):
            fake_cuda.workspace()  # of the device: here already
            pairs: dict[int, tuple[Tensor, Tensor]] = {}
            barrier = threading.Barrier(4)

            def use(stream: int, pairs: Any = pairs, barrier: threading.Barrier = barrier) -> None:
                fake_cuda.streams.now = stream
                barrier.wait()
                pairs[stream] = loss_launch._partials_and_ticket(torch.device("cuda", 0), 2048)

            threads = [threading.Thread(target=use, args=(10 + 4 * attempt + place,)) for place in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert_disjoint(list(pairs.values()))
            assert len(pairs) == 4
            loss_launch._workspaces.clear()
    finally:
        sys.setswitchinterval(interval)


def test_launches_go_to_the_tensors_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device))
    loss_launch.on_device(torch.device("cuda", 1))
    assert entered == [torch.device("cuda", 1)]
    loss_launch.on_device(torch.device("cuda", 0))  # the current one: nothing to switch
    loss_launch.on_device(torch.device("cpu"))
    assert len(entered) == 1


# ---------------------------------------------------------------------------------------------- on a GPU

TRAINING, LARGE = (64, 98, 2), (2**22 // 196, 98, 2)  # one launch of the second takes long enough to meet another


def batch(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(seed)
    target = 100 * torch.rand(shape, generator=generator, device="cuda")
    return target + 10 * torch.randn(shape, generator=generator, device="cuda"), target


def step(pred: Tensor, target: Tensor, impl: str = "triton") -> tuple[Tensor, Tensor]:
    """Loss and gradient through autograd; the upstream gradient is not 1."""
    leaf = pred.detach().requires_grad_()
    loss = kernels.wing_loss(leaf, target, impl=impl)
    (gradient,) = torch.autograd.grad(2 * loss, leaf)
    return loss.detach(), gradient


def pair(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return kernels.wing_loss_and_grad(pred, target, scale=2.0, impl="triton")


class Graph:
    """A call recorded once, replayed on whatever is copied into its inputs."""

    def __init__(self, call: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> None:
        self.inputs = [each.clone() for each in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and allocates what is kept
            for _ in range(3):
                call(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = call(*self.inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for own, new in zip(self.inputs, inputs, strict=True):
            own.copy_(new)
        self.graph.replay()
        return tuple(each.clone() for each in self.outputs)


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> bool:
    """To the bit: the same kernel on the same numbers, summed in the same order."""
    return all(map(torch.equal, found, wanted))


@pytest.mark.gpu
@pytest.mark.parametrize("call", [step, pair])
@pytest.mark.parametrize("shape", [TRAINING, LARGE])
def test_a_replayed_graph_computes_what_the_call_computes(shape, call):
    graph = Graph(call, *batch(shape, 0))
    for seed in range(20):
        inputs = batch(shape, seed)
        assert same(graph(*inputs), call(*inputs))
    torch.testing.assert_close(step(*inputs), step(*inputs, impl="reference"))


@pytest.mark.gpu
def test_a_scale_on_the_device_may_change_between_replays():
    graph = Graph(
        lambda pred, target, scale: kernels.wing_loss_and_grad(pred, target, scale=scale, impl="triton"),
        *batch(TRAINING, 0),
        torch.ones((), device="cuda"),
    )
    inputs = batch(TRAINING, 1)
    for scale in (1.0, 1024.0, 0.5):
        wanted = kernels.wing_loss_and_grad(*inputs, scale=scale, impl="triton")
        assert same(graph(*inputs, torch.tensor(scale, device="cuda")), wanted)


@pytest.mark.gpu
def test_a_graph_that_is_captured_before_any_launch_is_right_at_every_replay(monkeypatch):
    inputs = batch(LARGE, 0)
    wanted = pair(*inputs)  # compiled now, but:
    monkeypatch.setattr(loss_launch, "_workspaces", {})
    own = [each.clone() for each in inputs]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = pair(*own)
    for _ in range(10):
        graph.replay()
        assert same(outputs, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("call", [step, pair])
def test_two_graphs_of_one_stream_replayed_at_once_on_two(call):
    graphs = [Graph(call, *batch(LARGE, seed)) for seed in (0, 1)]
    streams = [torch.cuda.Stream() for _ in graphs]
    inputs = [batch(LARGE, 10 + seed) for seed in range(2)]
    wanted = [call(*each) for each in inputs]
    for graph, given in zip(graphs, inputs, strict=True):
        graph(*given)
    torch.cuda.synchronize()
    for _ in range(100):
        for stream, graph in zip(streams, graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.graph.replay()
        with torch.cuda.stream(torch.cuda.Stream()):
            between = call(*inputs[0])
        torch.cuda.synchronize()
        for found, right in zip([*(graph.outputs for graph in graphs), between], [*wanted, wanted[0]], strict=True):
            assert same(found, right)


@pytest.mark.gpu
@pytest.mark.parametrize("call", [step, pair])
def test_many_launches_on_several_streams_at_once_are_each_right(call):
    inputs = [batch(LARGE, seed) for seed in range(8)]
    wanted = [call(*each) for each in inputs]
    streams = [torch.cuda.Stream() for _ in inputs]
    torch.cuda.synchronize()
    found = []
    for _ in range(10):
        for stream, given in zip(streams, inputs, strict=True):
            with torch.cuda.stream(stream):
                found.append(call(*given))
    torch.cuda.synchronize()
    assert all(same(each, wanted[place % len(wanted)]) for place, each in enumerate(found))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device: nothing can be on another")
def test_tensors_on_a_device_that_is_not_the_current_one():
    inputs = batch(LARGE, 0)
    with torch.cuda.device(0):
        found = [call(*(each.to("cuda:1") for each in inputs)) for call in (step, pair)]
        assert {each.device.index for one in found for each in one} == {1}
        for call, one in zip((step, pair), found, strict=True):
            assert same(tuple(each.to("cuda:0") for each in one), call(*inputs))


@pytest.mark.gpu
def test_reduce_overhead_records_the_loss_in_its_graphs():
    from torch._dynamo.utils import counters

    counters.clear()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda pred, target: kernels.wing_loss(pred, target, impl="triton"), mode="reduce-overhead", fullgraph=True
    )
    for seed in range(10):
        pred, target = batch(TRAINING, seed)
        pred.requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        loss = compiled(pred, target)
        (2 * loss).backward()
        torch.testing.assert_close((loss, pred.grad), step(pred, target))
    assert counters["inductor"]["cudagraph_skips"] == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_host_never_waits_for_the_device(dtype):
    pred, target = batch(TRAINING, 0)
    pred = pred.to(dtype)
    scale = torch.tensor(1024.0, device="cuda")

    def all_of_it() -> None:
        step(pred, target)
        kernels.wing_loss(pred.requires_grad_(), target, reduction="none", impl="triton").sum().backward()
        kernels.wing_loss_and_grad(pred, target, scale=scale, impl="triton")

    all_of_it()  # compiles, and waits once for the workspace
    torch.cuda.set_sync_debug_mode("error")
    try:
        all_of_it()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def kernels_run(call: Callable[[], Any]) -> list[str]:
    """Names of all that the device ran, copies and fills among them."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return [each.name for each in found.events() if each.device_type == torch.autograd.DeviceType.CUDA]


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [TRAINING, LARGE])
def test_the_device_runs_one_kernel_for_loss_and_gradient(shape):
    inputs = batch(shape, 0)
    scale = torch.tensor(2.0, device="cuda")
    assert kernels_run(lambda: kernels.wing_loss(*inputs, impl="triton")) == ["loss_kernel"]
    for given in (None, 2.0, scale):
        run = kernels_run(lambda s=given: kernels.wing_loss_and_grad(*inputs, scale=s, impl="triton"))
        assert run == ["loss_kernel"]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_device_runs_two_kernels_through_backward_beside_autograds_own(dtype):
    pred, target = batch(TRAINING, 0)
    pred = pred.to(dtype).requires_grad_()

    def both() -> None:
        pred.grad = None
        kernels.wing_loss(pred, target, impl="triton").backward()

    first, *others = kernels_run(both)
    assert first == "loss_kernel"
    assert others[-1] == ("scale_kernel" if dtype == torch.float32 else "loss_kernel")
    assert len(others) == 2  # autograd fills the upstream gradient with 1
