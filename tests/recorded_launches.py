"""What the launcher hands to a GPU, recorded on any machine: no GPU is needed, and none is used.

`record` runs this file in a process of its own, where Triton is the compiler and not the interpreter. Kernels are
compiled for a GPU, tensors stay on the CPU, and a driver that only takes notes stands where CUDA's would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

import kernels
from kernels import loss_launch, losses
from kernels.family import Loss

ROOT = Path(__file__).resolve().parents[1]
WING = Loss("wing", (10.0, 2.0), "batchmean", "input")


def record() -> dict[str, Any]:
    """The results of all functions that are marked `@recorded`, by their names."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as cache:
        run = subprocess.run(
            [sys.executable, __file__],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**environment, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"},
        )
    return json.loads(run.stdout)


class _Driver:
    """What compiling and launching ask of a driver."""

    def __init__(self) -> None:
        self.utils = self
        self.launches: list[dict[str, Any]] = []
        self.compilations = 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 2**17}

    def load_binary(self, *_: Any) -> tuple[int, ...]:
        return 0, 0, 0, 0, 1024  # module, function, registers, spills, threads at most

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        """Called once for each compiled kernel."""
        self.compilations += 1

        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *rest: Any) -> None:
            arguments = rest[3:]  # after the launch's metadata and two hooks
            self.launches.append(
                {
                    "kernel": source.fn.__name__,
                    "grid": [x, y, z],
                    "block": getattr(arguments[-1], "block", arguments[-1]),
                    "warps": metadata.num_warps,
                    "signature": list(source.signature.values()),
                    "arguments": [_described(each) for each in arguments],
                }
            )

        return launch


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ["tensor", value.data_ptr(), str(value.dtype), list(value.shape)]
    return [type(value).__name__, repr(value)]


_DRIVER = _Driver()
_RECORDED: list[Callable[[], Any]] = []


def recorded(function: Callable[[], Any]) -> Callable[[], Any]:
    _RECORDED.append(function)
    return function


def _launches(call: Callable[[], Any]) -> list[dict[str, Any]]:
    _DRIVER.launches.clear()
    call()
    return list(_DRIVER.launches)


@contextmanager
def _tensors_taken_for_cuda() -> Iterator[None]:
    with mock.patch.object(losses, "_problem", return_value=None):
        yield


