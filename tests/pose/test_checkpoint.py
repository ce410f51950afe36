"""The published layout in both directions, and training checkpoints that survive whatever happens to their file."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pose.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_mmpose,
    load_model,
    load_model_and_recipe,
    save_checkpoint,
    save_mmpose,
)
from pose.errors import InputError
from pose.model import DeepPose
from pose.weights import published_digest

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STAGE, HEAD = "backbone.stage2.conv.weight", "keypoint_head.fc.weight"


def published_names() -> list[str]:
    """The 320 tensors of the published resnet50 files, from its layers 3, 4, 6, 3."""
    names = ["backbone.conv1.weight", *(f"backbone.bn1.{part}" for part in NORM)]
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            at = f"backbone.layer{layer}.{block}"
            for i in (1, 2, 3):
                names += [f"{at}.conv{i}.weight", *(f"{at}.bn{i}.{part}" for part in NORM)]
            if block == 0:
                names += [f"{at}.downsample.0.weight", *(f"{at}.downsample.1.{part}" for part in NORM)]
    return [*names, "keypoint_head.fc.weight", "keypoint_head.fc.bias"]


def shaken(backbone: str, seed: int = 0) -> DeepPose:
    """A model whose every tensor differs from the starting point, in training mode."""
    model = DeepPose(backbone, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator))
        else:
            tensor.add_(12345)
    return model


def same(a: DeepPose, b: DeepPose) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def small(tmp_path) -> tuple[DeepPose, Path, dict]:
    """A tiny model, its file in the published layout, and the file's content."""
    model, path = shaken("tiny"), tmp_path / "tiny.pth"
    save_mmpose(model, path)
    return model, path, torch.load(path, weights_only=True)


