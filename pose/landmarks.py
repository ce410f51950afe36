"""The 98-point scheme of WFLW.

0-32 face contour, 33-41 and 42-50 brows, 51-54 nose bridge, 55-59 nose base, 60-67 and 68-75 eyes,
76-87 outer lip, 88-95 inner lip, 96 and 97 pupils. "Left" and "right" are the image's, not the person's.
"""

from __future__ import annotations

import numpy as np

NUM_LANDMARKS = 98
EYE_CORNERS = (60, 72)  # outer corners; their distance is the unit of the NME

ATTRIBUTES = ("pose", "expression", "illumination", "makeup", "occlusion", "blur")  # WFLW's column order

FLIP_PAIRS: tuple[tuple[int, int], ...] = (
    *((i, 32 - i) for i in range(16)),
    *((33, 46), (34, 45), (35, 44), (36, 43), (37, 42), (38, 50), (39, 49), (40, 48), (41, 47)),
    *((60, 72), (61, 71), (62, 70), (63, 69), (64, 68), (65, 75), (66, 74), (67, 73)),
    *((55, 59), (56, 58)),
    *((76, 82), (77, 81), (78, 80), (87, 83), (86, 84)),
    *((88, 92), (89, 91), (95, 93)),
    (96, 97),
)  # 44 pairs; the ten points on the midline (16, 51-54, 57, 79, 85, 90, 94) map to themselves


def _flip_index() -> np.ndarray:
    index = np.arange(NUM_LANDMARKS)
    for a, b in FLIP_PAIRS:
        index[[a, b]] = b, a
    return index


FLIP_INDEX = _flip_index()  # points[..., FLIP_INDEX, :] renames the points of a mirrored face; its own inverse

# Runs of points that a drawing joins: (first, last, closed)
CONTOURS: tuple[tuple[int, int, bool], ...] = (
    *((0, 32, False), (33, 41, True), (42, 50, True), (51, 54, False), (55, 59, False)),
    *((60, 67, True), (68, 75, True), (76, 87, True), (88, 95, True)),
)
