from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_face_set
from PIL import Image

from kernels import RaggedImages, crop_faces
from pose.data.faces import Faces
from pose.data.images import check_images_exist, read_image
from pose.data.wflw import load_wflw
from pose.errors import InputError
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.loader import open_loader
from pose.order import BatchOrder
from pose.recipe import Input
from pose.regions import training_reach

CPU = torch.device("cpu")


def load(faces: Faces, images: str = "memory", reach: float = training_reach(0.25)):  # type: ignore[no-untyped-def]
    return open_loader(faces, Input(images=images), reach=reach, device=CPU, label="decoding")


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("images", ["memory", "disk"])
def test_the_largest_training_crops_from_a_region_equal_those_from_the_picture(
    wflw_samples: Path, images: str, flip: bool
) -> None:
    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    for rotation in (-60.0, -45.0, 0.0, 44.0, 60.0):
        for factor in (0.75, 1.25):
            (batch,) = load(faces, images).batches([np.arange(4)])
            center = mirrored_center(faces.center, batch.widths.numpy()) if flip else faces.center
            matrix = torch.from_numpy(crop_matrix(center, faces.side * PADDING * factor, np.full(4, rotation), 256))
            flips = torch.full((4,), flip)
            crops = crop_faces(
                batch.images, batch.index, matrix, flips, mode="opencv4", normalize=False, dtype=torch.uint8
            )
            for face in range(4):
                whole = RaggedImages.from_images([torch.from_numpy(np.array(read_image(faces.image[face])))])
                expected = crop_faces(
                    whole,
                    torch.zeros(1, dtype=torch.int64),
                    matrix[face : face + 1],
                    flips[:1],
                    mode="opencv4",
                    normalize=False,
                    dtype=torch.uint8,
                )
                assert torch.equal(crops[face], expected[0])


def test_regions_are_smaller_than_pictures(wflw_samples: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    (batch,) = load(faces).batches([np.arange(4)])
    side = 1.25 * PADDING * np.sqrt(2) * faces.side
    assert (batch.images.width.numpy() <= side + 9).all()
    assert (batch.images.height.numpy() <= side + 9).all()


def test_every_unreadable_picture_is_named_at_once(tmp_path: Path) -> None:
    write_face_set(tmp_path, train=4, test=1)
    faces = load_wflw(tmp_path, "train")
    whole = faces.image[1].read_bytes()
    faces.image[1].write_bytes(whole[: len(whole) // 2])
    faces.image[3].write_bytes(b"no picture")
    with pytest.raises(InputError) as caught:
        load(faces)
    message = str(caught.value)
    assert "2 problems" in message
    assert f"{faces.image[1]}: not a readable image" in message
    assert f"{faces.image[3]}: not a readable image" in message
    with pytest.raises(InputError, match=r"train_1\.jpg: not a readable image"):
        list(load(faces, "disk").batches([np.array([0]), np.array([1])]))


def test_missing_pictures_are_named_before_anything_is_decoded(tmp_path: Path) -> None:
    write_face_set(tmp_path, train=4, test=1)
    faces = load_wflw(tmp_path, "train")
    check_images_exist(faces, "LIST")
    faces.image[2].unlink()
    with pytest.raises(InputError, match=r"LIST: no such image: .*train_2.jpg"):
        check_images_exist(faces, "LIST")


def test_a_face_outside_its_picture_is_refused(face_set: Path) -> None:
    faces = load_wflw(face_set, "train").select(np.array([0]))
    faces.center[0] += 5000
    with pytest.raises(InputError, match=r"train_0.jpg: face 0, centred at .* lies outside the picture"):
        load(faces)


def test_points_outside_the_picture_are_said_and_kept(face_set: Path) -> None:
    faces = load_wflw(face_set, "train")
    faces.points[5, 0] = (-0.5, 3)
    with pytest.warns(UserWarning, match=r"1 faces have points outside their picture \(first: .*train_5.jpg\)"):
        load(faces)


def test_pictures_are_turned_upright_by_their_exif_orientation(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10)
    exif = picture.getexif()
    exif[0x0112] = 6  # the camera was held with its right side down
    picture.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "a.png"), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_as_opencv_turns_it(tmp_path: Path, orientation: int) -> None:
    import cv2

    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.kron(rng.integers(0, 255, (4, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8))
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_damaged_exif_is_no_reason_to_refuse_a_picture(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8))
    exif = picture.getexif()
    exif[0x0112], exif[0x010E] = 6, "words"
    picture.save(tmp_path / "good.jpg", exif=exif)
    good = (tmp_path / "good.jpg").read_bytes()
    start = good.index(b"Exif\0\0")
    end = start - 2 + int.from_bytes(good[start - 2 : start], "big")
    for at in range(start + 6, end):
        (tmp_path / "bad.jpg").write_bytes(good[:at] + bytes([good[at] ^ 0x5A]) + good[at + 1 :])
        assert read_image(tmp_path / "bad.jpg").shape == (16, 16, 3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_eight_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.arange(64).reshape(8, 8).astype(dtype)).save(tmp_path / "a.tiff")
    with pytest.raises(InputError, match=r"a.tiff: its pixels are .* 8-bit pictures are wanted"):
        read_image(tmp_path / "a.tiff")


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((5, 6), 77, dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (5, 6, 3)


def test_decoded_bytes_equal_opencvs(wflw_samples: Path) -> None:
    import cv2

    for path in sorted((wflw_samples / "wflw_mini" / "WFLW_images").rglob("*.jpg")):
        assert np.array_equal(read_image(path), cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def test_an_epoch_holds_each_face_at_most_once_and_drops_the_last_partial_batch() -> None:
    order = BatchOrder(faces=10, batch_size=3, seed=0)
    assert order.steps_per_epoch == 3
    seen = np.concatenate([order.faces(step) for step in range(3)])
    assert len(set(seen.tolist())) == 9
    assert order.epoch(2) == 0
    assert order.epoch(3) == 1


def test_epochs_are_the_published_permutations() -> None:
    order = BatchOrder(faces=10, batch_size=5, seed=4)
    generator = torch.Generator()
    generator.manual_seed(4 + 2)
    expected = torch.randperm(10, generator=generator).tolist()
    assert [*order.faces(4), *order.faces(5)] == expected
