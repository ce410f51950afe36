"""Colours, hair, make-up, light and lens of a synthetic face, drawn to be true of its attributes.

Colours are linear RGB; directions are in camera axes (x right, y down, z towards the viewer).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pose.landmarks import ATTRIBUTES

Color = np.ndarray  # (3,) float64, linear RGB
BlurKind = Literal["none", "gaussian", "motion", "low resolution"]

_SKIN = (  # sRGB, light to dark
    *((250, 218, 198), (240, 196, 168), (228, 178, 146), (206, 152, 116)),
    *((172, 118, 84), (130, 84, 58), (92, 58, 42)),
)
_HAIR = ((28, 22, 20), (52, 36, 28), (84, 56, 38), (128, 88, 54), (196, 158, 104), (150, 70, 40), (150, 148, 145))
_IRIS = ((70, 42, 26), (92, 62, 36), (96, 110, 70), (84, 120, 150), (110, 130, 140))
_LIPSTICK = ((196, 24, 44), (224, 62, 110), (140, 16, 40), (236, 96, 90), (120, 20, 70), (206, 40, 150))
_SHADOW = ((50, 40, 44), (60, 90, 170), (120, 60, 140), (40, 120, 90), (150, 90, 50), (190, 80, 120))


def linear(srgb: tuple[float, float, float]) -> Color:
    """sRGB in 0..255 to linear RGB (the 2.2 power; close enough to the standard's curve for drawing)."""
    return (np.array(srgb) / 255) ** 2.2


@dataclass(frozen=True, eq=False)
class MakeUp:
    lipstick: Color
    lip_strength: float
    shadow: Color
    shadow_strength: float
    blush: float
    liner: float


@dataclass(frozen=True, eq=False)
class Light:
    key: Color
    direction: np.ndarray
    ambient: Color
    shine: float
    exposure: float


@dataclass(frozen=True, eq=False)
class Lens:
    """blur: what blurs the picture; amount: fraction of the padded face square. noise: of 1, at mid grey."""

    blur: BlurKind
    amount: float
    angle: float
    noise: float
    quality: int


@dataclass(frozen=True, eq=False)
class Look:
    skin: Color
    hair: Color
    bald: bool
    long_hair: bool
    hairline: float
    volume: float
    cap: Color | None
    beard: float
    moustache: float
    stubble: float
    brow: float
    iris: Color
    lips: Color
    age: float
    freckles: float
    glasses: bool
    make_up: MakeUp | None
    light: Light
    lens: Lens


def draw_look(random: np.random.Generator, attributes: np.ndarray) -> Look:
    """A look for a face with these attributes (6,) bool."""
    has = dict(zip(ATTRIBUTES, attributes.tolist(), strict=True))
    tone, tint, hair, age, chance_bald, chance_cap, chance_beard, chance_long = random.random(8)
    tone = tone**1.35  # light skin is the more frequent in WFLW
    at = float(tone) * (len(_SKIN) - 1)
    skin = linear(tuple(np.array([np.interp(at, range(len(_SKIN)), [c[i] for c in _SKIN]) for i in range(3)])))
    skin = skin * np.exp((tint - 0.5) * np.array([0.10, 0.0, -0.16]))
    palette = 5 if tone > 0.6 else len(_HAIR)  # dark skin seldom goes with fair hair
    hair_color = linear(_HAIR[int(hair * min(palette, 3) if tone > 0.6 else hair * palette)])
    hair_color = hair_color * np.exp(0.3 * (random.random() - 0.5))
    woman = has["makeup"] or bool(random.random() < 0.42)
    long_hair = chance_long < (0.75 if woman else 0.08)
    beard = 0.0 if woman or chance_beard > 0.4 else 1.0
    make_up = _draw_make_up(random) if has["makeup"] else None
    return Look(
        skin=skin,
        hair=hair_color,
        bald=bool(not woman and chance_bald < 0.12),
        long_hair=bool(long_hair),
        hairline=float(random.uniform(-0.08, 0.14)),
        volume=float(random.uniform(0.04, 0.16) + (0.06 if woman else 0.0)),
        cap=linear(tuple(random.uniform(20, 200) + random.uniform(-20, 35, 3))) if chance_cap < 0.09 else None,
        beard=beard * float(random.random() < 0.55),
        moustache=beard * float(random.random() < 0.8),
        stubble=0.0 if woman else float(random.random() * 0.8),
        brow=float(random.uniform(0.55, 1.0)) if not has["makeup"] else 1.0,
        iris=linear(_IRIS[int(random.random() * (2 if tone > 0.6 else 5))]),
        lips=skin * np.exp(np.array([-0.22, -1.05, -0.75]) * random.uniform(0.7, 1.2)),
        age=float(age),
        freckles=float(random.random() ** 3),
        glasses=bool(random.random() < 0.13),
        make_up=make_up,
        light=_draw_hard_light(random) if has["illumination"] else _draw_soft_light(random),
        lens=_draw_lens(random, has["blur"]),
    )


def _draw_make_up(random: np.random.Generator) -> MakeUp:
    lipstick, shadow = (int(v) for v in random.integers(0, 6, 2))
    strong = random.random() < 0.5
    return MakeUp(
        lipstick=linear(_LIPSTICK[lipstick]),
        lip_strength=float(random.uniform(0.65, 0.95)),
        shadow=linear(_SHADOW[shadow]),
        shadow_strength=float(random.uniform(0.45, 0.8) if strong else random.uniform(0.2, 0.45)),
        blush=float(random.uniform(0.2, 0.8)),
        liner=float(random.uniform(0.6, 1.0)),
    )


def _toward(azimuth: float, elevation: float) -> np.ndarray:
    a, e = np.radians([azimuth, elevation])
    return np.array([np.cos(e) * np.sin(a), -np.sin(e), np.cos(e) * np.cos(a)])


def _draw_soft_light(random: np.random.Generator) -> Light:
    warmth = np.exp(0.12 * (random.random() - 0.5) * np.array([1.0, 0.0, -1.2]))
    return Light(
        key=warmth * random.uniform(0.6, 0.95),
        direction=_toward(random.uniform(-48, 48), random.uniform(8, 48)),
        ambient=random.uniform(0.42, 0.6) * np.array([1.0, 1.0, 1.03]),
        shine=float(random.uniform(0.02, 0.12)),
        exposure=float(random.uniform(0.95, 1.3)),
    )


def _draw_hard_light(random: np.random.Generator) -> Light:
    kind = random.random()
    side = 1.0 if random.random() < 0.5 else -1.0
    a, b, c, d = random.random(4).tolist()
    white = np.ones(3)
    if kind < 0.36:  # from one side
        direction = _toward(side * (68 + 32 * a), 30 * b)
        return Light((1.5 + 0.5 * c) * white, direction, 0.08 * white, 0.12, 1.0 + 0.3 * d)
    if kind < 0.56:  # too dark
        direction = _toward(side * 60 * a, 60 * b)
        return Light(0.8 * white, direction, 0.35 * white, 0.08, 0.10 + 0.13 * c)
    if kind < 0.72:  # too bright
        direction = _toward(side * 50 * a, 50 * b)
        return Light((1.3 + 0.3 * c) * white, direction, 0.6 * white, 0.3, 2.2 + 1.5 * d)
    if kind < 0.90:  # coloured
        hue = 2 * np.pi * a
        color = 0.62 + 0.58 * np.cos(hue + np.array([0.0, 2.1, 4.2]))
        other = 0.62 + 0.50 * np.cos(hue + 1.5 + 2.0 * b + np.array([0.0, 2.1, 4.2]))
        return Light(1.3 * color, _toward(side * 75 * c, 45 * d), 0.35 * other, 0.15, 1.0)
    direction = _toward(side * 25 * a, 68 + 14 * b)  # from above
    return Light(1.7 * white, direction, 0.10 * white, 0.15, 1.1)


def _draw_lens(random: np.random.Generator, blurred: bool) -> Lens:
    kind, amount, angle = random.random(3).tolist()
    noise = float(0.003 + 0.017 * random.random() ** 2)
    quality = int(random.integers(78, 96))
    if not blurred:
        return Lens("none", 0.004 * amount, 0.0, noise, quality)
    if kind < 0.45:
        return Lens("gaussian", 0.012 + 0.014 * amount, 0.0, noise, quality)
    if kind < 0.75:
        return Lens("motion", 0.055 + 0.06 * amount, float(np.pi * angle), noise, quality)
    return Lens("low resolution", 0.026 + 0.020 * amount, 0.0, noise, quality - 25)