class TestPublishedLayout:
    def test_round_trip_keeps_every_bit_of_the_320_tensors(self, tmp_path):
        model, path = shaken("resnet50"), tmp_path / "published.pth"
        save_mmpose(model, path)
        content = torch.load(path, weights_only=True)
        assert set(content) == {"meta", "state_dict"}
        assert list(content["state_dict"]) == published_names()
        assert len(content["state_dict"]) == 320
        assert content["state_dict"]["keypoint_head.fc.weight"].shape == (196, 2048)
        assert torch.equal(content["state_dict"]["keypoint_head.fc.bias"], model.head.bias)
        assert torch.equal(
            content["state_dict"]["backbone.layer3.5.conv2.weight"], model.backbone.layer3[5].conv2.weight
        )
        loaded = load_mmpose(path)
        assert loaded.backbone_name == "resnet50"
        assert same(loaded, model)

    @pytest.mark.parametrize("backbone", ["tiny", "resnet18", "resnet34", "resnet101"])  # each is recognised by itself
    def test_the_backbone_is_recognised_from_the_tensors(self, tmp_path, backbone):
        model = DeepPose(backbone, seed=1)
        save_mmpose(model, tmp_path / "some.pth")
        loaded = load_mmpose(tmp_path / "some.pth")
        assert loaded.backbone_name == backbone
        assert same(loaded, model)

    @pytest.mark.parametrize(
        "change",
        [
            lambda content: content | {"optimizer": {"state": {0: {"step": 1}}, "param_groups": []}},
            lambda content: content["state_dict"],
            lambda content: {"state_dict": {f"module.{k}": v for k, v in content["state_dict"].items()}},
            lambda content: {
                "state_dict": {k.replace("keypoint_head.fc", "head.fc"): v for k, v in content["state_dict"].items()}
            },
            lambda content: {
                "state_dict": {
                    "module." + k.replace("keypoint_head.fc", "head.fc"): v for k, v in content["state_dict"].items()
                }
            },
            # as the releases' own files: training notes with a numpy scalar among them
            lambda content: content | {"meta": {"epoch": 210, "hook_msgs": {"best_score": np.float32(0.0464)}}},
            lambda content: content | {"meta": {"hook_msgs": {"best_score": np.float64(0.0464), "n": np.int64(3)}}},
        ],
        ids=["optimizer", "bare", "module.", "head.fc", "module.head.fc", "float32 in meta", "float64 in meta"],
    )
    @pytest.mark.parametrize("zipped", [True, False])  # both of PyTorch's file formats; published files are old
    def test_every_variant_of_the_layout_is_read(self, small, change, zipped):
        model, path, content = small
        torch.save(change(content), path, _use_new_zipfile_serialization=zipped)
        assert same(load_mmpose(path), model)
        assert same(load_model(path), model)

    def test_names_of_numpy_1_scalars_are_read(self, small):
        model, path, content = small
        buffer = io.BytesIO()
        torch.save(content | {"meta": {"best_score": np.float64(1.0)}}, buffer, _use_new_zipfile_serialization=False)
        old = buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
        assert b"cnumpy.core.multiarray\n" in old
        path.write_bytes(old)
        assert same(load_mmpose(path), model)

    def test_a_missing_batch_counter_is_zero(self, small):
        model, path, content = small
        state = {k: v for k, v in content["state_dict"].items() if "num_batches_tracked" not in k}
        torch.save({"state_dict": state}, path)
        loaded = load_mmpose(path)
        assert loaded.backbone.stage1.bn.num_batches_tracked == 0
        assert torch.equal(loaded.backbone.stage1.bn.running_mean, model.backbone.stage1.bn.running_mean)

    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_the_models_layout_in_memory_does_not_reach_the_file(self, small, memory_format):
        model, path, _ = small
        expected = model(torch.ones(2, 3, 64, 64))
        save_mmpose(model.to(memory_format=memory_format), path)
        assert all(tensor.is_contiguous() for tensor in torch.load(path)["state_dict"].values())
        assert load_mmpose(path)(torch.ones(2, 3, 64, 64)).shape == expected.shape

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda s: s | {STAGE: torch.zeros(32, 16, 5, 5)}, r"has shape \(32, 16, 5, 5\), wanted \(32, 16, 3, 3\)"),
            (lambda s: s | {HEAD: torch.zeros(136, 128)}, r"fc\.weight has shape \(136, 128\), wanted \(196, 128\)"),
            (lambda s: {k: s[k] for k in s if k != STAGE}, r"stage2\.conv\.weight is missing, wanted \(32, 16, 3, 3\)"),
            (lambda s: s | {"neck.weight": torch.zeros(1)}, r"neck\.weight is unknown"),
            (lambda s: s | {"head.fc.bias": torch.zeros(196)}, r"head\.fc\.bias is there twice"),
            (lambda s: s | {HEAD: torch.zeros(196, 128, dtype=torch.int64)}, r"fc\.weight holds torch\.int64"),
            (lambda s: s | {HEAD: "text"}, r"fc\.weight is a str"),
            (lambda s: {}, r"no tensors named backbone"),
            (lambda s: {3: torch.zeros(1)}, r"no state dict"),
        ],
        ids=["shape", "68 points", "missing", "extra", "two spellings", "integers", "text", "empty", "numbered"],
    )  # fmt: skip
    def test_what_does_not_fit_is_named_with_the_file(self, small, change, said):
        _, path, content = small
        torch.save({"state_dict": change(content["state_dict"])}, path)
        with pytest.raises(InputError, match=rf"(?s)tiny\.pth.*{said}"):
            load_mmpose(path)

    def test_a_resnet_of_unknown_depth_is_refused(self, tmp_path):
        save_mmpose(DeepPose("resnet18"), tmp_path / "cut.pth")
        state = torch.load(tmp_path / "cut.pth")["state_dict"]
        torch.save({k: v for k, v in state.items() if "layer3.1" not in k}, tmp_path / "cut.pth")
        with pytest.raises(InputError, match=r"cut\.pth.*\[2, 2, 1, 2\] basic blocks"):
            load_mmpose(tmp_path / "cut.pth")

    def test_a_name_with_another_hash_is_warned_about(self, small, tmp_path):
        model, path, _ = small
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        good, bad = tmp_path / f"m_256x256-{digest}_20210303.pth", tmp_path / "m_256x256-0123abcd_20210303.pth"
        good.write_bytes(path.read_bytes())
        bad.write_bytes(path.read_bytes())
        assert [published_digest(p) for p in (path, good, bad)] == [None, True, False]
        assert same(load_mmpose(good), model)  # warnings would be shown by pytest, not raised
        with pytest.warns(UserWarning, match=r"0123abcd_20210303\.pth"):
            assert same(load_mmpose(bad), model)

    def test_no_warning_for_a_right_or_absent_hash(self, small, recwarn):
        load_mmpose(small[1])
        assert not recwarn.list


