"""Where things are on the skin: constant maps over the head's surface, at two resolutions.

The surface is cut into a lattice of directions (`lattice`), finer at the front. Smooth properties live on its nodes;
sharp ones (lids, lips, brows) on texels, `level` x `level` of them in each lattice cell (`texels`). All positions are
template coordinates of `pose.data.face_model`, so a map moves with the surface.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from pose.data.face_model import template, weights

Segment = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Lattice:
    """Nodes in R rows and C columns.

    directions: (R, C, 3). weights: (K, R * C), the transpose of `face_model.weights`. rest: (R, C, 3), the template.
    """

    directions: np.ndarray
    weights: np.ndarray
    rest: np.ndarray


def _angles(stop: float, *spacing: tuple[float, float]) -> np.ndarray:
    """Angles from 0 to about `stop` degrees whose spacing follows the (angle, spacing) knots."""
    at, step = np.array(spacing).T
    angles = [0.0]
    while angles[-1] < stop:
        angles.append(angles[-1] + float(np.interp(angles[-1], at, step)))
    return np.array(angles)


@cache
def lattice() -> Lattice:
    around = _angles(171, (50, 1.5), (100, 2.2), (130, 4.5), (180, 6))
    longitude = np.radians(np.concatenate([-around[:0:-1], around]))
    up, down = _angles(84, (40, 1.5), (85, 3.0)), _angles(85, (52, 1.5), (85, 4.0))
    latitude = np.radians(np.concatenate([-up[:0:-1], down]))[:, None]
    directions = np.stack(
        [
            np.cos(latitude) * np.sin(longitude),
            np.broadcast_to(np.sin(latitude), (len(latitude), len(longitude))),
            np.cos(latitude) * np.cos(longitude),
        ],
        axis=-1,
    )
    surface = weights(directions.reshape(-1, 3))
    return Lattice(directions, np.ascontiguousarray(surface.T), (surface @ template()).reshape(directions.shape))


def signed_distance(x: np.ndarray, y: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Distance of the points (x, y) to the outline of `polygon` (V, 2), positive inside."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        dx, dy = bx - ax, by - ay
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / max(dx * dx + dy * dy, 1e-12), 0, 1)
        nearest = np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2)
        if ay != by:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ax + (y - ay) / (by - ay) * dx)
    return np.where(inside, 1, -1) * np.sqrt(nearest)


def curve(points: np.ndarray, steps: int = 5) -> np.ndarray:
    """Catmull-Rom curve through `points` (N, 2), with `steps` pieces between neighbours."""
    padded = np.vstack([2 * points[0] - points[1], points, 2 * points[-1] - points[-2]])
    t = (np.arange(steps) / steps)[:, None, None]
    a, b, c, d = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    pieces = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return np.vstack([pieces.transpose(1, 0, 2).reshape(-1, 2), points[-1]])


def _outline(first: Segment, second: Segment) -> np.ndarray:
    """Closed outline of two arcs between the same corners, which stay sharp."""
    rest = template()[:, :2]
    return np.vstack([curve(rest[list(first)])[:-1], curve(rest[list(second)])[:-1]])


@cache
def soft_maps() -> dict[str, np.ndarray]:
    """Smooth maps on the lattice's nodes, (R, C) each; all but `scalp` and `beard` between 0 and 1."""
    rest = lattice().rest
    x, y, z = rest[..., 0], rest[..., 1], rest[..., 2]
    ax = np.abs(x)
    front = np.clip((z + 0.55) / 0.4, 0, 1)

    def spot(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.exp(-(((ax - cx) / rx) ** 2) - ((y - cy) / ry) ** 2) * front

    def line(points: list[tuple[float, float]], width: float) -> np.ndarray:
        path = curve(np.array(points))
        distance = signed_distance(ax, y, np.vstack([path, path[::-1]]))
        return np.exp(-((distance / width) ** 2)) * front

    hairline_z = [-1.8, -1.2, -0.95, -0.82, -0.72, -0.62, -0.45, -0.25, -0.05, 0.2]
    hairline_y = [0.95, 0.85, 0.55, 0.10, -0.08, -0.24, -0.50, -0.72, -0.82, -0.84]
    scalp = np.interp(z, hairline_z, hairline_y) - y
    whiskers = np.array(
        [(0.85, 0.12), (0.71, 0.40), (0.55, 0.64), (0.40, 0.64), (0.29, 0.57), (-0.1, 0.56), (-0.1, 1.7), (0.9, 1.7)]
    )
    lips = signed_distance(ax, y, _outline((76, 77, 78, 79, 80, 81, 82), (82, 83, 84, 85, 86, 87, 76)))
    beard = np.minimum(signed_distance(ax, y, whiskers), -lips - 0.02)
    return {
        "scalp": scalp,
        "beard": np.where(z > -0.95, beard, -1.0),
        "moustache": np.minimum(beard, np.minimum(0.36 - ax, 0.70 - y)),
        "ear": np.exp(-(((y - 0.17) / 0.36) ** 4) - ((z + 0.95) / 0.30) ** 4),
        "shaven": np.where(z > -0.95, np.clip(0.5 + beard / 0.1, 0, 1), 0.0),
        "cheek": spot(0.47, 0.36, 0.20, 0.17),
        "warm": np.minimum(spot(0.46, 0.38, 0.26, 0.2) + spot(0, 0.42, 0.16, 0.14) + spot(0, 1.1, 0.25, 0.12), 1.0),
        "socket": np.minimum(spot(0.20, -0.02, 0.09, 0.10) + 0.6 * spot(0.35, 0.09, 0.17, 0.035), 1.0),
        "lid": spot(0.36, -0.09, 0.17, 0.055),
        "crease": line([(0.21, -0.035), (0.28, -0.082), (0.36, -0.098), (0.45, -0.075), (0.53, -0.01)], 0.014),
        "wing": line([(0.16, 0.35), (0.215, 0.41), (0.21, 0.465), (0.165, 0.485)], 0.03),
        "under_nose": spot(0.0, 0.495, 0.12, 0.028),
        "bridge": line([(0.10, 0.0), (0.115, 0.16), (0.13, 0.30)], 0.05),
        "fold": line([(0.23, 0.43), (0.33, 0.54), (0.39, 0.68)], 0.024),
        "under_lip": spot(0.0, 0.925, 0.15, 0.03),
        "philtrum": spot(0.0, 0.58, 0.022, 0.05),
        "oily": np.minimum(spot(0, 0.3, 0.08, 0.25) + spot(0, -0.45, 0.3, 0.2) + spot(0.45, 0.2, 0.14, 0.1), 1.0),
        "frown": line([(0.05, -0.30), (0.055, -0.20), (0.05, -0.10)], 0.014),
        "wrinkle": np.minimum(
            line([(0.0, -0.42), (0.2, -0.44), (0.42, -0.40)], 0.016)
            + line([(0.0, -0.54), (0.2, -0.56), (0.38, -0.52)], 0.016),
            1.0,
        ),
        "crow": line([(0.57, 0.01), (0.66, -0.02)], 0.014) + line([(0.57, 0.04), (0.65, 0.07)], 0.014),
        "neck": np.clip((y - 1.15) / 0.2, 0, 1) * np.clip((-z - 0.05) / 0.3, 0, 1),
    }


@cache
def cell_basis(level: int) -> np.ndarray:
    """(16, level**2) weights of the 4 x 4 nodes around a cell at its texels (Catmull-Rom in both directions)."""
    t = ((np.arange(level) + 0.5) / level)[:, None]
    line = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    return np.einsum("ui,vj->ijuv", line, line).reshape(16, level * level)


@cache
def cell_nodes() -> np.ndarray:
    """(cells, 16) flat node indices of the 4 x 4 nodes around each cell; cells touch no border of the lattice."""
    rows, columns = lattice().rest.shape[:2]
    top_left = (np.arange(rows - 3)[:, None] * columns + np.arange(columns - 3)).ravel()
    return top_left[:, None] + (np.arange(4)[:, None] * columns + np.arange(4)).ravel()


@dataclass(frozen=True, eq=False)
class Patch:
    """A feature's texels, `level`**2 to a cell.

    cells: (C,) cell indices. x, y: (C, level**2) template coordinates, x mirrored to the image's left half.
    maps: named values of the same shape.
    """

    cells: np.ndarray
    x: np.ndarray
    y: np.ndarray
    maps: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Texels:
    """Features at one level, and fixed grain: (cells, level**2) fine for skin and streaked for hair, mean 0."""

    left_eye: Patch
    right_eye: Patch
    left_brow: Patch
    right_brow: Patch
    nostrils: Patch
    skin_grain: np.ndarray
    hair_grain: np.ndarray


def _rest_at_texels(cells: np.ndarray, level: int) -> np.ndarray:
    """(3, cells, level**2) template coordinates."""
    return np.stack([lattice().rest[..., axis].ravel()[cell_nodes()[cells]] @ cell_basis(level) for axis in range(3)])


@cache
def mouth_patch(level: int, interior: bool) -> Patch:
    """Lips and what is between them; with `interior`, only the cells that reach between the lips."""
    rough = _rest_at_texels(np.arange(len(cell_nodes())), 2)
    near = (np.abs(rough[0]) < 0.38) & (rough[1] > 0.58) & (rough[1] < 0.95) & (rough[2] > -0.4)
    cells = np.flatnonzero(near.any(1))
    points = template()[:, :2]
    inner = _outline((88, 89, 90, 91, 92), (92, 93, 94, 95, 88))
    if interior:
        x, y, _ = _rest_at_texels(cells, 3)
        cells = cells[(signed_distance(x, y, inner) > -0.01).any(1)]
    x, y, _ = _rest_at_texels(cells, level)
    inner_top, inner_bottom = curve(points[[88, 89, 90, 91, 92]]), curve(points[[88, 95, 94, 93, 92]])
    top = np.interp(x, inner_top[:, 0], inner_top[:, 1])
    bottom = np.interp(x, inner_bottom[:, 0], inner_bottom[:, 1])
    outer = _outline((76, 77, 78, 79, 80, 81, 82), (82, 83, 84, 85, 86, 87, 76))
    maps = {
        "outer": signed_distance(x, y, outer),
        "inner": signed_distance(x, y, inner),
        "depth": np.clip((y - top) / np.maximum(bottom - top, 1e-3), 0, 1),
    }
    return Patch(cells, x, y, maps)


@cache
def texels(level: int) -> Texels:
    rest = lattice().rest
    position = _rest_at_texels(np.arange(len(cell_nodes())), level)
    upper_lid, lower_lid = (60, 61, 62, 63, 64), (64, 65, 66, 67, 60)
    points = template()[:, :2]

    def patch(box: tuple[float, float, float, float], mirror: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = -position[0] if mirror else position[0]
        y, z = position[1:]
        inside = (x > box[0]) & (x < box[1]) & (y > box[2]) & (y < box[3]) & (z > -0.4)
        cells = np.flatnonzero(inside.any(1))
        return cells, x[cells], y[cells]

    def open_distance(x: np.ndarray, y: np.ndarray, path: np.ndarray) -> np.ndarray:
        return np.abs(signed_distance(x, y, np.vstack([path, path[::-1]])))

    def eye(mirror: bool) -> Patch:
        cells, x, y = patch((-0.68, -0.12, -0.26, 0.14), mirror)
        upper = curve(points[list(upper_lid)])
        tail = np.vstack([[-0.545, -0.022], upper])
        return Patch(
            cells,
            x,
            y,
            {
                "open": signed_distance(x, y, _outline(upper_lid, lower_lid)),
                "upper": open_distance(x, y, upper),
                "liner": open_distance(x, y, tail),
                "lower": open_distance(x, y, curve(points[list(lower_lid)])),
                "shadow": np.exp(-(((x + 0.37) / 0.16) ** 4) - ((y + 0.085) / 0.055) ** 2),
            },
        )

    def brow(mirror: bool) -> Patch:
        cells, x, y = patch((-0.68, -0.08, -0.32, -0.06), mirror)
        return Patch(cells, x, y, {"inside": signed_distance(x, y, _outline((33, 34, 35, 36, 37), (38, 39, 40, 41)))})

    def nostrils() -> Patch:
        cells, x, y = patch((-0.2, 0.2, 0.40, 0.54), False)
        hole = ((np.abs(x) - 0.083 - 0.4 * (y - 0.472)) / 0.042) ** 2 + ((y - 0.472) / 0.019) ** 2
        return Patch(cells, x, y, {"hole": np.clip(1.6 - 1.2 * hole, 0, 1)})

    cells, size = position.shape[1:]
    random = np.random.Generator(np.random.Philox(20)).standard_normal((2, cells, size), dtype=np.float32)
    rows, columns = rest.shape[0] - 3, rest.shape[1] - 3
    # Hair grain: constant along the strands, which run down the head, with a second, coarser set of locks.
    across = random[1].reshape(rows, columns, level, level)[::12, :, 0, :].repeat(12, axis=0)[:rows]
    strands = np.broadcast_to(across[:, :, None, :], (rows, columns, level, level))
    locks = random[1].reshape(rows, columns, level, level)[::30, ::3, 0, :1].repeat(30, axis=0).repeat(3, axis=1)
    streak = strands + np.broadcast_to(locks[:rows, :columns, None, :], (rows, columns, level, level))
    return Texels(
        left_eye=eye(False),
        right_eye=eye(True),
        left_brow=brow(False),
        right_brow=brow(True),
        nostrils=nostrils(),
        skin_grain=random[0],
        hair_grain=np.ascontiguousarray(streak.reshape(cells, size)),
    )
