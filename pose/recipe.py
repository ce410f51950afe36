"""A recipe: everything that decides how one model is trained and evaluated, typed and checked before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pose.errors import InputError
from pose.yaml_layers import KeyPath, Layers, read_layers

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp64", "fp32", "tf32", "bf16", "fp16"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


# What an experiment's file holds beside a recipe's keys; `bench.config` says what they mean
OF_EXPERIMENTS = {
    "variants", "baseline", "seeds", "gates", "measure", "throughput", "time_to_nme", "trials", "resources",
    "parity",
}  # fmt: skip
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"  # names folders


class Section(BaseModel):
    """Strict: a key that does not exist and a value of another type are errors, never guessed at."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class WflwData(Section):
    kind: Literal["wflw"]
    root: str  # the folder that holds WFLW_images and WFLW_annotations


class MmposeData(Section):
    kind: Literal["mmpose"]
    train: str  # annotation files
    test: str
    images: str  # the folder their file names are relative to


class SyntheticData(Section):
    kind: Literal["synthetic"]
    root: str = "data/synthetic"  # a folder per set is made below it
    train: Positive = 7500
    test: Positive = 2500
    size: Annotated[int, Field(ge=64, le=1024)] = 256  # pictures' typical side in pixels
    seed: Seed = 0
    photo: Annotated[int, Field(ge=128, le=8192)] | None = None  # width of progressive JPEGs to set the pictures into


class Input(Section):
    """From pictures to batches."""

    size: Annotated[int, Field(ge=32, le=1024)] = 256  # side of the crop the model sees
    crop: Literal["exact", "opencv4"] = "opencv4"  # bilinear arithmetic; the published models used opencv4
    # memory: decode once and keep the faces' surroundings; cache: the same, decoded once for all runs, into the folder
    # `cache`; disk: decode at every use
    images: Literal["memory", "cache", "disk"] = "memory"
    cache: str = "data/cache"  # folder of crop caches; `pose.prepare` fills it ahead of a run
    workers: Count = 0  # decoding processes for images: disk
    # Where random draws, targets and crops are made. host: all but the crop by the main process; device: all on the
    # training device, nothing to wait for (images in memory or cache); workers: all in the decoding processes (disk)
    sampling: Literal["host", "device", "workers"] = "host"
    impl: Literal["auto", "triton", "reference"] = "auto"  # of sampling and crop
    pixel_bytes: Literal[3, 4] = 3  # of regions kept in memory; 4: RGB and a gap, one load per pixel
    channels: Literal[3, 4] = 3  # of the batch; 4: the last is zero, and the first convolution's weights are padded

    @model_validator(mode="after")
    def _fits_images(self) -> Input:
        if self.sampling == "device" and self.images == "disk":
            raise ValueError("sampling: device needs the pixels at hand: images must be memory or cache")
        if self.sampling == "workers" and self.images != "disk":
            raise ValueError(f"sampling: workers needs decoding processes: images must be disk, not {self.images}")
        return self


class Model(Section):
    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "tiny"] = "resnet50"
    pretrained: str | None = None  # ImageNet weights: a torchvision name (IMAGENET1K_V1) or a file
    start_at_mean_shape: bool = False  # head bias = mean training shape, not the published 0

    @model_validator(mode="after")
    def _has_weights(self) -> Model:
        if self.backbone == "tiny" and self.pretrained is not None:
            raise ValueError("there are no ImageNet weights for the backbone tiny; pretrained must be null")
        return self


class _Loss(Section):
    impl: Literal["auto", "triton", "reference"] = "auto"
    gradient: Literal["autograd", "direct"] = "autograd"  # direct: loss and gradient from one call, without autograd


class WingLoss(_Loss):
    kind: Literal["wing"]
    omega: PositiveFloat = 10.0
    epsilon: PositiveFloat = 2.0


class SoftWingLoss(_Loss):
    kind: Literal["soft_wing"]
    omega1: PositiveFloat = 2.0
    omega2: PositiveFloat = 20.0
    epsilon: PositiveFloat = 0.5


class SmoothL1Loss(_Loss):
    kind: Literal["smooth_l1"]
    beta: PositiveFloat = 1.0


class Augment(Section):
    """Random draws of the training crop; the defaults are the published ones."""

    flip: Share = 0.5
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.25
    rotation: Annotated[float, Field(ge=0, le=90)] = 30.0
    rotation_probability: Share = 0.6


class Parallel(Section):
    """Data parallelism: `train.batch_size` faces are shared out over `world_size` processes."""

    world_size: Positive = 1
    broadcast_buffers: bool = False  # running statistics from rank 0 at every forward pass; the published runs did not
    sync_batch_norm: bool = False  # statistics over all ranks' faces; GPUs only
    compression: Literal["none", "bf16"] = "none"  # of gradients on their way between ranks
    bucket_mb: PositiveFloat = 25.0  # gradients are summed in buckets of this size while the backward pass goes on
    find_unused_parameters: bool = False


