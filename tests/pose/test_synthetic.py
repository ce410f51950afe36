"""The synthetic set: statistics like WFLW's, files in its layout, faces that are what their attributes say."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.data import face_look, face_model, face_render, face_scene, synthetic
from pose.data.synthetic import annotate, generate, render
from pose.data.wflw import load_wflw
from pose.errors import InputError
from pose.landmarks import FLIP_PAIRS

# WFLW's test list: per cent with each attribute, and the mean shape's NME of all and of each subset.
WFLW_SHARES = (13.0, 12.6, 27.9, 8.2, 29.4, 30.9)
POSE, EXPRESSION, ILLUMINATION, MAKEUP, OCCLUSION, BLUR = range(6)

# Of face 0 of the training split, seed 0, size 256: points 0, 16, 32, 54, 60, 72, 85 and 96.
GOLDEN_ATTRIBUTES = (False, True, False, False, False, True)
GOLDEN_POINTS = (
    (80.3240797, 181.7060098),
    (134.8508846, 249.8027804),
    (165.4583844, 167.6890066),
    (128.3050814, 206.7840950),
    (94.8166347, 179.6294615),
    (152.1248487, 171.5025212),
    (132.5933217, 234.2847609),
    (104.1049186, 178.9412948),
)


@pytest.fixture(scope="module")
def annotations() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Points and attributes of 1,200 training and 900 test faces."""
    made = {}
    for split, count in (("train", 1200), ("test", 900)):
        rows = [annotate(0, split, index, 256) for index in range(count)]
        made[split] = np.stack([points for points, _ in rows]), np.stack([flags for _, flags in rows])
    return made


