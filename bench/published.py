"""Published NMEs, and how sure one's own is, over faces and seeds, to be put beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bench.experiment import FaceErrors
from bench.interval import Interval, student_t
from bench.result import SUBSETS

# The model-zoo page "Deeppose + Wingloss on WFLW", NME x 100
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "deeppose_res50 (smooth L1)": {
        **{"test": 4.85, "pose": 8.50, "expression": 5.20, "illumination": 4.81},
        **{"makeup": 4.82, "occlusion": 5.69, "blur": 5.45},
    },
    "deeppose_res50_wingloss": {
        **{"test": 4.64, "pose": 8.25, "expression": 5.07, "illumination": 4.59},
        **{"makeup": 4.59, "occlusion": 5.56, "blur": 5.26},
    },
}
_NORMAL = 1.959964  # the 97.5 % quantile: faces are hundreds


def nme_intervals(trials: Sequence[FaceErrors]) -> dict[str, Interval]:
    """The NME of a variant's `trials`, a fraction, with its 95 % interval, by subset; {} where their faces differ.

    Two sources of chance, whose variances add: the seeds (the t interval of their means, none for one seed) and the
    test faces (the deviation of the faces' means over seeds).
    """
    if any(one.nme.shape != trials[0].nme.shape for one in trials):
        return {}
    return {subset: found for subset in SUBSETS if (found := _of_subset(trials, subset)) is not None}


def over_seeds_and_faces(nme: np.ndarray) -> Interval | None:
    """The mean of `nme`, (seeds, faces), with its 95 % interval; None for fewer than two faces, or what is no number.

    The deviation of the faces' means holds what seeds add to each face, too, divided by all of them: the interval errs
    on the wide side.
    """
    seeds, count = nme.shape
    if count < 2 or not np.isfinite(nme).all():
        return None
    by_face = _NORMAL * nme.mean(axis=0).std(ddof=1) / math.sqrt(count)
    by_seed = student_t(seeds - 1) * nme.mean(axis=1).std(ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    mean, half = float(nme.mean()), float(math.hypot(by_face, by_seed))
    return Interval(mean, mean - half, mean + half)


def _of_subset(trials: Sequence[FaceErrors], subset: str) -> Interval | None:
    nme = np.stack([one.nme for one in trials])
    place = SUBSETS.index(subset) - 1
    if place >= 0:
        flags, known = trials[0].attributes, trials[0].attributes_known
        if flags is None or known is None or not known[place]:
            return None
        nme = nme[:, flags[:, place]]
    return over_seeds_and_faces(nme)
