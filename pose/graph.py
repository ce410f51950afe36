"""A step that is recorded once, as one CUDA graph, and replayed from then on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor

# DDP sorts its gradients into buckets during its first iterations, and only then does the same in each
# (https://docs.pytorch.org/docs/2.11/notes/cuda.html, "usage with DistributedDataParallel": 11)
WARMUP, WARMUP_PARALLEL = 3, 11


class Recorder(Protocol):
    """What `capture` needs of a device."""

    def warm_up(self, body: Callable[[], Tensor], times: int) -> None:
        """Run `body` where it will be recorded."""

    def record(self, body: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Record `body` without running it: where its result will lie, and a function that runs what was recorded."""
        ...


class CudaRecorder:
    """Records on a side stream of `device`; DDP has to be built on that stream, too: see `stream`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def warm_up(self, body: Callable[[], Tensor], times: int) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for _ in range(times):
                body()
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def record(self, body: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # Calls of other threads (NCCL's watchdog asks for events) must not end the capture
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = body()
        return result, graph.replay


def capture(
    body: Callable[[], Tensor], state: Callable[[], Iterable[Tensor]], recorder: Recorder, warmup: int = WARMUP
) -> Callable[[], Tensor]:
    """Record `body`, which reads and writes tensors that stay where they are; returns a function that replays it.

    Recording needs a few real runs beforehand. They leave no trace: the tensors of `state()` are put back as they were.
    One that the runs made (an optimizer's, on its first step) is set to zero, as an optimizer makes them.
    The result of a replay is overwritten by the next one.
    """
    before = {tensor.data_ptr(): tensor.detach().clone() for tensor in state() if tensor.numel()}
    recorder.warm_up(body, warmup)
    with torch.no_grad():
        for tensor in state():
            if tensor.numel():
                saved = before.get(tensor.data_ptr())
                tensor.zero_() if saved is None else tensor.copy_(saved)
    del before
    result, replay = recorder.record(body)

    def run() -> Tensor:
        replay()
        return result

    return run
