from __future__ import annotations

import numpy as np
import pytest
import torch

from pose.geometry import crop_matrix, mirrored_center
from pose.landmarks import FLIP_PAIRS
from pose.targets import targets_and_weights

IDENTITY = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)


def single(points, matrix=IDENTITY, flip=False, width=1000, size=256):
    target, weight = targets_and_weights(
        torch.as_tensor(points)[None], torch.as_tensor(matrix)[None], torch.tensor([flip]), torch.tensor([width]), size
    )
    return target[0], weight[0]


def published(points, matrix, flip, width, size):
    """One point after the other: float32 points, products in float64, float32 results."""
    points = points.astype(np.float32)
    if flip:
        partner = dict(FLIP_PAIRS) | {b: a for a, b in FLIP_PAIRS}
        points = np.array([points[partner.get(k, k)] for k in range(98)])
        points[:, 0] = width - 1 - points[:, 0]
    crop = np.zeros((98, 2), dtype=np.float32)
    weight = np.zeros((98, 2), dtype=np.float32)
    for k in range(98):
        crop[k] = matrix @ np.array([float(points[k, 0]), float(points[k, 1]), 1.0])
        weight[k] = float(0 <= crop[k, 0] <= size - 1 and 0 <= crop[k, 1] <= size - 1)
    return crop / size, weight


@pytest.mark.parametrize("size", [64, 192, 256])
def test_targets_and_weights_are_the_published_ones(size):
    rng = np.random.default_rng(size)
    count = 40
    points = rng.uniform(50, 700, (count, 98, 2))
    center, side, degrees = rng.uniform(200, 500, (count, 2)), rng.uniform(100, 500, count), rng.normal(0, 30, count)
    flip, width = rng.random(count) < 0.5, rng.integers(700, 1100, count)
    center = np.where(flip[:, None], mirrored_center(center, width), center)
    matrix = crop_matrix(center, side, degrees, size)
    arguments = (torch.from_numpy(x) for x in (points, matrix, flip, width))
    target, weight = targets_and_weights(*arguments, size)
    assert target.dtype == weight.dtype == torch.float32
    for i in range(count):
        want_target, want_weight = published(points[i], matrix[i], flip[i], width[i], size)
        np.testing.assert_allclose(target[i], want_target, rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(weight[i], want_weight)
    assert 0.1 < weight.mean() < 0.9  # so both kinds were there
    assert target.abs().max() > 1.0  # points outside are not clipped


def test_the_border_counts_as_inside_and_a_ten_thousandth_of_a_pixel_beyond_does_not():
    points = np.full((98, 2), 100.0)
    points[:8] = [(0, 5), (255, 5), (5, 0), (5, 255), (255.0001, 5), (5, 255.0001), (-0.0001, 5), (5, -0.0001)]
    target, weight = single(points)
    assert weight[:8].tolist() == [[1.0, 1.0]] * 4 + [[0.0, 0.0]] * 4
    assert weight[8:].min() == 1.0
    assert target[1, 0] == 255 / 256  # the divisor is the size, not size - 1


def test_the_test_is_made_on_the_float32_crop_pixel():
    points = np.full((98, 2), 100.0)
    points[0, 0] = 255 + 1e-7  # float32 has no such number: rounds to 255
    assert single(points)[1][0].tolist() == [1.0, 1.0]
    shifted = IDENTITY.clone()
    shifted[0, 2] = 1e-7  # the product leaves 255 in float64, and is back in it as float32
    points[0, 0] = 255
    assert single(points, shifted)[1][0].tolist() == [1.0, 1.0]


def test_a_flipped_face_has_its_points_mirrored_and_renamed():
    points = np.random.default_rng(0).uniform(10, 200, (98, 2)).astype(np.float32)
    target, _ = single(points, flip=True, width=300)
    np.testing.assert_allclose(target[0] * 256, [299 - points[32, 0], points[32, 1]], rtol=1e-6)
    np.testing.assert_allclose(target[97] * 256, [299 - points[96, 0], points[96, 1]], rtol=1e-6)
    np.testing.assert_allclose(target[16] * 256, [299 - points[16, 0], points[16, 1]], rtol=1e-6)


def test_points_that_are_not_finite_weigh_nothing():
    points = np.full((98, 2), 100.0)
    points[3, 0] = np.nan
    points[4, 1] = np.inf
    _, weight = single(points)
    assert weight[3:5].max() == 0
    assert weight.sum() == 2 * 96


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"points has shape \(1, 68, 2\); wanted \(1, 98, 2\)"):
        single(np.zeros((68, 2)))
    with pytest.raises(ValueError, match=r"matrix has shape \(1, 2, 2\)"):
        single(np.zeros((98, 2)), IDENTITY[:, :2])


@pytest.mark.gpu
def test_cuda_gives_the_bits_of_the_cpu():
    rng = np.random.default_rng(9)
    arguments = (
        torch.from_numpy(rng.uniform(0, 500, (16, 98, 2))),
        torch.from_numpy(crop_matrix(rng.uniform(200, 300, (16, 2)), rng.uniform(200, 400, 16), rng.normal(0, 30, 16))),
        torch.arange(16) % 2 == 0,
        torch.full((16,), 501),
    )
    on_cpu = targets_and_weights(*arguments, 256)
    on_cuda = targets_and_weights(*(x.cuda() for x in arguments), 256)
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert torch.equal(a, b.cpu())
