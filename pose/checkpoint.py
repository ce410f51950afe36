"""Checkpoints: the published `.pth` layout in both directions, and our own training state.

Published layout: {"meta": {...}, "state_dict": {...}} with `backbone.` before torchvision's names and the linear
layer as `keypoint_head.fc.weight` and `.bias` (later releases: `head.fc`). For resnet50 that makes 320 tensors.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose.errors import InputError
from pose.files import write_atomically
from pose.landmarks import NUM_LANDMARKS
from pose.model import BACKBONES, DeepPose
from pose.weights import matching_tensors, read_weights

FORMAT = "wingbench"
VERSION = 1

HEAD = "keypoint_head.fc."
HEAD_LATER = "head.fc."  # MMPose 1.x

# (blocks per layer, bottleneck?) of each ResNet: He et al. 2016, table 1
DEPTHS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training run after `step` finished optimiser steps.

    recipe, extra: plain values (numbers, text, lists, dicts; extra may hold tensors); model: `DeepPose.state_dict()`;
    optimizer, scaler: their state dicts, None where there is none. average: the moving average of the weights, like
    `model`, where the run has one; it is what is evaluated.
    """

    recipe: dict[str, Any]
    step: int
    backbone: str
    num_landmarks: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    average: dict[str, Tensor] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def network(self, *, averaged: bool = False) -> DeepPose:
        """A new model with these weights, or with their moving average if there is one, in training mode."""
        weights = self.average if averaged and self.average is not None else self.model
        network = DeepPose(self.backbone, self.num_landmarks).to(weights["head.weight"].dtype)
        network.load_state_dict(weights)
        return network


def save_checkpoint(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write `checkpoint`; whatever goes wrong, a previous file of that name stays whole.

    Raises `InputError` when it cannot be written, TypeError for a value that `load_checkpoint` would refuse.
    """
    record = {name: _plain(value, name) for name, value in vars(checkpoint).items()}
    _write(Path(path), {"format": FORMAT, "version": VERSION, **record})


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read what `save_checkpoint` wrote, tensors on the CPU. Raises `InputError` for any other file."""
    return _checkpoint(path, read_weights(path))


def load_mmpose(path: Path | str, *, num_landmarks: int = NUM_LANDMARKS) -> DeepPose:
    """The model in a file of the published layout, in training mode; the backbone is recognised from the tensors.

    Both head spellings, `module.` prefixes, a bare state dict and files that also hold an optimizer are read. Warns
    where the file's name states another SHA-256. Raises `InputError` that names the file and the wrong keys.
    """
    return _published(path, read_weights(path), num_landmarks)


def save_mmpose(model: DeepPose, path: Path | str) -> None:
    """Write `model` in the published layout. Raises `InputError` when it cannot be written."""
    state = {_published_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    meta = {"exporter": FORMAT, "backbone": model.backbone_name, "num_landmarks": model.num_landmarks}
    _write(Path(path), {"meta": meta, "state_dict": state})


def load_model(path: Path | str) -> DeepPose:
    """The model in a training checkpoint of ours or in a file of the published layout. Raises `InputError`."""
    return load_model_and_recipe(path)[0]


def load_model_and_recipe(path: Path | str) -> tuple[DeepPose, dict[str, Any]]:
    """As `load_model`, and the recipe it was trained by; {} for the published layout, which carries none.

    Of a run with a moving average of the weights it is the average.
    """
    content = read_weights(path)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        checkpoint = _checkpoint(path, content)
        return checkpoint.network(averaged=True), checkpoint.recipe
    return _published(path, content, NUM_LANDMARKS), {}


def _checkpoint(path: Path | str, content: Any) -> Checkpoint:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a training checkpoint of {FORMAT}")
    version = content.get("version")
    if version != VERSION:
        raise InputError(f"{path} is a training checkpoint of version {version}, this is for version {VERSION}")
    optional_dict = (dict, type(None))
    kinds: dict[str, Any] = {"recipe": dict, "step": int, "backbone": str, "num_landmarks": int, "model": dict}
    kinds |= {"optimizer": optional_dict, "scaler": optional_dict, "average": optional_dict, "extra": dict}
    content = {"average": None, **content}  # which earlier files do not have
    for name, kind in kinds.items():
        if name not in content or not isinstance(content[name], kind):
            raise InputError(f"{path}: the training checkpoint has no valid {name!r}")
    if content["backbone"] not in BACKBONES or not 0 < content["num_landmarks"] <= 10_000:
        raise InputError(f"{path}: no backbone {content['backbone']!r} with {content['num_landmarks']} landmarks")
    wanted = DeepPose(content["backbone"], content["num_landmarks"]).state_dict()
    values = {name: content[name] for name in kinds}
    for name in ("model", "average"):
        if values[name] is not None:
            values[name] = matching_tensors(path, values[name], wanted)
    return Checkpoint(**values)


def _published(path: Path | str, content: Any, num_landmarks: int) -> DeepPose:
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InputError(f"{path} holds no state dict")
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        plain = name.removeprefix("module.")
        plain = HEAD + plain.removeprefix(HEAD_LATER) if plain.startswith(HEAD_LATER) else plain
        if plain in found:
            raise InputError(f"{path}: {name} is there twice, under two spellings")
        found[plain] = tensor
    model = DeepPose(_recognise(path, found), num_landmarks)
    names = {name: _published_name(name) for name in model.state_dict()}
    wanted = {names[name]: tensor for name, tensor in model.state_dict().items()}
    tensors = matching_tensors(path, found, wanted)
    model.load_state_dict({name: tensors[published] for name, published in names.items()})
    return model


def _recognise(path: Path | str, found: dict[str, Any]) -> str:
    """Name of the backbone whose tensors these are."""
    if "backbone.stage1.conv.weight" in found:
        return "tiny"
    blocks = [0, 0, 0, 0]
    bottleneck = False
    for name in found:
        if part := re.match(r"backbone\.layer([1-4])\.(\d{1,4})\.(conv3)?", name):
            blocks[int(part[1]) - 1] = max(blocks[int(part[1]) - 1], int(part[2]) + 1)
            bottleneck |= part[3] is not None
    if not any(blocks):
        raise InputError(f"{path} holds no tensors named backbone.layer1... as a published DeepPose file does")
    depth = DEPTHS.get((tuple(blocks), bottleneck))
    if depth is None:
        kind = "bottleneck" if bottleneck else "basic"
        raise InputError(f"{path}: no known ResNet has {blocks} {kind} blocks; known are {', '.join(DEPTHS.values())}")
    return depth


def _published_name(name: str) -> str:
    return HEAD + name.removeprefix("head.") if name.startswith("head.") else name


def _plain(value: Any, where: str) -> Any:
    """`value` with every dict a plain one; TypeError where it is not of the kinds that are read back."""
    if isinstance(value, dict):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{i}]") for i, item in enumerate(value))
    if isinstance(value, Tensor):
        return value.detach()
    if value is None or type(value) in (bool, int, float, str, bytes):  # exactly these: np.float64 is a float
        return value
    raise TypeError(f"{where} is a {type(value).__name__}, which a checkpoint does not hold")


def _write(path: Path, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()  # torch reports a full disk as a RuntimeError without a cause, Python's files do not
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())
