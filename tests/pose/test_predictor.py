"""From crops to points, and from a picture with boxes to points in its pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pose.landmarks import FLIP_PAIRS
from pose.model import DeepPose
from pose.predictor import predict_batch, predict_faces


class Brightest(nn.Module):
    """Predicts for every point k where channel 0 is brightest, as a fraction, x moved by k / 1000."""

    def forward(self, pixels):
        size = pixels.shape[-1]
        best = pixels[:, 0].flatten(1).argmax(1)
        where = torch.stack([best % size, best // size], 1) / size
        return where[:, None, :] + torch.stack([torch.arange(98) / 1000, torch.zeros(98)], 1)


def noisy(backbone: str = "tiny") -> DeepPose:
    """A model whose output really depends on its input."""
    model = DeepPose(backbone).eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    return model


def test_flip_test_is_the_mean_of_crop_and_mirror_image():
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    model = noisy()
    with torch.no_grad():
        direct = model(pixels).numpy().astype(float)
        mirrored = model(torch.tensor(pixels.numpy()[..., ::-1].copy())).numpy().astype(float)
    partner = {a: b for pair in FLIP_PAIRS for a, b in (pair, pair[::-1])}
    expected = np.empty_like(direct)
    for n in range(3):
        for k in range(98):
            back = mirrored[n, partner.get(k, k)]
            expected[n, k] = (direct[n, k, 0] + 1 - back[0]) / 2, (direct[n, k, 1] + back[1]) / 2
    assert np.abs(predict_batch(model, pixels).numpy() - expected).max() < 1e-6  # float32 of values below 4
    assert np.abs(predict_batch(model, pixels, flip_test=False).numpy() - direct).max() < 1e-6
    shifted = predict_batch(model, pixels, shift=1 / 48).numpy() - expected
    assert np.abs(shifted - (-1 / 96, 0)).max() < 1e-6
    assert np.abs(expected - direct).max() > 0.01, "the mirror image says the same: nothing was tested"


def test_published_flip_average_is_half_a_pixel_to_the_right():
    pixels = torch.zeros(1, 3, 64, 64)
    pixels[0, 0, 20, 10] = 1  # mirrored: column 53, back at 1 - 53 / 64 = 11 / 64
    points = predict_batch(Brightest().eval(), pixels)
    assert points[0, 16, 0] == pytest.approx((10 / 64 + 11 / 64) / 2)  # a midline point: its own partner
    assert points[0, 16, 1] == pytest.approx(20 / 64)
    exact = predict_batch(Brightest().eval(), pixels, shift=1 / 64)
    assert exact[0, 16, 0] == pytest.approx(10 / 64)


@pytest.mark.parametrize(("dtype", "out"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_the_mean_is_taken_in_single_precision_or_better(dtype, out):
    points = predict_batch(noisy().to(dtype), torch.randn(1, 3, 32, 32).to(dtype))
    assert points.dtype == out
    assert not points.requires_grad


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        predict_batch(DeepPose("tiny"), torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("mode", ["exact", "opencv4"])
def test_faces_are_cropped_and_decoded_by_their_squares(mode):
    """Against OpenCV's warp and the formulas written out."""
    cv2 = pytest.importorskip("cv2")
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    centers, sides, size = np.array([[60.0, 40.0], [100.5, 80.25], [-3.0, 20.0]]), np.array([50.0, 75.5, 64.0]), 64
    model = noisy()
    crops = []
    for (cx, cy), side in zip(centers, sides, strict=True):
        k = size / side
        matrix = np.array([[k, 0, size / 2 - k * cx], [0, k, size / 2 - k * cy]])
        warped = cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR).astype(np.float32) / 255
        crops.append(((warped - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)).transpose(2, 0, 1))
    with torch.no_grad():
        output = model(torch.tensor(np.stack(crops), dtype=torch.float32)).numpy()
    expected = centers[:, None] + sides[:, None, None] * (output - 0.5)
    found = predict_faces(model, image, centers, sides, size, mode, flip_test=False)
    # bit-equal crops leave float32 sums; OpenCV rounds crops to levels (0.25 of 256 on average)
    assert np.abs(found - expected).max() < {"opencv4": 1e-3, "exact": 0.5}[mode]
    assert np.ptp(output) > 0.5


def test_batches_do_not_change_the_points_and_no_faces_make_no_points():
    image = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    image.flags.writeable = False  # as decoders give it
    centers, sides = np.random.default_rng(1).random((5, 2)) * 60, np.full(5, 40.0)
    model = noisy()
    one_by_one = predict_faces(model, image, centers, sides, 32, batch_size=1)
    assert np.abs(predict_faces(model, image, centers, sides, 32, batch_size=2) - one_by_one).max() < 1e-3  # px
    assert predict_faces(model, image, [], [], 32).shape == (0, 98, 2)


@pytest.mark.gpu
def test_a_gpu_predicts_the_same_points():
    image = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    model = noisy()
    here = predict_faces(model, image, [[60.0, 40.0]], [80.0], 64)
    assert (
        np.abs(predict_faces(model.cuda(), image, [[60.0, 40.0]], [80.0], 64) - here).max() < 0.1
    )  # TF32 convolutions
