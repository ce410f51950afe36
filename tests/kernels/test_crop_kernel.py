"""The Triton crop against plain torch (bit for bit in mode opencv4), OpenCV 4, and interpolation in float64.

The kernels run on a GPU where there is one, and in Triton's interpreter elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton here")

from crops import bilinear, crop, levels, ragged, random_cases, similarity, warp

from kernels import RaggedImages, crop_faces, crop_launch, crop_reference
from kernels.loss_launch import INTERPRETED
from pose.data.faces import Faces
from pose.data.images import read_image
from pose.data.wflw import load_wflw
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.regions import cut, training_reach

MEAN, STD = np.array(crop_reference.MEAN), np.array(crop_reference.STD)
BYTES = {"mode": "opencv4", "dtype": torch.uint8, "normalize": False}


def regions(images: list[np.ndarray], seed: int) -> RaggedImages:
    """A random part of each image, behind gaps of whole pixels."""
    rng = np.random.default_rng(seed)
    pixels, rows = [], []
    place = 0
    for image in images:
        height, width, _ = image.shape
        (left, right), (top, bottom) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in (width, height))
        gap = rng.integers(0, 256, 3 * int(rng.integers(1, 5)), dtype=np.uint8)
        part = np.ascontiguousarray(image[top:bottom, left:right]).reshape(-1)
        pixels += [gap, part]
        rows.append((place + len(gap), bottom - top, right - left, left, top, width))
        place += len(gap) + len(part)
    columns = torch.tensor(np.array(rows, dtype=np.int64))
    return RaggedImages(
        pixels=torch.from_numpy(np.concatenate(pixels)),
        offset=columns[:, 0],
        height=columns[:, 1],
        width=columns[:, 2],
        origin=columns[:, 3:5],
        full_width=columns[:, 5],
    )


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """What is allocated holds not-a-number, or the largest integer, until it is written."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all(), "memory is not filled"
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("size", "count", "options"),
    [
        (64, 24, BYTES),
        (64, 24, {"mode": "opencv4"}),
        (64, 8, {"mode": "opencv4", "channels": 4}),  # another store
        (64, 8, {"mode": "opencv4", "dtype": torch.bfloat16, "channels": 4}),
        (64, 8, {"mode": "opencv4", "dtype": torch.float16}),
        (64, 8, {"mode": "opencv4", "dtype": torch.float64}),
        (64, 8, {"mode": "opencv4", "dtype": torch.bfloat16, "normalize": False}),  # integers to 255 need 8 bits
        (1, 8, BYTES),  # the smallest
        (100, 6, BYTES),  # lanes beyond the size
        (256, 4, BYTES),  # as published
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_opencv4_mode_has_the_bits_of_plain_torch(
    device: torch.device, size: int, count: int, options: dict[str, Any], packed: bool
) -> None:
    images, matrices, flips = random_cases(count, size + count, size)
    parts = regions(images, seed=size)
    given = parts.packed() if packed else parts
    expected = crop(parts, range(count), matrices, flips, size=size, impl="reference", **options)
    with poisoned_memory():
        got = crop(given, range(count), matrices, flips, device, size=size, impl="triton", **options)
    assert got.dtype == expected.dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got.cpu(), expected)
    assert size == 1 or expected[:, :3].float().std() > 0.1, "there is nothing to see"


