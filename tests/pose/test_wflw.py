from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pose.data.wflw import load_wflw
from pose.errors import InputError
from pose.landmarks import ATTRIBUTES

LIST = Path("WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt")


def good_line(name: str = "a/b.jpg") -> str:
    numbers = [f"{10 + i * 0.5:.6f}" for i in range(196)]
    return " ".join([*numbers, "1", "2", "3", "4", "0", "1", "0", "0", "1", "0", name])


def with_coinciding_corners() -> str:
    fields = good_line().split()
    fields[144:146] = fields[120:122]
    return " ".join(fields)


def write_list(root: Path, *lines: str) -> Path:
    (root / LIST).parent.mkdir(parents=True)
    (root / LIST).write_text("\n".join(lines) + "\n")
    return root


def test_a_line_is_read_field_by_field(tmp_path: Path) -> None:
    faces = load_wflw(write_list(tmp_path, good_line(), "", good_line("c/d.jpg")), "test")
    assert len(faces) == 2
    assert [str(path) for path in faces.image] == [str(tmp_path / "WFLW_images" / n) for n in ("a/b.jpg", "c/d.jpg")]
    assert faces.points[0, 3].tolist() == [13.0, 13.5]
    assert faces.attributes[0].tolist() == [False, True, False, False, True, False]
    assert faces.attributes_known.all()
    # x from 10 to 107, y from 10.5 to 107.5: floor and ceil give 10..107 and 10..108
    assert faces.center[0].tolist() == [58.5, 59.0]
    assert faces.side[0] == 98.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (good_line().rsplit(" ", 1)[0], "line 2 has 206 fields, not 207"),
        (good_line() + " extra", "line 2 has 208 fields, not 207"),
        (good_line().replace("10.500000", "abc"), "line 2: 'abc' is not a number"),
        (good_line().replace("10.500000", "nan"), "line 2 holds a number that is not finite"),
        (good_line().replace(" 0 1 0 0 1 0 ", " 0 2 0 0 1 0 "), "line 2: the six attribute flags"),
        (good_line().replace("10.500000", "1e300"), "line 2 holds a coordinate beyond 1e+06 pixels"),
        (with_coinciding_corners(), "line 2: the outer eye corners (points 60 and 72) coincide"),
        (" ".join(["5.0"] * 196 + ["0"] * 10 + ["a/b.jpg"]), "line 2: all 98 points coincide"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    root = write_list(tmp_path, good_line(), line)
    with pytest.raises(InputError) as caught:
        load_wflw(root, "test")
    assert message in str(caught.value)
    assert str(root / LIST) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    root = write_list(tmp_path, "1 2 3", good_line(), good_line().replace("10.500000", "abc"))
    with pytest.raises(InputError, match=r"2 problems\n  line 1 has 3 fields.*\n  line 3: 'abc'"):
        load_wflw(root, "test")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_list_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match=r"list_98pt_rect_attr_test.txt: the list is empty"):
        load_wflw(write_list(tmp_path, content), "test")


def test_a_folder_that_is_not_wflw_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such list"):
        load_wflw(tmp_path, "test")
    with pytest.raises(InputError, match="split 'val'"):
        load_wflw(tmp_path, "val")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    root = write_list(tmp_path)
    (root / LIST).write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(InputError, match="not a text file"):
        load_wflw(root, "test")


def test_the_whole_real_test_list_is_read(wflw_samples: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_test_annotations", "test")
    assert len(faces) == 2500
    assert dict(zip(ATTRIBUTES, faces.attributes.sum(0).tolist(), strict=True)) == {
        "pose": 326,
        "expression": 314,
        "illumination": 698,
        "makeup": 206,
        "occlusion": 736,
        "blur": 773,
    }


def test_squares_of_the_real_faces_follow_the_published_rule(wflw_samples: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_test_annotations", "test")
    for points, center, side in zip(faces.points, faces.center, faces.side, strict=True):
        x0, x1 = math.floor(min(points[:, 0])), math.ceil(max(points[:, 0]))
        y0, y1 = math.floor(min(points[:, 1])), math.ceil(max(points[:, 1]))
        assert tuple(center) == ((x0 + x1) / 2, (y0 + y1) / 2)
        assert side == 200 * (max(x1 - x0, y1 - y0) / 200)


def test_selecting_faces_keeps_their_columns_together(wflw_samples: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    chosen = faces.select(np.array([2, 0]))
    assert chosen.image == [faces.image[2], faces.image[0]]
    assert np.array_equal(chosen.points, faces.points[[2, 0]])
    assert np.array_equal(chosen.side, faces.side[[2, 0]])
