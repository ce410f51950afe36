"""A set of annotated faces: what every loader returns and everything downstream reads."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_COORDINATE = 1e6  # pixels; no picture is larger, and float32 still tells pixels apart


@dataclass(frozen=True, eq=False)
class Faces:
    """Columns of one value per face.

    image: path of the picture that holds the face.
    points: (N, 98, 2) float64, x and y in pixels of that picture.
    attributes: (N, 6) bool, columns as in `pose.landmarks.ATTRIBUTES`.
    center: (N, 2) float64, centre of the face's square in pixels of the picture.
    side: (N,) float64, side of that square in pixels, before padding.
    attributes_known: (6,) bool; a column that is not known is all False and says nothing.
    """

    image: Sequence[Path]
    points: np.ndarray
    attributes: np.ndarray
    center: np.ndarray
    side: np.ndarray
    attributes_known: np.ndarray

    def __len__(self) -> int:
        return len(self.image)

    def digest(self) -> str:
        """16 hex digits that change with any point, square, attribute or name of a picture, but not with its folder."""
        hasher = hashlib.sha256()
        for column in (self.points, self.center, self.side, self.attributes, self.attributes_known):
            hasher.update(np.ascontiguousarray(column).tobytes())
        hasher.update("\n".join(path.name for path in self.image).encode(errors="surrogateescape"))
        return hasher.hexdigest()[:16]

    def select(self, index: np.ndarray) -> Faces:
        """The faces at `index` (integers), in that order."""
        index = np.asarray(index)
        return Faces(
            image=[self.image[i] for i in index],
            points=self.points[index],
            attributes=self.attributes[index],
            center=self.center[index],
            side=self.side[index],
            attributes_known=self.attributes_known,
        )