@pytest.mark.parametrize("options", [BYTES, {"mode": "opencv4", "channels": 4}, {"mode": "exact", "channels": 4}])
@pytest.mark.parametrize("size", [40, 65])  # part of a tile is left over, to the right and below
def test_how_the_crop_is_cut_into_tiles_changes_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], size: int
) -> None:
    images, matrices, flips = random_cases(3, size, size)
    given = ragged(images), range(3), matrices, flips, device
    expected = crop(*given, size=size, impl="triton", **options)
    monkeypatch.setattr(crop_launch, "_ROWS", 32)
    monkeypatch.setattr(crop_launch, "_COLUMNS", 16)
    assert crop_launch.tile_of(size) == (32, 16)
    with poisoned_memory():
        got = crop(*given, size=size, impl="triton", **options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("packed", [False, True])
def test_exact_mode_is_real_valued_interpolation(device: torch.device, packed: bool) -> None:
    images, matrices, flips = random_cases(12, 5, 64)
    given = ragged(images).packed() if packed else ragged(images)
    whole = given, range(12), matrices, flips, device
    plain = levels(crop(*whole, size=64, impl="triton", normalize=False))
    double = levels(crop(*whole, size=64, impl="triton", normalize=False, dtype=torch.float64))
    rounded = levels(crop(*whole, size=64, impl="triton", normalize=False, dtype=torch.uint8))
    normal = levels(crop(*whole, size=64, impl="triton"))
    for i in range(12):
        want = bilinear(images[i], matrices[i], 64, flips[i])
        # Fractions of 24 bits: 2^-23 px of the steepest slope, 255 levels, and a few roundings of 255 levels
        assert np.abs(plain[i] - want).max() < 1e-3
        assert np.abs(rounded[i] - want).max() < 0.501
        assert np.abs(normal[i] - (want / 255 - MEAN) / STD).max() < 1e-3 / 255 / STD.min() + 1e-6
    np.testing.assert_array_equal(double, plain)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)])
def test_exact_mode_rounds_to_the_dtype(device: torch.device, dtype: torch.dtype, digits: int) -> None:
    images, matrices, flips = random_cases(4, 6, 64)
    given = ragged(images), range(4), matrices, flips, device
    full = crop(*given, size=64, impl="triton")
    got = crop(*given, size=64, impl="triton", dtype=dtype)
    if dtype == torch.bfloat16 and INTERPRETED:  # which cuts off what a GPU rounds
        assert ((got.float() - full).abs() <= full.abs() * 2.0 ** (1 - digits)).all()
    else:
        assert torch.equal(got, full.to(dtype))


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("center", "side"),
    [
        ((-500, 20), 40),  # beside the image
        ((1e7, -1e7), 40),  # further than 32 bits reach in 1/1024 px
        ((1e12, 1e12), 40),  # further than they reach in px
        ((30, 25), 1e9),  # so small that a column is that far from the next
    ],
)
def test_what_lies_far_away_is_zero(
    device: torch.device, mode: str, flip: bool, center: tuple[float, float], side: float
) -> None:
    image = np.full((50, 60, 3), 200, dtype=np.uint8)
    matrix = similarity(center, side, 10, 64)
    for impl in ("triton", "reference"):
        got = crop(ragged([image]), [0], [matrix], [flip], device, mode=mode, normalize=False, size=64, impl=impl)
        got[:, :, 32, 32] *= side == 40  # the centre of a crop of everything
        assert got.abs().max() == 0


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_a_map_without_an_inverse_shows_one_pixel_everywhere(device: torch.device, mode: str) -> None:
    image = np.random.default_rng(0).integers(1, 256, (9, 9, 3), dtype=np.uint8)
    for flip in (False, True):
        given = ragged([image]), [0], [np.zeros((2, 3))], [flip], device
        got = crop(*given, mode=mode, normalize=False, size=16, impl="triton")
        corner = torch.tensor(image[0, 8 if flip else 0], dtype=torch.float32, device=device)
        assert torch.equal(got, corner[None, :, None, None].expand_as(got))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of numpy's, in the interpreter
def test_matrices_that_are_not_finite_read_nothing(device: torch.device) -> None:
    """On a CPU they are refused; on a GPU nobody looks at them."""
    images = ragged([np.full((50, 60, 3), 200, dtype=np.uint8)]).to(device)
    values = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=torch.float64, device=device)
    matrix = values[:, None, None].expand(3, 2, 3)
    index = torch.zeros(3, dtype=torch.int64, device=device)
    for mode in ("exact", "opencv4"):
        out = torch.full((3, 3, 64, 64), 7.0, device=device).contiguous(memory_format=torch.channels_last)
        crop_launch.launch_crop(images, index, matrix, index > 0, out, 64, mode, normalize=False)
        assert out.abs().max() == 0