def _tensors(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(batch, 98, 2, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


@recorded
def first_and_later_launches() -> dict[str, list[list[dict[str, Any]]]]:
    """For each case the launches of the call that compiles, and of two that find it compiled; the same memory."""
    found = {}
    pred, target = _tensors()
    each = WING._replace(reduction="none")
    number, value, values, grad = torch.tensor(2.0), torch.empty(()), torch.empty_like(pred), torch.empty_like(pred)
    weights = {"none": None, "landmark": torch.rand(98, 1), "element": torch.rand(3, 98, 2), "one": torch.rand(())}
    cases: dict[str, Callable[[], None]] = {
        "loss": lambda: loss_launch._launch(WING, pred, target, None, value=value),
        "loss of each": lambda: loss_launch._launch(each, pred, target, None, value=values),
        "gradient, skipped at 1": lambda: loss_launch._launch(WING, pred, target, None, number, grad=grad, skip=True),
        "gradient of each": lambda: loss_launch._launch(each, pred, target, None, values, grad=grad),
        "scaling": lambda: loss_launch.scale_(grad, number),
    }
    for name, weight in weights.items():
        cases[f"both, weight {name}"] = partial(
            loss_launch._launch, WING, pred, target, weight, number, 0.5, value=value, grad=grad
        )
    workspace = torch.empty(2048, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    with mock.patch.object(loss_launch, "_partials_and_ticket", return_value=workspace):
        for name, call in cases.items():
            before = _DRIVER.compilations
            found[name] = [_launches(call)]
            assert _DRIVER.compilations == before + 1
            found[name] += [_launches(call), _launches(call)]
    return found


@recorded
def compilations() -> dict[str, int]:
    """How many kernels each call compiled, one call after the other."""
    wing = Loss("wing", (8.0, 2.0), "sum", "input")
    pred, target = _tensors()
    found = {}

    def call(name: str, pred: Tensor, target: Tensor, weight: Tensor | None = None, **other: Any) -> None:
        before = _DRIVER.compilations
        loss_launch.loss_and_gradient(wing._replace(**other), pred, target, weight)
        found[name] = _DRIVER.compilations - before

    flat, against = pred.flatten(), target.flatten()
    call("the first", flat[:512], against[:512])
    call("one element more", flat[:513], against[:513])
    call("one element", flat[:1], against[:1])
    call("another shape", pred, target)
    call("another order in memory", pred.transpose(0, 1), target.transpose(0, 1))
    call("not aligned", flat[1:7], against[:6])
    call("another denominator", pred, target, reduction="mean")
    call("16 bits", pred.bfloat16(), target)
    call("other parameters", pred, target, parameters=(9.0, 2.0))
    call("a weight for each", pred, target, torch.rand(3, 98, 2))
    call("a weight for each of other sizes", pred[:2], target[:2], torch.rand(2, 98, 2))
    call("a weight for each landmark", pred, target, torch.rand(98, 1))
    with tempfile.TemporaryDirectory() as folder:
        # A file with holes: 4 GiB of addresses, no memory
        count = 2**31 + 1024
        storage = torch.UntypedStorage.from_file(f"{folder}/holes", shared=True, nbytes=2 * count)
        huge = torch.empty(0, dtype=torch.bfloat16).set_(storage, 0, (count,))  # type: ignore[call-overload]
        value = torch.empty(())
        small = huge[:512]
        loss_launch._launch(wing, small, small, None, value=value, grad=small)
        before = _DRIVER.compilations
        [launch] = _launches(partial(loss_launch._launch, wing, huge, huge, None, value=value, grad=huge))
        found["beyond 32 bits"] = _DRIVER.compilations - before
    count_given = launch["arguments"][launch["signature"].index("i64")]
    assert count_given == ["int", str(count)]
    assert launch["grid"] == [2048, 1, 1]
    return found


@recorded
def grids() -> list[tuple[int, str, int, list[int]]]:
    """(elements, kernel, elements of a tile, grid) of launches."""
    found = []
    flat = torch.zeros(2048 * 1024 + 1)
    for count in (1, 1023, 1024, 1025, 12_544, 12_545, 2048 * 1024, 2048 * 1024 + 1):
        part = flat[:count]
        calls = partial(loss_launch.loss_of, WING, part, part, None), partial(loss_launch.scale_, part, part[0])
        for call in calls:
            [launch] = _launches(call)
            found.append((count, launch["kernel"], launch["block"], launch["grid"]))
    return found


@recorded
def launches_of_public_calls() -> dict[str, list[str]]:
    """Names of the kernels that each call launched."""
    found = {}
    pred, target = _tensors()
    scale = torch.tensor(2.0)

    def names(call: Callable[[], Any]) -> list[str]:
        return [launch["kernel"] for launch in _launches(call)]

    def both(pred: Tensor, reduction: str) -> None:
        kernels.wing_loss(pred, target, reduction=reduction, impl="triton").sum().backward()

    with _tensors_taken_for_cuda():
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            given = pred.to(dtype)
            leaf = given.clone().requires_grad_()
            name = str(dtype).removeprefix("torch.")
            found[f"{name}: forward"] = names(partial(kernels.wing_loss, given, target, impl="triton"))
            found[f"{name}: loss_and_grad"] = names(
                partial(kernels.wing_loss_and_grad, given, target, scale=scale, impl="triton")
            )
            found[f"{name}: forward and backward"] = names(partial(both, leaf, "mean"))
            found[f"{name}: reduction none, forward and backward"] = names(partial(both, leaf, "none"))
            loss = kernels.wing_loss(leaf, target, impl="triton")
            loss.backward(retain_graph=True)
            found[f"{name}: the second backward"] = names(loss.backward)
        empty = pred[:0].requires_grad_()
        target = target[:0]
        found["empty: forward and backward"] = names(partial(both, empty, "mean"))
    return found


@recorded
def memory_that_is_read() -> dict[str, dict[str, bool]]:
    """Of each kind of input: whether the kernel reads it where it lies, and whether all pointers are aligned."""
    pred, target = _tensors()
    padded = torch.zeros(3 * 98 * 2 + 1)
    shifted = padded[1:].view(3, 98, 2)
    other = pred.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    landmark, sample = torch.rand(98, 1), torch.rand(3, 98, 1)
    weights = torch.rand(99)
    cases = {
        "contiguous": (pred, target, landmark),
        "both dense in another order": (other, other.clone(), None),
        "target in another order": (pred, other, None),
        "pred not aligned": (shifted, target, None),
        "weight not aligned": (pred, target, weights[1:].view(98, 1)),
        "weight expanded": (pred, target, landmark.expand(3, 98, 2)),
        "weight of each sample": (pred, target, sample),
        "weight of each coordinate": (pred, target, torch.rand(2)),
    }
    found = {}
    for name, given in cases.items():
        [launch] = _launches(partial(loss_launch.loss_and_gradient, WING, *given))
        pointers = [each[1] if each[0] == "tensor" else None for each in launch["arguments"][:3]]
        wanted = [None if each is None else each.data_ptr() for each in given]
        found[name] = {
            "pred": pointers[0] == wanted[0],
            "target": pointers[1] == wanted[1],
            "weight": pointers[2] == wanted[2],
            "aligned": all(pointer is None or pointer % 16 == 0 for pointer in pointers),
        }
    return found


if __name__ == "__main__":
    driver.set_active(_DRIVER)
    json.dump({function.__name__: function() for function in _RECORDED}, sys.stdout)
