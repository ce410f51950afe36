"""The network, its starting point, and the way between its output and pixels."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from pose.errors import InputError
from pose.landmarks import FLIP_PAIRS
from pose.model import BACKBONES, DeepPose, decode, flip_back, initialise, load_imagenet, start_at

RESNET_TENSORS = {"resnet18": 122, "resnet34": 218, "resnet50": 320, "resnet101": 626, "resnet152": 932}


@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "resnet50"])  # own, basic blocks, bottlenecks
def test_crops_become_98_points(backbone):
    model = DeepPose(backbone).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 98, 2)
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 98, 2)


def test_points_are_interleaved_x_and_y_of_the_linear_layer():
    model = DeepPose("tiny").eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(196.0))
        output = model(torch.zeros(1, 3, 32, 32))
    assert output[0, 3].tolist() == [6.0, 7.0]
    assert output[0, 97].tolist() == [194.0, 195.0]


def test_features_are_the_mean_over_the_last_map():
    model = DeepPose("tiny", num_landmarks=64).double().eval()  # 128 channels to 128 numbers
    pixels = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(128))
        features = model.backbone(pixels)
        expected = features.numpy().mean(axis=(2, 3)).reshape(2, 64, 2)
        assert features.shape[2:] == (3, 2)
        assert np.allclose(model(pixels).numpy(), expected, rtol=1e-12)  # float64 sums of six numbers


@pytest.mark.parametrize(("backbone", "tensors"), RESNET_TENSORS.items())
def test_backbone_tensors_have_torchvisions_names(backbone, tensors):
    import torchvision

    state = DeepPose(backbone).state_dict()
    assert len(state) == tensors
    theirs = torchvision.models.get_model(backbone, weights=None).state_dict()
    ours = {name.removeprefix("backbone."): tensor.shape for name, tensor in state.items() if "backbone." in name}
    assert ours == {name: tensor.shape for name, tensor in theirs.items() if not name.startswith("fc.")}
    assert set(state) - {f"backbone.{name}" for name in ours} == {"head.weight", "head.bias"}


def test_an_unknown_backbone_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"'resnet5'.*did you mean 'resnet50'.*tiny, resnet18"):
        DeepPose("resnet5")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])  # the last norm is bn2 in one, bn3 in the other
def test_starting_point_is_the_published_one(backbone):
    model = DeepPose(backbone)
    last = "bn2" if backbone == "resnet18" else "bn3"
    zero = 0
    for name, tensor in model.state_dict().items():
        if re.search(rf"layer\d\.\d\.{last}\.weight", name):
            zero += 1
            assert not tensor.any(), name
        elif re.search(r"(bn\d|downsample\.1)\.weight|running_var", name):
            assert (tensor == 1).all(), name
        elif tensor.ndim == 4:
            expected = math.sqrt(2 / (tensor.shape[0] * tensor.shape[2] * tensor.shape[3]))
            # 5 standard errors of a sample's standard deviation
            assert tensor.std() == pytest.approx(expected, rel=5 / math.sqrt(2 * tensor.numel())), name
            assert abs(tensor.mean()) < 5 * expected / math.sqrt(tensor.numel()), name
        elif name != "head.weight":
            assert not tensor.any(), name
    assert zero == {"resnet18": 8, "resnet50": 16}[backbone]
    head = model.head.weight.detach()
    assert head.std() == pytest.approx(0.01, rel=5 / math.sqrt(2 * head.numel()))


def test_residual_blocks_start_as_the_identity():
    block = DeepPose("resnet18").eval().backbone.layer1[0]
    features = torch.rand(1, 64, 8, 8)
    with torch.inference_mode():
        assert torch.equal(block(features), features)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_starting_point_depends_on_the_seed_alone(backbone):
    torch.manual_seed(1)
    first = DeepPose(backbone, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = DeepPose(backbone, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "global random numbers were used"
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first.head.weight, DeepPose(backbone, seed=6).head.weight)


def test_initialise_forgets_whatever_was_learnt():
    model, fresh = DeepPose("resnet18"), DeepPose("resnet18", seed=3)
    model(torch.randn(2, 3, 64, 64)).sum().backward()  # moves running statistics too
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    initialise(model, torch.Generator().manual_seed(3))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))


def test_every_parameter_gets_a_gradient():
    model = DeepPose("tiny")
    model(torch.randn(4, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_layout_in_memory_and_autocast_do_not_change_the_points():
    model = DeepPose("resnet18").eval()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(pixels)
        scale = expected.abs().max()
        last = model.to(memory_format=torch.channels_last)(pixels.to(memory_format=torch.channels_last))
        assert (last - expected).abs().max() < 1e-4 * scale  # another order of float32 sums, 20 layers deep
        with torch.autocast("cpu", torch.bfloat16):
            half = model(pixels)
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.1 * scale  # bf16 keeps 8 bits, 20 layers deep


def test_head_can_start_at_the_mean_shape():
    shape = np.random.default_rng(0).random((98, 2))
    model = DeepPose("tiny").eval()
    start_at(model, shape)
    with torch.no_grad():
        model.head.weight.zero_()
        assert np.allclose(model(torch.randn(3, 3, 32, 32)).numpy(), shape[None], atol=1e-7)  # float32 of [0, 1)
    with pytest.raises(ValueError, match=r"\(97, 2\)"):
        start_at(model, shape[:97])


class TestImageNetWeights:
    @pytest.fixture
    def resnet18(self):
        import torchvision

        torch.manual_seed(0)
        network = torchvision.models.resnet18(weights=None)
        network(torch.randn(2, 3, 64, 64))  # statistics that are not the initial ones
        return network

    def test_a_local_file_fills_the_backbone_and_leaves_the_head(self, resnet18, tmp_path):
        torch.save(resnet18.state_dict(), tmp_path / "resnet18.pth")
        model = DeepPose("resnet18")
        head = model.head.weight.clone()
        load_imagenet(model, tmp_path / "resnet18.pth")
        for name, tensor in model.backbone.state_dict().items():
            assert torch.equal(tensor, resnet18.state_dict()[name]), name
        assert torch.equal(model.head.weight, head)

    def test_files_older_than_the_batch_counter_are_read(self, resnet18, tmp_path):
        state = {k: v for k, v in resnet18.state_dict().items() if "num_batches_tracked" not in k}
        torch.save(state, tmp_path / "old.pth")
        model = DeepPose("resnet18")
        load_imagenet(model, str(tmp_path / "old.pth"))
        assert torch.equal(model.backbone.layer4[1].bn2.running_var, state["layer4.1.bn2.running_var"])

    def test_weights_of_another_network_are_refused_by_key_and_shape(self, resnet18, tmp_path):
        path = tmp_path / "resnet18.pth"
        torch.save(resnet18.state_dict(), path)
        with pytest.raises(
            InputError, match=r"(?s)resnet18\.pth.*layer1\.0\.conv1\.weight has shape .*wanted \(64, 64, 1"
        ):
            load_imagenet(DeepPose("resnet50"), path)

    def test_an_unknown_name_is_answered_with_the_valid_ones(self):
        with pytest.raises(InputError, match=r"IMAGENET1K_V3.*did you mean 'IMAGENET1K_V[12]'"):
            load_imagenet(DeepPose("resnet50"), "IMAGENET1K_V3")

    def test_a_failed_download_says_to_give_a_local_file(self, monkeypatch):
        from urllib.error import URLError

        from torchvision.models import ResNet18_Weights

        def unreachable(*_, **__):
            raise URLError("no route to host")

        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", unreachable)
        with pytest.raises(InputError, match=r"no route to host.*local file"):
            load_imagenet(DeepPose("resnet18"), "IMAGENET1K_V1")

    def test_the_small_backbone_has_none(self):
        with pytest.raises(InputError, match="tiny"):
            load_imagenet(DeepPose("tiny"), "IMAGENET1K_V1")


class TestDecode:
    def test_hand_values(self):
        output = np.array([[0.5, 0.5], [0.0, 1.0], [0.25, -0.5]])
        points = decode(output, (100.0, 50.0), 80.0)
        assert points.tolist() == [[100.0, 50.0], [60.0, 90.0], [80.0, -30.0]]

    def test_equals_the_formula_in_crop_pixels(self):
        rng = np.random.default_rng(0)
        output, center, side = rng.random((5, 98, 2)), rng.random((5, 2)) * 1000, rng.random(5) * 500
        expected = np.empty_like(output)
        for n in range(5):
            for k in range(98):
                for axis in range(2):  # output x 256 x (side / 256) + center - side / 2
                    crop_pixel = output[n, k, axis] * 256
                    expected[n, k, axis] = crop_pixel * (side[n] / 256) + center[n, axis] - side[n] / 2
        assert np.abs(decode(output, center, side) - expected).max() < 1e-9
        tensor = decode(torch.tensor(output, dtype=torch.float32), center, torch.tensor(side))
        assert tensor.dtype == torch.float64
        assert np.abs(tensor.numpy() - expected).max() < 1e-4  # float32 fractions x 500 px

    def test_inverts_the_crop_matrix(self):
        center, side = np.array([321.5, 207.0]), 233.75
        points = np.random.default_rng(1).random((98, 2)) * 300 + 100
        crop_pixels = (points - center) * (256 / side) + 128
        assert np.abs(decode(crop_pixels / 256, center, side) - points).max() < 1e-9

    @pytest.mark.parametrize(
        ("center", "side"),
        [(np.zeros(3), 1.0), (np.zeros((2, 2)), np.ones(2)), (np.zeros(2), np.ones(1))],
        ids=["three coordinates", "a batch for one face", "a batch of sides"],
    )
    def test_shapes_that_do_not_belong_together_are_refused(self, center, side):
        with pytest.raises(ValueError, match="wanted"):
            decode(np.zeros((98, 2)), center, side)


class TestFlipBack:
    @staticmethod
    def by_hand(output, shift=0.0):
        partner = {a: b for pair in FLIP_PAIRS for a, b in (pair, pair[::-1])}
        result = np.empty_like(output)
        for k in range(98):
            x, y = output[partner.get(k, k)]
            result[k] = 1 - x - shift, y
        return result

    @pytest.mark.parametrize("shift", [0.0, 1 / 256])  # the published evaluation, and MMPose 1.x
    def test_hand_values(self, shift):
        output = np.random.default_rng(0).random((98, 2))
        expected = self.by_hand(output, shift)
        assert np.abs(flip_back(output, shift) - expected).max() < 1e-12
        batch = torch.tensor(output, dtype=torch.float32)[None].repeat(3, 1, 1)
        assert np.abs(flip_back(batch, shift).numpy() - expected).max() < 1e-6
        assert expected[0, 0] == pytest.approx(1 - output[32, 0] - shift)
        assert expected[96, 1] == output[97, 1]

    @pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
    def test_twice_is_the_identity_and_the_input_is_left_alone(self, kind):
        output = kind(np.round(np.random.default_rng(0).random((2, 98, 2)) * 1024) / 1024)  # 1 - x is exact on these
        before = output + 0
        assert (flip_back(flip_back(output)) == output).all()
        assert (output == before).all()

    def test_needs_the_98_points(self):
        with pytest.raises(ValueError, match=r"\(4, 68, 2\)"):
            flip_back(np.zeros((4, 68, 2)))


def test_all_backbones_are_listed():
    assert set(BACKBONES) == {"tiny", *RESNET_TENSORS}
    assert all(isinstance(module, nn.Module) for module in DeepPose("tiny").backbone.children())


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_a_fourth_channel_of_zeros_changes_nothing(backbone: str) -> None:
    model = DeepPose(backbone, seed=1).double().eval()
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels, (0, 0, 0, 0, 0, 1))
    wanted, found = model(pixels), model(padded)
    # float64; a convolution over four channels may sum in another order
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    found.sum().backward()
    first = next(model.parameters())
    assert first.shape[1] == 3
    assert first.grad is not None
    assert first.grad.shape == first.shape
