"""A parametric head: a smooth surface through the 98 landmarks and some sixty further control points.

Units: the distance of the outer eye corners is 1. Axes as seen in the image of a frontal face: x right, y down,
z towards the viewer; the origin lies halfway between the outer eye corners.

The surface is an interpolant over directions from a point inside the head (`directions` -> positions, cubic radial
basis functions with a linear part, Duchon 1977), so moving control points moves the whole head with them and a
landmark lies exactly on its feature. Proportions follow common adult anthropometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pose.landmarks import FLIP_INDEX, NUM_LANDMARKS

CENTER = np.array([0.0, 0.34, -0.72])  # the point inside the head that directions are taken from

# Left half and midline of the 98 points; the right half is the mirror image.
_CONTOUR = (  # every second point of 0-16
    *((-0.77, -0.01, -0.70), (-0.76, 0.20, -0.73), (-0.74, 0.40, -0.71), (-0.70, 0.60, -0.65)),
    *((-0.63, 0.79, -0.55), (-0.52, 0.97, -0.42), (-0.37, 1.12, -0.27), (-0.19, 1.22, -0.11), (0.0, 1.26, -0.03)),
)
_POINTS = {
    **{33: (-0.61, -0.14, -0.03), 34: (-0.50, -0.23, 0.05), 35: (-0.38, -0.245, 0.105), 36: (-0.26, -0.23, 0.14)},
    **{37: (-0.15, -0.20, 0.17), 38: (-0.15, -0.135, 0.165), 39: (-0.26, -0.165, 0.135), 40: (-0.38, -0.18, 0.10)},
    **{41: (-0.50, -0.17, 0.045)},
    **{51: (0.0, -0.01, 0.14), 52: (0.0, 0.13, 0.21), 53: (0.0, 0.27, 0.29), 54: (0.0, 0.40, 0.36)},
    **{55: (-0.175, 0.465, 0.12), 56: (-0.09, 0.485, 0.17), 57: (0.0, 0.50, 0.19)},
    **{60: (-0.50, 0.0, -0.02), 61: (-0.435, -0.037, 0.025), 62: (-0.355, -0.055, 0.05), 63: (-0.27, -0.042, 0.055)},
    **{64: (-0.20, 0.012, 0.04), 65: (-0.275, 0.035, 0.05), 66: (-0.357, 0.045, 0.042), 67: (-0.435, 0.032, 0.018)},
    **{76: (-0.30, 0.72, -0.02), 77: (-0.19, 0.672, 0.09), 78: (-0.06, 0.643, 0.155), 79: (0.0, 0.65, 0.16)},
    **{85: (0.0, 0.878, 0.115), 86: (-0.125, 0.858, 0.095), 87: (-0.225, 0.798, 0.04)},
    **{88: (-0.27, 0.723, -0.01), 89: (-0.145, 0.705, 0.095), 90: (0.0, 0.708, 0.135)},
    **{94: (0.0, 0.775, 0.13), 95: (-0.145, 0.762, 0.09), 96: (-0.352, -0.005, 0.062)},
}

# Further control points, left half and midline: face, then skull.
_NOSE = (
    *((-0.095, 0.0, 0.075), (-0.10, 0.14, 0.125), (-0.125, 0.29, 0.165), (-0.085, 0.39, 0.30)),
    *((-0.185, 0.385, 0.175), (-0.20, 0.445, 0.10), (0.0, 0.46, 0.285), (-0.085, 0.455, 0.235)),
)
_FACE = (
    *((-0.40, 0.13, 0.0), (-0.24, 0.12, 0.055), (-0.24, 0.29, 0.06), (-0.40, 0.32, 0.035), (-0.58, 0.22, -0.14)),
    *((-0.30, 0.50, 0.04), (-0.46, 0.52, -0.06), (-0.60, 0.48, -0.27), (-0.45, 0.74, -0.16), (-0.31, 0.92, -0.06)),
    *((0.0, 0.57, 0.165), (-0.075, 0.58, 0.155), (0.0, 0.955, 0.06), (-0.15, 0.97, 0.025), (0.0, 1.10, 0.075)),
    *((-0.17, 1.10, 0.02), (-0.34, -0.10, 0.075), (-0.20, -0.06, 0.085), (-0.48, -0.09, 0.03)),
    *((-0.70, 0.08, -0.38), (-0.66, -0.20, -0.22), (-0.13, 0.675, 0.145), (-0.11, 0.815, 0.135), (0.0, 0.825, 0.15)),
)
_FOREHEAD = (
    *((0.0, -0.17, 0.185), (0.0, -0.38, 0.20), (0.0, -0.62, 0.15), (0.0, -0.86, 0.0)),
    *((-0.28, -0.38, 0.165), (-0.30, -0.64, 0.10), (-0.53, -0.40, 0.0), (-0.55, -0.66, -0.12)),
)
_SKULL = (
    *((0.0, -1.12, -0.28), (0.0, -1.27, -0.72), (0.0, -1.05, -1.40), (0.0, -0.45, -1.78), (0.0, 0.20, -1.62)),
    *((0.0, 0.85, -1.25), (-0.45, -1.10, -0.72), (-0.45, -0.90, -0.25), (-0.75, -0.60, -0.45), (-0.78, -0.70, -0.85)),
    *((-0.82, -0.25, -0.62), (-0.84, -0.30, -1.05), (-0.55, -0.80, -1.38), (-0.62, -0.20, -1.55)),
    *((-0.81, 0.12, -1.0), (-0.68, 0.30, -1.32), (-0.62, 0.75, -1.0), (-0.40, 0.85, -1.2)),
    *((0.0, 1.20, -0.36), (0.0, 1.12, -0.75), (-0.32, 1.10, -0.55), (-0.56, 0.98, -0.74), (-0.74, 0.48, -0.95)),
)


def _mirrored(points: tuple[tuple[float, float, float], ...]) -> list[tuple[float, float, float]]:
    return [q for x, y, z in points for q in ([(x, y, z), (-x, y, z)] if x else [(x, y, z)])]


@cache
def template() -> np.ndarray:
    """(K, 3) control points of the average head, mouth slightly open; the first 98 are the landmarks."""
    half = np.full((NUM_LANDMARKS, 3), np.nan)
    knots = np.array(_CONTOUR)
    half[0:17:2] = knots
    # Odd contour points: cubic midpoints, the curve continued past the chin by its mirror image.
    padded = np.vstack([2 * knots[0] - knots[1], knots, knots[-2] * (-1, 1, 1)])
    half[1:16:2] = (9 * (padded[1:-2] + padded[2:-1]) - padded[:-3] - padded[3:]) / 16
    for index, position in _POINTS.items():
        half[index] = position
    mirrored = half[FLIP_INDEX] * (-1, 1, 1)
    landmarks = np.where(np.isnan(half), mirrored, half)
    others = [*_mirrored(_NOSE), *_mirrored(_FACE), *_mirrored(_FOREHEAD), *_mirrored(_SKULL)]
    return np.concatenate([landmarks, np.array(others)])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.sqrt((vectors * vectors).sum(-1, keepdims=True))


@cache
def _solved() -> tuple[np.ndarray, np.ndarray]:
    sites = _unit(template() - CENTER)
    count = len(sites)
    system = np.zeros((count + 4, count + 4))
    system[:count, :count] = _kernel(sites, sites)
    system[:count, count] = system[count, :count] = 1
    system[:count, count + 1 :] = sites
    system[count + 1 :, :count] = sites.T
    return sites, np.linalg.inv(system)[:, :count]


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squared = np.maximum(2 - 2 * (a @ b.T), 0)  # all of length 1
    return squared * np.sqrt(squared)


def weights(directions: np.ndarray) -> np.ndarray:
    """(N, K) weights that give the surface at unit `directions` (N, 3) from `CENTER`: weights @ control points."""
    sites, inverse = _solved()
    basis = np.concatenate([_kernel(directions, sites), np.ones((len(directions), 1)), directions], axis=1)
    return basis @ inverse


@dataclass(frozen=True)
class Identity:
    """What makes a person's head: standardised, 0 is the average, about 1 a standard deviation."""

    width: float = 0.0
    length: float = 0.0
    jaw: float = 0.0
    chin: float = 0.0
    cheeks: float = 0.0
    forehead: float = 0.0
    eye_size: float = 0.0
    eye_distance: float = 0.0
    eye_slant: float = 0.0
    brow_height: float = 0.0
    brow_arch: float = 0.0
    brow_thickness: float = 0.0
    nose_length: float = 0.0
    nose_width: float = 0.0
    nose_depth: float = 0.0
    mouth_width: float = 0.0
    mouth_height: float = 0.0
    lip_thickness: float = 0.0
    depth: float = 0.0
    asymmetry: float = 0.0


