"""Learning rates as functions of the iteration, counted from 0 over the whole run."""

from __future__ import annotations

import math

WARMUP_ITERATIONS = 500
WARMUP_RATIO = 0.001
STEP_EPOCHS = (170, 200)  # epochs counted from 0
STEP_FACTOR = 0.1


def warmup_factor(iteration: int, warmup: int = WARMUP_ITERATIONS, ratio: float = WARMUP_RATIO) -> float:
    """Factor on the learning rate: from `ratio` at iteration 0 in a straight line to 1 at iteration `warmup`."""
    if iteration >= warmup:
        return 1.0
    return 1 - (1 - iteration / warmup) * (1 - ratio)


def learning_rate(iteration: int, iterations_per_epoch: int, base: float = 5e-4) -> float:
    """The published schedule: a tenth from epochs 170 and 200 on (from 0), linear warm-up over 500 iterations."""
    _check(iteration, base)
    if iterations_per_epoch < 1:
        raise ValueError(f"iterations_per_epoch is {iterations_per_epoch}; wanted 1 or more")
    epoch = iteration // iterations_per_epoch
    steps = sum(epoch >= step for step in STEP_EPOCHS)
    return base * STEP_FACTOR**steps * warmup_factor(iteration)


def cosine(iteration: int, total: int, base: float, warmup: int = 0) -> float:
    """Half a cosine from `base` at iteration `warmup` to 0 at iteration `total`, after a linear warm-up."""
    _check(iteration, base)
    if not 0 <= warmup < total:
        raise ValueError(f"warmup is {warmup} of {total} iterations; wanted 0 <= warmup < total")
    progress = min(max(iteration - warmup, 0) / (total - warmup), 1.0)
    return base * (1 + math.cos(math.pi * progress)) / 2 * warmup_factor(iteration, warmup)


def constant(iteration: int, base: float, warmup: int = 0) -> float:
    """`base`, after a linear warm-up."""
    _check(iteration, base)
    if warmup < 0:
        raise ValueError(f"warmup is {warmup}; wanted 0 or more iterations")
    return base * warmup_factor(iteration, warmup)


def scale_for_batch(base_lr: float, batch_size: int, base_batch: int, rule: str = "none") -> float:
    """Learning rate for another batch size: "none" keeps it, "linear" and "sqrt" follow batch_size / base_batch."""
    if batch_size < 1 or base_batch < 1:
        raise ValueError(f"batch sizes are {batch_size} and {base_batch}; wanted 1 or more")
    ratio = batch_size / base_batch
    factors = {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}
    if rule not in factors:
        raise ValueError(f"rule is {rule!r}; wanted one of {', '.join(factors)}")
    return base_lr * factors[rule]


def _check(iteration: int, base: float) -> None:
    if iteration < 0:
        raise ValueError(f"iteration is {iteration}; wanted 0 or more")
    if not (math.isfinite(base) and base >= 0):
        raise ValueError(f"base is {base}; wanted a finite learning rate")
