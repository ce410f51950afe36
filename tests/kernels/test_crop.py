"""The crop against OpenCV 4 (bit for bit) and against bilinear interpolation written as plain numpy."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from crops import bilinear, crop, levels, ragged, random_cases, similarity, warp

from kernels import RaggedImages, crop_faces, crop_reference

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


@pytest.mark.parametrize(("size", "count"), [(64, 120), (192, 40), (256, 40)])
def test_opencv4_mode_gives_the_bytes_of_warp_affine(size, count):
    images, matrices, flips = random_cases(count, size, size)
    got = levels(
        crop(
            ragged(images), range(count), matrices, flips, size=size, mode="opencv4", dtype=torch.uint8, normalize=False
        )
    )
    for i in range(count):
        np.testing.assert_array_equal(got[i], warp(images[i], matrices[i], size, flips[i]), err_msg=f"case {i}")


@pytest.mark.parametrize("kind", ["plain", "rotated", "scaled", "border", "sheared", "thumbnail"])
@pytest.mark.parametrize("flip", [False, True])
def test_opencv4_mode_gives_the_bytes_of_warp_affine_on_each_kind_of_map(kind, flip):
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (661, 1024, 3), dtype=np.uint8)
    size = 64 if kind == "thumbnail" else 256
    for _ in range(6):
        center, side = rng.uniform(250, 400, 2), rng.uniform(80, 300)
        matrix = {
            "plain": similarity(center, side, 0, 256),
            "rotated": similarity(center, side, rng.uniform(-180, 180), 256),
            "scaled": similarity(center, side * rng.choice([0.1, 0.75, 1.25, 4.0]), 0, 256),
            "border": similarity(center - 380, side, 30, 256),
            "sheared": similarity(center, side, 20, 256) + rng.normal(0, 0.2, (2, 3)),
            "thumbnail": similarity(center, 2000.0, 45, size),  # so much of the image for so few pixels is gathered
        }[kind]
        got = crop(
            ragged([image]), [0], [matrix], [flip], size=size, mode="opencv4", dtype=torch.uint8, normalize=False
        )
        np.testing.assert_array_equal(levels(got)[0], warp(image, matrix, size, flip))


def test_opencv4_mode_gives_the_bytes_of_warp_affine_on_real_faces(wflw_samples):
    rng = np.random.default_rng(6)
    for path in sorted((wflw_samples / "wflw_mini" / "WFLW_images").rglob("*.jpg")):
        image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        height, width, _ = image.shape
        matrices = [
            similarity(rng.uniform(0, 1, 2) * (width, height), rng.uniform(60, 700), rng.uniform(-60, 60), 256)
            for _ in range(12)
        ]
        flips = [i % 2 == 0 for i in range(12)]
        got = crop(ragged([image]), [0] * 12, matrices, flips, mode="opencv4", dtype=torch.uint8, normalize=False)
        for i in range(12):
            np.testing.assert_array_equal(levels(got)[i], warp(image, matrices[i], 256, flips[i]))


@pytest.mark.parametrize("size", [64, 256])
def test_exact_mode_is_real_valued_bilinear_interpolation(size):
    images, matrices, flips = random_cases(24, 11 + size, size)
    got = levels(crop(ragged(images), range(24), matrices, flips, size=size, normalize=False))
    rounded = levels(crop(ragged(images), range(24), matrices, flips, size=size, normalize=False, dtype=torch.uint8))
    for i in range(24):
        want = bilinear(images[i], matrices[i], size, flips[i])
        # positions in float32: 2e-5 px of noise as steep as noise can be
        assert np.abs(got[i] - want).max() < 0.02
        assert np.abs(rounded[i] - want).max() < 0.52


def test_the_gather_and_the_cuts_are_the_same_function():
    images, matrices, flips = random_cases(40, 21, 96)
    inverse = crop_reference._inverse(torch.as_tensor(np.stack(matrices)))
    faces = crop_reference._Faces(ragged(images), torch.arange(40), inverse, torch.as_tensor(flips), step=3)
    by_face = {
        mode: crop(ragged(images), range(40), matrices, flips, size=96, mode=mode, normalize=False)
        for mode in ("exact", "opencv4")
    }
    assert torch.equal(crop_reference._opencv4(faces, 96).float(), by_face["opencv4"])
    assert (crop_reference._exact(faces, 96) - by_face["exact"]).abs().max() < 0.02


def test_exact_mode_stays_near_opencv4():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8), (0, 0), 2)
    matrix = similarity((200, 150), 180, 25, 256)
    exact = levels(crop(ragged([image]), [0], [matrix], [False], normalize=False))
    assert np.abs(exact[0] - warp(image, matrix, 256, False)).max() < 4  # 1/32 px of a slope, and rounding


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_a_region_gives_what_the_whole_image_gives(mode):
    rng = np.random.default_rng(9)
    image = rng.integers(0, 256, (400, 500, 3), dtype=np.uint8)
    left, top, width, height = 90, 60, 310, 300
    region = np.ascontiguousarray(image[top : top + height, left : left + width])
    # Two regions in one buffer behind a gap, so that offsets count
    pixels = np.concatenate([np.zeros(7, np.uint8), region.reshape(-1), np.zeros(5, np.uint8), image.reshape(-1)])
    both = RaggedImages(
        pixels=torch.from_numpy(pixels),
        offset=torch.tensor([7, 12 + region.size]),
        height=torch.tensor([height, 400]),
        width=torch.tensor([width, 500]),
        origin=torch.tensor([[left, top], [0, 0]]),
        full_width=torch.tensor([500, 500]),
    )
    for case in range(20):
        flip = case % 2 == 1
        center = rng.uniform(220, 260), rng.uniform(190, 220)
        if flip:
            center = 500 - 1 - center[0], center[1]
        matrix = similarity(center, rng.uniform(60, 150), rng.uniform(-60, 60), 64)
        from_region, from_image = crop(both, [0, 1], [matrix] * 2, [flip] * 2, size=64, mode=mode, normalize=False)
        if mode == "opencv4":
            assert torch.equal(from_region, from_image)
        else:
            assert (from_region - from_image).abs().max() < 0.02


def test_outside_a_region_all_is_zero():
    image = np.full((50, 60, 3), 200, dtype=np.uint8)
    for center in ((-500, 20), (20, 4000), (1e7, -1e7)):
        for mode in ("exact", "opencv4"):
            for flip in (False, True):
                got = crop(
                    ragged([image]), [0], [similarity(center, 40, 10, 64)], [flip], mode=mode, normalize=False, size=64
                )
                assert got.abs().max() == 0


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_a_batch_gives_what_each_face_gives_alone(mode):
    count = 70  # more than one chunk of 64 px crops
    images, matrices, flips = random_cases(count, 33, 64)
    together = crop(ragged(images), range(count), matrices, flips, size=64, mode=mode)
    assert together.shape == (count, 3, 64, 64)
    for i in (0, 31, 32, 69):
        alone = crop(ragged([images[i]]), [0], [matrices[i]], [flips[i]], size=64, mode=mode)
        assert torch.equal(alone[0], together[i])


def test_opencv4_normalisation_is_the_formula_bit_for_bit():
    images, matrices, flips = random_cases(8, 2, 64)
    got = levels(crop(ragged(images), range(8), matrices, flips, size=64, mode="opencv4"))
    for i in range(8):
        pixels = warp(images[i], matrices[i], 64, flips[i]).astype(np.float32)
        want = (pixels / np.float32(255) - MEAN) / STD
        np.testing.assert_array_equal(got[i], want)


def test_exact_normalisation_is_the_formula_to_rounding():
    images, matrices, flips = random_cases(8, 3, 64)
    raw = levels(crop(ragged(images), range(8), matrices, flips, size=64, normalize=False))
    got = levels(crop(ragged(images), range(8), matrices, flips, size=64))
    # Two roundings of numbers up to 4.5, where the formula has three
    np.testing.assert_allclose(got, (raw / 255 - MEAN) / STD, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_casts_of_float32(dtype):
    images, matrices, flips = random_cases(4, 4, 64)
    full = crop(ragged(images), range(4), matrices, flips, size=64, mode="opencv4")
    cast = crop(ragged(images), range(4), matrices, flips, size=64, mode="opencv4", dtype=dtype)
    assert cast.dtype == dtype
    assert torch.equal(cast, full.to(dtype))


@pytest.mark.parametrize("channels", [3, 4])
def test_the_output_is_channels_last_and_a_fourth_channel_is_zero(channels):
    images, matrices, flips = random_cases(5, 8, 64)
    got = crop(ragged(images), range(5), matrices, flips, size=64, channels=channels)
    assert got.shape == (5, channels, 64, 64)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got[:, :3], crop(ragged(images), range(5), matrices, flips, size=64))
    assert got[:, 3:].abs().sum() == 0


def test_images_may_be_views_into_a_larger_buffer():
    stack = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8))
    matrix = similarity((25, 20), 30, 15, 64)
    got = crop(RaggedImages.from_images([stack[2]]), [0], [matrix], [False], size=64, mode="opencv4", normalize=False)
    np.testing.assert_array_equal(levels(got)[0], warp(stack[2].numpy(), matrix, 64, False))
    turned = crop(
        RaggedImages.from_images([stack[2].flip(1)]), [0], [matrix], [True], size=64, mode="opencv4", normalize=False
    )
    assert torch.equal(turned, got)


def test_an_empty_batch_gives_an_empty_batch():
    image = torch.zeros(4, 4, 3, dtype=torch.uint8)
    got = crop_faces(
        RaggedImages.from_images([image]),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, 2, 3, dtype=torch.float64),
        torch.zeros(0, dtype=torch.bool),
    )
    assert got.shape == (0, 3, 256, 256)


def test_bad_input_is_refused_in_words():
    images = RaggedImages.from_images([torch.zeros(8, 9, 3, dtype=torch.uint8)])
    index, flip = torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.bool)
    matrix = torch.as_tensor(np.stack([similarity((4, 4), 8, 0, 64)] * 2))
    good = {"images": images, "index": index, "matrix": matrix, "flip": flip, "size": 64}
    crop_faces(**good)
    for change, error, words in (
        ({"mode": "cubic"}, ValueError, "mode is 'cubic'; wanted one of 'exact', 'opencv4'"),
        ({"impl": "cuda"}, ValueError, "impl is 'cuda'; wanted one of 'auto', 'triton', 'reference'"),
        ({"channels": 1}, ValueError, "channels is 1; wanted one of 3, 4"),
        ({"dtype": torch.int32}, ValueError, "dtype is torch.int32"),
        ({"dtype": torch.uint8}, ValueError, "normalize=False"),
        ({"size": 0}, ValueError, "size is 0; wanted 1 to 16384 pixels"),
        ({"matrix": matrix.float()}, TypeError, "matrix is torch.float32; wanted torch.float64"),
        ({"matrix": matrix[:1]}, ValueError, r"matrix has shape \(1, 2, 3\); wanted \(2, 2, 3\)"),
        ({"matrix": matrix * float("nan")}, ValueError, "matrix holds a value that is not finite"),
        ({"flip": flip.long()}, TypeError, "flip is torch.int64; wanted torch.bool"),
        ({"index": index + 1}, IndexError, "index holds 1 to 1; wanted 0 to 0"),
        ({"index": index - 1}, IndexError, "index holds -1 to -1"),
        ({"flip": flip.to("meta")}, ValueError, "flip is on meta, index on cpu"),
        ({"images": images._replace(height=images.height + 1)}, ValueError, "outside images.pixels, which holds 216"),
        ({"images": images._replace(pixels=images.pixels[::2])}, ValueError, "images.pixels has stride 2"),
        ({"images": images._replace(pixels=images.pixels.float())}, TypeError, "images.pixels is torch.float32"),
    ):
        with pytest.raises(error, match=words):
            crop_faces(**{**good, **change})
    with pytest.raises(TypeError, match=r"image 1 is torch\.float32; wanted a uint8 tensor"):
        RaggedImages.from_images([torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(4, 4, 3)])
    with pytest.raises(ValueError, match=r"image 0 has shape \(4, 4\); wanted \(H, W, 3\)"):
        RaggedImages.from_images([torch.zeros(4, 4, dtype=torch.uint8)])
    with pytest.raises(ValueError, match="no images"):
        RaggedImages.from_images([])
