"""Drawing a scene: the head as a textured surface in a z-buffer, then hair, neck, background, occluder and lens.

All light is linear; the picture's sRGB values come last. Positions are float64, so that rounding cannot move a
texel to another pixel on another machine; colours are float32.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageFilter

from pose.data.face_backdrop import draw_background, draw_body
from pose.data.face_look import Lens, Light, Look
from pose.data.face_occluder import Layer, draw_glasses, draw_occluder
from pose.data.face_scene import Scene
from pose.data.face_texture import Patch, cell_basis, cell_nodes, lattice, mouth_patch, soft_maps, texels

_SUPERSAMPLING = 2
_SPACING = 0.025  # of the lattice's nodes at the front of the face, head units
_LEVELS = (2, 7)
_DEPTH_STEPS = 8000.0  # of the z-buffer in a head unit
_GAP = 2400  # depth steps that separate a surface from what lies behind it


def render_pixels(scene: Scene, look: Look, random: np.random.Generator) -> np.ndarray:
    """(height, width, 3) uint8 picture of `scene`."""
    canvas = draw_background(random, scene.height, scene.width, look.light)
    draw_body(canvas, scene, look, random)
    _draw_head(canvas, scene, look, random)
    if look.glasses:
        draw_glasses(scene, look).paint(canvas)
    if scene.attributes[4]:
        occluder: Layer = draw_occluder(scene, look, random)
        occluder.paint(canvas)
    extent = float(np.ptp(scene.points, axis=0).max()) * 1.25
    return _develop(canvas * np.float32(look.light.exposure), look.lens, extent, random)


# --- the head -------------------------------------------------------------------------------------------------


def _draw_head(canvas: np.ndarray, scene: Scene, look: Look, random: np.random.Generator) -> None:
    camera = scene.camera
    level = int(np.clip(np.ceil(_SPACING * camera.scale * _SUPERSAMPLING), *_LEVELS))
    grid = lattice()
    shape = grid.rest.shape[:2]
    maps = soft_maps()
    scalp = _scalp(look)
    surface = np.ascontiguousarray((scene.controls.T @ grid.weights).T)  # twice as fast as the transposed product
    # No volume under the ears, where it would stand before them.
    rise = (np.clip(scalp / 0.28, 0, 1) * (1 - (not look.long_hair) * maps["ear"])).ravel()
    surface += (look.volume * rise * rise * (3 - 2 * rise))[:, None] * grid.directions.reshape(-1, 3)
    normals = _normals(surface.astype(np.float32).reshape(*shape, 3)) @ camera.rotation().T.astype(np.float32)
    image = camera.project(surface)
    shade, shine = _lit(normals, look.light)
    gleam = shine[..., None] * look.light.key
    skin = look.skin * np.exp(_skin_layers(look, scene)) * shade + gleam * (0.5 + 0.8 * maps["oily"][..., None])
    hair = (look.hair if look.cap is None else look.cap) * shade + (0.25 if look.cap is None else 0.0) * gleam

    # Cells that face the camera. About nose, lips and eyes a deep fold can turn away and back within a cell.
    nodes = cell_nodes()
    x, y, z = grid.rest.reshape(-1, 3).T
    folded = (np.abs(x) < 0.5) & (y > -0.2) & (y < 0.95) & (z > -0.2)
    facing = normals[..., 2].ravel() + 0.45 * folded
    visible = np.flatnonzero(facing[nodes[:, 5]] > -0.06)
    base_color = skin.astype(np.float32).reshape(-1, 3).T
    base_light = shade.mean(-1, dtype=np.float32).ravel()

    fine = texels(level)
    offset = int(random.integers(0, len(nodes)))
    grain = fine.skin_grain[(visible + offset) % len(nodes)]
    streak = fine.hair_grain[(visible + offset % 97 * 3) % len(nodes)]
    painter = _Painter(visible, level, image, surface, base_color, base_light)
    painter.color *= 1 + np.float32(0.012 + 0.05 * look.freckles) * grain
    _paint_mouth(painter, mouth_patch(level, False), look, scene)
    _paint_nostrils(painter, fine.nostrils)
    for patch, pupil in ((fine.left_eye, 96), (fine.right_eye, 97)):
        _paint_eye(painter, patch, scene.controls[pupil], look)
    for patch in (fine.left_brow, fine.right_brow):
        _paint_brow(painter, patch, look, grain)

    if look.beard or look.moustache:
        field = _whiskers(look).ravel()
        rows = np.flatnonzero(field[nodes[visible]].max(1) > -0.08)
        here = painter.at_texels(field.astype(np.float32), rows)
        beard = np.clip(0.3 + (here + 0.03 * grain[rows]) / 0.09, 0, 0.88)
        painter.lay(rows, beard, _tint(1.15 * look.hair) * np.exp(0.35 * grain[rows]))
    if not look.bald:
        rows = np.flatnonzero(scalp.ravel()[nodes[visible]].max(1) > -0.14)
        here = painter.at_texels(scalp.ravel().astype(np.float32), rows)
        strands = streak[rows]
        cover = np.clip(0.5 + (here + np.float32(0.0 if look.cap is not None else 0.03) * strands) / 0.05, 0, 1)
        texture = np.exp(np.float32(0.06 if look.cap is not None else 0.26) * strands)
        for axis in range(3):
            tone = painter.at_texels(hair[..., axis].ravel().astype(np.float32), rows) * texture
            painter.color[axis, rows] += cover * (tone - painter.color[axis, rows])

    all_places, all_colors = [painter.place.reshape(3, -1)], [painter.color.reshape(3, -1)]
    if scene.controls[94, 1] - scene.controls[90, 1] > 0.1:
        # A mouth wide open stretches its few cells over many pixels.
        patch = mouth_patch(3 * level, True)
        close = _Painter(patch.cells, 3 * level, image, surface, base_color, base_light)
        _paint_mouth(close, patch, look, scene)
        all_places.append(close.place.reshape(3, -1))
        all_colors.append(close.color.reshape(3, -1))
    if not (look.long_hair and look.volume > 0.1):
        for side in (-1.0, 1.0):
            ear_place, ear_color = _ear(scene, look, side, level)
            all_places.append(ear_place)
            all_colors.append(ear_color)
    _splat(canvas, np.concatenate(all_places, axis=1), np.concatenate(all_colors, axis=1))


def _scalp(look: Look) -> np.ndarray:
    """(R, C) field over the lattice that is positive where hair grows, about the distance from the hairline."""
    y, z = lattice().rest[..., 1], lattice().rest[..., 2]
    field = soft_maps()["scalp"] - look.hairline * np.clip((z + 0.7) / 0.5, 0, 1)
    if look.long_hair:
        field = np.maximum(field, np.minimum(0.3 * np.clip((-0.88 - z) / 0.3, -1, 1), 0.95 - y))
    return np.full_like(field, -0.5) if look.bald else field


def _whiskers(look: Look) -> np.ndarray:
    """(R, C) field over the lattice that is positive where a beard or moustache grows."""
    maps = soft_maps()
    fields = [maps["beard"] - 0.02] * bool(look.beard) + [maps["moustache"] - 0.015] * bool(look.moustache)
    return np.maximum.reduce(fields)


def _tint(color: np.ndarray) -> np.ndarray:
    """A colour (3,) to broadcast over (3, cells, texels)."""
    return color.astype(np.float32)[:, None, None]


def _normals(surface: np.ndarray) -> np.ndarray:
    """(R, C, 3) outward unit normals of a surface over the lattice."""
    down = np.empty_like(surface)
    across = np.empty_like(surface)
    down[1:-1] = surface[2:] - surface[:-2]
    down[0], down[-1] = down[1], down[-2]
    across[:, 1:-1] = surface[:, 2:] - surface[:, :-2]
    across[:, 0], across[:, -1] = across[:, 1], across[:, -2]
    normal = np.cross(across, down)
    return normal / np.sqrt(np.maximum((normal**2).sum(-1, keepdims=True), 1e-18))


def _lit(normals: np.ndarray, light: Light) -> tuple[np.ndarray, np.ndarray]:
    """Diffuse light (..., 3) and mirrored light (...) at surfaces with these normals in camera axes.

    The terminator is wrapped, more so for red: light scatters below the skin.
    """
    toward = normals @ light.direction.astype(np.float32)
    wrap = np.array([0.30, 0.20, 0.16], dtype=np.float32)
    diffuse = np.maximum(toward[..., None] + wrap, 0) / (1 + wrap)
    sky = 0.72 - 0.28 * normals[..., 1:2] + 0.15 * normals[..., 2:3]
    halfway = light.direction + np.array([0.0, 0.0, 1.0])
    halfway /= np.sqrt((halfway**2).sum())
    shine = np.float32(light.shine) * np.maximum(normals @ halfway.astype(np.float32), 0) ** 24
    return light.key.astype(np.float32) * diffuse + light.ambient.astype(np.float32) * sky, shine


def _skin_layers(look: Look, scene: Scene) -> np.ndarray:
    """(R, C, 3) logarithm of the skin's colour relative to its mean."""
    face = scene.expression
    fold = 0.06 + 0.25 * max(look.age - 0.3, 0) + 0.35 * max(face.smile, 0)
    crow = 0.35 * max(face.smile, 0) * look.age + 0.2 * max(look.age - 0.5, 0)
    frown = 0.55 * max(face.frown, 0)
    wrinkle = 0.4 * max(face.brow_raise, 0) + 0.4 * max(look.age - 0.6, 0)
    blush = 0.0 if look.make_up is None else 0.55 * look.make_up.blush
    layers = {
        "warm": (0.02, -0.14, -0.12),
        "socket": (-0.20, -0.26, -0.24),
        "lid": (-0.06, -0.12, -0.10),
        "crease": (-0.42, -0.50, -0.50),
        "wing": (-0.34, -0.42, -0.42),
        "under_nose": (-0.40, -0.48, -0.48),
        "bridge": (-0.12, -0.14, -0.14),
        "philtrum": (-0.10, -0.12, -0.12),
        "under_lip": (-0.30, -0.36, -0.36),
        "neck": (-0.50, -0.55, -0.55),
        "fold": (-fold, -1.15 * fold, -1.15 * fold),
        "crow": (-crow, -crow, -crow),
        "frown": (-frown, -frown, -frown),
        "wrinkle": (-wrinkle, -wrinkle, -wrinkle),
        "cheek": (0.1 * blush, -1.2 * blush, -0.8 * blush),
        "shaven": (-0.35 * look.stubble, -0.30 * look.stubble, -0.24 * look.stubble),
    }
    return _stacked_maps(tuple(layers)) @ np.array(list(layers.values()), dtype=np.float32)


