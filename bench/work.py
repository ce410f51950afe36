"""What a training step has to do for one image: arithmetic and memory traffic, counted on a network without memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pose.model import DeepPose

_COUNTED = 2  # images: a batch norm of one value per channel would refuse to train


def flops_per_image(backbone: str, size: int) -> int:
    """Floating-point operations of one image's forward and backward pass, a multiplication and an addition being two.

    ResNet-50 at 256 px: 31.7e9; its first convolution needs no gradient of its input.
    """
    network, pixels = _on_meta(backbone, size)
    with FlopCounterMode(display=False) as counter:
        network(pixels).sum().backward()
    return counter.get_total_flops() // _COUNTED


def bytes_per_image(backbone: str, size: int, element_size: int) -> int:
    """Bytes of activations that one image's forward and backward pass moves through the GPU's memory.

    element_size: of an activation, 2 under 16-bit autocast. The count is that of kernels which join what torch.compile
    joins (normalising, ReLU and addition in one pass; ReLU's gradient within the batch norm's) and of batches so large
    that weights do not count. In elements, for inputs I and outputs E of a layer:

        convolution   3 (I + E)   output from input; gradient of the weights, gradient of the input
                                  (the first one's input needs none: 2 (I + E))
        batch norm    8 E         statistics 1; normalising 2; gradient: its two sums read 2, applying them moves 3
        ReLU          2 E         the gradient's two passes look at the sign of the output
        block         4 E         the shortcut is read; the gradients of its two ways are read and their sum written

    Pooling, the head, the loss, making the batch and the optimizer are left out: 2 % at 256 faces a step. ResNet-50 at
    256 px in bf16: 508e6 bytes, of which one pass over the outputs of its convolutions is 29e6.
    """
    network, pixels = _on_meta(backbone, size)
    moved = 0
    first = True

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal moved, first
        if isinstance(module, nn.Conv2d):
            moved += (2 if first else 3) * (inputs[0].numel() + output.numel())
            first = False
        elif isinstance(module, nn.BatchNorm2d):
            moved += 8 * output.numel()
        elif isinstance(module, nn.ReLU):
            moved += 2 * output.numel()
        elif hasattr(module, "downsample"):  # a residual block
            moved += 4 * output.numel()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    network(pixels)
    for hook in hooks:
        hook.remove()
    return moved * element_size // _COUNTED


def _on_meta(backbone: str, size: int) -> tuple[DeepPose, Any]:
    network = DeepPose(backbone).to("meta").train()
    return network, torch.empty(_COUNTED, 3, size, size, device="meta")
