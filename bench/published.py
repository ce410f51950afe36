"""Published NMEs, and how sure one's own is, over faces and seeds, to be put beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bench.experiment import Experiment, FaceErrors, read_faces
from bench.interval import Interval, student_t
from bench.result import SUBSETS
from pose.errors import InputError

if TYPE_CHECKING:
    import numpy as np

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


def nme_intervals(experiment: Experiment, variant: str) -> tuple[dict[str, Interval], list[str]]:
    """The variant's NME, a fraction, with its 95 % interval, by subset; and what could not be read.

    Two sources of chance, whose variances add: the seeds (the t interval of their means, none for one seed) and the
    test faces (the deviation of the faces' means over seeds).
    """
    faces: list[FaceErrors] = []
    problems = []
    for trial in experiment.of_variant(variant):
        try:
            faces.append(read_faces(trial.folder))
        except InputError as error:
            problems.append(str(error).replace(f"{experiment.folder}/", ""))
    if not faces or any(one.nme.shape != faces[0].nme.shape for one in faces):
        return {}, problems
    return {subset: found for subset in SUBSETS if (found := _of_subset(faces, subset)) is not None}, problems


def over_seeds_and_faces(nme: np.ndarray) -> Interval | None:
    """The mean of `nme`, (seeds, faces), with its 95 % interval; None for fewer than two faces, or what is no number.

    The deviation of the faces' means holds what seeds add to each face, too, divided by all of them: the interval errs
    on the wide side.
    """
    import numpy as np

    seeds, count = nme.shape
    if count < 2 or not np.isfinite(nme).all():
        return None
    by_face = _NORMAL * nme.mean(axis=0).std(ddof=1) / math.sqrt(count)
    by_seed = student_t(seeds - 1) * nme.mean(axis=1).std(ddof=1) / math.sqrt(seeds) if seeds > 1 else 0.0
    mean, half = float(nme.mean()), float(math.hypot(by_face, by_seed))
    return Interval(mean, mean - half, mean + half)


def _of_subset(faces: list[FaceErrors], subset: str) -> Interval | None:
    import numpy as np

    nme = np.stack([one.nme for one in faces])
    place = SUBSETS.index(subset) - 1
    if place >= 0:
        flags, known = faces[0].attributes, faces[0].attributes_known
        if flags is None or known is None or not known[place]:
            return None
        nme = nme[:, flags[:, place]]
    return over_seeds_and_faces(nme)
