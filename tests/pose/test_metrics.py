from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from pose.landmarks import ATTRIBUTES
from pose.metrics import (
    SubsetRow,
    auc,
    ced,
    failure_rate,
    mean_shape,
    mean_shape_nme,
    nme,
    subset_rows,
    subset_table,
)


@pytest.fixture
def faces():
    rng = np.random.default_rng(0)
    target = rng.uniform(0, 300, (40, 98, 2))
    return target + rng.normal(0, 4, target.shape), target


@pytest.fixture(autouse=True)
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_nme_is_the_mean_distance_over_that_of_the_outer_eye_corners(faces):
    pred, target = faces
    for i, got in enumerate(nme(pred, target)):
        unit = math.dist(target[i, 60], target[i, 72])
        want = sum(math.dist(p, t) for p, t in zip(pred[i], target[i], strict=True)) / 98 / unit
        assert got == pytest.approx(want, rel=1e-12)


def test_nme_of_a_hand_made_face():
    target = np.zeros((1, 98, 2))
    target[0, 72] = (30, 40)
    assert nme(target + np.array([3.0, 4.0]), target).tolist() == [0.1]
    assert nme(target, target).tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_and_arrays_give_the_same(faces, dtype):
    pred, target = (torch.from_numpy(x).to(dtype).requires_grad_() for x in faces)
    tensor = nme(pred, target)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float64
    errors = nme(pred.detach().double().numpy(), target.detach().double().numpy())
    np.testing.assert_array_equal(tensor.numpy(), errors)
    attributes = np.random.default_rng(1).random((40, 6)) < 0.3
    assert failure_rate(tensor) == failure_rate(errors)
    assert auc(tensor) == auc(errors)
    assert subset_table(tensor, torch.from_numpy(attributes)) == subset_table(errors, attributes)
    np.testing.assert_array_equal(
        ced(tensor, torch.tensor([0.05, 0.1])), ced(errors, [float(np.float32(0.05)), float(np.float32(0.1))])
    )


def test_coinciding_eye_corners_give_infinity_and_nan_stays_nan(faces):
    pred, target = faces
    target[0, 60] = target[0, 72]
    pred[1, 5, 0] = np.nan
    target[2, 60] = target[2, 72]
    pred[2] = target[2]
    pred[3, 0] = np.nan
    target[3, 60] = target[3, 72]
    errors = nme(pred, target)
    assert errors[0] == np.inf
    assert np.isnan(errors[1])
    assert errors[2] == np.inf  # no unit to measure in, even without an error
    assert np.isnan(errors[3])
    assert np.isfinite(errors[4:]).all()


def test_an_error_at_the_threshold_is_no_failure():
    errors = [0.0, 0.05, 0.1, math.nextafter(0.1, 1), 0.4, np.inf, np.nan]
    assert failure_rate(errors) == pytest.approx(4 / 7)
    assert failure_rate(errors, threshold=0.04) == pytest.approx(6 / 7)


def test_auc_is_the_area_under_the_ced():
    errors = np.random.default_rng(2).gamma(3, 0.02, 2500)
    # the curve is a step function: its area by summing rectangles between sorted errors
    edges = np.concatenate([[0], np.sort(errors[errors < 0.1]), [0.1]])
    area = sum((right - left) * np.mean(errors <= left) for left, right in itertools.pairwise(edges))
    assert auc(errors) == pytest.approx(area / 0.1, rel=1e-10)
    assert auc([0.0, 0.1, 0.2, 0.05, np.nan, np.inf]) == pytest.approx(1.5 / 6)
    assert auc([0.05], threshold=0.2) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="threshold is 0"):
        auc([0.1], threshold=0)


def test_ced_counts_errors_up_to_and_including_each_threshold():
    errors = [0.03, 0.01, np.nan, 0.02, 0.02, np.inf]
    assert ced(errors, [0.0, 0.01, 0.02, 0.025, 0.03, 9.0]).tolist() == pytest.approx(np.array([0, 1, 3, 3, 4, 4]) / 6)


