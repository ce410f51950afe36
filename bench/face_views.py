"""The second view on parity: two trained models as they are, and their test faces drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.experiment import Experiment, read_faces
from bench.interval import Interval
from bench.nme_verdicts import experiment_rule
from bench.result import SUBSETS
from pose.errors import InputError

RESAMPLES = 10_000


@dataclass(frozen=True)
class FaceView:
    """The second view on a pair: its models as they are, faces drawn anew. NME x 100, variant less reference."""

    variant: str
    reference: str
    subset: str
    faces: int
    interval: Interval  # 90 %, of the mean over faces
    better: float  # share of faces on which the variant is nearer


def face_views(experiment: Experiment, resamples: int = RESAMPLES) -> tuple[list[FaceView], list[str]]:
    """Paired bootstrap over the test faces, each face's difference being the mean over the seeds that both have.

    It says how much the choice of test faces matters, and nothing about other seeds. Also returns what could not be
    read, a sentence each.
    """
    views, problems = [], []
    rule = experiment_rule(experiment)
    rng = np.random.default_rng(0)
    for variant, reference in rule.compared.items():
        new = {trial.result.seed: trial for trial in experiment.of_variant(variant)}
        old = {trial.result.seed: trial for trial in experiment.of_variant(reference)}
        columns = []
        attributes = known = None
        for seed in sorted(new.keys() & old.keys()):
            try:
                ours, theirs = read_faces(new[seed].folder), read_faces(old[seed].folder)
            except InputError as error:
                problems.append(str(error).replace(f"{experiment.folder}/", ""))
                continue
            if not np.array_equal(ours.true, theirs.true):
                problems.append(f"{new[seed].label} and {old[seed].label} were evaluated on different faces")
                continue
            columns.append(100 * (ours.nme - theirs.nme))
            attributes, known = ours.attributes, ours.attributes_known
        if not columns:
            continue
        difference = np.mean(columns, axis=0)
        for place, subset in enumerate(SUBSETS):
            if place == 0:
                chosen = difference
            elif attributes is not None and known is not None and known[place - 1]:
                chosen = difference[attributes[:, place - 1]]
            else:
                continue
            if len(chosen) and np.isfinite(chosen).all():
                interval = _bootstrap(chosen, rng, resamples)
                views.append(FaceView(variant, reference, subset, len(chosen), interval, float(np.mean(chosen < 0))))
    return views, problems


def _bootstrap(values: np.ndarray, rng: np.random.Generator, resamples: int) -> Interval:
    """The mean with its 90 % percentile interval; faces are many enough for one, unlike seeds."""
    means = []
    chunk = max(1, 2_000_000 // len(values))
    for start in range(0, resamples, chunk):
        draws = rng.integers(0, len(values), (min(chunk, resamples - start), len(values)))
        means.append(values[draws].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [0.05, 0.95])
    return Interval(float(values.mean()), float(low), float(high))
