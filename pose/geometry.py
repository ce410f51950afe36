"""Squares around faces, the map from image to crop, and mirroring.

Pixel (i, j) of an image is the point x = j, y = i. The crop follows the published convention without a half-pixel
shift: the square's centre maps to size / 2 and its side to size. "Mirrored" is x -> W - 1 - x, W being the full image's
width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from pose.landmarks import FLIP_INDEX

if TYPE_CHECKING:
    import torch

PADDING = 1.25  # the crop's side is 1.25 times the square's
_SCALE_UNIT = 200.0  # the published annotations store side / 200

Image = TypeVar("Image", np.ndarray, "torch.Tensor")


def square_from_points(points: ArrayLike) -> tuple[np.ndarray, Any]:
    """Square around landmarks, by the published rule: the points' box grown to whole pixels, and its longer side.

    points: (K, 2) or (N, K, 2), pixels of the image.
    Returns (center, side) in float64, before padding: (2,) and a float, or (N, 2) and (N,). The side equals 200 times
    the `scale` of the published JSON to the last bit. Raises ValueError for another shape, or a value not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or points.shape[-2] == 0:
        raise ValueError(f"points have shape {points.shape}; wanted (K, 2) or (N, K, 2)")
    if not np.isfinite(points).all():
        raise ValueError("points hold a value that is not finite")
    low = np.floor(points.min(axis=-2))
    high = np.ceil(points.max(axis=-2))
    side = _SCALE_UNIT * ((high - low).max(axis=-1) / _SCALE_UNIT)
    return (low + high) / 2, side if points.ndim == 3 else float(side)


def box_to_square(x: float, y: float, w: float, h: float) -> tuple[np.ndarray, float]:
    """Square for a detector's box, before padding: centre (x + w/2, y + h/2), side max(w, h); pixels.

    Raises ValueError if a value is not finite, or w or h is not positive.
    """
    if not np.isfinite([x, y, w, h]).all() or w <= 0 or h <= 0:
        raise ValueError(f"box x, y, w, h = {x}, {y}, {w}, {h}; wanted finite values and a positive width and height")
    return np.array([x + w / 2, y + h / 2], dtype=np.float64), float(max(w, h))


def crop_matrix(center: ArrayLike, side: ArrayLike, rotation: ArrayLike = 0.0, size: int = 256) -> np.ndarray:
    """The 2x3 affine map from image pixels to crop pixels, float64.

    center: (2,) or (N, 2), pixels. side: () or (N,), pixels, already padded. rotation: () or (N,), degrees; positive
    turns the content counter-clockwise on the screen. size: the crop's side in pixels.
    Returns (2, 3), or (N, 2, 3) if any argument has a batch dimension.

    As published: three point pairs, whose source is rounded to float32, solved in float64 with the bits of OpenCV's
    getAffineTransform. (The closed form
    size / side * rotation differs by up to 3e-3 px where rotation is not 0.)
    Raises ValueError for wrong shapes, values that are not finite, and a side that is not positive or, beside the
    centre's coordinates, lost in float32.
    """
    center = np.asarray(center, dtype=np.float64)
    side = np.asarray(side, dtype=np.float64)
    rotation = np.asarray(rotation, dtype=np.float64)
    if center.ndim not in (1, 2) or center.shape[-1] != 2 or side.ndim > 1 or rotation.ndim > 1:
        raise ValueError(
            f"center, side, rotation have shapes {center.shape}, {side.shape}, {rotation.shape}; "
            "wanted (2,), (), () or (N, 2), (N,), (N,)"
        )
    if not isinstance(size, int | np.integer) or size <= 0:
        raise ValueError(f"size is {size!r}; wanted a positive number of pixels")
    if not (np.isfinite(center).all() and np.isfinite(side).all() and np.isfinite(rotation).all()):
        raise ValueError("center, side or rotation holds a value that is not finite")
    if not (side > 0).all():
        raise ValueError(f"side is {side.min()}; wanted a positive number of pixels")
    try:
        shape = np.broadcast_shapes(center.shape[:-1], side.shape, rotation.shape)
    except ValueError:
        raise ValueError(
            f"center, side, rotation have lengths {center.shape[:-1]}, {side.shape}, {rotation.shape}; wanted one"
        ) from None

    angle = np.deg2rad(rotation)
    up = np.stack(np.broadcast_arrays(np.sin(angle) * side / 2, -np.cos(angle) * side / 2), axis=-1)
    p0 = np.broadcast_to(center, (*shape, 2)).astype(np.float32)
    p1 = (center + up).astype(np.float32)
    edge = p0 - p1
    p2 = p1 + np.stack([-edge[..., 1], edge[..., 0]], axis=-1)

    half = size / 2
    source = np.stack([p0, p1, p2], axis=-2).astype(np.float64).reshape(-1, 3, 2)
    matrix = _affine_through(source, np.array([[half, half], [half, 0.0], [0.0, 0.0]]))
    if not np.isfinite(matrix).all():
        raise ValueError(f"side {side.min()} is too small to tell from the centre's rounding to float32")
    return matrix.reshape(*shape, 2, 3)


