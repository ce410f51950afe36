from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from pose.geometry import (
    PADDING,
    box_to_square,
    crop_image,
    crop_matrix,
    mirror_points,
    mirrored_center,
    square_from_points,
    transform_points,
)


def json_faces(wflw_samples):
    """The four real faces as the published JSON has them, each with the path of its image."""
    record = json.loads((wflw_samples / "mmpose_form" / "test_wflw.json").read_text())
    names = {image["id"]: image["file_name"] for image in record["images"]}
    folder = wflw_samples / "mmpose_form" / "images"
    return [face | {"path": str(folder / names[face["image_id"]])} for face in record["annotations"]]


def matrix_by_opencv(center, side, degrees, size):
    """The published construction, solved by OpenCV: three float32 points, the third a right angle from the second."""
    angle = np.pi * degrees / 180
    p0 = np.asarray(center, dtype=np.float32)
    up = np.array([np.sin(angle), -np.cos(angle)]) * side / 2
    p1 = (np.asarray(center, np.float64) + up).astype(np.float32)
    p2 = p1 + np.array([-(p0 - p1)[1], (p0 - p1)[0]], dtype=np.float32)
    target = np.array([[size / 2, size / 2], [size / 2, 0], [0, 0]], dtype=np.float32)
    return cv2.getAffineTransform(np.stack([p0, p1, p2]), target)


def test_the_square_is_the_published_one(wflw_samples):
    for face in json_faces(wflw_samples):
        center, side = square_from_points(np.array(face["keypoints"]).reshape(98, 3)[:, :2])
        assert center.tolist() == face["center"]
        assert side == 200.0 * face["scale"]  # to the last bit


def test_the_square_grows_to_whole_pixels_and_takes_the_longer_side():
    points = np.full((98, 2), 20.0)
    points[0], points[1] = (10.2, 15.0), (30.1, 25.5)
    center, side = square_from_points(points)
    assert center.tolist() == [20.5, 20.5]
    assert side == 21.0


def test_squares_of_many_faces_are_those_of_each():
    points = np.random.default_rng(0).uniform(0, 1000, (50, 98, 2))
    centers, sides = square_from_points(points)
    for i in range(50):
        center, side = square_from_points(points[i])
        assert center.tolist() == centers[i].tolist()
        assert side == sides[i]


def test_a_box_becomes_a_square_of_its_longer_side():
    center, side = box_to_square(10, 20, 30, 50)
    assert center.tolist() == [25.0, 45.0]
    assert side == 50.0


@pytest.mark.parametrize("size", [64, 192, 256])
def test_the_matrix_is_the_published_construction(size):
    rng = np.random.default_rng(size)
    for _ in range(200):
        center, side, degrees = rng.uniform(0, 1000, 2), rng.uniform(20, 900), rng.uniform(-60, 60)
        got = crop_matrix(center, side, degrees, size)
        np.testing.assert_allclose(got, matrix_by_opencv(center, side, degrees, size), rtol=0, atol=1e-9)


def test_without_rotation_the_matrix_is_the_closed_form():
    # Centres and half sides that float32 holds exactly, as those of whole-pixel boxes do
    for center, side in (((50.5, 60.0), 25.0), ((503.5, 330.5), 437.5), ((0.0, 0.0), 1.25)):
        k = 256 / side
        want = np.array([[k, 0, 128 - k * center[0]], [0, k, 128 - k * center[1]]])
        np.testing.assert_allclose(crop_matrix(center, side), want, rtol=0, atol=1e-9)


def test_with_rotation_the_closed_form_is_off_by_less_than_3e_3_px():
    rng = np.random.default_rng(2)
    for _ in range(200):
        center, side, degrees = rng.uniform(0, 1000, 2), rng.uniform(60, 600), rng.uniform(-60, 60)
        c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        linear = 256 / side * np.array([[c, s], [-s, c]])
        corners = center + side / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        want = (corners - center) @ linear.T + 128
        assert np.abs(transform_points(corners, crop_matrix(center, side, degrees)) - want).max() < 3e-3


def test_the_centre_maps_to_the_middle_and_the_square_to_the_crop():
    matrix = crop_matrix((100.0, 50.0), 80.0, 0.0, 64)
    points = transform_points([[100, 50], [60, 10], [140, 90]], matrix)
    np.testing.assert_allclose(points, [[32, 32], [0, 0], [64, 64]], atol=1e-12)


def test_a_positive_rotation_turns_the_content_counter_clockwise():
    right_of_centre = transform_points([[110.0, 50.0]], crop_matrix((100.0, 50.0), 80.0, 30.0))
    assert right_of_centre[0, 1] < 128  # up on the screen


def test_a_batch_of_matrices_holds_the_bits_of_each():
    rng = np.random.default_rng(4)
    center, side, degrees = rng.uniform(0, 1000, (33, 2)), rng.uniform(20, 900, 33), rng.uniform(-60, 60, 33)
    batch = crop_matrix(center, side, degrees)
    assert batch.shape == (33, 2, 3)
    for i in range(33):
        np.testing.assert_array_equal(batch[i], crop_matrix(center[i], side[i], degrees[i]))
    assert crop_matrix(center[0], side).shape == (33, 2, 3)


