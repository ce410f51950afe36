"""Draws, crop matrices, targets and weights made on the device: the fused kernel, its reference and the host agree."""

from __future__ import annotations

import itertools
import math
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, shell_environment
from crop_machine_code import Case, Code, compile_all
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import FaceColumns, Sampled, Sampling, sample_faces
from kernels import sample_reference as reference
from kernels.sample_reference import affine_through, crop_matrices, philox, sine_and_cosine
from pose.augment import Augmentation, draw, quantiles
from pose.data.faces import Faces
from pose.geometry import PADDING, _affine_through, crop_matrix, square_from_points
from pose.placement import place
from pose.targets import flip_index

CPU = torch.device("cpu")
PUBLISHED = Sampling()
NONE = Sampling(flip=0.0, scale=0.0, rotation=0.0, rotation_probability=0.0)
ALWAYS = Sampling(flip=1.0, rotation_probability=1.0)

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


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Signs of zero included."""
    integer = {torch.float32: torch.int32, torch.float64: torch.int64, torch.bool: torch.uint8}[one.dtype]
    return one.dtype == other.dtype and torch.equal(one.cpu().view(integer), other.cpu().view(integer))


def same(one: Sampled, other: Sampled) -> bool:
    return all(itertools.starmap(same_bits, zip(one, other, strict=True)))


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
    assert same_bits(found, torch.from_numpy(wanted))


def test_matrices_of_real_faces_have_the_bits_of_the_published_ones(wflw_samples: Path) -> None:
    annotations = wflw_samples / "wflw_test_annotations/list_98pt_rect_attr_test.txt"
    points = np.loadtxt(annotations, usecols=range(196)).reshape(-1, 98, 2)
    center, side = square_from_points(points)
    _, scale, rotation = draw(0, 0, range(len(points)))
    for factor, turns in ((np.ones(len(points)), np.zeros(len(points))), (scale.numpy(), rotation.numpy())):
        wanted = crop_matrix(center, side * PADDING * factor, turns, 256)
        found = crop_matrices(*map(torch.from_numpy, (center, side * PADDING * factor, turns)), 256)
        assert same_bits(found, torch.from_numpy(wanted))


def test_every_choice_between_pivots_is_the_published_one() -> None:
    # All triples of points of a 5 x 5 grid: pivots of every order, of equal size in all ways, and of no size
    grid = np.array(list(itertools.product(range(-2, 3), repeat=2)), dtype=np.float64)
    source = grid[list(itertools.product(range(len(grid)), repeat=3))]
    wanted = _affine_through(source, np.array([[128.0, 128.0], [128.0, 0.0], [0.0, 0.0]]))
    found = affine_through(torch.from_numpy(source), 256).numpy()
    solved = np.isfinite(wanted).all(axis=(1, 2))
    assert 10_000 < solved.sum() < len(source)
    np.testing.assert_array_equal(np.isfinite(found).all(axis=(1, 2)), solved)
    assert same_bits(torch.from_numpy(found[solved]), torch.from_numpy(wanted[solved]))


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
@pytest.mark.parametrize("sampling", [PUBLISHED, NONE, ALWAYS, UNEVEN])
def test_the_kernel_has_the_bits_of_the_reference(
    device: torch.device, seed: int, epoch: int, sampling: Sampling
) -> None:
    faces, width = random_faces(40)
    number = torch.tensor([3, *range(0, 40, 4), 39], device=device)
    of = columns(faces, width).to(device)
    assert same(sampled(of, number, epoch, seed, sampling, "triton"), sampled(of, number, epoch, seed, sampling))


def test_points_that_are_not_finite_are_the_same_from_either(device: torch.device) -> None:
    of = columns(*random_faces(9))
    for point, value in ((3, math.inf), (4, -math.inf), (5, math.nan)):
        of.points[:, point, 0] = value
    of, number = of.to(device), torch.arange(9, device=device)
    with np.errstate(invalid="ignore"):  # the interpreter computes with numpy
        found = sampled(of, number, 0, 0, NONE, "triton")
    wanted = sampled(of, number, 0, 0, NONE)
    torch.testing.assert_close(found.target, wanted.target, rtol=0, atol=0, equal_nan=True)
    assert wanted.target.isinf().any()
    assert torch.equal(found.weight, wanted.weight)
    assert found.weight[:, 3:6].max() == 0


def test_views_with_gaps_are_read_as_their_values(device: torch.device) -> None:
    def spread(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, torch.zeros_like(tensor)], dim=-1)[..., 0]

    of, number = columns(*random_faces(5)).to(device), torch.arange(5, device=device)
    arguments = {"flip_index": flip_index(device), "quantiles": quantiles(device)}
    spread_out = {name: spread(tensor) for name, tensor in arguments.items()}
    epoch = torch.tensor(0, device=device)
    found = sample_faces(
        FaceColumns(*map(spread, of)), spread(number), epoch, seed=0, sampling=ALWAYS, impl="triton", **spread_out
    )
    assert same(found, sample_faces(of, number, epoch, seed=0, sampling=ALWAYS, impl="reference", **arguments))


def test_behind_the_door_nothing_outside_the_columns_is_read(device: torch.device) -> None:
    from kernels.sample_launch import launch_sample

    of, names = columns(*random_faces(4)).to(device), flip_index(device).clone()
    number, epoch = torch.tensor([-1, -(2**40), 4, 2**62], device=device), torch.tensor(-1, device=device)
    names[:2] = torch.tensor([-(2**40), 2**40], device=device)
    arguments = (number, epoch, 3, ALWAYS, names, quantiles(device), 256)
    found, wanted = launch_sample(of, *arguments), reference.sample(of, *arguments)
    assert all(itertools.starmap(same_bits, zip(found, wanted, strict=True)))
    nearest = FaceColumns(*(column[[0, 0, 3, 3]] for column in of))
    names[:2] = torch.tensor([0, 97], device=device)
    # A number past 32 bits, or below 0, draws as what is left of it in 32 bits
    drawn = reference.draws(number % 2**32, epoch % 2**32, 3, ALWAYS, quantiles(device))
    center = torch.stack([nearest.full_width - nearest.center[:, 0] - 1, nearest.center[:, 1]], dim=1)
    assert same_bits(found[0], crop_matrices(center, nearest.side * drawn[1], drawn[2], 256))
    target, _ = reference.targets_and_weights(nearest.points, found[0], found[1], nearest.full_width, 256, names)
    assert same_bits(found[2], target)


def test_the_reference_asks_nothing_of_the_host() -> None:
    class Devices(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            used.update(leaf.device.type for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
            return out

    used: set[str] = set()
    on_cpu = (columns(*random_faces(4)), torch.arange(4), torch.tensor(0), flip_index(CPU), quantiles(CPU))
    with FakeTensorMode(allow_non_fake_inputs=True):  # a tensor without data: to read a value of it raises
        of, number, epoch, names, table = (
            FaceColumns(*(torch.empty_like(column, device="cuda") for column in each))
            if isinstance(each, FaceColumns)
            else torch.empty_like(each, device="cuda")
            for each in on_cpu
        )
        with Devices():
            sample_faces(
                of, number, epoch, seed=0, sampling=UNEVEN, flip_index=names, quantiles=table, impl="reference"
            )
    assert used == {"cuda"}


def test_a_cpu_does_not_wait_for_triton_to_be_imported() -> None:
    code = """
