"""DeepPose: a convolutional backbone, global average pooling and one linear layer to the landmarks."""

from __future__ import annotations

import difflib
import itertools
from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pose.errors import InputError
from pose.landmarks import FLIP_INDEX, NUM_LANDMARKS
from pose.weights import matching_tensors, read_weights

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
BACKBONES = ("tiny", *RESNETS)
TINY_CHANNELS = (16, 32, 64, 128, 128)

Array = TypeVar("Array", np.ndarray, Tensor)


class DeepPose(nn.Module):
    """(N, 3, S, S) normalised RGB crops -> (N, num_landmarks, 2), x and y as fractions of the crop's side.

    Crops may have a fourth channel of zeros, (N, 4, S, S), which makes pixels words in memory and changes nothing else.
    `backbone` is one of `BACKBONES`, otherwise ValueError. The parameters are those of `initialise(self, seed)`,
    whatever the state of the global random numbers. The output has the dtype of the linear layer: float32, or
    autocast's under autocast.
    """

    def __init__(self, backbone: str = "resnet50", num_landmarks: int = NUM_LANDMARKS, *, seed: int = 0) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"unknown backbone {backbone!r}: {_nearest(backbone, BACKBONES)}")
        if num_landmarks < 1:
            raise ValueError(f"num_landmarks is {num_landmarks}, wanted at least 1")
        self.backbone_name = backbone
        self.num_landmarks = num_landmarks
        with torch.device("meta"):  # nothing is drawn twice, and the global random numbers stay as they are
            self.backbone, self.num_features = _build(backbone)
            self.head = nn.Linear(self.num_features, 2 * num_landmarks)
        self.to_empty(device="cpu")
        initialise(self, seed)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.backbone(pixels)
        points: Tensor = self.head(features.mean(dim=(2, 3)))
        return points.unflatten(1, (self.num_landmarks, 2))


