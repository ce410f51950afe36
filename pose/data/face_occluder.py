"""Things in front of a face: glasses, a hand, a mask, a microphone and so on, as layers of colour and coverage."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from pose.data.face_backdrop import cloud
from pose.data.face_look import Look, linear
from pose.data.face_scene import Scene


@dataclass(frozen=True, eq=False)
class _Shape:
    """Coverage (h, w) of a window of the picture, with pixel coordinates x (1, w), y (h, 1) and normals (h, w, 3)."""

    window: tuple[slice, slice]
    x: np.ndarray
    y: np.ndarray
    alpha: np.ndarray
    normal: np.ndarray


@dataclass(eq=False)
class Layer:
    """alpha: (H, W) coverage. color: (H, W, 3) linear light, not multiplied by alpha."""

    alpha: np.ndarray
    color: np.ndarray

    def paint(self, canvas: np.ndarray) -> None:
        canvas += self.alpha[..., None] * (self.color - canvas)

    def add(self, shape: _Shape, color: np.ndarray) -> None:
        """Lay something over this layer; `color` is (h, w, 3) in the shape's window, or one colour."""
        below, alpha = self.alpha[shape.window], shape.alpha
        total = alpha + below * (1 - alpha)
        share = (alpha / np.maximum(total, 1e-6))[..., None]
        region = self.color[shape.window]
        region += share * (color - region)
        self.alpha[shape.window] = total


def _empty(scene: Scene) -> Layer:
    shape = scene.height, scene.width
    return Layer(np.zeros(shape, dtype=np.float32), np.zeros((*shape, 3), dtype=np.float32))