def test_bad_arguments_are_refused_in_words():
    for arguments, words in (
        (((1, 2, 3), 4), "wanted"),
        (((1, 2), 0), "side is 0"),
        (((1, 2), -3), "side is -3"),
        (((1, 2), [[4]]), "wanted"),
        (((1, 2), np.nan), "not finite"),
        (((1, np.inf), 4), "not finite"),
        (((1, 2), 4, np.nan), "not finite"),
        (((1, 2), 4, 0, 0), "size is 0"),
        (((1, 2), 4, 0, 2.5), "size is 2.5"),
        (((1e6, 2), 1e-3), "too small to tell"),
        ((np.zeros((3, 2)), np.ones(4)), "wanted one"),
    ):
        with pytest.raises(ValueError, match=words):
            crop_matrix(*arguments)
    with pytest.raises(ValueError, match=r"shape \(98, 3\)"):
        square_from_points(np.zeros((98, 3)))
    with pytest.raises(ValueError, match="not finite"):
        square_from_points(np.full((98, 2), np.nan))
    with pytest.raises(ValueError, match="positive width and height"):
        box_to_square(1, 2, 0, 5)


def test_mirroring_twice_is_nothing_and_moves_points_with_the_pixels():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 640, (5, 98, 2))
    mirrored = mirror_points(points, 640)
    np.testing.assert_allclose(mirror_points(mirrored, 640), points, atol=1e-12)
    assert mirrored[0, 0].tolist() == [639 - points[0, 32, 0], points[0, 32, 1]]  # the contour's other end
    assert mirrored[0, 16].tolist() == [639 - points[0, 16, 0], points[0, 16, 1]]  # the chin is its own partner
    widths = np.array([640, 641, 642, 643, 644])
    assert mirror_points(points, widths)[4, 16, 0] == 643 - points[4, 16, 0]
    assert mirror_points(points.astype(np.float32), 640).dtype == np.float32


def test_the_mirrored_square_is_the_square_of_the_mirrored_points():
    points = np.random.default_rng(3).uniform(0, 500, (20, 98, 2))
    center, side = square_from_points(points)
    flipped_center, flipped_side = square_from_points(mirror_points(points, 501))
    np.testing.assert_array_equal(mirrored_center(center, 501), flipped_center)
    np.testing.assert_array_equal(side, flipped_side)
    assert mirrored_center((10.0, 20.0), 100).tolist() == [89.0, 20.0]


@pytest.mark.parametrize("flip", [False, True])
def test_the_published_crop_of_a_real_face_is_opencvs(wflw_samples, flip):
    for face in json_faces(wflw_samples):
        image = cv2.imread(face["path"])[:, :, ::-1]
        center = mirrored_center(face["center"], image.shape[1]) if flip else face["center"]
        matrix = crop_matrix(center, 200 * face["scale"] * PADDING, 20.0)
        source = np.ascontiguousarray(image[:, ::-1] if flip else image)
        want = cv2.warpAffine(source, matrix, (256, 256), flags=cv2.INTER_LINEAR)
        got = crop_image(image, matrix, mode="opencv4", flip=flip)
        np.testing.assert_array_equal(got, want)
        assert np.abs(crop_image(image, matrix, flip=flip).astype(int) - want).max() <= 5  # 1/32 px, and rounding


def test_a_flipped_crop_is_the_mirror_image_with_mirrored_points():
    # A dot on a landmark must lie under the transformed landmark, flipped or not
    image = np.zeros((120, 151, 3), dtype=np.uint8)
    points = np.tile([70.0, 60.0], (98, 1))
    points[0] = (40, 50)
    image[50, 40] = 255
    for flip in (False, True):
        moved = mirror_points(points, 151) if flip else points
        center = mirrored_center((70.0, 60.0), 151) if flip else np.array([70.0, 60.0])
        matrix = crop_matrix(center, 100.0, 15.0, 200)
        crop = crop_image(image, matrix, 200, flip=flip)[:, :, 0].astype(float)
        ys, xs = np.mgrid[:200, :200]
        found = np.array([(crop * xs).sum(), (crop * ys).sum()]) / crop.sum()
        np.testing.assert_allclose(found, transform_points(moved, matrix)[32 if flip else 0], atol=0.05)


def test_an_array_gives_an_array_and_a_tensor_a_tensor():
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    matrix = crop_matrix((30.0, 25.0), 40.0, 10.0, 32)
    image.setflags(write=False)
    array = crop_image(image, matrix, 32)
    tensor = crop_image(torch.from_numpy(image.copy()), matrix, 32)
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.uint8
    assert array.shape == (32, 32, 3)
    assert isinstance(tensor, torch.Tensor)
    np.testing.assert_array_equal(array, tensor.numpy())
    with pytest.raises(TypeError, match="image is a list"):
        crop_image([[0]], matrix)
    with pytest.raises(ValueError, match=r"image 0 has shape \(50, 60\)"):
        crop_image(image[:, :, 0], matrix)


@pytest.mark.parametrize("module", ["pose.geometry", "pose.metrics", "pose.schedule"])
def test_importing_the_module_does_not_import_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("size", [64, 256])
def test_the_matrix_has_the_bits_of_opencvs_three_point_solution(size):
    # The fixed-point crop has ties that the last bit decides, most where the scale is clipped and nothing is turned
    rng = np.random.default_rng(3)
    count = 400
    center = np.round(rng.uniform(0, 1000, (count, 2)) * 2) / 2
    side = np.round(rng.uniform(40, 500, count)) * 1.25 * rng.choice([0.75, 1.0, 1.25, 1.1371], count)
    rotation = np.where(rng.random(count) < 0.4, 0.0, rng.uniform(-60, 60, count))
    matrices = crop_matrix(center, side, rotation, size)
    for i in range(count):
        angle = np.deg2rad(rotation[i])
        source = np.zeros((3, 2), dtype=np.float32)
        source[0] = center[i]
        source[1] = center[i] + np.array([np.sin(angle), -np.cos(angle)]) * side[i] / 2
        edge = source[0] - source[1]
        source[2] = source[1] + np.array([-edge[1], edge[0]], dtype=np.float32)
        target = np.float32([[size / 2, size / 2], [size / 2, 0], [0, 0]])
        assert np.array_equal(matrices[i], cv2.getAffineTransform(source, target))