import sys, torch
from kernels import FaceColumns, Sampling, sample_faces
real = torch.ones(2, dtype=torch.float64)
faces = FaceColumns(torch.zeros(2, 1, 2), torch.zeros(2, 2).double(), 50 * real, torch.ones(2).long())
zero = torch.tensor(0)
sample_faces(faces, torch.arange(2), zero, seed=0, sampling=Sampling(), flip_index=zero[None], quantiles=real)
print("triton" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert run.stdout.strip() == "False"


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


@pytest.mark.parametrize(
    ("counter", "key", "want"),  # Random123's published known answers
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], want: str) -> None:
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert " ".join(f"{int(word):08x}" for word in words) == want


def test_philox_is_the_written_out_algorithm_on_random_counters() -> None:
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (50, 4))
    key = (0xDEADBEEF, 0x01234567)
    got = torch.stack(philox(tuple(torch.from_numpy(counters[:, k].copy()) for k in range(4)), key), dim=1)
    for row, want in zip(got.tolist(), counters.tolist(), strict=True):
        c, (k0, k1) = want, key
        for _ in range(10):  # Python's integers do not overflow
            left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(right >> 32) ^ c[1] ^ k0, right % 2**32, (left >> 32) ^ c[3] ^ k1, left % 2**32]
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        assert row == c


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
        (lambda a: a.update(flip_index=torch.arange(98) - 1), IndexError, "flip_index holds -1 to 96; wanted 0 to 97"),
        (lambda a: a.update(epoch=torch.tensor(2**32)), ValueError, "epoch is 4294967296; wanted 0 to"),
        (lambda a: a.update(number=torch.zeros(2, 2, dtype=torch.int64)), ValueError, r"number has shape \(2, 2\)"),
        (lambda a: a.update(number=torch.arange(4, device="meta")), ValueError, r"epoch is on cpu, number on meta"),
        (
            lambda a: a.update(faces=FaceColumns(*(column[:0] for column in a["faces"]))),
            ValueError,
            "faces holds no face",
        ),
        (
            lambda a: a.update(faces=a["faces"]._replace(points=torch.zeros(4, 0, 2)), flip_index=torch.arange(0)),
            ValueError,
            r"faces.points and quantiles have shapes \(4, 0, 2\)",
        ),
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