class Marker:
    """A pickle of this creates the file when it is unpickled carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestFilesNobodyVouchesFor:
    @pytest.mark.parametrize("reader", [load_mmpose, load_model, load_checkpoint])
    @pytest.mark.parametrize("kind", ["zip", "legacy", "plain pickle"])  # the three ways to wrap a pickle
    def test_pickled_code_is_refused_and_not_run(self, small, tmp_path, reader, kind):
        _, path, content = small
        poisoned = content | {"meta": {"hook": Marker(tmp_path / "ran")}}
        if kind == "plain pickle":
            path.write_bytes(pickle.dumps(poisoned["meta"]))
        else:
            torch.save(poisoned, path, _use_new_zipfile_serialization=kind == "zip")
        with pytest.raises(InputError, match=r"tiny\.pth") as caught:
            reader(path)
        if kind != "plain pickle":
            assert "holds pickled code" in str(caught.value)
        assert not (tmp_path / "ran").exists()

    def test_the_marker_would_have_run(self, tmp_path):
        pickle.loads(pickle.dumps(Marker(tmp_path / "ran")))
        assert (tmp_path / "ran").exists()

    def test_a_class_of_another_library_is_pickled_code_too(self, small):
        _, path, content = small
        torch.save(content | {"meta": Checkpoint}, path)
        with pytest.raises(InputError, match=r"pickled code \(.*Checkpoint\)"):
            load_mmpose(path)

    @pytest.mark.parametrize("reader", [load_mmpose, load_model, load_checkpoint])
    def test_files_of_another_kind_are_named(self, small, tmp_path, reader):
        whole = small[1].read_bytes()
        legacy = io.BytesIO()
        torch.save(small[2], legacy, _use_new_zipfile_serialization=False)
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.txt", "text")
        contents = {
            "empty": b"",
            "text": b"not a checkpoint\n" * 100,
            "html": b"<!DOCTYPE html><html>404</html>",
            "zeros": bytes(5000),
            "noise": np.random.default_rng(0).bytes(5000),
            "zip": archive.getvalue(),
            "a list": None,
            **{f"cut at {share}": whole[: int(len(whole) * share)] for share in (0.01, 0.5, 0.999)},
            **{f"legacy cut at {s}": legacy.getvalue()[: int(len(legacy.getvalue()) * s)] for s in (0.001, 0.01, 0.9)},
        }
        for name, content in contents.items():
            path = tmp_path / f"{name}.pth"
            if content is None:
                torch.save([1, 2], path)
            else:
                path.write_bytes(content)
            with pytest.raises(InputError, match=rf"{name}\.pth"):
                reader(path)

    @pytest.mark.parametrize("reader", [load_mmpose, load_model, load_checkpoint])
    def test_a_missing_file_and_a_folder_are_named(self, tmp_path, reader):
        with pytest.raises(InputError, match=r"nowhere\.pth: No such file"):
            reader(tmp_path / "nowhere.pth")
        with pytest.raises(InputError, match=f"{tmp_path.name}: Is a directory"):
            reader(tmp_path)

    def test_flipped_bytes_never_escape_as_anything_but_an_input_error(self, small):
        _, path, _ = small
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        for _ in range(60):
            damaged = bytearray(whole)
            # most of a file is numbers, where damage only changes a weight: aim at the pickle at its start as well
            for at in (rng.integers(0, 3000), rng.integers(0, len(whole))):
                damaged[at] = rng.integers(0, 256)
            path.write_bytes(bytes(damaged))
            with suppress(InputError):
                load_mmpose(path)


@pytest.fixture
def trained() -> Checkpoint:
    model = DeepPose("tiny")
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model(torch.ones(2, 3, 64, 64)).sum().backward()
    optimizer.step()
    return Checkpoint(
        recipe={"name": "test", "input": {"size": 64}, "loss": {"kind": "wing", "omega": 10.0}, "none": None},
        step=1,
        backbone="tiny",
        num_landmarks=98,
        model=model.state_dict(),
        optimizer=optimizer.state_dict(),
        scaler={"scale": 65536.0},
        extra={"best_nme": 0.05, "losses": [1.0, 2.0], "random": torch.get_rng_state()},
    )


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b and type(a) is type(b)


class TestTrainingCheckpoint:
    def test_round_trip_keeps_every_value(self, trained, tmp_path):
        save_checkpoint(tmp_path / "last.pt", trained)
        loaded = load_checkpoint(tmp_path / "last.pt")
        for name, value in vars(trained).items():
            assert equal(getattr(loaded, name), dict(value) if name == "model" else value), name
        optimizer = torch.optim.Adam(loaded.network().parameters())
        optimizer.load_state_dict(loaded.optimizer)
        assert optimizer.param_groups[0]["lr"] == 1e-3

    def test_the_same_state_makes_the_same_bytes(self, trained, tmp_path):
        save_checkpoint(tmp_path / "a.pt", trained)
        save_checkpoint(tmp_path / "b.pt", trained)
        assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "b.pt").read_bytes()

    def test_load_model_reads_it_with_its_recipe(self, trained, tmp_path):
        save_checkpoint(tmp_path / "last.pt", trained)
        model, recipe = load_model_and_recipe(tmp_path / "last.pt")
        assert equal(dict(model.state_dict()), dict(trained.model))
        assert recipe == trained.recipe

    def test_the_published_layout_is_no_training_checkpoint(self, tmp_path):
        save_mmpose(DeepPose("tiny"), tmp_path / "published.pth")
        with pytest.raises(InputError, match=r"published\.pth is not a training checkpoint"):
            load_checkpoint(tmp_path / "published.pth")
        assert load_model_and_recipe(tmp_path / "published.pth")[1] == {}

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"version": 2}, "version 2, this is for version 1"),
            ({"step": "one"}, "'step'"),
            ({"model": {}}, r"stage1\.conv\.weight is missing"),
            ({"backbone": "resnet5"}, "resnet5"),
            ({"num_landmarks": 10**12}, "10{12} landmarks"),
            ({"num_landmarks": 68}, r"head\.weight has shape \(196, 128\), wanted \(136, 128\)"),
        ],
    )
    @pytest.mark.parametrize("reader", [load_checkpoint, load_model])
    def test_a_checkpoint_that_does_not_fit_is_named(self, trained, tmp_path, change, said, reader):
        path = tmp_path / "last.pt"
        save_checkpoint(path, trained)
        torch.save(torch.load(path, weights_only=True) | change, path)
        with pytest.raises(InputError, match=rf"(?s)last\.pt.*{said}"):
            reader(path)

    @pytest.mark.parametrize("value", [np.float64(1), Path("x"), {1, 2}, np.zeros(2)], ids=lambda v: type(v).__name__)
    def test_values_that_could_not_be_read_back_are_refused_at_once(self, trained, tmp_path, value):
        trained.extra["odd"] = [value]
        with pytest.raises(TypeError, match=r"extra\.odd\[0\] is a "):
            save_checkpoint(tmp_path / "last.pt", trained)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("failing", ["write", "fsync", "replace"])  # a full disk can show at any of them
    def test_a_full_disk_leaves_the_previous_checkpoint_whole(self, trained, tmp_path, monkeypatch, failing):
        path = tmp_path / "last.pt"
        save_checkpoint(path, trained)
        before = path.read_bytes()

        def full(*_, **__):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def half(self, content):
            with self.open("wb") as file:
                file.write(content[: len(content) // 2])
            full()

        target = {
            "write": (Path, "write_bytes", half),
            "fsync": (os, "fsync", full),
            "replace": (Path, "replace", full),
        }
        monkeypatch.setattr(*target[failing])
        with pytest.raises(InputError, match=r"last\.pt.*No space left"):
            save_checkpoint(path, trained)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]
        assert load_checkpoint(path).step == 1

    def test_a_place_that_cannot_be_written_is_named(self, trained, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"file/last\.pt"):
            save_checkpoint(tmp_path / "file" / "last.pt", trained)
