"""What a trial asks of a cluster: the facts of a system, and the wishes of an experiment."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from pose.errors import InputError
from pose.recipe import Positive, PositiveFloat, Recipe, Section, validate
from pose.yaml_layers import read_layers
from slurm.request import GpuRequest, Request

SYSTEMS = Path(__file__).resolve().parents[1] / "configs" / "systems"
MAX_REQUEUES = 30  # of one job; each has taken at least a step further

_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d\d)")


def _minutes(value: int | str) -> int:
    """Minutes of "D-HH:MM:SS", "HH:MM:SS" or "MM:SS", rounded up as Slurm does."""
    if isinstance(value, int):
        minutes = value
    else:
        match = _TIME.fullmatch(value)
        if match is None:
            raise ValueError("a time limit is minutes, or HH:MM:SS, or D-HH:MM:SS")
        days, hours, rest, seconds = (int(part or 0) for part in match.groups())
        minutes = (days * 24 + hours) * 60 + rest + (seconds > 0)
    if minutes < 1:
        raise ValueError("a time limit is at least a minute")
    return minutes


Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.,:@+/-]*$")]  # safe in a line of sbatch
Features = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\[(][A-Za-z0-9_.,:&|*()\[\]!=-]*$")]
Time = Annotated[int | str, AfterValidator(_minutes)]


class System(Section):
    """A file of `configs/systems`, or the keys of an experiment's `resources` that go before it."""

    description: str = ""
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Features | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None  # at most so many ranks on a node, a GPU each; 0: no GPUs
    ranks_per_node: Positive | None = None  # the same of trials on CPUs
    gpu_request: GpuRequest = "gpus_per_node"  # which of Slurm's options the cluster takes
    gpu_type: Word | None = None
    cpus_per_task: Positive | None = None  # of a rank
    memory_gb: PositiveFloat | None = None  # of a node
    time: Time = 60  # of a job: a trial's, or a whole block of measurements of speed
    signal_seconds: Positive = 120  # how long before the time limit a trial is told to save
    exclusive: bool = False  # nodes are not shared with other jobs
    modules: list[Word] = Field(default=[])
    setup: list[str] = Field(default=[])  # lines of shell that a job runs before its ranks start
    max_running: Positive | None = None  # trials at a time


class Resources(System):
    system: str | None = None  # name of a file of configs/systems, or a path
    nodes: Positive | None = None  # of a trial; by default as few as hold its ranks


def with_system(resources: Resources) -> Resources:
    """`resources` over the facts of the system that they name. Raises `InputError` naming its file, line and key."""
    if resources.system is None:
        return resources
    name = resources.system
    path = Path(name) if "/" in name or name.endswith((".yaml", ".yml")) else SYSTEMS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in SYSTEMS.glob("*.yaml"))
        raise InputError(f"resources.system: {path}: no such file (known by name: {', '.join(known)})")
    layers = read_layers(path)
    system = validate(System, layers.values, layers)
    wishes = {key: getattr(resources, key) for key in resources.model_fields_set}
    return Resources.model_validate({**dict(system), **wishes})


def request(recipe: Recipe, resources: Resources, *, resumable: bool) -> Request:
    """What a trial of `recipe` asks for; `resources` are complete. resumable: whether a second attempt can go on.

    Raises `InputError` where its ranks do not fit the nodes.
    """
    ranks, device = recipe.train.parallel.world_size, recipe.train.device
    on_gpu = device == "cuda" or (device == "auto" and bool(resources.gpus_per_node))
    if on_gpu and resources.gpus_per_node == 0:
        raise InputError("resources.gpus_per_node: is 0, and train.device is cuda")
    key = "gpus_per_node" if on_gpu else "ranks_per_node"
    room = getattr(resources, key)
    nodes = resources.nodes or (-(-ranks // room) if room else 1)
    if ranks % nodes:
        raise InputError(
            f"train.parallel.world_size: {ranks} ranks cannot be spread evenly over {nodes} nodes "
            f"(resources.{'nodes' if resources.nodes else key})"
        )
    if room and ranks // nodes > room:
        raise InputError(f"resources.nodes: {nodes} nodes of {room} ranks each (resources.{key}) do not hold {ranks}")
    return Request(
        nodes=nodes,
        ranks_per_node=ranks // nodes,
        gpus_per_rank=int(on_gpu),
        gpu_request=resources.gpu_request,
        gpu_type=resources.gpu_type,
        cpus_per_rank=resources.cpus_per_task,
        memory_gb=resources.memory_gb,
        minutes=_minutes(resources.time),
        signal_seconds=resources.signal_seconds,
        partition=resources.partition,
        account=resources.account,
        qos=resources.qos,
        constraint=resources.constraint,
        exclusive=resources.exclusive,
        setup=(*(f"module load {shlex.quote(module)}" for module in resources.modules), *resources.setup),
        requeue=resumable,
    )


def placement(request: Request) -> dict[str, Any]:
    """The part of a request that a timing depends on."""
    keys = ("nodes", "ranks_per_node", "gpu_type", "cpus_per_rank", "partition", "constraint")
    return {key: getattr(request, key) for key in keys}
