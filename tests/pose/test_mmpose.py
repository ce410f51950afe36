from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pose.data.mmpose import load_mmpose
from pose.data.wflw import load_wflw
from pose.errors import InputError


def document(**changes: Any) -> dict[str, Any]:
    keypoints = [v for i in range(98) for v in (10 + i, 20 + i / 2, 1)]
    annotation = {"id": 7, "image_id": 1, "keypoints": keypoints, "bbox": [10, 20, 97, 48.5], "center": [58.5, 44.5]}
    annotation = {**annotation, "scale": 0.485, **changes}
    annotation = {key: value for key, value in annotation.items() if value is not None}
    return {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_both_forms_give_the_same_four_real_faces(wflw_samples: Path) -> None:
    official = load_wflw(wflw_samples / "wflw_mini", "test")
    path = wflw_samples / "mmpose_form" / "test_wflw.json"
    json_form = load_mmpose(path, wflw_samples / "mmpose_form" / "images")
    order = [int(np.argmin(abs(official.points - points).sum((1, 2)))) for points in json_form.points]
    assert sorted(order) == [0, 1, 2, 3]
    same = official.select(np.array(order))
    assert [path.name for path in same.image] == [path.name for path in json_form.image]
    np.testing.assert_allclose(same.points, json_form.points, rtol=0, atol=1e-9)  # decimal text both times
    assert np.array_equal(same.center, json_form.center)
    assert np.array_equal(same.side, json_form.side)
    raw = json.loads(path.read_text())["annotations"]
    assert json_form.side.tolist() == [200 * annotation["scale"] for annotation in raw]
    assert json_form.center.tolist() == [annotation["center"] for annotation in raw]


def test_attributes_are_unknown_without_subset_files(wflw_samples: Path) -> None:
    faces = load_mmpose(wflw_samples / "mmpose_form" / "test_wflw.json", wflw_samples)
    assert not faces.attributes_known.any()
    assert not faces.attributes.any()


def test_attributes_come_from_the_subset_files_beside_it(tmp_path: Path) -> None:
    both = document()
    other = {**both["annotations"][0], "id": 8, "keypoints": [v + 1 for v in both["annotations"][0]["keypoints"]]}
    both["annotations"].append(other)
    path = write(tmp_path / "face_landmarks_wflw_test.json", both)
    subset = {"images": both["images"], "annotations": [{**other, "id": 1}]}  # ids need not agree
    write(tmp_path / "face_landmarks_wflw_test_largepose.json", subset)
    write(tmp_path / "face_landmarks_wflw_test_blur.json", {"images": both["images"], "annotations": []})
    faces = load_mmpose(path, tmp_path)
    assert faces.attributes_known.tolist() == [True, False, False, False, False, True]
    assert faces.attributes[:, 0].tolist() == [False, True]
    assert not faces.attributes[:, 1:].any()


def test_a_subset_of_another_set_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "test.json", document())
    write(tmp_path / "test_blur.json", document(keypoints=[v for i in range(98) for v in (5 + i, 6, 1)]))
    with pytest.raises(InputError, match=r"test_blur.json: 1 of its 1 faces are not in test.json"):
        load_mmpose(path, tmp_path)


def test_without_center_and_scale_the_box_decides(tmp_path: Path) -> None:
    faces = load_mmpose(write(tmp_path / "a.json", document(center=None, scale=None)), tmp_path)
    assert faces.center[0].tolist() == [10 + 97 / 2, 20 + 48.5 / 2]
    assert faces.side[0] == 97


def test_faces_without_points_are_left_out_with_a_warning(tmp_path: Path) -> None:
    content = document()
    content["annotations"].append({**content["annotations"][0], "id": 9, "keypoints": [0, 0, 0] * 98})
    with pytest.warns(UserWarning, match=r"left out 1 faces without points \(annotation 9"):
        assert len(load_mmpose(write(tmp_path / "a.json", content), tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"center": None, "scale": None, "bbox": None}, "annotation 7: neither 'center' and 'scale' nor 'bbox'"),
        ({"keypoints": [1, 2, 1] * 97}, "annotation 7: 'keypoints' holds 291 numbers, not 294"),
        ({"keypoints": ["x"] * 294}, "annotation 7: 'keypoints' must be 294 numbers"),
        ({"keypoints": [1, 2, 1] * 97 + [1, 2, 0]}, "point 97 is not labelled"),
        ({"center": [1, float("inf")]}, "'center' holds a number that is not finite"),
        ({"scale": "big"}, "'scale' must be a number"),
        ({"scale": 0}, "a side of 0 pixels"),
        ({"image_id": 2}, "'image_id' 2 names no image"),
        ({"image_id": [1]}, "'image_id' [1] names no image"),
        ({"scale": 1e299}, "a side of 2e+301 pixels"),
        ({"scale": 10**400}, "'scale' holds a number that is not finite"),
        ({"scale": 1e-12}, "a side of 2e-10 pixels"),
        ({"keypoints": [5, 6, 1] * 98}, "the outer eye corners (points 60 and 72) coincide"),
        ({"keypoints": [1e9, 2, 1] * 98}, "a coordinate beyond 1e+06 pixels"),
    ],
)
def test_a_bad_face_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.json", document(**changes))
    with pytest.raises(InputError) as caught:
        load_mmpose(path, tmp_path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no list 'images'"),
        ('{"images": [], "annotations": []}', "holds no faces"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 0: 'id' and 'file_name' are needed"),
    ],
)
def test_a_file_that_is_no_annotation_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_mmpose(tmp_path / "a.json", tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a.json: no such file"):
        load_mmpose(tmp_path / "a.json", tmp_path)