def test_an_index_out_of_range_reads_nothing_beyond_the_regions(device: torch.device) -> None:
    """On a CPU it is refused; on a GPU it is taken for the nearest."""
    images, matrices, _ = random_cases(3, 3, 32)
    index = torch.tensor([-1, 3, 2**40], device=device)
    matrix = torch.as_tensor(np.stack([matrices[0], matrices[2], matrices[2]]), device=device)
    flip = torch.zeros(3, dtype=torch.bool, device=device)
    out = torch.empty(3, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    crop_launch.launch_crop(ragged(images).to(device), index, matrix, flip, out, 32, "opencv4", normalize=True)
    nearest = torch.tensor([0, 2, 2])
    expected = crop_faces(ragged(images), nearest, matrix.cpu(), flip.cpu(), size=32, mode="opencv4")
    assert torch.equal(out.cpu(), expected)


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_an_empty_batch_gives_an_empty_batch(device: torch.device, mode: str) -> None:
    images = ragged([np.zeros((4, 4, 3), dtype=np.uint8)]).to(device)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    matrix = torch.zeros(0, 2, 3, dtype=torch.float64, device=device)
    assert crop_faces(images, none, matrix, none > 0, mode=mode, impl="triton").shape == (0, 3, 256, 256)


def test_columns_may_have_gaps_in_memory(device: torch.device) -> None:
    images, matrices, flips = random_cases(6, 4, 32)
    spread = RaggedImages(*(column.to(device) for column in ragged(images)))
    spread = RaggedImages(spread.pixels, *(torch.stack([each, each + 1], -1)[..., 0] for each in spread[1:]))
    matrix = torch.as_tensor(np.stack(matrices), device=device)
    index = torch.arange(6, device=device).repeat_interleave(2)[::2]
    assert not index.is_contiguous()
    got = crop_faces(
        spread,
        index,
        torch.stack([matrix, -matrix], -1)[..., 0],
        torch.tensor(flips, device=device).repeat_interleave(2)[::2],
        size=32,
        impl="triton",
        **BYTES,
    )
    assert torch.equal(got.cpu(), crop(ragged(images), range(6), matrices, flips, size=32, **BYTES))


def test_regions_beyond_two_gigabytes_are_found(device: torch.device) -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    begin = 2**31 + 6
    # On a CPU memory that is not written costs nothing
    pixels = torch.empty(begin + image.size, dtype=torch.uint8, device=device)
    pixels[begin:] = torch.from_numpy(image).reshape(-1)
    far = ragged([image]).to(device)._replace(pixels=pixels, offset=torch.tensor([begin], device=device))
    matrix = similarity((25, 20), 30, 15, 64)
    for impl in ("triton", "reference"):
        got = crop(far, [0], [matrix], [True], device, size=64, impl=impl, **BYTES)
        np.testing.assert_array_equal(levels(got)[0], warp(image, matrix, 64, True))


def real_faces(samples: Path) -> tuple[Faces, list[np.ndarray], RaggedImages]:
    """Faces, the whole picture of each, and the region of each that is cached for training."""
    faces = load_wflw(samples / "wflw_mini", "test")
    pictures = [np.array(read_image(path)) for path in faces.image]
    parts = [cut(faces, number, picture, training_reach(0.25)) for number, picture in enumerate(pictures)]
    images = ragged([part.pixels for part in parts])
    origin = torch.tensor([part.origin for part in parts])
    return faces, pictures, images._replace(origin=origin, full_width=torch.tensor([p.full_width for p in parts]))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("scale", "rotation"),
    [
        (0.75, 0.0),  # without a turn, exact ties between two sixteenths abound
        (0.75, -60.0),
        (1.0, 17.3),
        (1.25, 45.0),  # reaches furthest
        (1.25, 60.0),
    ],
)
def test_crops_of_real_faces_from_cached_regions_have_the_bytes_of_warping_the_whole_picture(
    wflw_samples: Path, device: torch.device, scale: float, rotation: float, flip: bool
) -> None:
    """The published extremes of scale and rotation: no tap inside the picture may fall outside the region."""
    faces, pictures, images = real_faces(wflw_samples)
    count = len(faces)
    width = np.array([picture.shape[1] for picture in pictures])
    center = mirrored_center(faces.center, width) if flip else faces.center
    matrices = list(crop_matrix(center, faces.side * PADDING * scale, np.full(count, rotation), 256))
    given = range(count), matrices, [flip] * count
    expected = crop(images, *given, impl="reference", **BYTES)
    for face in range(count):
        whole = warp(pictures[face], matrices[face], 256, flip)
        np.testing.assert_array_equal(levels(expected)[face], whole)
    assert torch.equal(crop(images.packed(), *given, device, impl="triton", **BYTES).cpu(), expected)


