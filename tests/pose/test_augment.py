from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

from pose.augment import NO_AUGMENTATION, Augmentation, draw

COUNT = 200_000
FACES = torch.arange(COUNT)


@pytest.fixture(scope="module")
def draws():
    return draw(0, 0, FACES)


def four_sigma(p):
    """Four standard errors of a fraction p of COUNT draws."""
    return 4 * math.sqrt(p * (1 - p) / COUNT)


def test_the_draw_of_a_face_is_fixed_for_good():
    # Found with this code: whoever changes them changes every training run
    flip, scale, rotation = draw(2**40 + 3, 17, [0, 1, 7499])
    assert flip.tolist() == [False, True, False]
    assert scale.tolist() == pytest.approx([0.8243725280598202, 1.25, 0.75], rel=1e-12)
    assert rotation.tolist() == pytest.approx([-5.634662750916275, -22.650776144155632, 0.0], rel=1e-12)


def test_half_of_the_faces_are_flipped(draws):
    assert draws.flip.double().mean().item() == pytest.approx(0.5, abs=four_sigma(0.5))


def test_15_9_percent_of_scales_lie_at_each_end(draws):
    tail = NormalDist().cdf(-1)
    assert tail == pytest.approx(0.159, abs=5e-4)
    for end in (0.75, 1.25):
        assert (draws.scale == end).double().mean().item() == pytest.approx(tail, abs=four_sigma(tail))
    assert draws.scale.min() == 0.75
    assert draws.scale.max() == 1.25
    assert draws.scale.std().item() == pytest.approx(0.180, abs=1e-3)


def test_40_percent_of_rotations_are_zero_and_2_7_percent_at_the_ends(draws):
    assert (draws.rotation == 0).double().mean().item() == pytest.approx(0.4, abs=four_sigma(0.4))
    ends = 2 * NormalDist().cdf(-2) * 0.6
    assert ends == pytest.approx(0.027, abs=5e-4)
    assert (draws.rotation.abs() == 60).double().mean().item() == pytest.approx(ends, abs=four_sigma(ends))
    assert draws.rotation.abs().max() == 60
    both = (draws.rotation == 60).double().mean() - (draws.rotation == -60).double().mean()
    assert abs(both.item()) < 4 * math.sqrt(ends / COUNT)


def test_between_the_ends_the_draws_follow_the_normal_law(draws):
    scale = (draws.scale - 1) / 0.25
    rotation = draws.rotation[draws.rotation != 0] / 30
    for values, limit in ((scale, 1.0), (rotation, 2.0)):
        for z in np.linspace(-limit, limit, 41)[1:-1]:
            below = (values < z).double().mean().item()
            assert below == pytest.approx(NormalDist().cdf(z), abs=1.3 * four_sigma(0.5))  # the rotations are fewer


def correlation(a, b):
    return np.corrcoef(np.asarray(a, dtype=float), np.asarray(b, dtype=float))[0, 1]


def test_a_faces_draws_are_independent_of_each_other(draws):
    rotated = draws.rotation != 0
    columns = [draws.flip, draws.scale, draws.rotation, rotated, draws.rotation.abs(), (draws.scale - 1).abs()]
    for i in range(len(columns)):
        for j in range(i):
            if (i, j) == (4, 3):
                continue  # |rotation| and whether it is 0: one follows from the other
            assert abs(correlation(columns[i], columns[j])) < 5 / math.sqrt(COUNT), (i, j)


@pytest.mark.parametrize("other", ["epoch", "seed", "seed's high word", "next face"])
def test_other_epochs_seeds_and_faces_draw_independently(draws, other):
    second = {
        "epoch": lambda: draw(0, 1, FACES),
        "seed": lambda: draw(1, 0, FACES),
        "seed's high word": lambda: draw(2**32, 0, FACES),
        "next face": lambda: draw(0, 0, FACES + 1),
    }[other]()
    for a, b in zip(draws, second, strict=True):
        assert not torch.equal(a, b)
        assert abs(correlation(a, b)) < 5 / math.sqrt(COUNT)


def test_epoch_and_face_are_not_interchangeable():
    assert not torch.equal(draw(0, 3, [5]).scale, draw(0, 5, [3]).scale)


def test_a_face_draws_the_same_in_any_batch_and_order(draws):
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))[:777]
    some = draw(0, 0, order)
    for all_values, values in zip(draws, some, strict=True):
        assert torch.equal(all_values[order], values)
    for face in (0, 5, 199_999):
        alone = draw(0, 0, [face])
        assert [x.item() for x in alone] == [x[face].item() for x in draws]
    again = draw(0, 0, order.to(torch.int32))
    assert torch.equal(again.scale, some.scale)


def test_options_change_the_law_but_not_the_stream(draws):
    mild = draw(0, 0, FACES, augmentation=Augmentation(flip=0.1, scale=0.1, rotation=10.0, rotation_probability=0.6))
    torch.testing.assert_close((mild.scale - 1) / 0.1, (draws.scale - 1) / 0.25, rtol=0, atol=1e-12)
    torch.testing.assert_close(mild.rotation * 3, draws.rotation, rtol=1e-12, atol=0)
    assert mild.flip.double().mean().item() == pytest.approx(0.1, abs=four_sigma(0.1))
    assert not (mild.flip & ~draws.flip).any()


def test_no_augmentation_draws_nothing():
    flip, scale, rotation = draw(3, 4, FACES, augmentation=NO_AUGMENTATION)
    assert not flip.any()
    assert (scale == 1).all()
    assert (rotation == 0).all()


def test_certain_events_always_happen():
    always = draw(3, 4, FACES, augmentation=Augmentation(flip=1.0, rotation_probability=1.0))
    assert always.flip.all()
    assert (always.rotation != 0).all()


def test_large_names_are_accepted_and_others_refused():
    big = draw(2**63, 2**31, torch.tensor([2**31, 2**32 - 1]))
    assert big.scale[0] != big.scale[1]
    assert draw(0, 0, FACES[:0]).flip.shape == (0,)
    for call, words in (
        (lambda: draw(-1, 0, [0]), "seed is -1"),
        (lambda: draw(2**64, 0, [0]), "seed is"),
        (lambda: draw(0, -1, [0]), "epoch is -1"),
        (lambda: draw(0, 2**32, [0]), "epoch is"),
        (lambda: draw(0, 0, [-1, 3]), "face holds -1 to 3"),
        (lambda: draw(0, 0, [2**32]), "face holds"),
        (lambda: draw(0, 0, torch.zeros(2)), r"face is torch\.float32"),
        (lambda: draw(0, 0, torch.zeros(2, 2, dtype=torch.int64)), r"of shape \(2, 2\)"),
        (lambda: Augmentation(flip=1.5), r"flip is 1\.5; wanted 0 to 1"),
        (lambda: Augmentation(scale=1.0), r"scale is 1\.0"),
        (lambda: Augmentation(rotation=-1.0), r"rotation is -1\.0"),
        (lambda: Augmentation(rotation_probability=math.nan), "rotation_probability is nan"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.gpu
def test_cuda_draws_the_bits_of_the_cpu(draws):
    for a, b in zip(draws, draw(0, 0, FACES, device="cuda"), strict=True):
        assert torch.equal(a, b.cpu())