@dataclass(frozen=True)
class Expression:
    """Deformation of the face. 0 is neutral; `smile`, `brow_raise` and `frown` of 1 are strong.

    open: angle of the jaw in radians. parted: 0 lips closed, 1 lips apart as in the template.
    close_left, close_right: 1 shuts the eye, negative widens it. gaze: displacement of the pupils.
    """

    open: float = 0.0
    parted: float = 0.0
    smile: float = 0.0
    pucker: float = 0.0
    brow_raise: float = 0.0
    frown: float = 0.0
    close_left: float = 0.0
    close_right: float = 0.0
    gaze: tuple[float, float] = (0.0, 0.0)
    jaw_shift: float = 0.0


def _ramp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _bump(at: np.ndarray, center: tuple[float, float, float], radius: float) -> np.ndarray:
    return np.exp(-((at - np.array(center)) ** 2).sum(1) / (radius * radius))


_EYES = ((slice(60, 68), 96, (61, 62, 63), (67, 66, 65)), (slice(68, 76), 97, (69, 70, 71), (75, 74, 73)))
_BROWS = np.arange(33, 51)
_UPPER_BROWS = np.array([33, 34, 35, 36, 37, 42, 43, 44, 45, 46])
_UPPER_LIP = np.array([77, 78, 79, 80, 81])
_LOWER_LIP = np.array([83, 84, 85, 86, 87])
_CORNERS = np.array([76, 82, 88, 92])