def padded_square(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (N, 2) and padded side (N,), straight from the published rule."""
    low, high = np.floor(points.min(1)), np.ceil(points.max(1))
    return (low + high) / 2, 1.25 * (high - low).max(1)


def mean_shape_nme(annotations: dict[str, tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    center, side = padded_square(annotations["train"][0])
    mean = ((annotations["train"][0] - center[:, None]) / side[:, None, None]).mean(0)
    points = annotations["test"][0]
    center, side = padded_square(points)
    error = np.linalg.norm(center[:, None] + side[:, None, None] * mean - points, axis=-1).mean(1)
    return 100 * error / np.linalg.norm(points[:, 60] - points[:, 72], axis=-1)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_shares_of_the_attributes_are_those_of_wflw(annotations, split):
    flags = annotations[split][1]
    np.testing.assert_allclose(100 * flags.mean(0), WFLW_SHARES, atol=3)
    assert abs(100 * (~flags.any(1)).mean() - 21) < 3


def test_a_run_of_64_faces_has_shares_near_those_of_the_whole(annotations):
    # The draw fills the shares evenly; 64 independent draws would be off by more than 12 points now and then.
    for start in range(0, 900 - 64, 64):
        share = 100 * annotations["test"][1][start : start + 64].mean(0)
        np.testing.assert_allclose(share, WFLW_SHARES, atol=12)


def test_attributes_occur_together_as_if_independent(annotations):
    flags = annotations["train"][1].astype(float)
    expected = np.outer(flags.mean(0), flags.mean(0))
    together = flags.T @ flags / len(flags)
    off_diagonal = ~np.eye(6, dtype=bool)
    # Four points: three standard deviations of the commonest pair's share in 1,200 faces.
    np.testing.assert_allclose(together[off_diagonal], expected[off_diagonal], atol=0.04)


def test_the_mean_shape_is_as_wrong_as_on_wflw(annotations):
    nme = mean_shape_nme(annotations)
    assert abs(nme.mean() - 27) < 5
    flags = annotations["test"][1]
    # WFLW: pose 63.5, expression 27.9, illumination 24.0, make-up 21.9, occlusion 25.2, blur 26.6, without any 20.3.
    expected, tolerance = (63.5, 27.9, 24.0, 21.9, 25.2, 26.6), (10, 5, 5, 6, 5, 5)
    for column, (value, within) in enumerate(zip(expected, tolerance, strict=True)):
        assert abs(nme[flags[:, column]].mean() - value) < within, column
    assert abs(nme[~flags.any(1)].mean() - 20.3) < 5


def test_the_eyes_are_as_far_apart_as_on_wflw(annotations):
    points, flags = annotations["test"]
    ratio = np.linalg.norm(points[:, 60] - points[:, 72], axis=-1) / padded_square(points)[1]
    assert abs(ratio.mean() - 0.44) < 0.03
    assert abs(ratio[flags[:, POSE]].mean() - 0.308) < 0.03  # foreshortened, as measured on WFLW


def test_all_points_lie_inside_the_crop_and_the_picture(annotations):
    points = annotations["test"][0]
    center, side = padded_square(points)
    assert np.abs((points - center[:, None]) / side[:, None, None]).max() <= 0.4 + 1e-9
    for index in range(0, 900, 30):
        scene = face_scene.compose(0, "test", index, 256)
        assert (scene.points >= 0).all()
        assert (scene.points <= (scene.width - 1, scene.height - 1)).all()


def test_faces_differ_with_seed_split_and_index():
    faces = [annotate(*key, 64)[0] for key in ((0, "train", 0), (1, "train", 0), (0, "test", 0), (0, "train", 1))]
    for i, one in enumerate(faces):
        for other in faces[i + 1 :]:
            assert np.abs(one - other).max() > 1


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_annotations_without_pixels_are_those_of_the_drawn_face(index):
    face = render(3, "train", index, 96)
    points, attributes = annotate(3, "train", index, 96)
    np.testing.assert_array_equal(face.points, points)
    np.testing.assert_array_equal(face.attributes, attributes)
    assert face.image.dtype == np.uint8
    assert face.image.ndim == 3


@pytest.mark.parametrize("call", [("dev", 0, 64), ("train", -1, 64), ("train", 0, 8)], ids=["split", "index", "size"])
def test_render_refuses_what_it_cannot_draw(call):
    with pytest.raises(ValueError, match="wanted"):
        render(0, *call)


# --- the head -------------------------------------------------------------------------------------------------


def test_the_average_head_is_symmetric_and_its_outer_eye_corners_are_a_unit_apart():
    controls = face_model.head(face_model.Identity(), face_model.Expression())
    points = face_model.landmarks(controls, face_model.Camera(0.0, 0.0, 0.0, 10.0))
    for a, b in FLIP_PAIRS:
        np.testing.assert_allclose(points[a], points[b] * (-1, 1), atol=1e-9)
    assert np.linalg.norm(controls[60] - controls[72]) == pytest.approx(1, abs=0.01)


def test_the_surface_passes_through_every_control_point():
    template = face_model.template()
    directions = template - face_model.CENTER
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    # The interpolation system's condition number is about 1e6, so 1e-9 leaves three digits.
    np.testing.assert_allclose(face_model.weights(directions) @ template, template, atol=1e-9)


def test_the_proportions_are_those_of_real_frontal_faces(wflw_samples):
    lines = (wflw_samples / "wflw_test_annotations" / "list_98pt_rect_attr_test.txt").read_text().splitlines()
    real = np.array([line.split()[:196] for line in lines], dtype=float).reshape(-1, 98, 2)
    # Frontal: the nose bridge lies halfway between the outer eye corners.
    unit = np.linalg.norm(real[:, 72] - real[:, 60], axis=1)
    along = (real[:, 72] - real[:, 60]) / unit[:, None]
    middle = (real[:, 72] + real[:, 60]) / 2
    offset = ((real[:, 54] - middle) * along).sum(1) / unit
    real = real[np.abs(offset) < 0.03]
    unit = np.linalg.norm(real[:, 72] - real[:, 60], axis=1)[:, None, None]
    along = (real[:, 72] - real[:, 60])[:, None] / unit
    centered = (real - (real[:, 72] + real[:, 60])[:, None] / 2) / unit
    x = (centered * along).sum(-1)
    y = centered[..., 1] * along[..., 0] - centered[..., 0] * along[..., 1]
    expected = np.stack([x.mean(0), y.mean(0)], axis=1)
    controls = face_model.head(face_model.Identity(), face_model.Expression(parted=0.8, smile=0.2))
    points = face_model.landmarks(controls, face_model.Camera(0.0, 0.0, 0.0, 12.0))
    points = (points - (points[60] + points[72]) / 2) / np.linalg.norm(points[72] - points[60])
    # A twentieth of the eye distance on average: hand-built, not fitted.
    assert np.linalg.norm(points - expected, axis=1).mean() < 0.05


def test_contour_points_of_the_far_cheek_slide_to_the_visible_edge():
    controls = face_model.head(face_model.Identity(), face_model.Expression())
    camera = face_model.Camera(np.radians(50.0), 0.0, 0.0, 10.0)
    points = face_model.landmarks(controls, camera)
    fixed = camera.project(controls[:33])[:, :2]
    far, near = slice(24, 33), slice(0, 7)  # turned to the image's right
    assert (points[far, 0] > fixed[far, 0] + 0.1).all()
    np.testing.assert_allclose(points[near], fixed[near], atol=0.03)


# --- what is drawn --------------------------------------------------------------------------------------------


def scenes(wanted, count: int, size: int = 160):
    """The first `count` scenes that `wanted` accepts, with their index."""
    found = []
    index = 0
    while len(found) < count:
        scene = face_scene.compose(5, "train", index, size)
        if wanted(scene):
            found.append((index, scene))
        index += 1
    return found


def look_of(index: int, attributes: np.ndarray) -> face_look.Look:
    return face_look.draw_look(face_scene.stream(5, "train", index, 1), attributes)


def draw(index: int, scene: face_scene.Scene, look: face_look.Look) -> np.ndarray:
    return face_render.render_pixels(scene, look, face_scene.stream(5, "train", index, 2)).astype(float)


def quiet(look: face_look.Look) -> face_look.Look:
    """Without noise, so that what differs between two pictures was drawn."""
    return replace(look, lens=replace(look.lens, noise=0.0))


def at(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y = np.rint(points).astype(int).T
    return image[y, x]


def plain_and_frontal(scene: face_scene.Scene) -> bool:
    return not scene.attributes.any() and abs(scene.camera.yaw) < 0.3 and scene.expression.close_left < 0.15


def test_points_lie_on_the_features_that_were_drawn():
    darker_pupils = redder_lips = darker_brows = 0
    found = scenes(plain_and_frontal, 16, 224)
    for index, scene in found:
        look = quiet(look_of(index, scene.attributes))
        image = draw(index, scene, replace(look, glasses=False, beard=0.0, moustache=0.0, brow=1.0))
        gray = image.mean(-1)
        points = scene.points
        whites = [points[96] + 0.55 * (points[i] - points[96]) for i in (60, 64)]
        darker_pupils += bool(at(gray, points[96:97])[0] < at(gray, np.array(whites)).max() - 20)
        lip = at(image, (points[[84, 85, 86]] + points[[95, 94, 93]]) / 2).mean(0)
        cheek = at(image, points[[55, 59]] * 0.45 + points[[7, 25]] * 0.55).mean(0)
        redder_lips += bool(lip[0] / lip[1] > 1.04 * cheek[0] / cheek[1])
        brow = at(gray, (points[[35, 44]] + points[[40, 49]]) / 2).mean()
        forehead = at(gray, points[[35, 44]] + 0.6 * (points[[35, 44]] - points[[40, 49]]) + 0.0).mean()
        above = at(gray, points[[35, 44]] + (points[[51, 51]] - points[[53, 53]]) * 0.7).mean()
        darker_brows += bool(brow < max(forehead, above))
    # Not all: fair hair on fair skin, a lid half shut over a small eye.
    assert darker_pupils >= 14
    assert redder_lips >= 14
    assert darker_brows >= 13


def test_blurred_faces_have_lost_their_edges():
    for index, scene in scenes(lambda scene: scene.attributes[BLUR], 6):
        look = quiet(look_of(index, scene.attributes))
        assert look.lens.blur != "none"
        sharp = draw(index, scene, replace(look, lens=replace(look.lens, blur="none", amount=0.0)))
        blurred = draw(index, scene, look)
        (left, top), (right, bottom) = scene.points.min(0).astype(int), scene.points.max(0).astype(int)
        face = [image[top:bottom, left:right].mean(-1) for image in (sharp, blurred)]
        edges = [(np.diff(part, axis=0) ** 2).mean() + (np.diff(part, axis=1) ** 2).mean() for part in face]
        assert edges[1] < 0.7 * edges[0]


def test_occluded_faces_have_at_least_eight_points_covered():
    for index, scene in scenes(lambda scene: scene.attributes[OCCLUSION], 20, 128):
        look = quiet(look_of(index, scene.attributes))
        look = replace(look, lens=replace(look.lens, blur="none", amount=0.0))
        bare = draw(index, replace(scene, attributes=scene.attributes & ~(np.arange(6) == OCCLUSION)), look)
        covered = draw(index, scene, look)
        change = np.abs(at(covered, scene.points) - at(bare, scene.points)).max(-1)
        # Three levels: a hand has the face's colour, and a dark picture little of any.
        assert (change > 3).sum() >= 8, index


def test_made_up_faces_wear_colour_on_lips_or_lids():
    for index, scene in scenes(lambda scene: scene.attributes[MAKEUP] and not scene.attributes[ILLUMINATION], 6):
        look = quiet(look_of(index, scene.attributes))
        assert look.make_up is not None
        look = replace(look, lens=replace(look.lens, blur="none", amount=0.0))
        scene = replace(scene, attributes=np.zeros(6, dtype=bool))
        change = np.abs(draw(index, scene, look) - draw(index, scene, replace(look, make_up=None)))
        lips = scene.points[[84, 85, 86, 78, 79, 80]] * 0.6 + scene.points[[95, 94, 93, 89, 90, 91]] * 0.4
        assert at(change, lips).max() > 12
        assert change.mean() < 12  # and nowhere else


def test_badly_lit_faces_look_unlike_the_same_face_in_soft_light():
    even = face_look.Light(np.full(3, 0.75), np.array([0.0, -0.5, 0.866]), np.full(3, 0.5), 0.05, 1.1)
    for index, scene in scenes(lambda scene: scene.attributes[ILLUMINATION] and not scene.attributes[OCCLUSION], 8):
        look = quiet(look_of(index, scene.attributes))
        change = np.abs(draw(index, scene, look) - draw(index, scene, replace(look, light=even)))
        assert at(change, scene.points).mean() > 18, index


def test_faces_with_the_pose_attribute_are_turned_far_and_the_others_are_not():
    for index in range(300):
        scene = face_scene.compose(0, "train", index, 128)
        yaw, pitch, roll = np.abs(np.degrees([scene.camera.yaw, scene.camera.pitch, scene.camera.roll]))
        far = yaw > 46 or pitch > 27 or roll > 30
        assert far == scene.attributes[POSE]


def test_faces_with_the_expression_attribute_are_deformed_more_than_the_others():
    rest = face_model.head(face_model.Identity(), face_model.Expression())[33:98]
    moved: dict[bool, list[float]] = {True: [], False: []}
    for index in range(300):
        scene = face_scene.compose(0, "train", index, 128)
        deformed = face_model.head(face_model.Identity(), scene.expression)[33:98]
        moved[bool(scene.attributes[EXPRESSION])].append(float(np.linalg.norm(deformed - rest, axis=1).mean()))
    # Lips that part move 20 points a little: hence some overlap of a wide smile with a weak grimace.
    assert np.percentile(moved[True], 10) > np.percentile(moved[False], 75)


def test_rounding_errors_of_another_machine_move_no_pixel_by_more_than_two_levels():
    for index in range(12):
        scene = face_scene.compose(5, "train", index, 128)
        noise = np.random.default_rng(index).standard_normal(scene.controls.shape)
        # A thousand times the rounding error of float64: what other orders of summation could add up to.
        other = replace(scene, controls=scene.controls * (1 + 2e-13 * noise))
        look = look_of(index, scene.attributes)
        np.testing.assert_allclose(draw(index, other, look), draw(index, scene, look), atol=2)


def test_the_landmarks_of_a_face_are_those_that_generator_version_1_stands_for():
    assert synthetic.GENERATOR_VERSION == 1  # a change of the numbers below calls for another version
    points, attributes = annotate(0, "train", 0, 256)
    np.testing.assert_array_equal(attributes, GOLDEN_ATTRIBUTES)
    np.testing.assert_allclose(points[[0, 16, 32, 54, 60, 72, 85, 96]], GOLDEN_POINTS, atol=1e-6)


# --- files ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return generate(tmp_path_factory.mktemp("set") / "faces", train=42, test=5, size=64, workers=2, progress=False)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_files_do_not_depend_on_the_number_of_workers(made, tmp_path):
    other = generate(tmp_path / "faces", train=42, test=5, size=64, workers=1, progress=False)
    assert contents(other) == contents(made)


def test_a_face_does_not_depend_on_how_many_there_are(made, tmp_path):
    fewer = generate(tmp_path / "fewer", train=21, test=2, size=64, workers=1, progress=False)
    large, small = contents(made), contents(fewer)
    pictures = [name for name in small if name.endswith(".jpg")]
    assert len(pictures) == 23
    assert all(small[name] == large[name] for name in pictures)
    for split in ("train", "test"):
        name = f"WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_{split}.txt"
        assert large[name].startswith(small[name])


@pytest.mark.parametrize(("split", "count"), [("train", 42), ("test", 5)])
def test_the_loader_of_the_real_set_reads_what_was_drawn(made, split, count):
    faces = load_wflw(made, split)
    assert len(faces) == count
    for index in range(count):
        points, attributes = annotate(0, split, index, 64)
        np.testing.assert_allclose(faces.points[index], points, atol=5.1e-7)  # six decimals
        np.testing.assert_array_equal(faces.attributes[index], attributes)


def test_a_line_holds_207_fields_with_the_box_around_the_face_and_a_readable_picture(made):
    path = made / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_train.txt"
    for index, line in enumerate(path.read_text().splitlines()):
        fields = line.split(" ")
        assert len(fields) == 207
        points = np.array(fields[:196], dtype=float).reshape(98, 2)
        xmin, ymin, xmax, ymax = (int(field) for field in fields[196:200])
        with Image.open(made / "WFLW_images" / fields[206]) as picture:
            assert picture.format == "JPEG"
            assert picture.mode == "RGB"
            width, height = picture.size
            pixels = np.asarray(picture).astype(float)
        assert 0 <= xmin < points[:, 0].mean() < xmax < width
        assert 0 <= ymin < points[:, 1].mean() < ymax < height
        if index < 4:  # JPEG at quality 53 or better: a few levels on average
            assert np.abs(pixels - render(0, "train", index, 64).image).mean() < 12


def test_a_complete_set_is_kept_as_it_is(made, monkeypatch):
    def fail(*_):
        raise AssertionError("drawn again")

    monkeypatch.setattr(synthetic, "_write_faces", fail)
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    assert generate(made, train=42, test=5, size=64, progress=False) == made
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


@pytest.mark.parametrize("change", [{"train": 43}, {"test": 6}, {"size": 65}, {"seed": 1}])
def test_a_set_with_other_parameters_is_refused_and_named(made, change):
    parameters = {"train": 42, "test": 5, "size": 64, "seed": 0} | change
    (name, value), *_ = change.items()
    with pytest.raises(InputError, match=rf"{name} \d+, not {value}"):
        generate(made, **parameters, progress=False)


def test_a_set_whose_list_was_edited_is_refused(made, tmp_path):
    root = tmp_path / "faces"
    for name, content in contents(made).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    path = root / "WFLW_annotations/list_98pt_rect_attr_train_test/list_98pt_rect_attr_test.txt"
    path.write_text(path.read_text().replace("1", "2", 1))
    with pytest.raises(InputError, match="changed since it was made"):
        generate(root, train=42, test=5, size=64, progress=False)


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose")
    with pytest.raises(InputError, match="not a synthetic set"):
        generate(tmp_path, train=1, test=1, progress=False)
    assert contents(tmp_path) == {"thesis.txt": b"do not lose"}


@pytest.mark.parametrize("parameters", [{"train": 0}, {"test": -1}, {"seed": -1}, {"size": 8}, {"workers": 0}])
def test_impossible_parameters_are_named_before_anything_is_written(tmp_path, parameters):
    with pytest.raises(InputError, match=next(iter(parameters))):
        generate(tmp_path / "set", **{"train": 1, "test": 1} | parameters, progress=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), InputError),  # a full disk
    ],
)
def test_a_run_that_ends_early_leaves_nothing_behind(tmp_path, monkeypatch, failure, expected):
    def stop(root, *_):
        (root / "WFLW_images").mkdir()
        (root / "WFLW_images" / "half.jpg").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(synthetic, "_write_faces", stop)
    with pytest.raises(expected):
        generate(tmp_path / "set", train=1, test=1, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the synthetic set"):
        generate(tmp_path / "file" / "set", train=1, test=1, progress=False)


def test_the_commands_help_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['synthetic', '--help']\n"
        "try: runpy.run_module('pose.data.synthetic', run_name='__main__')\n"
        "except SystemExit: print([m for m in ('numpy', 'PIL', 'rich', 'torch') if m in sys.modules])"
    )
    root = Path(synthetic.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_script_read_from_a_pipe_may_make_a_set(tmp_path):
    script = (
        "from pathlib import Path\nfrom pose.data.synthetic import generate\n"
        f"generate(Path({str(tmp_path / 'set')!r}), train=2, test=1, size=64, workers=2, progress=False)\n"
    )
    root = Path(synthetic.__file__).parents[2]
    subprocess.run([sys.executable, "-"], input=script, text=True, cwd=root, check=True)
    assert len(list((tmp_path / "set" / "WFLW_images").rglob("*.jpg"))) == 3


def test_a_drawing_process_that_is_killed_is_one_sentence(tmp_path, monkeypatch):
    real = synthetic._Crew.__init__

    def killed(self, *arguments):
        real(self, *arguments)
        self.process.kill()

    monkeypatch.setattr(synthetic._Crew, "__init__", killed)
    with pytest.raises(InputError, match="a process that drew faces was killed"):
        generate(tmp_path / "set", train=3, test=3, size=64, workers=2, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_picture_that_cannot_be_written_names_the_reason(tmp_path, monkeypatch):
    real = synthetic._Crew.__init__

    def elsewhere(self, root, *arguments):
        real(self, root / "missing", *arguments)

    monkeypatch.setattr(synthetic._Crew, "__init__", elsewhere)
    with pytest.raises(InputError, match=r"cannot write the synthetic set .*: No such file or directory"):
        generate(tmp_path / "set", train=3, test=3, size=64, workers=1, progress=False)
    assert not any(tmp_path.iterdir())


def test_pictures_set_into_photographs_are_progressive_and_show_the_same_faces(tmp_path: Path) -> None:
    plain = generate(tmp_path / "plain", train=3, test=1, size=96, progress=False)
    photos = generate(tmp_path / "photos", train=3, test=1, size=96, photo=400, progress=False)
    alone, inside = load_wflw(plain, "train"), load_wflw(photos, "train")
    assert np.array_equal(alone.attributes, inside.attributes)
    assert len({tuple(np.round(inside.points[n].mean(0))) for n in range(3)}) == 3
    for face in range(3):
        with Image.open(inside.image[face]) as photo, Image.open(alone.image[face]) as picture:
            assert photo.size == (400, 300)
            assert "progressive" in photo.info
            assert "progressive" not in picture.info
            shift = np.round((inside.points[face] - alone.points[face]).mean(0)).astype(int)
            np.testing.assert_allclose(inside.points[face] - shift, alone.points[face], atol=1e-5)  # six decimals
            box = (*shift, *(shift + picture.size))
            difference = np.asarray(photo.crop(box), dtype=int) - np.asarray(picture, dtype=int)
        assert np.abs(difference).mean() < 6  # levels: two JPEGs whose blocks lie elsewhere
    with pytest.raises(InputError, match="holds a synthetic set with photo 400, not None"):
        generate(photos, train=3, test=1, size=96, progress=False)
    with pytest.raises(InputError, match="photo is 100; it must be 192"):
        generate(tmp_path / "small", train=1, test=1, size=96, photo=100)
