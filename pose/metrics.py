"""How far predicted landmarks are from the true ones: NME, failure rate, AUC, CED, and the table of WFLW's subsets.

All values are fractions of the inter-ocular distance; reports show them times 100. Every function takes numpy arrays
and torch tensors and returns numpy or floats. A NaN in a prediction stays NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose.landmarks import ATTRIBUTES, EYE_CORNERS

Values = Any  # an array, a tensor on any device, or a nested sequence of numbers


@dataclass(frozen=True)
class SubsetRow:
    """One row of the table: `count` faces, and their mean NME, failure rate and AUC (NaN where count is 0)."""

    name: str
    count: int
    nme: float
    failure_rate: float
    auc: float


def nme(pred: Values, target: Values) -> Any:
    """Normalised mean error of each face: mean distance of its points over the distance of the true outer eye corners.

    pred, target: (N, 98, 2) in one unit, image or crop pixels. Returns (N,) float64, a tensor on pred's device if pred
    is one. Where the true corners coincide the NME is infinite. Raises ValueError for other shapes.
    """
    given = pred
    pred, target = _floats(pred), _floats(target)
    if pred.shape != target.shape or pred.ndim != 3 or pred.shape[-1] != 2 or pred.shape[1] <= max(EYE_CORNERS):
        raise ValueError(f"pred and target have shapes {pred.shape} and {target.shape}; wanted (N, 98, 2) for both")
    error = np.linalg.norm(pred - target, axis=-1).mean(axis=-1)
    interocular = np.linalg.norm(target[:, EYE_CORNERS[0]] - target[:, EYE_CORNERS[1]], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where((interocular == 0) & ~np.isnan(error), np.inf, error / interocular)
    return given.detach().double().new_tensor(values) if hasattr(given, "detach") else values


def failure_rate(nme: Values, threshold: float = 0.10) -> float:
    """Fraction of faces whose NME is above `threshold`; a NaN counts as one. NaN for no face."""
    errors = _errors(nme)
    return float((~(errors <= threshold)).mean()) if len(errors) else float("nan")


def auc(nme: Values, threshold: float = 0.10) -> float:
    """Area under the CED curve from 0 to `threshold`, over `threshold`: mean(max(0, t - nme)) / t, exactly.

    A NaN counts as a failure. NaN for no face.
    """
    errors = _errors(nme)
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}; wanted more than 0")
    gain = np.where(errors <= threshold, threshold - errors, 0.0)
    return float(gain.mean() / threshold) if len(errors) else float("nan")


def ced(nme: Values, thresholds: Values) -> np.ndarray:
    """Cumulative error distribution: the fraction of faces with nme <= each threshold; NaN for no face."""
    errors = np.sort(_errors(nme))  # NaN sorts last, so it counts in the denominator only
    limits = _floats(thresholds)
    if len(errors) == 0:
        return np.full(limits.shape, np.nan)
    return np.searchsorted(errors[~np.isnan(errors)], limits, side="right") / len(errors)


def subset_table(nme: Values, attributes: Values) -> dict[str, float]:
    """Mean NME of all faces ("test") and of each of WFLW's six subsets; NaN for an empty one.

    nme: (N,). attributes: (N, 6) bool, columns as in `pose.landmarks.ATTRIBUTES`.
    """
    return {row.name: row.nme for row in subset_rows(nme, attributes)}


def subset_rows(nme: Values, attributes: Values, known: Sequence[bool] | np.ndarray | None = None) -> list[SubsetRow]:
    """The rows of the table: "test", then the six subsets in official order, but those only that are `known` (6,)."""
    errors = _errors(nme)
    flags = _numpy(attributes).astype(bool)
    if flags.shape != (len(errors), len(ATTRIBUTES)):
        raise ValueError(f"attributes have shape {flags.shape}; wanted ({len(errors)}, {len(ATTRIBUTES)})")
    shown = np.ones(len(ATTRIBUTES), dtype=bool) if known is None else np.asarray(known, dtype=bool)
    subsets = [(name, errors[flags[:, i]]) for i, name in enumerate(ATTRIBUTES) if shown[i]]
    return [
        SubsetRow(
            name=name,
            count=len(values),
            nme=float(values.mean()) if len(values) else float("nan"),
            failure_rate=failure_rate(values),
            auc=auc(values),
        )
        for name, values in [("test", errors), *subsets]
    ]


def mean_shape(points: Values, center: Values, side: Values) -> np.ndarray:
    """Mean landmarks of a set in crop fractions, (98, 2): what a predictor that sees no picture says.

    points: (N, 98, 2), center: (N, 2), side: (N,) padded; image pixels.
    """
    points, center, side = _floats(points), _floats(center), _floats(side)
    if len(points) == 0:
        raise ValueError("the mean shape of no faces is not defined")
    return ((points - center[:, None]) / side[:, None, None] + 0.5).mean(axis=0)


def mean_shape_nme(shape: Values, points: Values, center: Values, side: Values) -> np.ndarray:
    """NME (N,) of putting `shape` (98, 2), crop fractions from `mean_shape`, on every face; `side` padded."""
    shape, points, center, side = _floats(shape), _floats(points), _floats(center), _floats(side)
    return np.asarray(nme(center[:, None] + side[:, None, None] * (shape - 0.5), points))


def _numpy(values: Values) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray(values)


def _floats(values: Values) -> np.ndarray:
    return _numpy(values).astype(np.float64)


def _errors(nme: Values) -> np.ndarray:
    errors = _floats(nme)
    if errors.ndim != 1:
        raise ValueError(f"nme has shape {errors.shape}; wanted (N,)")
    return errors