CAPABILITIES = (80, 90, 100, 120)


@pytest.fixture(scope="module")
def machine_code(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Code]:
    environment = {**shell_environment(), "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    cases = [Case(capability, "sample", sampling=tuple(vars(UNEVEN).values())) for capability in CAPABILITIES]
    return dict(zip(CAPABILITIES, compile_all(cases, environment), strict=True))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_gpus_would_execute_what_the_reference_does(machine_code: dict[int, Code], capability: int) -> None:
    code = machine_code[capability]
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


def test_another_seed_or_number_of_faces_is_not_compiled_anew(tmp_path: Path) -> None:
    code = """
from crop_machine_code import Case, _Driver, _launch, driver
driver.set_active(_Driver(90))
kernel, given, options, _ = _launch(Case(90, "sample"))
count, seed = kernel.arg_names.index("count"), kernel.arg_names.index("seed")
compiled = set()
for faces, word in ((7500, 2**40), (1, 0), (16, 1), (7501, 16), (7501, -1), (7501, -(2**63)), (7501, 2**63 - 1)):
    arguments = list(given)
    arguments[count], arguments[seed] = faces, word
    compiled.add(id(kernel.warmup(*arguments, grid=(1,), **options)))
print(len(compiled), len(kernel.device_caches[0][0]))
"""
    folders = f"{REPOSITORY}:{REPOSITORY / 'tests'}"
    environment = {**shell_environment(), "PYTHONPATH": folders, "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["1", "1"]


@pytest.mark.gpu
def test_a_gpu_has_the_bits_of_a_cpu() -> None:
    of, number = columns(*random_faces(5000)), torch.arange(5000)
    wanted = sampled(of, number, 3, 2**40)
    for impl in ("triton", "reference"):
        assert same(sampled(of.to("cuda"), number.cuda(), 3, 2**40, impl=impl), wanted)


@pytest.mark.gpu
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