def test_crops_of_real_faces_from_interleaved_bytes_are_the_same(wflw_samples: Path, device: torch.device) -> None:
    faces, _, images = real_faces(wflw_samples)
    count = len(faces)
    matrices = list(crop_matrix(faces.center, faces.side * PADDING, np.linspace(-60, 60, count), 256))
    flips = [bool(face % 2) for face in range(count)]
    given = range(count), matrices, flips
    expected = crop(images, *given, mode="opencv4")
    assert torch.equal(crop(images, *given, device, impl="triton", mode="opencv4").cpu(), expected)


def test_on_a_cpu_auto_is_plain_torch_to_the_bit() -> None:
    images, matrices, flips = random_cases(4, 12, 64)
    given = ragged(images), range(4), matrices, flips
    assert torch.equal(crop(*given, size=64), crop(*given, size=64, impl="reference"))


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [BYTES, {}, {"dtype": torch.bfloat16, "channels": 4}, {"dtype": torch.float16}])
def test_cpu_gpu_and_kernel_give_the_same_bits_in_opencv4_mode(options: dict[str, Any], packed: bool) -> None:
    options = {**options, "mode": "opencv4", "size": 192}
    images, matrices, flips = random_cases(60, 77, 192)
    parts = regions(images, seed=7).packed() if packed else regions(images, seed=7)
    given = range(60), matrices, flips
    on_cpu = crop(parts, *given, **options)
    for impl in ("reference", "triton", "auto"):
        assert torch.equal(crop(parts, *given, "cuda", impl=impl, **options).cpu(), on_cpu), impl


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_a_crop_does_not_wait_for_the_device(mode: str) -> None:
    images, matrices, flips = random_cases(8, 9, 64)
    given = ragged(images).to("cuda"), torch.arange(8).cuda(), torch.as_tensor(np.stack(matrices)).cuda()
    flip = torch.tensor(flips).cuda()
    crop_faces(*given, flip, size=64, mode=mode)  # compiles, and fills the table of normalised levels
    torch.cuda.set_sync_debug_mode("error")
    try:
        crop_faces(*given, flip, size=64, mode=mode)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("warm", [False, True])  # whether the table of normalised levels exists before the capture
@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_a_replayed_graph_crops_what_its_inputs_hold_by_then(
    monkeypatch: pytest.MonkeyPatch, mode: str, warm: bool
) -> None:
    images, matrices, flips = random_cases(16, 10, 64)
    pool, index = ragged(images).to("cuda"), torch.arange(8).cuda()
    matrix, flip = torch.as_tensor(np.stack(matrices)).cuda(), torch.tensor(flips).cuda()
    inputs = [index.clone(), matrix[:8].clone(), flip[:8].clone()]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return crop_faces(pool, *given, size=64, mode=mode, dtype=torch.bfloat16, channels=4)

    run(*inputs)  # compiles
    if not warm:
        monkeypatch.setattr(crop_launch, "_normalised", {})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(*inputs)
    for part in (slice(0, 8), slice(8, 16)):
        for held, new in zip(inputs, (torch.arange(16).cuda()[part], matrix[part], flip[part]), strict=True):
            held.copy_(new)
        graph.replay()
        assert torch.equal(out, run(*inputs))