def test_the_table_averages_each_subset_regardless_of_other_flags():
    errors = np.array([0.1, 0.2, 0.3, 0.4])
    attributes = np.zeros((4, 6), dtype=bool)
    attributes[0, 0] = attributes[1, 0] = attributes[1, 4] = attributes[3, 4] = True
    table = subset_table(errors, attributes)
    assert list(table) == ["test", *ATTRIBUTES]
    assert table["test"] == pytest.approx(0.25)
    assert table["pose"] == pytest.approx(0.15)
    assert table["occlusion"] == pytest.approx(0.3)
    assert all(math.isnan(table[name]) for name in ("expression", "illumination", "makeup", "blur"))


def test_the_rows_hold_counts_and_all_measures_of_the_known_subsets():
    errors = np.array([0.02, 0.2])
    attributes = np.zeros((2, 6), dtype=bool)
    attributes[1, 0] = True
    rows = subset_rows(errors, attributes, known=[True, False, False, False, False, True])
    assert [row.name for row in rows] == ["test", "pose", "blur"]
    assert rows[0] == SubsetRow("test", 2, pytest.approx(0.11), 0.5, pytest.approx(0.4))
    assert rows[1] == SubsetRow("pose", 1, 0.2, 1.0, 0.0)
    assert rows[2].count == 0
    assert all(math.isnan(value) for value in (rows[2].nme, rows[2].failure_rate, rows[2].auc))


def test_no_faces_give_nan_and_no_noise():
    empty = nme(np.zeros((0, 98, 2)), np.zeros((0, 98, 2)))
    assert empty.shape == (0,)
    assert math.isnan(failure_rate(empty))
    assert math.isnan(auc(empty))
    assert np.isnan(ced(empty, [0.1])).all()
    rows = subset_rows(empty, np.zeros((0, 6), dtype=bool))
    assert [row.count for row in rows] == [0] * 7
    assert all(math.isnan(row.nme) for row in rows)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"pred and target have shapes \(2, 98, 2\) and \(3, 98, 2\)"):
        nme(np.zeros((2, 98, 2)), np.zeros((3, 98, 2)))
    with pytest.raises(ValueError, match=r"wanted \(N, 98, 2\)"):
        nme(np.zeros((98, 2)), np.zeros((98, 2)))
    with pytest.raises(ValueError, match=r"attributes have shape \(3, 5\); wanted \(3, 6\)"):
        subset_table(np.zeros(3), np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"nme has shape \(2, 2\)"):
        failure_rate(np.zeros((2, 2)))


def test_the_mean_shape_is_exact_where_all_faces_have_one_shape():
    rng = np.random.default_rng(3)
    shape = rng.uniform(0.1, 0.9, (98, 2))
    center, side = rng.uniform(100, 900, (30, 2)), rng.uniform(50, 500, 30)
    points = np.stack([c + s * (shape - 0.5) for c, s in zip(center, side, strict=True)])
    np.testing.assert_allclose(mean_shape(points, center, side), shape, atol=1e-12)
    np.testing.assert_allclose(mean_shape_nme(shape, points, center, side), 0, atol=1e-12)
    moved = points + 0.02 * side[:, None, None] * [0.6, 0.8]
    unit = np.linalg.norm(shape[60] - shape[72])
    np.testing.assert_allclose(mean_shape_nme(shape, moved, center, side), 0.02 / unit, rtol=1e-9)
    with pytest.raises(ValueError, match="no faces"):
        mean_shape(points[:0], center[:0], side[:0])


def test_the_mean_test_shape_of_wflw_has_the_known_nme(wflw_samples):
    path = next((wflw_samples / "wflw_test_annotations").glob("*.txt"))
    table = np.array([line.split()[:206] for line in path.read_text().splitlines()])
    points = table[:, :196].astype(float).reshape(-1, 98, 2)
    low, high = np.floor(points.min(axis=1)), np.ceil(points.max(axis=1))
    center, side = (low + high) / 2, 1.25 * (high - low).max(axis=1)
    errors = mean_shape_nme(mean_shape(points, center, side), points, center, side)
    got = subset_table(errors, table[:, 200:206].astype(int))
    want = {"test": 26.96, "pose": 63.5, "expression": 27.9, "illumination": 24.0, "makeup": 21.9, "occlusion": 25.2}
    for name, value in want.items():
        assert 100 * got[name] == pytest.approx(value, abs=0.06), name
