"""What is behind a synthetic face: background, hair that falls behind the neck, neck and clothes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pose.data.face_look import Light, Look
from pose.data.face_scene import Scene


def cloud(random: np.random.Generator, height: int, width: int, cells: int, channels: int = 3) -> np.ndarray:
    """(height, width, channels) float32 smooth noise of about unit variance, with `cells` bumps along a side."""
    grid = random.standard_normal((channels, cells + 3, cells + 3), dtype=np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in grid]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(width, dtype=np.float32)[None], np.arange(height, dtype=np.float32)[:, None]


def draw_background(random: np.random.Generator, height: int, width: int, light: Light) -> np.ndarray:
    """(height, width, 3) float32 linear light: a plain wall, clouds, stripes, panels, bokeh or foliage."""
    kind = random.random()
    base = random.uniform(0.02, 0.75, 3) ** 1.6
    base = 0.4 * base + 0.6 * base.mean()
    other = random.uniform(0.02, 0.8, 3) ** 1.6
    other = 0.4 * other + 0.6 * other.mean()
    x, y = _grid(height, width)
    angle = random.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * x + np.sin(angle) * y) / max(height, width)
    if kind < 0.2:
        mix = np.clip(0.5 + along, 0, 1)[..., None]
    elif kind < 0.42:
        mix = np.clip(0.5 + 0.35 * cloud(random, height, width, int(random.integers(2, 6)), 1), 0, 1)
    elif kind < 0.54:
        stripes = np.sin(along * random.uniform(12, 60))
        mix = np.clip(0.5 + stripes * random.uniform(0.6, 4), 0, 1)[..., None]
    elif kind < 0.72:
        mix = np.zeros((height, width, 1), dtype=np.float32)
        for _ in range(int(random.integers(3, 9))):
            left, top = random.uniform(-0.3, 0.9, 2) * (width, height)
            right, bottom = (left, top) + random.uniform(0.1, 0.8, 2) * (width, height)
            inside = (np.clip(x - left, 0, 1) * np.clip(right - x, 0, 1)) * (
                np.clip(y - top, 0, 1) * np.clip(bottom - y, 0, 1)
            )
            mix += (random.uniform() - mix) * inside[..., None]
    else:
        mix = np.clip(0.4 + 0.25 * cloud(random, height, width, 9, 1) + 0.2 * cloud(random, height, width, 30, 1), 0, 1)
    picture = base + mix * (other - base)
    if kind > 0.86:  # lights out of focus
        for _ in range(int(random.integers(5, 16))):
            cx, cy = random.uniform(0, 1, 2) * (width, height)
            radius = random.uniform(0.02, 0.09) * max(height, width)
            disc = np.clip(radius - np.sqrt((x - cx) ** 2 + (y - cy) ** 2), 0, 1)
            picture = picture + 0.5 * disc[..., None] * random.uniform(0.1, 1.0, 3)
    picture = picture * (1 + 0.10 * cloud(random, height, width, 40, 1) * random.uniform(0, 1))
    lit = 0.55 * light.ambient + 0.35 * light.key + 0.1
    return np.ascontiguousarray(np.maximum(picture * lit, 0), dtype=np.float32)


def draw_body(canvas: np.ndarray, scene: Scene, look: Look, random: np.random.Generator) -> None:
    """Paint long hair, neck and clothes over `canvas`."""
    height, width = canvas.shape[:2]
    camera = scene.camera
    unit = camera.scale
    x, y = _grid(height, width)
    top = camera.project(np.array([0.0, 0.55, -0.85]))[:2]
    # The trunk leans less than the head.
    lean = 0.35 * np.sin(camera.roll)
    base = top + np.array([-lean * 1.2 - 0.15 * np.sin(camera.yaw), 1.2]) * unit
    light = look.light
    sky = (light.ambient * 0.8 + 0.45 * light.key * max(0.1, float(light.direction[2]))).astype(np.float32)

    def over(alpha: np.ndarray, color: np.ndarray) -> None:
        np.add(canvas, alpha[..., None] * (color - canvas), out=canvas)

    if look.long_hair and look.cap is None:
        crown = camera.project(np.array([0.0, -0.25, -1.0]))[:2]
        t = np.clip((y - crown[1]) / max(base[1] - crown[1], 1.0), -1, 1.25)
        middle = crown[0] + np.clip(t, 0, 2) * (base[0] - crown[0])
        half = unit * ((0.80 + look.volume) * np.sqrt(np.clip(1 - np.minimum(t, 0) ** 2 * 4, 0, 1)) + 0.16 * t)
        locks = 0.75 + 0.25 * np.sin((x - middle) / unit * 37 + 2 * np.sin(y / unit * 2.2))
        ends = base[1] + unit * (0.15 + 0.05 * np.sin((x - middle) / unit * 19))
        alpha = np.clip(half - np.abs(x - middle), 0, 2) / 2 * np.clip((ends - y) / (0.08 * unit), 0, 1)
        over(alpha, (look.hair * sky * 0.75).astype(np.float32) * locks[..., None])

    t = np.clip((y - top[1]) / max(base[1] - top[1], 1.0), 0, 1.3)
    middle = top[0] + t * (base[0] - top[0])
    half = unit * (0.44 + 0.5 * np.clip(t - 0.5, 0, 1) ** 2)
    across = (x - middle) / half
    round_shade = np.sqrt(np.clip(1 - 0.8 * across**2, 0.05, 1))
    facing = np.clip(0.75 + 0.35 * across * float(light.direction[0]), 0.2, 1.3) * round_shade
    under_chin = 0.35 + 0.5 * np.clip((t - 0.35) / 0.6, 0, 1)
    alpha = np.clip((1 - np.abs(across)) * half, 0, 1) * np.clip(y - top[1], 0, 1)
    over(alpha, (look.skin * sky).astype(np.float32) * (facing * under_chin)[..., None])

    cloth = (random.uniform(0.01, 0.8, 3) ** 1.5).astype(np.float32)
    second = (random.uniform(0.01, 0.8, 3) ** 1.5).astype(np.float32)
    pattern = random.random()
    span = 1.75 * unit
    collar = 0.20 * unit * np.clip(1 - ((x - base[0]) / (0.55 * unit)) ** 2, 0, 1)
    shoulder = base[1] - 0.22 * unit + 0.35 * unit * ((x - base[0]) / span) ** 2 + collar
    edge = np.clip(span - np.abs(x - base[0]), 0, 2) / 2
    alpha = np.clip(y - shoulder, 0, 1) * edge
    folds = 0.8 + 0.12 * cloud(random, height, width, 7, 1)
    if pattern < 0.3:
        mix = np.clip(0.5 + 3 * np.sin((y - base[1]) / unit * random.uniform(12, 40)), 0, 1)[..., None]
    elif pattern < 0.45:
        mix = np.clip(0.5 + 3 * np.sin((x - base[0]) / unit * 22) * np.sin(y / unit * 22), 0, 1)[..., None]
    else:
        mix = np.zeros((1, 1, 1), dtype=np.float32)
    over(alpha, (cloth + mix * (second - cloth)) * folds * sky)