def _window(scene: Scene, low: np.ndarray, high: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The part of the picture between two corners, and its pixel coordinates x (1, w) and y (h, 1)."""
    x0, y0 = (int(np.clip(v, 0, n)) for v, n in zip(np.floor(low) - 1, (scene.width, scene.height), strict=True))
    x1, y1 = (int(np.clip(v, 0, n)) for v, n in zip(np.ceil(high) + 2, (scene.width, scene.height), strict=True))
    x = np.arange(x0, max(x1, x0), dtype=np.float32)[None]
    y = np.arange(y0, max(y1, y0), dtype=np.float32)[:, None]
    return (slice(y0, max(y1, y0)), slice(x0, max(x1, x0))), x, y


def _capsule(scene: Scene, a: np.ndarray, b: np.ndarray, ra: float, rb: float) -> _Shape:
    """A rounded bar from `a` to `b` with radii `ra` and `rb` at its ends; pixels."""
    reach = max(ra, rb)
    window, x, y = _window(scene, np.minimum(a, b) - reach, np.maximum(a, b) + reach)
    d = b - a
    t = np.clip(((x - a[0]) * d[0] + (y - a[1]) * d[1]) / max(float(d @ d), 1e-6), 0, 1)
    radius = ra + t * (rb - ra)
    ox, oy = (x - a[0] - t * d[0]) / radius, (y - a[1] - t * d[1]) / radius
    squared = ox * ox + oy * oy
    alpha = np.clip((1 - np.sqrt(squared)) * radius + 0.5, 0, 1)
    normal = np.stack([ox, oy, np.sqrt(np.maximum(1 - squared, 0))], axis=-1)
    return _Shape(window, x, y, alpha, normal)


def _polygon(scene: Scene, outline: np.ndarray) -> _Shape:
    """A flat shape with corners `outline` (V, 2) in pixels, and smooth edges."""
    window, x, y = _window(scene, outline.min(0), outline.max(0))
    height, width = len(y), x.shape[1]
    if not (height and width):
        empty = np.zeros((height, width), dtype=np.float32)
        return _Shape(window, x, y, empty, np.zeros((height, width, 3), dtype=np.float32))
    fine = 3
    mask = Image.new("L", (width * fine, height * fine))
    corners = (outline - (window[1].start, window[0].start) + 0.5) * fine
    ImageDraw.Draw(mask).polygon([(float(px), float(py)) for px, py in corners], fill=255)
    alpha = np.asarray(mask.reduce(fine)).astype(np.float32) / 255
    return _Shape(window, x, y, alpha, np.broadcast_to(np.array([0, 0, 1], dtype=np.float32), (height, width, 3)))


def _shade(look: Look, normal: np.ndarray) -> np.ndarray:
    light = look.light
    toward = np.clip(normal @ light.direction.astype(np.float32) + 0.15, 0, None) / 1.15
    shaded: np.ndarray = toward[..., None] * light.key.astype(np.float32) + 0.8 * light.ambient.astype(np.float32)
    return shaded


def _flat_light(look: Look) -> np.ndarray:
    flat: np.ndarray = (0.8 * look.light.ambient + 0.5 * look.light.key * max(0.15, look.light.direction[2])).astype(
        np.float32
    )
    return flat


def _lens_outline(scene: Scene, eye: slice, round_lens: bool) -> np.ndarray:
    """Outline of a spectacle lens around an eye, in the plane of the face."""
    controls = scene.controls
    middle = controls[eye].mean(0)
    middle = middle + np.array([0.0, 0.035, 0.10])
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    power = 1.0 if round_lens else 0.62
    c, s = np.cos(angle), np.sin(angle)
    across = 0.235 * np.sign(c) * np.abs(c) ** power
    down = 0.185 * np.sign(s) * np.abs(s) ** power
    bend = -0.18 * np.sign(middle[0]) * across  # the frame curves back at the temples
    ring = middle + np.stack([across, down, bend], axis=1)
    return scene.camera.project(ring)[:, :2]


_EYES = slice(60, 68), slice(68, 76)


def draw_glasses(scene: Scene, look: Look) -> Layer:
    """Clear spectacles: thin frames that hide next to nothing."""
    layer = _empty(scene)
    frame = (np.full(3, 0.03) * _flat_light(look)).astype(np.float32)
    width = max(0.016 * scene.camera.scale, 0.5)
    for eye in _EYES:
        _frame(layer, scene, _lens_outline(scene, eye, True), width, frame)
    _bridge(layer, scene, width, frame)
    return layer


def _frame(layer: Layer, scene: Scene, outline: np.ndarray, width: float, color: np.ndarray) -> None:
    middle = outline.mean(0)
    reach = np.sqrt(((outline - middle) ** 2).sum(1)).mean()
    grow = width / max(float(reach), 1.0)
    ring = _polygon(scene, middle + (outline - middle) * (1 + grow))
    hole = _polygon(scene, middle + (outline - middle) * (1 - grow))
    rows, columns = hole.window
    top, left = rows.start - ring.window[0].start, columns.start - ring.window[1].start
    ring.alpha[top : top + hole.alpha.shape[0], left : left + hole.alpha.shape[1]] -= hole.alpha
    layer.add(replace(ring, alpha=np.clip(ring.alpha, 0, 1)), color)


def _bridge(layer: Layer, scene: Scene, width: float, color: np.ndarray) -> None:
    a, b = (scene.controls[i] + np.array([0.0, 0.0, 0.10]) for i in (64, 68))
    a, b = a + (b - a) * 0.1, b - (b - a) * 0.1
    ends = scene.camera.project(np.stack([a, b]))[:, :2]
    layer.add(_capsule(scene, ends[0], ends[1], width, width), color)


def draw_occluder(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    """Something that covers at least eight of the 98 points."""
    kinds = (_sunglasses, _hand, _mask, _microphone, _thing, _fringe, _other_head)
    chances = (0.20, 0.20, 0.12, 0.10, 0.13, 0.15, 0.10)
    kind = int(np.searchsorted(np.cumsum(chances), random.random()))
    return kinds[min(kind, len(kinds) - 1)](scene, look, random)


def _sunglasses(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    layer = _empty(scene)
    tint = random.uniform(0.005, 0.05, 3).astype(np.float32)
    round_lens = bool(random.random() < 0.5)
    frame = (random.uniform(0.005, 0.3, 3) ** 2 * _flat_light(look)).astype(np.float32)
    width = max(random.uniform(0.02, 0.04) * scene.camera.scale, 0.7)
    for eye in _EYES:
        outline = _lens_outline(scene, eye, round_lens)
        low, high = outline[:, 1].min(), outline[:, 1].max()
        lens = _polygon(scene, outline)
        sky = np.clip(1 - (lens.y - low) / max(high - low, 1.0), 0, 1) ** 2
        mirror = tint + 0.10 * sky[..., None] * look.light.ambient.astype(np.float32)
        layer.add(replace(lens, alpha=0.96 * lens.alpha), mirror)
        _frame(layer, scene, outline, width, frame)
    _bridge(layer, scene, width, frame)
    return layer


def _region(scene: Scene, random: np.random.Generator) -> np.ndarray:
    """A place on the face that has many points near it."""
    choices = (slice(76, 96), slice(60, 68), slice(68, 76), slice(54, 60), slice(8, 25), slice(33, 51))
    return scene.points[choices[int(random.integers(0, len(choices)))]].mean(0)


def _hand(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    layer = _empty(scene)
    unit = scene.camera.scale
    at = _region(scene, random)
    outward = at - scene.points.mean(0) + np.array([0.0, 0.35 * unit])
    angle = float(np.arctan2(outward[1], outward[0])) + random.uniform(-0.5, 0.5)
    away = np.array([np.cos(angle), np.sin(angle)])
    side = np.array([-away[1], away[0]])
    skin = (look.skin * np.exp(random.uniform(-0.1, 0.1))).astype(np.float32)
    wrist = at + 0.55 * unit * away
    parts = [(wrist, wrist + 2.2 * unit * away, 0.26, 0.32), (at + 0.25 * unit * away, wrist, 0.34, 0.28)]
    for finger, length in zip((-1.5, -0.5, 0.5, 1.5), (0.42, 0.52, 0.50, 0.38), strict=True):
        knuckle = at + 0.12 * unit * away + 0.155 * finger * unit * side
        spread = random.uniform(0.0, 1.0) * 0.07 * finger
        tip = knuckle - unit * length * away + unit * spread * side
        parts.append((knuckle, tip, 0.105, 0.082))
    thumb = at + 0.3 * unit * away - 0.25 * unit * side
    parts.append((thumb, thumb - 0.32 * unit * (side + 0.4 * away), 0.10, 0.08))
    for a, b, ra, rb in parts:
        part = _capsule(scene, a, b, ra * unit, rb * unit)
        edge = 0.45 + 0.55 * np.clip(part.normal[..., 2:] * 1.6, 0, 1)  # dark gaps between the fingers
        layer.add(part, skin * edge * _shade(look, part.normal))
    return layer


def _mask(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    """A mask or scarf over mouth and chin."""
    layer = _empty(scene)
    top = 54 if random.random() < 0.6 else 57
    upper = scene.points[[28, 26, top, 6, 4]]
    lower = scene.points[6:27]
    middle = scene.points[76:96].mean(0)
    outline = np.vstack([upper[2:3], upper[3:4], upper[4:5], middle + (lower - middle) * 1.06, upper[0:1], upper[1:2]])
    cloth = _polygon(scene, outline)
    base = (random.uniform(0.05, 0.95, 3) ** 1.5).astype(np.float32)
    base = 0.5 * base + 0.5 * base.mean()
    along = scene.points[16] - scene.points[51]
    along = along / max(float(np.sqrt(along @ along)), 1e-6)
    down = ((cloth.x - middle[0]) * along[0] + (cloth.y - middle[1]) * along[1]) / scene.camera.scale
    across = ((cloth.x - middle[0]) * along[1] - (cloth.y - middle[1]) * along[0]) / scene.camera.scale
    noise = cloud(random, scene.height, scene.width, 9, 1)[cloth.window][..., 0]
    folds = 0.85 + 0.10 * np.sin(down * random.uniform(14, 30)) + 0.08 * noise
    nx = np.clip(across / 0.8 + np.sin(scene.camera.yaw), -0.95, 0.95)
    normal = np.stack([nx, np.clip(0.3 * down, -0.4, 0.4), np.sqrt(1 - nx**2)], axis=-1)
    layer.add(cloth, base * folds[..., None] * _shade(look, normal))
    return layer


def _microphone(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    layer = _empty(scene)
    unit = scene.camera.scale
    ball = scene.points[76:96].mean(0) + random.uniform(-0.06, 0.06, 2) * unit
    angle = np.radians(90 + random.uniform(-60, 60))
    end = ball + 3 * unit * np.array([np.cos(angle), np.sin(angle)])
    handle = _capsule(scene, ball, end, 0.12 * unit, 0.16 * unit)
    layer.add(handle, np.float32(0.08) * _shade(look, handle.normal))
    head = _capsule(scene, ball, ball + 0.01, 0.27 * unit, 0.27 * unit)
    mesh = 0.7 + 0.3 * np.sin(head.x * 40 / unit) * np.sin(head.y * 40 / unit)
    layer.add(head, np.float32(random.uniform(0.05, 0.4)) * mesh[..., None] * _shade(look, head.normal))
    return layer


def _thing(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    """A ball, a cup, a book: round or a rotated box, with a simple print."""
    layer = _empty(scene)
    unit = scene.camera.scale
    at = _region(scene, random)
    base = (random.uniform(0.02, 0.9, 3) ** 1.5).astype(np.float32)
    other = (random.uniform(0.02, 0.9, 3) ** 1.5).astype(np.float32)
    base, other = 0.6 * base + 0.4 * base.mean(), 0.6 * other + 0.4 * other.mean()
    slant, pitch = random.uniform(-1, 1), random.uniform(6, 25)

    def print_on(shape: _Shape) -> np.ndarray:
        stripes = np.clip(0.5 + 4 * np.sin((shape.x * slant + shape.y) * pitch / unit), 0, 1)[..., None]
        printed: np.ndarray = base + stripes * (other - base)
        return printed

    # Its near edge lies past the middle of the region, the rest outside the face.
    away = at - scene.points.mean(0) + np.array([0.0, 0.2 * unit])
    away = away / max(float(np.sqrt(away @ away)), 1e-6)
    radius = random.uniform(0.36, 0.60) * unit
    if random.random() < 0.5:
        at = at + 0.5 * (radius - 0.36 * unit) * away
        ball = _capsule(scene, at, at + 0.01, radius, radius)
        layer.add(ball, print_on(ball) * _shade(look, ball.normal))
        return layer
    angle = np.arctan2(away[1], away[0]) + random.uniform(-0.3, 0.3)
    u, v = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = np.stack([-0.36 * unit * u - radius * v, 1.3 * unit * u - radius * v])
    outline = at + np.vstack([corners, corners[::-1] + 2 * radius * v])
    box = _polygon(scene, outline)
    layer.add(box, print_on(box) * _flat_light(look))
    return layer


def _fringe(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    """Hair over one eye and its brow, or both brows."""
    layer = _empty(scene)
    points, unit = scene.points, scene.camera.scale
    up = points[51] - points[16]
    up = up / max(float(np.sqrt(up @ up)), 1e-6)
    left = random.random() < 0.5
    brow, eye = (slice(33, 42), slice(60, 68)) if left else (slice(42, 51), slice(68, 76))
    both = random.random() < 0.4
    first = points[33:51].mean(0) if both else points[brow].mean(0)
    across = points[46] - points[33] if both else (points[46] - points[33]) * 0.62
    low = first - 0.04 * unit * up if both else points[eye].mean(0) - 0.25 * unit * up
    count = 26
    sweep = random.uniform(-0.5, 0.5)
    jitters, lengths = random.uniform(-1, 1, count), random.uniform(-0.12, 0.05, count)
    for t, jitter, length in zip(np.linspace(-0.5, 0.5, count), jitters, lengths, strict=True):
        root = first + 0.95 * unit * up + (0.6 * t - sweep) * across
        middle = first + 0.45 * unit * up + (0.95 * t - 0.5 * sweep) * across
        tip = low + (t + 0.06 * jitter) * across + (length + 0.25 * t * sweep) * unit * up
        shade = (look.hair * np.exp(0.35 * jitter)).astype(np.float32)
        for a, b, ra, rb in ((root, middle, 0.06, 0.055), (middle, tip, 0.055, 0.015)):
            strand = _capsule(scene, a, b, ra * unit, rb * unit)
            layer.add(strand, shade * _shade(look, strand.normal))
    return layer


def _other_head(scene: Scene, look: Look, random: np.random.Generator) -> Layer:
    """The back of somebody's head in front of a lower corner of the face."""
    layer = _empty(scene)
    unit = scene.camera.scale
    middle = scene.points[54]
    # Of a turned face, the cheek that it shows.
    reach = [float(np.sqrt(((scene.points[side] - middle) ** 2).sum())) for side in (8, 24)]
    chosen = random.random() < 0.5 if min(reach) > 0.6 * max(reach) else reach[0] > reach[1]
    edge = scene.points[8 if chosen else 24]
    outward = edge - middle
    outward = outward / max(float(np.sqrt(outward @ outward)), 1e-6)
    radius = random.uniform(0.85, 1.2) * unit
    center = edge + (radius - random.uniform(0.40, 0.65) * unit) * outward
    hair = (linear((60, 44, 36)) * random.uniform(0.3, 2.5)).astype(np.float32)
    trunk = _capsule(scene, center, center + np.array([0.0, 4 * unit]), 0.8 * radius, 1.6 * radius)
    layer.add(trunk, random.uniform(0.02, 0.6, 3).astype(np.float32) ** 1.5 * _flat_light(look))
    skull = _capsule(scene, center, center + np.array([0.0, 0.25 * unit]), radius, 0.9 * radius)
    swirl = np.arctan2(skull.y - center[1] + 0.4 * unit, skull.x - center[0])
    strands = 0.85 + 0.2 * np.sin(swirl * 70 + 3 * np.sin(swirl * 23))
    layer.add(skull, hair * strands[..., None] * _shade(look, skull.normal))
    return layer
