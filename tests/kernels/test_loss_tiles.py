"""How the kernel cuts tensors into tiles, finds an element's weight, and adds up what the tiles leave."""

from __future__ import annotations

import itertools
import math
import random as rng
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import kernels
from kernels import loss_kernel, loss_launch
from kernels.family import Loss
from kernels.loss_kernel import weight_offsets

INTERPRETED = loss_launch.INTERPRETED
BLOCK = 256


@triton.jit
def offsets_kernel(bases, out, INNER: tl.constexpr, PERIOD: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    first, place = weight_offsets(tl.load(bases + tl.program_id(0)), lane, INNER, PERIOD)
    tl.store(out + tl.program_id(0) * BLOCK + lane, (first + place).to(tl.int64))


# Tiles begin at multiples of 256 at least: at 0, on both sides of 2^31 and of 2^32, and far beyond
BASES = [0, BLOCK, 2**31 - BLOCK, 2**31, 2**31 + 77 * BLOCK, 2**32 - BLOCK, 2**32, 3**20 // BLOCK * BLOCK, 2**40]
INNER = [
    pytest.param(1, id="a weight for each"),
    pytest.param(2, id="for a landmark's two coordinates"),
    pytest.param(3, id="an odd number of coordinates"),
    pytest.param(196, id="for a sample's landmarks"),
    pytest.param(4096, id="for a heatmap"),
    pytest.param(5_000_011, id="for more than a tile, off every power of two"),
    pytest.param(2**30, id="the largest that is not written out"),
]
PERIODS = [0, 1, 2, 98, 196, 1001, 4096, 2**30 - 4, 2**30]  # 0: none; 98 is read one by one, 196 128 bits at a time


@pytest.mark.parametrize("inner", INNER)
def test_an_elements_weight_is_found_beyond_2_to_the_31(inner, device):
    bases = torch.tensor(BASES, device=device)
    for period in PERIODS:
        out = torch.full((len(BASES), BLOCK), -1, dtype=torch.int64, device=device)
        offsets_kernel[(len(BASES),)](bases, out, inner, period, BLOCK)
        for base, row in zip(BASES, out.tolist(), strict=True):
            places = [(base + lane) // inner for lane in range(BLOCK)]
            assert row == [place % period if period else place for place in places]


MANY = (8_600_000, 125, 2)
COUNT = math.prod(MANY)  # more than 2^31
TILE = 4096
TILES = COUNT // TILE
# The first, on both sides of 2^31, the last full one, the part of one at the end
SOME_TILES = (0, 2**31 // TILE - 1, 2**31 // TILE, TILES - 1, TILES)


@pytest.fixture
def only_program(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the next launch run a single program, of as many as there are tiles: all would take hours."""
    if not INTERPRETED:
        pytest.skip("on a GPU all 2^31 + 1024 elements run, in test_loss_kernel")
    from triton.runtime.interpreter import interpreter_builder

    monkeypatch.setattr(loss_kernel, "MAX_PROGRAMS", 1)
    monkeypatch.setattr(loss_launch, "_SCALING_PROGRAMS", 1)
    monkeypatch.setattr(interpreter_builder, "set_grid_dim", lambda *_: None)
    monkeypatch.setattr(interpreter_builder, "grid_dim", (TILES + 1, 1, 1), raising=False)

    def choose(program: int) -> None:
        def set_grid_idx(*_: int) -> None:
            interpreter_builder.grid_idx = (program, 0, 0)

        monkeypatch.setattr(interpreter_builder, "set_grid_idx", set_grid_idx)

    return choose


def untouched(dtype: torch.dtype) -> Tensor:
    """More than 2^31 elements of memory that is there only where it is written, and 0 elsewhere."""
    try:
        return torch.empty(MANY, dtype=dtype)
    except RuntimeError as error:
        pytest.skip(f"so much address space cannot be had: {error}")


# An index that overflows takes the process down here
@pytest.mark.parametrize(
    "shape_of_weight",
    [
        pytest.param(None, id="no weights"),
        pytest.param((125, 1), id="per landmark"),
        pytest.param((125, 2), id="per landmark and coordinate"),
    ],
)
def test_the_kernel_reads_and_writes_beyond_2_to_the_31(shape_of_weight, only_program):
    pred, target, grad = (untouched(torch.float16) for _ in range(3))
    generator = torch.Generator().manual_seed(5)
    weight = None if shape_of_weight is None else torch.rand(shape_of_weight, generator=generator)
    loss = Loss("wing", (10.0, 2.0), "sum", "input")
    for tile in SOME_TILES:
        part = slice(tile * TILE, min((tile + 1) * TILE, COUNT))
        p, t = (torch.randn(part.stop - part.start, generator=generator).half() for _ in range(2))
        for tensor, values in ((pred, p), (target, t), (grad, torch.full_like(p, math.nan))):
            tensor.view(-1)[part] = values
        only_program(tile)
        loss_launch.gradient(loss, pred, target, weight, torch.tensor(0.5), out=grad)
        w = 1.0
        if weight is not None:
            index = torch.arange(part.start, part.stop)
            w = weight[index // 2 % 125, index % 2 if weight.shape[1] == 2 else 0]
        d = (p.float() - t.float()) * w
        wanted = 0.5 * w * d.sign() * 10 / (2 + d.abs())
        # The last rounding, of normal and of subnormal numbers
        torch.testing.assert_close(grad.view(-1)[part].float(), wanted, rtol=2**-11, atol=2**-25)
        assert not grad.view(-1)[part.stop : part.stop + 8].any()


def test_a_stored_gradient_is_scaled_beyond_2_to_the_31(only_program):
    grad = untouched(torch.float32)
    for tile in SOME_TILES:
        part = slice(tile * TILE, min((tile + 1) * TILE, COUNT))
        grad.view(-1)[part] = torch.arange(part.stop - part.start)
        only_program(tile)
        loss_launch.scale_(grad, torch.tensor(0.5))
        assert torch.equal(grad.view(-1)[part], torch.arange(part.stop - part.start) * 0.5)


def brute_force(shape: tuple[int, ...], weight: Tensor) -> list[int]:
    """Where in its memory each element's weight lies, by the weight's own strides."""
    strides = weight.expand(shape).stride()
    return [sum(i * s for i, s in zip(index, strides, strict=True)) for index in itertools.product(*map(range, shape))]


def broadcasts(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All shapes that broadcast to `shape`."""
    for length in range(len(shape) + 1):
        yield from itertools.product(*((1, size) for size in shape[len(shape) - length :]))


def test_the_pattern_of_a_broadcast_weight_is_the_one_of_its_strides():
    # Sizes of 1 and equal ones among them: dimensions that merge, or seem to
    shapes = [
        (),
        (1,),
        (5,),
        (4, 3),
        (3, 3),
        (2, 1, 4),
        (3, 2, 2),
        (1, 3, 1, 2),
        (2, 3, 4, 5),
        (2, 2, 2, 2, 2),
        (1, 1, 3),
    ]
    found = set()
    for shape in shapes:
        for of_weight in set(broadcasts(shape)):
            weight = torch.empty(of_weight)
            places = brute_force(shape, weight)
            pattern = loss_launch._pattern(tuple(shape), weight.expand(shape).stride())
            found.add(pattern is None)
            if pattern is not None:
                inner, period = pattern
                wanted = [
                    0 if inner == 0 else i // inner % period if period else i // inner for i in range(len(places))
                ]
                assert places == wanted, f"{of_weight} to {shape}: {pattern}"
    assert found == {True, False}


def test_a_weight_whose_strides_are_no_pattern_is_never_taken_for_one():
    chance = rng.Random(3)
    for _ in range(500):
        shape = tuple(chance.choice((1, 2, 3, 4)) for _ in range(chance.randint(1, 5)))
        strides = tuple(chance.choice((0, 1, 2, 3, 4, 6, 8, 12, 24)) for _ in shape)
        pattern = loss_launch._pattern(shape, strides)
        if pattern is None:
            continue
        inner, period = pattern
        indices = itertools.product(*map(range, shape))
        for i, index in enumerate(indices):
            place = sum(a * b for a, b in zip(index, strides, strict=True))
            assert place == (0 if inner == 0 else i // inner % period if period else i // inner), (shape, strides)


def test_patterns_beyond_32_bit_lanes_are_written_out():
    assert loss_launch._pattern((4, 2**30), (1, 0)) == (2**30, 0)
    assert loss_launch._pattern((4, 2**30 + 1), (1, 0)) is None
    assert loss_launch._pattern((4, 2**30 + 1), (0, 1)) is None


# -- tiles and programs -----------------------------------------------------------------------------------------------

SMALL = 64


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles of 64 elements, so that an interpreted launch can have many."""
    if not INTERPRETED:
        pytest.skip("a GPU runs large tensors instead, in test_loss_kernel")
    tiling = loss_launch._tiling
    monkeypatch.setattr(loss_launch, "_tiling", lambda case: (SMALL, *tiling(case)[1:]))
    loss_launch._variant.cache_clear()
    yield
    loss_launch._variant.cache_clear()


@pytest.mark.parametrize(
    ("count", "programs"),
    [
        pytest.param(1, 1, id="less than a tile"),
        pytest.param(SMALL, 1, id="a tile"),
        pytest.param(5 * SMALL, 1, id="one program for all"),
        pytest.param(5 * SMALL + 1, 1, id="one program for all and a tail"),
        pytest.param(3 * SMALL, 8, id="a tile for each"),
        pytest.param(3 * SMALL - 1, 8, id="a tile for each, the last for the tail"),
        pytest.param(3 * SMALL, 3, id="as many tiles as programs may be"),
        pytest.param(3 * SMALL + 5, 3, id="the tail for the first program again"),
        pytest.param(10 * SMALL, 4, id="two tiles for some, three for others"),
        pytest.param(10 * SMALL + 63, 4, id="the tail for one of two tiles"),
        pytest.param(12 * SMALL + 7, 4, id="three tiles for each, then the tail"),
    ],
)
def test_every_tile_is_visited_once(count, programs, small_tiles, monkeypatch):
    monkeypatch.setattr(loss_kernel, "MAX_PROGRAMS", programs)
    # Sums of different powers of two for each tile: one that is missed, or met twice, cannot be made up by others
    tile = torch.arange(count) // SMALL
    pred = (2.0 ** (tile + 1)).requires_grad_()
    zero = torch.zeros(count)
    loss = kernels.smooth_l1_loss(pred, zero, reduction="sum", impl="triton")
    loss.backward()
    assert loss == (pred.detach().double() - 0.5).sum()
    assert torch.equal(pred.grad, torch.ones(count))
    each = kernels.smooth_l1_loss(pred.detach(), zero, reduction="none", impl="triton")
    assert torch.equal(each, pred.detach() - 0.5)


@pytest.mark.parametrize("upstream", [1.0, 0.5])  # not touched, and scaled
@pytest.mark.parametrize(
    "count", [1, 1023, 4095, 4096, 3 * 4096 + 5]
)  # around the tiles of a GPU and of the interpreter
@pytest.mark.parametrize("programs", [1, 2, 1024])
def test_every_element_of_a_stored_gradient_is_scaled_once(count, programs, upstream, device, monkeypatch):
    monkeypatch.setattr(loss_launch, "_SCALING_PROGRAMS", programs)
    memory = torch.randn(count + 64, device=device)
    wanted = torch.cat((memory[:count] * upstream, memory[count:]))  # nothing is written beyond the end
    loss_launch.scale_(memory[:count], torch.tensor(upstream, device=device))
    assert torch.equal(memory, wanted)


@pytest.mark.parametrize("count", [1, 1023, 4095, 4096, 2 * 4096 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_read_or_written_beyond_the_end(dtype, count, device):
    pred, target, grad = torch.full((3, 16384), math.nan, dtype=dtype, device=device)
    pred[:count], target[:count] = 3.0, 1.0
    loss = Loss("smooth_l1", (1.0,), "sum", "input")
    total, _ = loss_launch.loss_and_gradient(loss, pred[:count], target[:count], None)
    loss_launch.gradient(loss, pred[:count], target[:count], None, torch.tensor(0.5, device=device), out=grad[:count])
    assert total == 1.5 * count
    assert (grad[:count] == 0.5).all()
    assert grad[count:].isnan().all()


def test_the_ticket_is_back_at_zero_and_serves_the_next_launch(device, monkeypatch):
    partials = torch.full((loss_kernel.MAX_PROGRAMS,), math.nan, dtype=torch.float64, device=device)
    ticket = torch.zeros(1, dtype=torch.int32, device=device)
    monkeypatch.setattr(loss_launch, "_partials_and_ticket", lambda *_: (partials, ticket))
    generator = torch.Generator().manual_seed(2)
    pred = torch.randn(3 * 4096 + 100, generator=generator).to(device)
    losses = []
    for part in (pred, pred[:5000], pred):  # many programs, fewer, many: what a launch leaves must not reach the next
        losses.append(kernels.wing_loss(part, torch.zeros_like(part), reduction="sum", impl="triton"))
        assert ticket.item() == 0
    assert torch.equal(losses[0], losses[2])
    for loss, part in zip(losses, (pred, pred[:5000], pred), strict=True):
        exact = kernels.wing_loss(part.double(), torch.zeros_like(part).double(), reduction="sum", impl="reference")
        assert loss.item() == pytest.approx(exact.item(), rel=3e-7)
    assert partials[-1].isnan()  # more than any of these launches has programs: never read, never written


# Values whose loss in float32 is one that sums in float32 lose 5e-7 to 1.2e-6 of
@pytest.mark.parametrize(("kind", "value"), [("wing", 0.0437), ("smooth_l1", 0.0437), ("adaptive_wing", 0.37)])
def test_equal_losses_of_many_tiles_add_up(kind, value, small_tiles, monkeypatch):
    # What rounding takes off a term it takes off every one when all are equal, as in a heatmap's background. 160 tiles
    # are what a program has for 2^28 elements on a GPU.
    monkeypatch.setattr(loss_kernel, "MAX_PROGRAMS", 1)
    function = getattr(kernels, f"{kind}_loss")
    pred = torch.full((160 * SMALL,), value)
    loss = function(pred, torch.zeros_like(pred), reduction="mean", impl="triton")
    exact = function(pred[:1].double(), torch.zeros(1, dtype=torch.float64), reduction="mean", impl="reference")
    assert loss.item() == pytest.approx(exact.item(), rel=3e-7)
