"""One of two processes that train together on the CPU: `two_processes.py STORE RANK`. Prints what it finds.

The loss is fused: Triton's interpreter has to be on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import kernels
from slurm.leave import leave

RTOL, ATOL = 1e-5, 1e-6  # sums in another order


def main() -> None:
    store, rank = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.manual_seed(0)
    pred, target = 10 * torch.randn(4, 5, 2), torch.rand(4, 5, 2)
    data_parallel(pred, target, rank)
    tensor_parallel("DTensor", pred, target, lambda function: function)
    tensor_parallel("DTensor, compiled", pred, target, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    dist.destroy_process_group()


def data_parallel(inputs: Tensor, target: Tensor, rank: int) -> None:
    model = nn.Linear(2, 2)
    kernels.wing_loss(model(inputs), target, impl="reference").backward()
    wanted = [gradient.clone() for gradient in gradients_of(model)]
    model.zero_grad()
    mine = slice(2 * rank, 2 * rank + 2)
    parallel = DistributedDataParallel(model)
    for _ in range(2):  # the second time into gradients that exist
        model.zero_grad(set_to_none=False)
        kernels.wing_loss(parallel(inputs[mine]), target[mine], impl="triton").backward()
    found = gradients_of(model)
    say("DDP: the gradient is the single process's", len(found) == 2 and all(map(same, found, wanted)))
    gathered = [torch.empty_like(found[0]) for _ in range(2)]
    dist.all_gather(gathered, found[0])
    say("DDP: the ranks agree", torch.equal(*gathered))


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def tensor_parallel(name: str, pred: Tensor, target: Tensor, wrap: Callable[..., Callable[..., Tensor]]) -> None:
    mesh = init_device_mesh("cpu", (2,))
    given = distribute_tensor(pred, mesh, [Shard(0)]).requires_grad_()
    against = distribute_tensor(target, mesh, [Shard(0)])
    loss = wrap(lambda p, t: kernels.wing_loss(p, t, impl="triton"))(given, against)
    loss.backward()
    wanted, gradient = kernels.wing_loss_and_grad(pred, target, impl="reference")
    right = same(whole(loss), wanted) and same(whole(given.grad), gradient)
    say(f"{name}: loss and gradient are the whole tensor's", right)


def whole(tensor: Tensor | None) -> Tensor:
    assert isinstance(tensor, DTensor)
    return tensor.full_tensor()


def same(found: Tensor, wanted: Tensor) -> bool:
    return torch.allclose(found, wanted, rtol=RTOL, atol=ATOL)


def say(what: str, is_so: bool) -> None:
    print(f"{what}: {'yes' if is_so else 'no'}", flush=True)


if __name__ == "__main__":
    main()
    leave(0)