def head(identity: Identity, expression: Expression) -> np.ndarray:
    """(K, 3) control points of a head with this identity and expression."""
    rest = template()
    x, y, z = rest.T
    front = _ramp(z, -0.6, 0.0)  # 1 on the face, 0 on the skull
    points = _with_identity(identity, rest, front)
    eyes = points[[60, 72]].mean(0)

    # Lips: the template has them apart.
    gap = 0.067 * (1 - expression.parted)
    lower = _ramp(y, 0.70, 0.80) * (1 - _ramp(y, 0.80, 1.2)) * front
    lower[88] = lower[92] = lower[76] = lower[82] = 0
    points[:, 1] -= gap * lower * np.maximum(0.0, 1 - (x / 0.30) ** 2)

    # Smile: corners out, up and back, cheeks and lower lids up.
    s = expression.smile
    lips = np.exp(-(((y - 0.75) / 0.17) ** 2) - ((x / 0.42) ** 4)) * front
    pull = np.minimum(np.abs(x) / 0.30, 1.3) ** 2 * lips
    points[:, 0] += np.sign(x) * 0.085 * s * np.minimum(np.abs(x) / 0.30, 1.3) * lips
    points[:, 1] -= 0.085 * s * pull
    points[:, 2] -= 0.05 * s * pull
    cheek = _bump(rest, (-0.42, 0.42, 0.0), 0.24) + _bump(rest, (0.42, 0.42, 0.0), 0.24)
    points[:, 1] -= 0.05 * max(s, 0.0) * cheek
    points[:, 2] += 0.05 * max(s, 0.0) * cheek

    # Pucker: lips narrow and forward.
    p = expression.pucker
    points[:, 0] *= 1 - 0.38 * p * lips
    points[:, 2] += 0.09 * p * lips * np.maximum(0.0, 1 - np.abs(x) / 0.5)

    # Jaw: turns about the axis through its joints below the ears.
    weight = _ramp(y, 0.2, 0.75) * _ramp(z, -1.0, -0.55)
    weight[_UPPER_LIP] = weight[[89, 90, 91]] = weight[55:60] = 0
    weight[_CORNERS] = 0.42
    weight[[83, 87]] = 0.75
    weight[[93, 95]] = 0.9
    others = np.arange(NUM_LANDMARKS, len(rest))
    weight[others] *= np.where(np.abs(x[others]) < 0.25, _ramp(y[others], 0.70, 0.80), _ramp(y[others], 0.45, 0.90))
    angle = expression.open * weight
    hinge_y, hinge_z = 0.22, -0.72
    dy, dz = points[:, 1] - hinge_y, points[:, 2] - hinge_z
    points[:, 1] = hinge_y + np.cos(angle) * dy + np.sin(angle) * dz
    points[:, 2] = hinge_z - np.sin(angle) * dy + np.cos(angle) * dz
    points[:, 0] *= 1 - 0.5 * expression.open * lips * np.minimum(np.abs(x) / 0.3, 1)
    points[_UPPER_LIP, 1] -= 0.07 * expression.open
    points[:, 0] += expression.jaw_shift * weight * _ramp(y, 0.5, 1.0)

    # Brows.
    brow = np.exp(-(((y + 0.2) / 0.14) ** 2)) * front * _ramp(-y, 0.0, 0.16)
    brow[60:76] = brow[96:98] = 0
    inner = np.exp(-((np.abs(x) / 0.26) ** 4))
    points[:, 1] -= 0.10 * expression.brow_raise * brow
    points[:, 1] += 0.050 * expression.frown * brow * inner
    points[:, 0] -= np.sign(x) * 0.035 * expression.frown * brow * inner
    points[:, 1] -= 0.03 * expression.frown * brow * (1 - inner)

    # Lids: the upper one comes down to the lower one, which rises a little with a smile.
    for (outline, pupil, upper, under), close in zip(
        _EYES, (expression.close_left, expression.close_right), strict=True
    ):
        gaze = expression.gaze
        points[pupil, :2] += gaze
        points[pupil, 2] = points[outline, 2].max() + 0.012
        points[list(under), 1] -= 0.010 * max(s, 0.0) + 0.012 * max(close, 0.0)
        middle = points[list(under)]
        points[list(upper)] += np.minimum(close, 0.97) * (middle - points[list(upper)])
        top, bottom = points[upper[1], 1], points[under[1], 1]
        points[pupil, 1] = np.clip(points[pupil, 1], top + 0.2 * (bottom - top), bottom - 0.2 * (bottom - top))
    points -= (points[60] + points[72]) / 2 - eyes
    return points


