"""Parity below the NME, measured: one variant beside what it is compared with, without training either to the end.

op          loss and gradient against float64, by dtype and number of faces
trajectory  both trained for some steps from the same weights on the same faces; and, as a yardstick, the reference
            beside itself with one weight moved by one unit in the last place: what "the same" can mean
evaluation  the same trained weights through both ways from picture to points (crop, precision, flip test, decode); and,
            as a yardstick, the reference's way with every weight moved by one unit in the last place of its precision

What the figures mean is said by `bench.level_verdicts`.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.result import LevelsResult, OpError, PredictionDifference, Trajectory
from pose.distributed import Ranks
from pose.model import DeepPose
from pose.recipe import Precision, Recipe

if TYPE_CHECKING:
    from pose.data.faces import Faces
    from pose.evaluator import Evaluation

OP_PRECISIONS: tuple[Precision, ...] = ("fp64", "fp32", "bf16", "fp16")
OP_FACES = (1, 16, 256)
PRECISIONS: tuple[Precision, ...] = ("fp64", "fp32", "tf32", "fp16", "bf16")  # from fine to coarse
ULP = {"fp64": 2.0**-52, "fp32": 2.0**-23, "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}  # of 1

OnPhase = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Steps:
    """A training's first steps: the weights it began with, and after each step its loss and its weights.

    Weights are copies on the CPU; 20 steps of a ResNet-50 are 2 GB of them.
    """

    start: list[Tensor]
    losses: list[float]
    weights: list[list[Tensor]]


def coarser(*precisions: Precision) -> Precision:
    """That of `precisions` which rounds most."""
    return max(precisions, key=PRECISIONS.index)


def measure_levels(
    recipe: Recipe, spec: dict[str, Any], folder: Path, ranks: Ranks, on_phase: OnPhase = lambda phase, done, of: None
) -> LevelsResult | None:
    """Measure a trial as its `spec` says, on all ranks; the result on the main rank, None on the others."""
    begun, started = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    from bench.environment import environment
    from pose.checkpoint import load_model
    from pose.data.source import load_split
    from pose.trainer import LAST

    reference, steps, seed = Recipe.model_validate(spec["reference"]), spec["steps"], spec["seed"]
    on_phase("op errors", 0, 1)
    tables = [op_errors(one, ranks.device) for one in (recipe, reference)]
    train_faces, test_faces = load_split(recipe.data, "train"), load_split(recipe.data, "test")

    trajectory = twin = None
    arms = [_ranks_for(one, ranks) for one in (reference, recipe)]
    if arms[0] is not None and arms[1] is not None:
        on_phase("trajectory", 0, 3)
        base = _run_on(arms[0], ranks, lambda arm: run_steps(reference, train_faces, seed, arm, steps))
        on_phase("trajectory", 1, 3)
        other = _run_on(arms[1], ranks, lambda arm: run_steps(recipe, train_faces, seed, arm, steps))
        on_phase("trajectory", 2, 3)
        moved = _run_on(arms[0], ranks, lambda arm: run_steps(reference, train_faces, seed, arm, steps, move_one_ulp))
        if base is not None and other is not None and moved is not None:
            trajectory, twin = distance(base, other), distance(base, moved)

    weights = folder.parent / spec["weights"] / LAST
    model = load_model(weights)
    on_phase("evaluation", 0, 3)
    theirs = evaluated(reference, test_faces, model, ranks)
    on_phase("evaluation", 1, 3)
    ours = evaluated(recipe, test_faces, model, ranks)
    on_phase("evaluation", 2, 3)
    rounding = coarser(recipe.evaluate.precision, reference.evaluate.precision)
    near = evaluated(reference, test_faces, move_all_ulp(model, ULP[rounding]), ranks)
    if not ranks.main:
        return None
    return LevelsResult(
        trial=spec["id"],
        experiment=spec["experiment"],
        variant=spec["variant"],
        seed=seed,
        config=spec["recipe"],
        reference=spec["reference"],
        environment=environment(),
        op_errors=tables[0],
        reference_op_errors=tables[1],
        trajectory=trajectory,
        twin=twin,
        precision=coarser(recipe.train.precision, reference.train.precision),
        evaluation=prediction_difference(theirs, ours, reference.input.size),
        yardstick=prediction_difference(theirs, near, reference.input.size),
        weights=spec["weights"],
        started=started,
        seconds=time.perf_counter() - begun,
    )


def op_errors(recipe: Recipe, device: torch.device) -> list[OpError]:
    """The errors of the recipe's loss in every dtype, the recipe's own first, and for every number of faces."""
    from bench.op_error import op_error

    precisions = dict.fromkeys([recipe.train.precision, *OP_PRECISIONS])
    found: dict[tuple[str, int], OpError] = {}
    for precision in precisions:
        for faces in OP_FACES:
            error = op_error(recipe.loss, precision, device, seed=faces, faces=faces)
            found.setdefault((error.dtype, error.elements), error)  # tf32 is float32 outside of products
    return list(found.values())


def run_steps(
    recipe: Recipe,
    faces: Faces,
    seed: int,
    ranks: Ranks,
    steps: int,
    change: Callable[[DeepPose], None] = lambda network: None,
) -> Steps:
    """Train for `steps` steps, after `change` to the initial weights, as a whole run of the recipe would begin."""
    from pose.stepper import Stepper, total_steps

    steps = min(steps, total_steps(recipe.train, len(faces)))
    stepper = Stepper(recipe, faces, seed=seed, ranks=ranks, last=steps, say=lambda text: None)

    def weights() -> list[Tensor]:
        return [parameter.detach().to("cpu", copy=True) for parameter in stepper.network.parameters()]

    with closing(stepper), stepper.settings():
        change(stepper.network)
        start = weights()
        losses, after = [], []
        for step in range(steps):
            loss = stepper.run(step).detach().clone().double()
            losses.append(float(ranks.sum_(loss)))
            after.append(weights())
    return Steps(start, losses, after)


def move_one_ulp(network: DeepPose) -> None:
    """Move the first weight that is not 0 to the next number above it."""
    weight = next(network.parameters())
    with torch.no_grad():
        flat = weight.view(-1)
        place = int(flat.nonzero()[0])
        flat[place] = torch.nextafter(flat[place], torch.full_like(flat[place], math.inf))


def move_all_ulp(model: DeepPose, ulp: float) -> DeepPose:
    """A copy with every weight moved up or down, as a seeded coin says, by so much of itself."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in moved.parameters():
            side = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + ulp * side.to(parameter))
    return moved


