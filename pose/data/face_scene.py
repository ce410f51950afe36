"""Who is in a synthetic picture and how: attributes, head, expression, camera, and the landmarks that follow."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cache

import numpy as np

from pose.data.face_model import Camera, Expression, Identity, head, landmarks
from pose.landmarks import ATTRIBUTES

SPLIT_CODES = {"train": 0, "test": 1}

# Shares in WFLW's test list, order of `ATTRIBUTES`, and the share of its faces that have none of them.
SHARES = (0.1304, 0.1256, 0.2792, 0.0824, 0.2944, 0.3092)
SHARE_NONE = 0.2136


@dataclass(frozen=True, eq=False)
class Scene:
    """attributes: (6,) bool. width, height: of the picture, pixels. controls: (K, 3) control points of the head.

    points: (98, 2) landmarks in pixels of the picture, all inside it.
    """

    attributes: np.ndarray
    width: int
    height: int
    expression: Expression
    controls: np.ndarray
    camera: Camera
    points: np.ndarray


def stream(seed: int, split: str, index: int, purpose: int) -> np.random.Generator:
    """Random numbers of one face for one purpose: a function of the arguments alone."""
    key = np.random.SeedSequence([seed, SPLIT_CODES[split], index, purpose])
    return np.random.Generator(np.random.Philox(key))


@cache
def _combinations() -> tuple[np.ndarray, np.ndarray]:
    """The 64 combinations of attributes, (64, 6) bool, and the upper ends of their shares of [0, 1).

    Attributes are independent given that a face has any, with the probabilities for which the shares come out.
    """
    shares = np.array(SHARES)
    none = 0.2
    for _ in range(200):
        chances = shares * (1 - none) / (1 - SHARE_NONE)
        none = float(np.prod(1 - chances))
    # Gray code: neighbours differ in one attribute, so each attribute covers few long intervals.
    codes = np.arange(64) ^ (np.arange(64) >> 1)
    combinations = (codes[:, None] >> np.arange(6)) & 1 == 1
    share = np.where(combinations, chances, 1 - chances).prod(1) * (1 - SHARE_NONE) / (1 - none)
    share[0] = SHARE_NONE
    return combinations, np.cumsum(share)


_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio: multiples of it fill [0, 2**64) evenly (Weyl sequence)


def draw_attributes(seed: int, split: str, index: int) -> np.ndarray:
    """(6,) bool. Shares come out close to `SHARES` for any run of consecutive faces, not only for large sets."""
    start = int(np.random.SeedSequence([seed, SPLIT_CODES[split]]).generate_state(1, np.uint64)[0])
    position = ((start + index * _GOLDEN) % 2**64 >> 11) / 2**53
    combinations, ends = _combinations()
    return combinations[min(int(np.searchsorted(ends, position, side="right")), 63)].copy()


def compose(seed: int, split: str, index: int, size: int) -> Scene:
    """The scene of face `index` of `split`, in a picture of about `size` pixels a side."""
    attributes = draw_attributes(seed, split, index)
    has = dict(zip(ATTRIBUTES, attributes.tolist(), strict=True))
    random = stream(seed, split, index, 0)
    traits = np.clip(random.standard_normal(len(fields(Identity))), -2.5, 2.5)
    identity = Identity(*traits.tolist())
    expression = _draw_strong_expression(random) if has["expression"] else _draw_mild_expression(random)
    camera = _draw_turn(random, has["pose"])
    controls = head(identity, expression)

    width, height = (max(32, round(size * float(f))) for f in random.uniform(0.82, 1.2, 2))
    points = landmarks(controls, camera)
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    # Faces of WFLW are small and large; here the side is 30 to 80 % of the picture's, most often about half.
    fraction = float(np.clip(0.54 * np.exp(0.24 * random.standard_normal()), 0.30, 0.80))
    scale = fraction * min(width, height) / extent
    # Anywhere in the picture: usually near the middle, now and then up to the border.
    room = np.array([width - 1, height - 1]) - 2 - scale * (high - low)
    place = random.beta(2.2, 2.2, 2)
    shift = 1 + room * place - scale * low
    camera = replace(camera, scale=scale, shift=(float(shift[0]), float(shift[1])))
    return Scene(attributes, width, height, expression, controls, camera, points * scale + shift)


def _draw_turn(random: np.random.Generator, large: bool) -> Camera:
    yaw, pitch, roll = np.clip(random.standard_normal(3), -2.4, 2.4) * (23.5, 11.0, 10.0) + (0.0, -1.0, 0.0)
    yaw, pitch = float(np.clip(yaw, -45, 45)), float(np.clip(pitch, -26, 26))
    sign = 1.0 if random.random() < 0.5 else -1.0
    amount = float(np.clip(random.standard_normal(), -2, 2))
    kind = random.random()
    distance = float(random.uniform(6.0, 18.0))
    if large:
        if kind < 0.84:
            yaw = sign * (58.5 + 5.5 * amount)
        elif kind < 0.93:
            pitch = sign * (36 + 4 * amount)
        else:
            roll = sign * (44 + 6 * amount)
    turn = np.radians([yaw, pitch, roll]).tolist()
    return Camera(yaw=turn[0], pitch=turn[1], roll=turn[2], distance=distance)


def _draw_gaze(random: np.random.Generator) -> tuple[float, float]:
    x, y = np.clip(random.standard_normal(2), -2, 2) * (0.02, 0.008)
    return float(x), float(y)


def _draw_mild_expression(random: np.random.Generator) -> Expression:
    lips, smile, brow, frown, lids, pucker = random.random(6).tolist()
    parted = 0.0 if lips < 0.45 else (lips - 0.45) / 0.55 * 1.6
    close = 0.45 * lids**2 - 0.1
    return Expression(
        open=0.10 * max(0.0, lips - 0.6) / 0.4,
        parted=parted,
        smile=0.95 * smile**1.6 - 0.12,
        pucker=0.12 * pucker,
        brow_raise=0.35 * brow - 0.15,
        frown=0.25 * frown,
        close_left=close,
        close_right=close,
        gaze=_draw_gaze(random),
    )


def _draw_strong_expression(random: np.random.Generator) -> Expression:
    kind = random.random()
    a, b, c, d, e = random.random(5).tolist()
    gaze = _draw_gaze(random)
    shift = 0.05 * (2 * e - 1)
    if kind < 0.34:  # laughing
        close = 0.3 + 0.55 * c
        return Expression(0.14 + 0.26 * a, 1.3, 0.9 + 0.45 * b, 0.0, 0.4 * d, 0.0, close, close, gaze, 0.3 * shift)
    if kind < 0.56:  # surprised
        return Expression(0.28 + 0.32 * a, 1.2, -0.3 * b, 0.3 * c, 0.65 + 0.4 * d, 0.0, -0.3, -0.3, gaze, 0.5 * shift)
    if kind < 0.74:  # shouting
        close = 0.2 + 0.6 * c
        return Expression(0.38 + 0.28 * a, 1.5, 0.3 + 0.3 * b, 0.0, -0.2, 0.6 + 0.5 * d, close, close, gaze, shift)
    if kind < 0.87:  # angry
        close = 0.1 + 0.3 * c
        return Expression(0.0, 0.3 * a, -0.7 - 0.5 * b, 0.2 * e, -0.5 * d, 0.9 + 0.4 * a, close, close, gaze, shift)
    if kind < 0.95:  # kissing or squinting
        return Expression(0.04 * a, 0.2, 0.0, 0.75 + 0.4 * b, 0.3 * d, 0.3, 0.4 + 0.6 * c, 0.4 + 0.6 * c, gaze, shift)
    winking = 0.95, 0.05  # with a crooked mouth
    left, right = winking if a < 0.5 else winking[::-1]
    return Expression(0.10 + 0.1 * b, 0.9, 0.6 + 0.4 * c, 0.0, 0.5 * d, 0.0, left, right, gaze, 2 * shift)