def _with_identity(who: Identity, rest: np.ndarray, front: np.ndarray) -> np.ndarray:
    points = rest.copy()
    x, y, z = rest.T
    sign = np.sign(x)
    side = _ramp(np.abs(x), 0.35, 0.75)  # eyes and mouth keep their width when the head is wide
    points[:, 0] *= 1 + 0.055 * who.width * (0.3 + 0.7 * side)
    points[:, 1] *= 1 + 0.055 * who.length
    points[:, 2] *= 1 + 0.08 * who.depth
    jaw = _ramp(y, 0.35, 0.85) * side
    points[:, 0] += sign * 0.05 * who.jaw * jaw
    chin = _ramp(y, 0.88, 1.2) * _ramp(z, -0.6, -0.2)
    points[:, 1] += 0.055 * who.chin * chin
    points[:, 0] *= 1 - 0.08 * who.chin * chin
    cheek = _bump(rest, (-0.55, 0.5, -0.15), 0.3) + _bump(rest, (0.55, 0.5, -0.15), 0.3)
    points[:, 0] += sign * 0.035 * who.cheeks * cheek
    points[:, 2] += 0.05 * who.cheeks * cheek
    points[:, 1] -= 0.07 * who.forehead * _ramp(-y, 0.35, 1.0)

    brow = np.zeros(len(rest))
    brow[_BROWS] = 1
    points[:, 1] -= 0.022 * who.brow_height * brow
    arch = np.exp(-(((np.abs(x) - 0.42) / 0.12) ** 2)) * brow
    points[:, 1] -= 0.02 * who.brow_arch * arch
    points[_UPPER_BROWS, 1] -= 0.010 * who.brow_thickness

    for outline, pupil, _, _ in _EYES:
        index = [*range(outline.start, outline.stop), pupil]
        middle = points[pupil].copy()
        points[index, 1] = middle[1] + (points[index, 1] - middle[1]) * (1 + 0.16 * who.eye_size)
        inward = -np.sign(middle[0])
        points[index, 0] += inward * 0.012 * who.eye_distance
        points[index, 1] += 0.10 * 0.35 * who.eye_slant * (np.abs(rest[index, 0]) - 0.35) * -1

    nose = np.exp(-(((np.abs(x) / 0.26) ** 4) + ((y - 0.40) / 0.16) ** 4)) * front
    points[:, 0] *= 1 + 0.12 * who.nose_width * nose
    along = _ramp(y, 0.05, 0.42) * np.exp(-((np.abs(x) / 0.28) ** 4)) * (1 - _ramp(y, 0.52, 0.62))
    points[:, 1] += 0.035 * who.nose_length * along
    points[:, 2] += 0.045 * who.nose_depth * along * np.exp(-((x / 0.13) ** 2))

    mouth = np.exp(-(((y - 0.75) / 0.16) ** 4) - ((x / 0.40) ** 4)) * front
    points[:, 0] *= 1 + 0.09 * who.mouth_width * mouth
    points[:, 1] += 0.025 * who.mouth_height * mouth
    for outer, toward in ((_UPPER_LIP, -1.0), (_LOWER_LIP, 1.0)):
        points[outer, 1] += toward * 0.018 * who.lip_thickness
    points[:, 1] += 0.012 * who.asymmetry * np.sin(3.1 * x) * front
    points[:, 0] += 0.012 * who.asymmetry * np.cos(2.0 * y) * front
    return points