def distance(reference: Steps, other: Steps) -> Trajectory | None:
    """How far `other` is from `reference`, step by step; None where their weights have other shapes."""
    if [w.shape for w in reference.start] != [w.shape for w in other.start]:
        return None
    loss: list[float | None] = []
    update: list[float | None] = []
    length: list[float | None] = []
    for place, (before, after) in enumerate(zip(reference.weights, other.weights, strict=False)):
        gone = _distance(before, reference.start)
        loss.append(_quotient(abs(other.losses[place] - reference.losses[place]), abs(reference.losses[place])))
        update.append(_quotient(_distance(after, before), gone))
        length.append(_quotient(_distance(after, reference.start), gone) - 1)
    return Trajectory(loss=loss, update=update, length=length, growth=_growth(update))


def evaluated(recipe: Recipe, faces: Faces, model: DeepPose, ranks: Ranks) -> Evaluation:
    """What the recipe's way from picture to points makes of `faces` with the weights of `model`."""
    from pose.evaluator import Evaluator
    from pose.precision import parameter_dtype

    placed = copy.deepcopy(model).to(ranks.device, parameter_dtype(recipe.evaluate.precision)).eval()
    return Evaluator(faces, recipe.input, recipe.evaluate, ranks).evaluate(placed, shown=False)


def prediction_difference(reference: Evaluation, other: Evaluation, size: int) -> PredictionDifference:
    """Distances between the points of two evaluations of the same faces, in pixels of a crop of side `size`."""
    import numpy as np

    from pose.geometry import PADDING

    scale = size / (reference.faces.side * PADDING)
    pixels = np.linalg.norm(other.points - reference.points, axis=-1) * scale[:, None]
    return PredictionDifference(
        faces=len(pixels),
        largest=float(pixels.max()),
        mean=float(pixels.mean()),
        nme=float(other.nme.mean() - reference.nme.mean()),
    )


def _ranks_for(recipe: Recipe, ranks: Ranks) -> Ranks | None:
    """The ranks that train `recipe` here: all of them, or the main one alone; None where neither is what it wants."""
    wanted = recipe.train.parallel.world_size
    if wanted == ranks.world_size:
        return ranks
    return Ranks(device=ranks.device) if wanted == 1 else None


def _run_on(arm: Ranks, ranks: Ranks, work: Callable[[Ranks], Steps]) -> Steps | None:
    """`work` on the ranks of `arm`; those it leaves out wait."""
    done = work(arm) if arm is ranks or ranks.main else None
    ranks.any(False)
    return done


def _distance(weights: list[Tensor], others: list[Tensor]) -> float:
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(weights, others, strict=True)))


def _quotient(part: float, whole: float) -> float:
    return part / whole if whole else 0.0 if part == 0 else math.nan


def _growth(values: Sequence[float | None]) -> float | None:
    """The factor per step of the exponential closest to `values`, on a logarithmic scale."""
    import numpy as np

    numbers = [value for value in values if value is not None and math.isfinite(value) and value > 0]
    if len(numbers) < max(len(values), 2):
        return None
    return float(math.exp(np.polyfit(np.arange(len(numbers)), np.log(numbers), 1)[0]))
