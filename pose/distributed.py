"""The processes that train one model together: who is who, and what they tell each other."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pose.errors import InputError
from pose.precision import select_device

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together. One process alone is rank 0 of 1, and talks to nobody.

    Every method but `shard` is a collective: all ranks call it in the same order, or none comes back.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = _CPU

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Which of `count` things are this rank's; every thing is some rank's, and no thing is two ranks'."""
        return slice(self.rank, count, self.world_size)

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank. Waits for the device."""
        if self.world_size == 1:
            return flag
        return bool(self.sum_(torch.tensor(float(flag), device=self.device)).item())

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main rank runs the block, then all others do: they find made what it makes, and fail as it fails."""
        if not self.main:
            self.any(False)
        try:
            yield
        finally:
            if self.main:
                self.any(False)

    def from_main_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite `tensors` with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def collect(self, rows: Tensor, count: int) -> Tensor:
        """Put shards together: the (count, ...) rows whose `shard(count)` is `rows` on each rank."""
        if self.world_size == 1:
            return rows
        longest = -(-count // self.world_size)
        padded = torch.zeros((longest, *rows.shape[1:]), dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        shards = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(shards, padded)
        return torch.stack(shards, dim=1).flatten(0, 1)[:count].to(rows.device)  # what is past `count` is padding


ALONE = Ranks()


def launched() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) that the launcher gave this process; (0, 1, 0) without one.

    The variables are torchrun's. Raises `InputError` for values that are no such numbers.
    """
    numbers = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", os.environ.get("RANK", "0"))):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise InputError(f"{name}={value!r} in the environment: a launcher sets it to a number")
        numbers.append(int(value))
    rank, world_size, local_rank = numbers
    if rank >= world_size:
        raise InputError(f"RANK={rank} and WORLD_SIZE={world_size} in the environment: ranks count from 0")
    return rank, world_size, local_rank


@contextmanager
def joined(world_size: int, device: str, *, captured: bool = False) -> Iterator[Ranks]:
    """Join the processes that the launcher started, `world_size` in all, for the length of the block.

    device: "auto", "cpu" or "cuda"; with several GPUs each rank of a machine has its own. NCCL on GPUs, gloo on CPUs.
    captured: whether a CUDA graph will hold NCCL's work, whose errors then cannot be looked for while it runs
    (https://docs.pytorch.org/docs/2.11/notes/cuda.html, "usage with DistributedDataParallel").
    Raises `InputError` if the launcher started another number, or this rank has no GPU.
    """
    rank, started, local_rank = launched()
    if started != world_size:
        way_out = (
            f"start them with torchrun --nproc-per-node {world_size} -m pose.train, or run an experiment with bench.run"
            if started == 1
            else "make the two equal"
        )
        raise InputError(
            f"train.parallel.world_size: {world_size} processes are to train together, the launcher started "
            f"{started}: {way_out}"
        )
    place = select_device(device)
    if world_size == 1:
        yield Ranks(device=torch.device("cuda", torch.cuda.current_device()) if place.type == "cuda" else place)
        return
    if place.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise InputError(
                f"train.parallel.world_size: rank {rank} is number {local_rank} on this machine, which has "
                f"{torch.cuda.device_count()} GPUs"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    on_gpu = place.type == "cuda"
    if captured:
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=place if on_gpu else None)
    yield Ranks(rank, world_size, place)
    # After an error there is no farewell: it could wait for ranks that will never come
    dist.destroy_process_group()
    gc.collect()  # what still holds gloo's threads must not meet them in the process's last moments: they abort it