def initialise(model: DeepPose, seed: int | torch.Generator) -> None:
    """Set every parameter and buffer to the published starting point, drawn from `seed` alone.

    Convolutions: Kaiming normal of the fan-out for ReLU; batch norms: weight 1, but 0 for the last one of each
    residual block; linear layer: N(0, 0.01^2), bias 0. (He et al. 2015; Goyal et al. 2017, 5.1.)
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                weight = torch.empty(module.weight.shape)  # drawn on the CPU: the same bits on every device
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
                module.weight.copy_(weight)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        for module in model.modules():
            if hasattr(module, "downsample"):  # a residual block: it starts as the identity
                last = module.bn3 if hasattr(module, "bn3") else module.bn2
                assert isinstance(last, nn.BatchNorm2d)
                last.weight.zero_()
        model.head.weight.copy_(torch.empty(model.head.weight.shape).normal_(0.0, 0.01, generator=generator))
        model.head.bias.zero_()


def start_at(model: DeepPose, mean_shape: np.ndarray | Tensor) -> None:
    """Let the untrained head predict `mean_shape`, (num_landmarks, 2) fractions; the published recipe does not."""
    shape = torch.as_tensor(mean_shape)
    if shape.shape != (model.num_landmarks, 2) or not bool(shape.isfinite().all()):
        raise ValueError(f"mean_shape is {tuple(shape.shape)}, wanted ({model.num_landmarks}, 2) finite fractions")
    with torch.no_grad():
        model.head.bias.copy_(shape.flatten())


def load_imagenet(model: DeepPose, source: str | Path) -> None:
    """Give the backbone ImageNet weights; the head stays as it is.

    `source` is the name of torchvision weights ("IMAGENET1K_V1", downloaded once) or a file with torchvision's
    state dict, whose `fc` is ignored. Raises `InputError` where they cannot be had or are of another network.
    """
    if model.backbone_name not in RESNETS:
        raise InputError(f"there are no ImageNet weights for the backbone {model.backbone_name!r}")
    if Path(source).suffix or Path(source).name != str(source):
        found, origin = read_weights(source), str(source)
    else:
        found, origin = _download(model.backbone_name, str(source)), f"{model.backbone_name} {source}"
    if not isinstance(found, dict):
        raise InputError(f"{origin} holds a {type(found).__name__}, wanted a state dict")
    found = {name: tensor for name, tensor in found.items() if not str(name).startswith("fc.")}
    model.backbone.load_state_dict(matching_tensors(origin, found, model.backbone.state_dict()))


def decode(output: Array, center: Any, side: Any) -> Array:
    """Points in image pixels: center + side (output - 0.5).

    output: (..., K, 2) fractions of the crop; center: (..., 2) image pixels; side: (...) image pixels, *padded*,
    the side of the square that was cropped. Arrays give an array, tensors a tensor on the same device, float64
    unless all three are narrower tensors. The rotation of a crop is not undone, nothing is clipped.
    """
    if isinstance(output, Tensor):
        center, side = (
            x.to(output.device) if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64).to(output.device)
            for x in (center, side)
        )
    else:
        output, center, side = (np.asarray(x, dtype=np.float64) for x in (output, center, side))
    if output.ndim < 2 or center.shape != (*output.shape[:-2], 2) or side.shape != output.shape[:-2]:
        given = ", ".join(str(tuple(x.shape)) for x in (output, center, side))
        raise ValueError(f"output, center, side have shapes {given}, wanted (..., K, 2), (..., 2), (...)")
    return center[..., None, :] + side[..., None, None] * (output - 0.5)


def flip_back(output: Array, shift: float = 0.0) -> Array:
    """What the model says of a mirrored crop, (..., 98, 2) fractions, in terms of the crop itself.

    Points are renamed by `FLIP_INDEX` and x becomes 1 - x - shift. The published evaluation has no shift; MMPose 1.x
    shifts by 1 / size.
    """
    if output.ndim < 2 or tuple(output.shape[-2:]) != (NUM_LANDMARKS, 2):
        raise ValueError(f"output has shape {tuple(output.shape)}, wanted (..., {NUM_LANDMARKS}, 2)")
    renamed = output[..., FLIP_INDEX, :]  # a copy
    renamed[..., 0] = 1.0 - renamed[..., 0] - shift
    return renamed


def _build(backbone: str) -> tuple[nn.Sequential, int]:
    """The layers before the pooling, children named as torchvision names them, and their number of channels."""
    if backbone == "tiny":
        widths = (3, *TINY_CHANNELS)
        stages = [_tiny_stage(*pair) for pair in itertools.pairwise(widths)]
        return nn.Sequential(OrderedDict((f"stage{i}", stage) for i, stage in enumerate(stages, 1))), widths[-1]
    from torchvision.models import get_model  # a second to import, and only networks with a ResNet need it

    network = get_model(backbone, weights=None)
    layers = OrderedDict((name, child) for name, child in network.named_children() if name not in ("avgpool", "fc"))
    layers["conv1"] = _FirstConvolution(3, network.conv1.out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(layers), network.fc.in_features


class _FirstConvolution(nn.Conv2d):
    """Reads batches of more channels than it has weights for: the rest are zeros, and so are the weights they meet."""

    def forward(self, pixels: Tensor) -> Tensor:
        more = pixels.shape[1] - self.in_channels
        weight = nn.functional.pad(self.weight, (0, 0, 0, 0, 0, more)) if more else self.weight
        return self._conv_forward(pixels, weight, self.bias)


def _tiny_stage(inputs: int, outputs: int) -> nn.Sequential:
    kind = _FirstConvolution if inputs == 3 else nn.Conv2d
    convolution = kind(inputs, outputs, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=convolution, bn=nn.BatchNorm2d(outputs), relu=nn.ReLU(inplace=True)))


def _download(backbone: str, name: str) -> Any:
    from torchvision.models import get_model_weights

    known = get_model_weights(backbone)
    if name not in known.__members__:
        choice = _nearest(name, tuple(known.__members__))
        raise InputError(f"no ImageNet weights {name!r} for {backbone}, nor a file of that name: {choice}")
    try:
        return known[name].get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except Exception as error:  # no network, a proxy, a full disk, a wrong hash: the way out is the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            f"cannot get the ImageNet weights {name} of {backbone} ({reason}): "
            f"download {known[name].url} elsewhere and give the local file instead of the name"
        ) from None


def _nearest(name: str, valid: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, valid, 1)
    return f"{f'did you mean {close[0]!r}? ' if close else ''}valid are {', '.join(valid)}"
