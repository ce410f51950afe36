"""Draws, crop matrices, targets and weights made on the device: the fused kernel, its reference and the host agree."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shell_environment
from crop_machine_code import Case, compile_all
from torch import Tensor

from kernels import FaceColumns, Sampled, Sampling, sample_faces
from kernels.sample_reference import crop_matrices, philox, sine_and_cosine
from pose.augment import Augmentation, draw, quantiles
from pose.data.faces import Faces
from pose.data.wflw import load_wflw
from pose.geometry import PADDING, crop_matrix
from pose.placement import place
from pose.targets import flip_index

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
PUBLISHED = Sampling()
NONE = Sampling(flip=0.0, scale=0.0, rotation=0.0, rotation_probability=0.0)

# No binary fractions: where a kernel took one for a float32, another face would be drawn
UNEVEN = Sampling(flip=0.3, scale=0.9, rotation=33.3, rotation_probability=0.7)


def random_faces(count: int) -> tuple[Faces, Tensor]:
    """Faces of no picture, and the width of each picture."""
    rng = np.random.default_rng(count)
    center = rng.uniform(0, 1024, (count, 2))
    center[::3] = np.round(2 * center[::3]) / 2  # as annotations have them: whole and half pixels
    side = rng.integers(20, 900, count).astype(np.float64)
    points = center[:, None] + side[:, None, None] * rng.uniform(-0.7, 0.7, (count, 98, 2))
    flags = np.zeros((count, 6), dtype=bool)
    faces = Faces([Path("none")] * count, points, flags, center, side, flags[0])
    return faces, torch.from_numpy(rng.integers(300, 2000, count))


def columns(faces: Faces, full_width: Tensor) -> FaceColumns:
    return FaceColumns(
        torch.from_numpy(faces.points).float(),
        torch.from_numpy(faces.center),
        torch.from_numpy(faces.side * PADDING),
        full_width,
    )


def sampled(
    of: FaceColumns, number: Tensor, epoch: int, seed: int, sampling: Sampling = PUBLISHED, impl: str = "reference"
) -> Sampled:
    device = number.device
    return sample_faces(
        of,
        number,
        torch.tensor(epoch, device=device),
        seed=seed,
        sampling=sampling,
        flip_index=flip_index(device),
        quantiles=quantiles(device),
        size=256,
        impl=impl,
    )


def same(one: Sampled, other: Sampled) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("sampling", [PUBLISHED, NONE, UNEVEN])
def test_the_device_draws_and_places_as_the_host_does(sampling: Sampling, seed: int) -> None:
    faces, width = random_faces(5000)
    number = torch.randperm(5000, generator=torch.Generator().manual_seed(0))[:3000]
    found = sampled(columns(faces, width), number, 7, seed, sampling)
    draws = draw(seed, 7, number, augmentation=Augmentation(**vars(sampling)))
    matrix, target, weight = place(faces, number.numpy(), draws, width[number], 256)
    assert same(found, Sampled(matrix, draws.flip, target, weight))
    assert 0 < found.weight.mean() < 1  # points inside and outside


# The published extremes; turns at which a sine or cosine is 0; without a rotation, pivots are equal to the last bit
@pytest.mark.parametrize("rotation", [0.0, 60.0, -60.0, 45.0, 90.0, -90.0, 180.0, -180.0, None])
def test_matrices_have_the_bits_of_the_published_ones(rotation: float | None) -> None:
    rng = np.random.default_rng(0)
    count = 30_000
    center = rng.uniform(-50, 1100, (count, 2))
    center[::2] = np.round(2 * center[::2]) / 2
    side = rng.integers(1, 1200, count) * PADDING * rng.choice([0.75, 1.0, 1.25], count)
    turns = np.full(count, rotation) if rotation is not None else rng.uniform(-180, 180, count)
    wanted = crop_matrix(center, side, turns, 256)
    found = crop_matrices(*map(torch.from_numpy, (center, side, turns)), 256)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_matrices_of_real_faces_have_the_bits_of_the_published_ones(wflw_samples: Path) -> None:
    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    zero = np.zeros(len(faces))
    wanted = crop_matrix(faces.center, faces.side * PADDING, zero, 256)
    found = crop_matrices(*map(torch.from_numpy, (faces.center, faces.side * PADDING, zero)), 256)
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_sine_and_cosine_are_off_by_less_than_a_unit_in_the_last_place() -> None:
    degrees = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 360 - 180
    radians = np.deg2rad(degrees.numpy()).astype(np.longdouble)
    for found, function in zip(sine_and_cosine(degrees), (np.sin, np.cos), strict=True):
        exact = function(radians)
        error = np.abs(found.numpy() - exact) / np.spacing(np.abs(exact).astype(np.float64))
        assert error.max() < 1
    assert [x.item() for x in sine_and_cosine(torch.zeros(1, dtype=torch.float64))] == [0, 1]


# Seeds and epochs of more than 32 and 31 bits, where a signed or a narrow number would go wrong
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (2**63 + 5, 3), (2**64 - 1, 2**31 + 1), (12345678901, 209)])
@pytest.mark.parametrize("sampling", [PUBLISHED, NONE, UNEVEN])
def test_the_kernel_has_the_bits_of_the_reference(
    device: torch.device, seed: int, epoch: int, sampling: Sampling
) -> None:
    faces, width = random_faces(40)
    number = torch.tensor([3, *range(0, 40, 2), 39], device=device)
    of = columns(faces, width).to(device)
    assert same(sampled(of, number, epoch, seed, sampling, "triton"), sampled(of, number, epoch, seed, sampling))


def test_a_face_draws_the_same_in_every_batch(device: torch.device) -> None:
    of = columns(*random_faces(9)).to(device)
    whole = sampled(of, torch.arange(9, device=device), 1, 2, impl="triton")
    alone = sampled(of, torch.tensor([5], device=device), 1, 2, impl="triton")
    assert all(torch.equal(a[5:6], b) for a, b in zip(whole, alone, strict=True))
    other = sampled(of, torch.arange(9, device=device), 2, 2, impl="triton")
    assert not torch.equal(whole.matrix, other.matrix)


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_no_faces_are_an_empty_batch(device: torch.device, impl: str) -> None:
    found = sampled(columns(*random_faces(4)).to(device), torch.arange(0, device=device), 0, 0, impl=impl)
    assert [tuple(each.shape) for each in found] == [(0, 2, 3), (0,), (0, 98, 2), (0, 98, 2)]


def test_the_generator_is_philox() -> None:
    # Known answers of Random123, kat_vectors, philox4x32 10: counter and key all zeros, all ones
    for word, wanted in (
        (0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**32 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ):
        counter = torch.full((1,), word)
        found = philox((counter, counter, counter, counter), (word, word))
        assert " ".join(f"{x.item():08x}" for x in found) == wanted


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        (lambda a: a.update(impl="cuda"), ValueError, "impl is 'cuda'"),
        (lambda a: a.update(seed=2**64), ValueError, "seed is"),
        (lambda a: a.update(size=0), ValueError, "size is 0"),
        (lambda a: a.update(number=torch.tensor([4])), IndexError, "number holds 4 to 4; wanted 0 to 3"),
        (lambda a: a.update(number=torch.tensor([0.0])), TypeError, "number is torch.float32"),
        (lambda a: a.update(epoch=torch.zeros(1, dtype=torch.int64)), ValueError, r"epoch has shape \(1,\)"),
        (lambda a: a.update(flip_index=torch.arange(97)), ValueError, r"flip_index has shape \(97,\)"),
        (lambda a: a.update(quantiles=torch.zeros(9)), TypeError, "quantiles is torch.float32"),
        (lambda a: a.update(faces=a["faces"]._replace(side=torch.zeros(4))), TypeError, "faces.side is torch.float32"),
    ],
)
def test_bad_input_is_refused_in_words(
    change: Callable[[dict[str, object]], None], error: type[Exception], sentence: str
) -> None:
    arguments: dict[str, object] = {
        "faces": columns(*random_faces(4)),
        "number": torch.arange(4),
        "epoch": torch.tensor(0),
        "seed": 0,
        "sampling": Sampling(),
        "flip_index": flip_index(CPU),
        "quantiles": quantiles(CPU),
    }
    change(arguments)
    with pytest.raises(error, match=sentence):
        sample_faces(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_gpus_would_execute_what_the_reference_does(capability: int, tmp_path: Path) -> None:
    environment = {**shell_environment(), "TRITON_CACHE_DIR": str(tmp_path)}
    [code] = compile_all([Case(capability, "sample", sampling=tuple(vars(UNEVEN).values()))], environment)
    assert code.spilled == 0
    # No two operations rounded as one, and no division but the correctly rounded ones
    assert not re.search(r"fma\.rn\.f|div\.(full|approx)|rcp\.approx", code.ptx)
    assert "div.rn.f64" in code.ptx
    assert "div.rn.f32" in code.ptx
    # No float64 that was a float32 on the way
    doubles = {struct.unpack(">d", bytes.fromhex(digits))[0] for digits in re.findall(r"0d([0-9A-F]{16})", code.ptx)}
    wanted = {UNEVEN.flip, UNEVEN.scale, UNEVEN.rotation, UNEVEN.rotation_probability}
    wanted |= {1 - UNEVEN.scale, 1 + UNEVEN.scale, 2 * UNEVEN.rotation, -2 * UNEVEN.rotation}
    assert wanted <= doubles
    assert not {float(np.float32(value)) for value in wanted} & doubles


@CUDA
def test_a_gpu_has_the_bits_of_a_cpu() -> None:
    of, number = columns(*random_faces(5000)), torch.arange(5000)
    wanted = sampled(of, number, 3, 2**40)
    for impl in ("triton", "reference"):
        assert same(sampled(of.to("cuda"), number.cuda(), 3, 2**40, impl=impl), wanted)


@CUDA
def test_a_graph_draws_for_the_epoch_that_is_put_in_place() -> None:
    of, number, epoch = columns(*random_faces(64)).to("cuda"), torch.arange(64, device="cuda"), torch.tensor(0).cuda()
    device = number.device

    def body() -> Sampled:
        return sample_faces(
            of,
            number,
            epoch,
            seed=1,
            sampling=Sampling(),
            flip_index=flip_index(device),
            quantiles=quantiles(device),
        )

    body()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = body()
    for value in (5, 6):
        epoch.fill_(value)
        graph.replay()
        assert same(found, sampled(of, number, value, 1))