class Train(Section):
    epochs: Positive | None = None  # one of epochs and steps
    steps: Positive | None = None
    batch_size: Positive = 512
    micro_batch: Positive | None = None  # faces per forward pass; gradients are averaged over the batch
    lr: PositiveFloat = 5e-4
    lr_batch_size: Positive | None = None  # the batch size that `lr` is meant for
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"  # how lr follows batch_size / lr_batch_size
    schedule: Literal["published", "cosine", "constant"] = "published"
    warmup: Count = 500  # iterations; the published schedule always has 500
    precision: Precision = "fp32"
    channels_last: bool = False
    batch_norm: Literal["batch", "frozen"] = "batch"  # frozen: normalise by the running statistics, which stay
    drop_last: bool = True  # leave out an epoch's last partial batch, as published
    adam: Literal["auto", "single", "foreach", "fused"] = "auto"  # how Adam walks over the weights; auto: torch decides
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None  # decay of a moving average of the weights, then evaluated
    compile: Literal["off", "default", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune"] = "off"
    graph: bool = False  # the whole step, input included, as one CUDA graph
    cudnn_benchmark: bool = False  # let cuDNN time its algorithms; two runs may then differ in their bits
    parallel: Parallel = Parallel()
    augment: Augment = Augment()
    log_every: Positive = 20  # steps between looks at the loss; on a GPU each waits for the device
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None  # of torch on the CPU; None: torch decides
    checkpoint_every: Positive | None = None  # steps; None: once an epoch
    evaluate_every: Positive | None = None  # epochs between evaluations on the test set that pick `best.pt`

    @model_validator(mode="after")
    def _fits_together(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("one of 'epochs' and 'steps' is wanted, the other null")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of micro_batch {self.micro_batch}")
        if self.lr_scaling != "none" and self.lr_batch_size is None:
            raise ValueError(f"lr_scaling {self.lr_scaling!r} needs lr_batch_size, the batch size that lr is meant for")
        if self.schedule == "published" and self.warmup != 500:
            raise ValueError("the published schedule has a warm-up of 500 iterations; choose another schedule")
        if self.parallel.world_size > self.batch_size:
            raise ValueError(f"{self.parallel.world_size} ranks cannot share a batch of {self.batch_size} faces")
        if self.graph:
            self._can_be_captured()
        return self

    def _can_be_captured(self) -> None:
        if self.device == "cpu":
            raise ValueError("graph: a CUDA graph needs a GPU, and device is cpu")
        if self.precision == "fp16" and self.adam != "fused":
            raise ValueError(
                f"graph: with fp16, Adam must not read the loss scaler's flag on the host; adam must be fused, "
                f"not {self.adam}"
            )
        if self.compile in ("reduce-overhead", "max-autotune"):
            raise ValueError(f"graph: compile: {self.compile} captures CUDA graphs of its own; choose another mode")
        if self.parallel.find_unused_parameters:
            raise ValueError("graph: which parameters are unused is found on the host; find_unused_parameters is true")
        if not self.drop_last:
            raise ValueError("graph: a partial batch has other shapes than the captured ones; drop_last is false")


class Evaluate(Section):
    batch_size: Positive = 64
    flip_test: bool = True  # mean of the crop's prediction and its mirror image's
    flip_shift: Annotated[float, Field(ge=-1, le=1)] = 0.0  # crop pixels; 0 as published, 1 as MMPose 1.x
    precision: Precision = "fp32"


Data = Annotated[WflwData | MmposeData | SyntheticData, Field(discriminator="kind")]
Loss = Annotated[WingLoss | SoftWingLoss | SmoothL1Loss, Field(discriminator="kind")]


class Recipe(Section):
    name: Annotated[str, Field(pattern=NAME)]
    description: str = ""
    data: Data
    input: Input = Input()
    model: Model = Model()
    loss: Loss
    train: Train
    evaluate: Evaluate = Evaluate()

    @model_validator(mode="after")
    def _leaves_batch_norm_something(self) -> Recipe:
        if (self.train.micro_batch or self.train.batch_size) == 1 and self.input.size <= 32:
            raise ValueError("one face at a time at 32 px leaves BatchNorm one value per channel: enlarge either")
        return self

    @model_validator(mode="after")
    def _graph_includes_the_input(self) -> Recipe:
        if self.train.graph and self.input.sampling != "device":
            raise ValueError(
                f"train.graph: the captured step makes its own batch; input.sampling must be device, "
                f"not {self.input.sampling}"
            )
        return self


def load_recipe(path: Path | str, settings: Sequence[str] = ()) -> Recipe:
    """Read a recipe from YAML, with `settings` ("key.path=value") over it.

    Raises `InputError` naming the file, line and key of everything that is wrong.
    """
    layers = read_layers(path, settings)
    extra = sorted(OF_EXPERIMENTS & layers.values.keys())
    if extra:
        raise InputError(
            f"{layers.origin((extra[0],))}: {extra[0]}: this is an experiment; run it with python -m bench.run"
        )
    return validate(Recipe, layers.values, layers)


def refuse_few_faces(recipe: Recipe, train: int, test: int | None = None) -> None:
    """Raise `InputError` where the recipe's ranks or batches are too large for so many training and test faces."""
    config, ranks = recipe.train, recipe.train.parallel.world_size
    for split, faces in (("training", train), ("test", test)):
        if faces is not None and ranks > faces:
            raise InputError(f"train.parallel.world_size: {ranks} ranks for {faces} {split} faces")
    if config.batch_size > train:
        raise InputError(f"train.batch_size: {config.batch_size} is more than the {train} training faces")
    if not config.drop_last and 0 < (rest := train % config.batch_size) < ranks:
        raise InputError(f"train.drop_last: an epoch's last batch has {rest} faces for {ranks} ranks; set it to true")


def prediction_input(trained_by: Mapping[str, Any], size: int | None, crop: str | None) -> Input:
    """How to crop for a model whose checkpoint carries the recipe `trained_by` ({} for a published one).

    size, crop: the command line's, which go first; then the recipe's, then the published 256 px and opencv4.
    """
    trained = trained_by.get("input")
    trained = trained if isinstance(trained, dict) else {}
    values = {
        "size": size if size is not None else trained.get("size", 256),
        "crop": crop if crop is not None else trained.get("crop", "opencv4"),
    }
    return validate(Input, values, Layers(source="the checkpoint's recipe" if size is None else "--size"))


S = TypeVar("S", bound=Section)


def validate(kind: type[S], values: dict[str, Any], layers: Layers, under: KeyPath = ()) -> S:
    """`values` as a `kind`; what is wrong is one `InputError` that names where in `layers` it was set.

    `under` is the key path that laid the last values over (a variant's), tried first when naming a place.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        sentences = list(dict.fromkeys(_sentence(kind, values, e, layers, under) for e in error.errors()))
        raise InputError("\n  ".join(sentences)) from None


def _sentence(kind: type[Section], values: Any, error: Any, layers: Layers, under: KeyPath) -> str:
    path = wrong = _without_tags(error["loc"], values)
    if error["type"] == "extra_forbidden":
        value = error["input"]
        if isinstance(value, dict) and value:
            wrong = (*path, next(iter(value)))
        nearest = difflib.get_close_matches(path[-1], _keys_at(kind, path[:-1], values), n=1, cutoff=0.5)
        hint = f"; did you mean {'.'.join((*path[:-1], nearest[0]))}?" if nearest else ""
        message = f"{'.'.join(wrong)}: no such key{hint}{_allowed(_keys_at(kind, path[:-1], values))}"
    elif error["type"] == "missing":
        message = f"{'.'.join(path)}: is missing"
    elif error["type"] in ("literal_error", "union_tag_invalid"):
        context = error["ctx"]
        path = wrong = (*path, "kind") if error["type"] == "union_tag_invalid" else path
        given = context.get("tag", error["input"])
        expected = str(context.get("expected_tags") or context["expected"]).replace(" or ", ", ")
        choices = [choice.strip(" '") for choice in expected.split(",")]
        nearest = difflib.get_close_matches(str(given), choices, n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        message = f"{'.'.join(path)}: {given!r} is none of {', '.join(choices)}{hint}"
    elif error["type"] == "union_tag_not_found":
        message = f"{'.'.join((*path, 'kind'))}: is missing"
    elif error["type"] in ("model_type", "dict_type"):
        message = f"{'.'.join(path)}: a mapping of keys to values is wanted (given: {error['input']!r})"
    else:
        text = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        given = "" if isinstance(error["input"], dict | Section) else f" (given: {error['input']!r})"
        message = f"{'.'.join(path)}{': ' if path else ''}{text[0].lower()}{text[1:]}{given}"
    place = layers.origins.get((*under, *wrong)) if under else None
    if place is not None:
        return f"{place}: {'.'.join(under)}.{message}"
    return f"{layers.origin(wrong)}: {message}"


def _without_tags(location: Iterable[int | str], values: Any) -> KeyPath:
    """Pydantic names the member of a union inside the location; the user's file has no such level."""
    path: list[str] = []
    for part in location:
        if isinstance(values, dict) and values.get("kind") == part and part not in values:
            continue
        path.append(str(part))
        values = values.get(part) if isinstance(values, dict) else None
    return tuple(path)


def _keys_at(kind: type[Section], path: KeyPath, values: Any) -> list[str]:
    """The keys that the mapping at `path` may hold."""
    section: Any = kind
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
        annotation = section.model_fields[part].annotation
        members = [m for m in getattr(annotation, "__args__", (annotation,)) if hasattr(m, "model_fields")]
        tag = values.get("kind") if isinstance(values, dict) else None
        matching = [
            m for m in members if "kind" in m.model_fields and tag in m.model_fields["kind"].annotation.__args__
        ]
        if not (matching or members):
            return []
        section = (matching or members)[0]
    return list(section.model_fields)


def _allowed(keys: list[str]) -> str:
    return f" (allowed: {', '.join(keys)})" if keys else ""
