from __future__ import annotations

import math

import numpy as np
import pytest

from pose.schedule import constant, cosine, learning_rate, scale_for_batch


@pytest.mark.parametrize("per_epoch", [14, 15, 117, 118])  # 8 GPUs of 64, and one, without and with the partial batch
def test_every_iteration_of_the_published_run_has_its_published_rate(per_epoch):
    # Three constant stretches, and on the first 500 iterations a line from a thousandth
    rates = np.repeat([5e-4, 5e-5, 5e-6], np.array([170, 30, 10]) * per_epoch)
    t = np.arange(500)
    rates[:500] *= 0.001 + 0.999 * t / 500
    got = np.array([learning_rate(i, per_epoch) for i in range(210 * per_epoch)])
    np.testing.assert_allclose(got, rates, rtol=1e-10, atol=0)


def test_named_points_of_the_published_schedule():
    assert learning_rate(0, 14) == pytest.approx(5e-7, rel=1e-12)
    assert learning_rate(1, 14) == pytest.approx(1.49900e-6, rel=1e-10)
    assert learning_rate(499, 14) == pytest.approx(4.99001e-4, rel=1e-10)
    assert learning_rate(500, 14) == 5e-4
    assert learning_rate(170 * 14 - 1, 14) == 5e-4
    assert learning_rate(170 * 14, 14) == pytest.approx(5e-5)
    assert learning_rate(200 * 14, 14, base=1e-3) == pytest.approx(1e-5)


def test_a_short_run_warms_up_into_its_steps():
    # One iteration an epoch: the steps at 170 and 200 fall into the warm-up, which multiplies them
    assert learning_rate(180, 1) == pytest.approx(5e-5 * (1 - (1 - 180 / 500) * 0.999), rel=1e-12)


def test_cosine_falls_from_base_to_zero():
    assert cosine(0, 100, 2e-3) == 2e-3
    assert cosine(50, 100, 2e-3) == pytest.approx(1e-3)
    assert cosine(100, 100, 2e-3) == pytest.approx(0, abs=1e-18)
    assert cosine(25, 100, 2e-3) == pytest.approx(2e-3 * (1 + math.sqrt(0.5)) / 2)
    assert cosine(150, 100, 2e-3) == pytest.approx(0, abs=1e-18)


def test_cosine_and_constant_warm_up_in_a_straight_line():
    assert cosine(0, 100, 1.0, warmup=10) == pytest.approx(0.001)
    assert cosine(5, 100, 1.0, warmup=10) == pytest.approx(0.5005)
    assert cosine(10, 100, 1.0, warmup=10) == 1.0
    assert cosine(55, 100, 1.0, warmup=10) == pytest.approx(0.5)
    assert constant(5, 0.1, warmup=10) == pytest.approx(0.05005)
    assert constant(10, 0.1, warmup=10) == 0.1
    assert constant(0, 0.1) == 0.1


def test_the_rate_follows_the_batch_only_by_a_named_rule():
    assert scale_for_batch(5e-4, 64, 512) == 5e-4
    assert scale_for_batch(5e-4, 64, 512, "linear") == 5e-4 / 8
    assert scale_for_batch(5e-4, 128, 512, "sqrt") == 5e-4 / 2
    with pytest.raises(ValueError, match="rule is 'cubic'; wanted one of none, linear, sqrt"):
        scale_for_batch(5e-4, 64, 512, "cubic")
    with pytest.raises(ValueError, match="batch sizes are 0 and 512"):
        scale_for_batch(5e-4, 0, 512)


def test_bad_arguments_are_refused():
    for call in (
        lambda: learning_rate(-1, 14),
        lambda: learning_rate(0, 0),
        lambda: learning_rate(0, 14, base=math.nan),
        lambda: cosine(0, 10, 1.0, warmup=10),
        lambda: cosine(0, 10, -1.0),
        lambda: constant(0, 1.0, warmup=-1),
    ):
        with pytest.raises(ValueError, match="wanted"):
            call()
