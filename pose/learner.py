"""One optimiser step on a batch that is there: forward, loss, backward, Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pose.average import Average
from pose.checkpoint import Checkpoint
from pose.criterion import backward
from pose.distributed import Ranks
from pose.inputs import TrainingBatch
from pose.model import DeepPose
from pose.precision import autocast, parameter_dtype
from pose.recipe import Recipe

# What auto leaves to torch is foreach on a GPU and a plain loop on a CPU
_ADAM: dict[str, dict[str, Any]] = {
    "auto": {},
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class Learner:
    """A network and what changes it. No method waits for the device.

    network: the model itself, whatever wraps it for training; average: its moving average, where the recipe wants one.
    """

    def __init__(self, recipe: Recipe, network: DeepPose, ranks: Ranks) -> None:
        config = recipe.train
        self.recipe = recipe
        self.ranks = ranks
        self.memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.dtype = parameter_dtype(config.precision)
        self.network = network.to(device=ranks.device, dtype=self.dtype, memory_format=self.memory_format)  # type: ignore[call-overload]
        if config.parallel.sync_batch_norm and ranks.world_size > 1:
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        self.network.train()
        if config.batch_norm == "frozen":
            for module in self.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        self.average = Average(self.network, config.ema) if config.ema is not None else None
        self._parallel = self._shared_out() if ranks.world_size > 1 else None
        if self._parallel is not None and not config.graph:  # a graph's own runs beforehand do the same
            self._settle(self._parallel)
        self._forward: Callable[[Tensor], Tensor] = self._parallel or self.network
        if config.compile != "off":
            self._forward = torch.compile(
                self._forward, dynamic=False, mode=None if config.compile == "default" else config.compile
            )
        # A captured step reads its learning rate where it lies
        self.rate = torch.zeros((), device=ranks.device) if config.graph else None
        self.optimizer = torch.optim.Adam(
            self.network.parameters(),
            lr=self.rate if self.rate is not None else config.lr,
            capturable=config.graph,
            **_ADAM[config.adam],
        )
        self.scaler = torch.amp.grad_scaler.GradScaler(ranks.device.type, enabled=config.precision == "fp16")
        share = -(-config.batch_size // ranks.world_size)
        self.micro_batches = -(-share // config.micro_batch) if config.micro_batch is not None else 1

    def learn(self, batch: TrainingBatch, faces: int) -> Tensor:
        """One step on this rank's share of a batch of `faces` faces in all.

        Returns this rank's part of the loss, unscaled: the parts of all ranks add up to the batch's.
        """
        config = self.recipe.train
        device, world_size = self.ranks.device, self.ranks.world_size
        pixels = batch.pixels.contiguous(memory_format=self.memory_format)
        self.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device, dtype=torch.promote_types(self.dtype, torch.float32))
        # Strided: the faces that a rank of its own would get
        parts = [slice(part, None, self.micro_batches) for part in range(min(self.micro_batches, len(pixels)))]
        for number, rows in enumerate(parts, start=1):
            share = len(range(len(pixels))[rows]) / faces
            # The ranks' gradients are averaged, so that each has to stand for all of them
            scale = self.scaler.scale(torch.full((), share * world_size, device=device, dtype=loss.dtype))
            with self._unsummed(number < len(parts)):
                with autocast(config.precision, device):
                    pred = self._forward(pixels[rows])
                loss += backward(self.recipe.loss, pred, batch.target[rows], batch.weight[rows], scale) * share
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update()
        return loss

    def set_rate(self, rate: float) -> None:
        """The learning rate of the steps to come."""
        if self.rate is not None:
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a step changes in place, as far as it exists yet."""
        yield from self.network.parameters()
        yield from self.network.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))
        if self.scaler.is_enabled():
            self.scaler.scale(torch.ones((), device=self.ranks.device))  # makes what follows
            yield from (value for value in (self.scaler._scale, self.scaler._growth_tracker) if value is not None)
        if self.average is not None:
            yield from self.average.tensors()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of a learner: the fields of `Checkpoint` that it fills."""
        return {
            "backbone": self.network.backbone_name,
            "num_landmarks": self.network.num_landmarks,
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "average": self.average.model.state_dict() if self.average is not None else None,
        }

    def resume(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint, whose model `network` is already."""
        self.optimizer.load_state_dict(saved.optimizer)  # type: ignore[arg-type]  # a training checkpoint has one
        if self.rate is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate
        if saved.scaler:
            self.scaler.load_state_dict(saved.scaler)
        if self.average is not None and saved.average is not None:
            self.average.model.load_state_dict(saved.average)

    def _shared_out(self) -> DistributedDataParallel:
        config, device = self.recipe.train.parallel, self.ranks.device
        parallel = DistributedDataParallel(
            self.network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=config.broadcast_buffers,
            bucket_cap_mb=config.bucket_mb,
            find_unused_parameters=config.find_unused_parameters,
            gradient_as_bucket_view=True,  # no copy of the gradients beside the buckets
        )
        if config.compression == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            parallel.register_comm_hook(None, bf16_compress_hook)
        return parallel

    def _settle(self, parallel: DistributedDataParallel) -> None:
        """Have DDP lay out its buckets for good, which it does after its first backward pass, on nothing.

        Where in a bucket a gradient lies decides in which order three or more ranks add it up. The first step of a run
        that goes on from a checkpoint would otherwise have other last bits than the same step of one never stopped.
        """
        shape = self.recipe.input
        before = [buffer.detach().clone() for buffer in self.network.buffers()]
        blank = torch.zeros((2, shape.channels, shape.size, shape.size), device=self.ranks.device, dtype=self.dtype)
        with autocast(self.recipe.train.precision, self.ranks.device):
            pred = parallel(blank.contiguous(memory_format=self.memory_format))
        pred.sum().backward()
        for parameter in self.network.parameters():
            parameter.grad = None
        for buffer, value in zip(self.network.buffers(), before, strict=True):
            buffer.copy_(value)

    def _unsummed(self, more_to_come: bool) -> AbstractContextManager[Any]:
        return self._parallel.no_sync() if self._parallel is not None and more_to_come else nullcontext()