@dataclass(frozen=True)
class Camera:
    """Turn of the head (radians) and its place in the image.

    yaw: positive turns the face to the image's right; pitch: positive looks down; roll: positive is clockwise.
    distance: of the camera from the eyes, in head units. scale: pixels per unit. shift: image position of the origin.
    """

    yaw: float
    pitch: float
    roll: float
    distance: float
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def rotation(self, roll: bool = True) -> np.ndarray:
        """(3, 3) rotation, head to camera; without `roll`, that of the same head held upright."""
        cy, sy, cp, sp = np.cos(self.yaw), np.sin(self.yaw), np.cos(self.pitch), np.sin(self.pitch)
        about_y = np.array([[cy, 0.0, sy], [0.0, 1.0, 0.0], [-sy, 0.0, cy]])
        about_x = np.array([[1.0, 0.0, 0.0], [0.0, cp, sp], [0.0, -sp, cp]])
        if not roll:
            return about_x @ about_y
        cr, sr = np.cos(self.roll), np.sin(self.roll)
        return np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]]) @ about_x @ about_y

    def project(self, points: np.ndarray) -> np.ndarray:
        """Head coordinates (..., 3) to (..., 3): x and y in pixels of the image, z in head units."""
        turned = points @ (self.rotation().T)
        magnified = self.scale / (1 - turned[..., 2:] / self.distance)
        return np.concatenate([turned[..., :2] * magnified + np.array(self.shift), turned[..., 2:]], axis=-1)


_SLIDE_STEPS = 25


@cache
def _contour_paths() -> tuple[np.ndarray, np.ndarray]:
    """Weights of paths on the surface from each contour point towards the middle of the face, and outward normals."""
    rest = template()
    contour = rest[:33]
    inner = np.stack(
        [
            0.52 * contour[:, 0],
            np.interp(np.abs(np.arange(33) - 16), [0, 8, 16], [1.06, 0.72, 0.06]),
            np.interp(np.abs(np.arange(33) - 16), [0, 8, 16], [0.06, 0.0, 0.02]),
        ],
        axis=1,
    )
    steps = np.linspace(0, 1, _SLIDE_STEPS)[:, None, None]
    start, stop = _unit(contour - CENTER), _unit(inner - CENTER)
    paths = _unit((1 - steps) * start + steps * stop)
    tangent = np.empty((33, 2))
    tangent[1:-1] = contour[2:, :2] - contour[:-2, :2]
    tangent[0], tangent[-1] = tangent[1], tangent[-2]
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.sqrt((normal**2).sum(1, keepdims=True))
    return weights(paths.reshape(-1, 3)).reshape(_SLIDE_STEPS, 33, -1), normal


def landmarks(controls: np.ndarray, camera: Camera) -> np.ndarray:
    """(98, 2) image points of a head's landmarks.

    As in WFLW, a contour point whose place on the head has turned away slides over the cheek to the visible edge.
    """
    points = camera.project(controls[:NUM_LANDMARKS])[:, :2]
    path_weights, normal = _contour_paths()
    paths = path_weights @ controls
    upright = paths @ camera.rotation(roll=False).T
    reach = (upright[..., :2] * normal).sum(-1) / (1 - upright[..., 2] / camera.distance)
    best = reach.argmax(0)
    # Between the samples: the vertex of the parabola through the best one and its neighbours.
    middle = np.clip(best, 1, _SLIDE_STEPS - 2)
    column = np.arange(33)
    a, b, c = reach[middle - 1, column], reach[middle, column], reach[middle + 1, column]
    bend = a - 2 * b + c
    offset = np.where(best == middle, 0.5 * (a - c) / np.where(bend < 0, bend, -1.0), best - middle)
    offset = np.clip(offset, -1, 1)[:, None]
    before, here, after = paths[middle - 1, column], paths[middle, column], paths[middle + 1, column]
    slid = here + 0.5 * offset * (after - before) + 0.5 * offset**2 * (before - 2 * here + after)
    points[:33] = camera.project(slid)[:, :2]
    return points