def _affine_through(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The affine maps (N, 2, 3) that take three points (N, 3, 2) to `target` (3, 2); not finite where there is none.

    The system of six equations, elimination with partial pivoting and the order of every operation are those of
    OpenCV's getAffineTransform: the fixed-point crop has exact ties (a scale of 0.75 or 1.25 without a rotation), which
    the last bit of the matrix decides.
    """
    count = len(source)
    left, right = np.zeros((count, 6, 6)), np.zeros((count, 6))
    for point in range(3):
        for axis in (0, 1):
            left[:, 2 * point + axis, 3 * axis : 3 * axis + 2] = source[:, point]
            left[:, 2 * point + axis, 3 * axis + 2] = 1
            right[:, 2 * point + axis] = target[point, axis]
    every = np.arange(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        for i in range(6):
            pivot = i + np.abs(left[:, i:, i]).argmax(axis=1)
            left[every, i], left[every, pivot] = left[every, pivot], left[every, i].copy()
            right[every, i], right[every, pivot] = right[every, pivot], right[every, i].copy()
            factor = -1 / left[:, i, i]
            for j in range(i + 1, 6):
                alpha = left[:, j, i] * factor
                left[:, j, i + 1 :] += alpha[:, None] * left[:, i, i + 1 :]
                right[:, j] += alpha * right[:, i]
        for i in range(5, -1, -1):
            total = right[:, i]
            for k in range(i + 1, 6):
                total = total - left[:, i, k] * right[:, k]
            right[:, i] = total / left[:, i, i]
    return right.reshape(count, 2, 3)


def transform_points(points: ArrayLike, matrix: ArrayLike) -> np.ndarray:
    """Apply `matrix` (..., 2, 3) to `points` (..., K, 2); float64 (..., K, 2). Raises ValueError for other shapes."""
    points = np.asarray(points, dtype=np.float64)
    matrix = np.asarray(matrix, dtype=np.float64)
    if points.ndim < 2 or points.shape[-1] != 2 or matrix.shape[-2:] != (2, 3):
        raise ValueError(
            f"points and matrix have shapes {points.shape} and {matrix.shape}; wanted (..., K, 2) and (..., 2, 3)"
        )
    return points @ np.swapaxes(matrix[..., :2], -1, -2) + matrix[..., None, :, 2]


def mirrored_center(center: ArrayLike, width: ArrayLike) -> np.ndarray:
    """The centre (..., 2) in the mirrored image: (width - cx - 1, cy); width: the full image's, () or (...)."""
    center = np.asarray(center, dtype=np.float64)
    return np.stack(np.broadcast_arrays(np.asarray(width) - center[..., 0] - 1, center[..., 1]), axis=-1)


def mirror_points(points: ArrayLike, width: ArrayLike) -> np.ndarray:
    """Landmarks (..., 98, 2) of the mirrored image: x -> width - 1 - x, and renamed by `FLIP_INDEX`.

    width: the full image's, () or (...). float32 points stay float32.
    """
    mirrored = np.asarray(points)[..., FLIP_INDEX, :].copy()
    mirrored[..., 0] = np.asarray(width)[..., None] - 1 - mirrored[..., 0]
    return mirrored


def crop_image(image: Image, matrix: ArrayLike, size: int = 256, mode: str = "exact", flip: bool = False) -> Image:
    """Crop one face: (H, W, 3) uint8 -> (size, size, 3) uint8, an array for an array and a tensor for a tensor.

    matrix: (2, 3), image pixels -> crop pixels; with `flip`, built for the mirrored centre, and the crop is that of the
    mirrored image. mode: "exact" (real-valued bilinear, rounded) or "opencv4" (the bytes of OpenCV 4's warpAffine).
    Outside the image all is 0. Raises ValueError or TypeError for wrong shapes and types.
    """
    import torch

    from kernels import RaggedImages, crop_faces

    if not isinstance(image, np.ndarray | torch.Tensor):
        raise TypeError(f"image is a {type(image).__name__}; wanted an array or a tensor")
    # A picture decoded read-only, or mirrored by a negative stride, is copied: torch takes neither as it is
    pixels = torch.from_numpy(np.array(image)) if isinstance(image, np.ndarray) else image
    crop = crop_faces(
        RaggedImages.from_images([pixels]),
        torch.zeros(1, dtype=torch.int64, device=pixels.device),
        torch.as_tensor(np.array(matrix, dtype=np.float64)).to(pixels.device)[None],
        torch.tensor([flip], device=pixels.device),
        size=size,
        mode=mode,
        dtype=torch.uint8,
        normalize=False,
    )[0].permute(1, 2, 0)
    return crop.cpu().numpy() if isinstance(image, np.ndarray) else crop