@cache
def _stacked_maps(names: tuple[str, ...]) -> np.ndarray:
    maps = soft_maps()
    return np.stack([maps[name] for name in names], axis=-1).astype(np.float32)


class _Painter:
    """Texels of some cells of the surface, and painting over those of one feature.

    place: (3, cells, level**2) image positions. color: the same shape. light: (cells, level**2).
    """

    def __init__(
        self,
        cells: np.ndarray,
        level: int,
        image: np.ndarray,
        surface: np.ndarray,
        color: np.ndarray,
        light: np.ndarray,
    ) -> None:
        nodes = cell_nodes()
        self._nodes = nodes[cells]
        self._basis, self._fine_basis = cell_basis(level), cell_basis(level).astype(np.float32)
        self._surface = surface
        self._row_of = np.full(len(nodes), -1)
        self._row_of[cells] = np.arange(len(cells))
        self.place = np.stack([image[:, axis][self._nodes] @ self._basis for axis in range(3)])
        self.color = np.stack([color[axis][self._nodes] @ self._fine_basis for axis in range(3)])
        self.light = light[self._nodes] @ self._fine_basis

    def at_texels(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """float32 values on the lattice's nodes (nodes,) at the texels of some rows: (rows, level**2)."""
        texel_values: np.ndarray = values[self._nodes[rows]] @ self._fine_basis
        return texel_values

    def rows(self, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
        """Which of the patch's cells are visible, and their rows among the visible cells."""
        rows = self._row_of[patch.cells]
        seen = rows >= 0
        return seen, rows[seen]

    def position(self, rows: np.ndarray, axis: int) -> np.ndarray:
        """(cells, texels) head coordinates along one axis."""
        along: np.ndarray = self._surface[:, axis][self._nodes[rows]] @ self._basis
        return along

    def lay(self, rows: np.ndarray, alpha: np.ndarray, color: np.ndarray, lit: float = 1.0) -> None:
        """Cover texels (cells, texels) with `color` (3, ...), shaded by the light there in the proportion `lit`."""
        alpha, light = alpha.astype(np.float32), np.float32(1 - lit) + np.float32(lit) * self.light[rows]
        for axis in range(3):
            here = self.color[axis, rows]
            self.color[axis, rows] = here + alpha * (color[axis].astype(np.float32) * light - here)

    def darken(self, rows: np.ndarray, amount: np.ndarray) -> None:
        self.color[:, rows] *= np.exp(-amount).astype(np.float32)


def _step(distance: np.ndarray, width: float) -> np.ndarray:
    return np.clip(0.5 + distance / width, 0, 1)


def _paint_eye(painter: _Painter, patch: Patch, pupil: np.ndarray, look: Look) -> None:
    seen, rows = painter.rows(patch)
    if not len(rows):
        return
    maps = {name: values[seen] for name, values in patch.maps.items()}
    x = patch.x[seen]
    made_up = look.make_up
    if made_up is not None:
        around = made_up.shadow_strength * maps["shadow"] * _step(-maps["open"], 0.02)
        painter.lay(rows, around, _tint(made_up.shadow))
    inside = _step(maps["open"], 0.014)
    across, down = painter.position(rows, 0) - pupil[0], painter.position(rows, 1) - pupil[1]
    radius = np.sqrt(across**2 + down**2)
    corner = np.exp(-(((x + 0.215) / 0.03) ** 2))
    white = _tint(np.array([0.74, 0.68, 0.65]))
    white = white + corner * (_tint(np.array([0.55, 0.25, 0.22])) - white)
    ring = np.clip((radius - 0.048) / 0.02, 0, 1)
    iris = _tint(look.iris) * ((1.25 - 0.95 * ring) * (1 + 0.25 * np.sin(9 * np.arctan2(down, across))))
    eyeball = white + _step(0.066 - radius, 0.012) * (iris - white)
    # The upper lid and its lashes shade the ball.
    eyeball = eyeball * ((1 - 0.97 * _step(0.028 - radius, 0.01)) * (1 - 0.5 * np.exp(-((maps["upper"] / 0.025) ** 2))))
    painter.lay(rows, inside, eyeball, lit=0.85)
    glint = np.sqrt((across - (0.022 if look.light.direction[0] > 0 else -0.022)) ** 2 + (down + 0.022) ** 2)
    painter.lay(rows, 0.9 * inside * _step(0.013 - glint, 0.008), _tint(np.full(3, 0.9)))
    lash = 0.9 if made_up is None else 1.6 + 1.2 * made_up.liner
    width = 0.011 if made_up is None else 0.017
    painter.darken(
        rows, lash * np.exp(-((maps["upper"] / width) ** 2)) + 0.35 * lash * np.exp(-((maps["lower"] / 0.009) ** 2))
    )
    if made_up is not None:
        painter.darken(rows, 1.5 * made_up.liner * np.exp(-((maps["liner"] / 0.012) ** 2)))


def _paint_brow(painter: _Painter, patch: Patch, look: Look, grain: np.ndarray) -> None:
    seen, rows = painter.rows(patch)
    if not len(rows):
        return
    inside = patch.maps["inside"][seen] + 0.012 * grain[rows]
    alpha = look.brow * np.clip(0.42 + inside / 0.05, 0, 0.95) * np.clip(1 + 0.12 * grain[rows], 0, 1)
    painter.lay(rows, alpha, _tint(0.7 * look.hair + 0.02 * look.skin))


def _paint_nostrils(painter: _Painter, patch: Patch) -> None:
    seen, rows = painter.rows(patch)
    if len(rows):
        painter.darken(rows, 2.0 * patch.maps["hole"][seen])


def _paint_mouth(painter: _Painter, patch: Patch, look: Look, scene: Scene) -> None:
    seen, rows = painter.rows(patch)
    if not len(rows):
        return
    outer, inner, depth = (patch.maps[name][seen] for name in ("outer", "inner", "depth"))
    x, y = patch.x[seen], patch.y[seen]
    tint, strength, shine = look.lips, 0.80, 0.2
    if look.make_up is not None:
        tint = tint + look.make_up.lip_strength * (look.make_up.lipstick - tint)
        strength, shine = 0.97, 0.4
    lips = _tint(tint) * ((1 + 0.05 * np.sin(90 * x)) * np.where(y < 0.73, 0.86, 1.06))
    painter.lay(rows, strength * _step(outer, 0.03), lips)
    gloss = np.exp(-((x / 0.12) ** 2) - (((y - 0.825) / 0.018) ** 2))
    painter.lay(rows, shine * gloss, _tint(2.2 * tint + 0.04))

    # Between the lips: teeth along the upper one, then tongue, in the dark. Template depth 0..1 spans the real gap.
    gap = float(scene.controls[94, 1] - scene.controls[90, 1])
    inside = _step(inner, 0.012)
    below = depth * max(gap, 0.004)
    teeth = _step(0.085 - below - 0.3 * x**2, 0.012) * np.clip((gap - 0.008) / 0.03, 0, 1)
    teeth = teeth * np.clip((0.2 - np.abs(x)) / 0.06, 0, 1)
    tooth = 0.8 + 0.2 * np.clip(np.abs(np.sin(np.pi * x / 0.062)) * 6, 0, 1)
    tongue = np.exp(-((x / 0.13) ** 2)) * _step(below - 0.6 * gap, 0.1) * np.clip((gap - 0.12) / 0.1, 0, 1)
    cavity = _tint(np.array([0.10, 0.018, 0.016]))
    interior = cavity + tongue * (_tint(np.array([0.38, 0.09, 0.08])) - cavity)
    interior = interior + (teeth * tooth) * (_tint(np.array([0.70, 0.66, 0.58])) - interior)
    interior = interior * (1 - 0.6 * np.clip((np.abs(x) - 0.13) / 0.12, 0, 1))
    painter.lay(rows, inside, interior)
    painter.darken(rows, 0.9 * np.exp(-((inner / 0.010) ** 2)) * (1 - 0.5 * np.clip(gap / 0.1, 0, 1)))


def _ear(scene: Scene, look: Look, side: float, level: int) -> tuple[np.ndarray, np.ndarray]:
    """Texels of one ear (a shallow dish): image positions (3, N) and colours (3, N). side: -1 or 1."""
    a, b = np.meshgrid(np.linspace(-1, 1, 12 * level), np.linspace(-1, 1, 21 * level))
    inside = a * a + b * b <= 1
    a, b = a[inside], b[inside]
    radius = np.sqrt(a * a + b * b)
    width = 0.15 * (1 - 0.35 * np.clip(b, 0, 1))  # narrow towards the lobe
    base = np.array([side * 0.85, 0.17, -0.92])
    # In step with the head's width, as measured at its contour.
    base[0] *= scene.controls[2 if side < 0 else 30, 0] / (side * 0.75)
    back, out = np.array([side * 0.42, 0.0, -0.90]), np.array([side * 0.9, 0.0, 0.42])
    rim = 0.02 + 0.05 * np.clip((radius - 0.7) / 0.3, 0, 1)
    points = (
        base
        + (a * width)[..., None] * back
        + (0.27 * b - 0.06 * a)[..., None] * np.array([0.0, 1.0, 0.0])
        + rim[..., None] * out
    )
    rotation = scene.camera.rotation()
    normal = out + 0.5 * (a[..., None] * back) * np.sign(radius - 0.7)[..., None]
    normal = (normal / np.sqrt((normal**2).sum(-1, keepdims=True))) @ rotation.T
    normal = normal * np.where(normal[..., 2:] < 0, -1, 1)  # seen from behind, the other side
    shade, _ = _lit(normal, look.light)
    hollow = np.exp(-(((radius - 0.5) / 0.2) ** 2)) * (0.6 + 0.4 * (0.825 * a - 0.565 * b) / np.maximum(radius, 1e-6))
    color = look.skin * np.exp(-0.8 * hollow)[..., None] * np.array([1.0, 0.86, 0.84]) * shade
    return scene.camera.project(points).T, color.T.astype(np.float32)


def _splat(canvas: np.ndarray, places: np.ndarray, colors: np.ndarray) -> None:
    """Draw texels (3, N), the nearest in front, over `canvas` (H, W, 3) with smooth edges."""
    height, width = canvas.shape[:2]
    fine = _SUPERSAMPLING
    x0, x1 = max(int(places[0].min()) - 1, 0), min(int(places[0].max()) + 3, width)
    y0, y1 = max(int(places[1].min()) - 1, 0), min(int(places[1].max()) + 3, height)
    if x1 <= x0 or y1 <= y0:
        return
    columns, rows = (x1 - x0) * fine, (y1 - y0) * fine
    # A pixel's centre has whole coordinates.
    px = np.floor((places[0] + (0.5 - x0)) * fine).astype(np.int32)
    py = np.floor((places[1] + (0.5 - y0)) * fine).astype(np.int32)
    keep = np.flatnonzero((px >= 0) & (px < columns) & (py >= 0) & (py < rows)).astype(np.int32)
    depth = ((places[2] + 3.0) * _DEPTH_STEPS).astype(np.uint16)  # head units lie within 3 of the origin
    order = keep[np.argsort(depth[keep], kind="stable")]  # a radix sort: 16 bits
    pixel = (py * columns + px)[order]
    nearest = np.full(rows * columns, -1, dtype=np.int32)
    nearest[pixel] = order
    front = np.zeros(rows * columns, dtype=np.int32)
    front[pixel] = depth[order]
    nearest, front = nearest.reshape(rows, columns), front.reshape(rows, columns)
    # Where the surface is stretched a pixel can fall between texels and show what lies far behind, or nothing: it
    # takes after the neighbours it lies between.
    for d in (1, 2, 4, 2, 1):
        middle = slice(d, -d), slice(d, -d)
        low, high = slice(None, -2 * d), slice(2 * d, None)
        for before, after in (((middle[0], low), (middle[0], high)), ((low, middle[1]), (high, middle[1]))):
            between = np.minimum(front[before], front[after])
            fill = np.nonzero(between > front[middle] + _GAP)
            nearest[middle][fill] = nearest[before][fill]
            front[middle][fill] = between[fill]
    covered = np.flatnonzero(nearest.ravel() >= 0)
    winners = nearest.ravel()[covered]
    clear = 1 - _shrunk(nearest >= 0, fine)
    region = canvas[y0:y1, x0:x1]
    plane = np.zeros(rows * columns, dtype=np.float32)
    for axis in range(3):
        plane[covered] = colors[axis, winners]
        region[..., axis] *= clear
        region[..., axis] += _shrunk(plane.reshape(rows, columns), fine)


def _shrunk(plane: np.ndarray, factor: int) -> np.ndarray:
    """(H, W) means of the factor x factor blocks of `plane`."""
    total = np.zeros((plane.shape[0] // factor, plane.shape[1] // factor), dtype=np.float32)
    for i in range(factor):
        for j in range(factor):
            total += plane[i::factor, j::factor]
    return total / np.float32(factor * factor)


# --- from light to pixels -------------------------------------------------------------------------------------


@cache
def _tone_curve() -> np.ndarray:
    """sRGB level (0..255) for the square root of linear light in 4096 steps from 0 to 2; bright light rolls off."""
    light = (np.arange(4096) / 4095 * 2) ** 2
    return (255 * (1 - np.exp(-1.45 * light)) ** (1 / 2.2)).astype(np.float32)


def _develop(canvas: np.ndarray, lens: Lens, extent: float, random: np.random.Generator) -> np.ndarray:
    """Linear light (H, W, 3) to uint8 pixels: lens, tone curve, noise. extent: padded face square, pixels."""
    levels = _tone_curve()[(np.sqrt(np.clip(canvas, 0, 4)) * (4095 / 2)).astype(np.int32)]
    picture = Image.fromarray((levels + 0.5).astype(np.uint8))
    if lens.blur == "motion":
        picture = _moved(picture, lens.amount * extent, lens.angle)
    elif lens.blur == "low resolution":
        factor = max(lens.amount * extent, 1.5)
        small = (max(8, round(picture.width / factor)), max(8, round(picture.height / factor)))
        picture = picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
    else:
        picture = picture.filter(ImageFilter.GaussianBlur(max(lens.amount * extent, 0.35)))
    pixels = np.asarray(picture).astype(np.float32)
    noise = random.standard_normal((*pixels.shape[:2], 1), dtype=np.float32)
    tinted = random.standard_normal(pixels.shape, dtype=np.float32)
    pixels += (255 * lens.noise) * (0.8 * noise + 0.6 * tinted)
    return (np.clip(pixels, 0, 255) + 0.5).astype(np.uint8)


def _moved(picture: Image.Image, length: float, angle: float) -> Image.Image:
    """The mean of `picture` over a shift of `length` pixels about its middle: landmarks stay in the streak's middle."""
    pixels = np.asarray(picture).astype(np.float32)
    height, width = pixels.shape[:2]
    count = int(np.clip(round(length), 3, 25)) | 1
    reach = int(length) + 2
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    total = np.zeros_like(pixels)
    for t in np.linspace(-0.5, 0.5, count):
        dx, dy = round(float(t * length * np.cos(angle))), round(float(t * length * np.sin(angle)))
        total += padded[reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return Image.fromarray((total / count + 0.5).astype(np.uint8))
