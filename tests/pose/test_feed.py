"""Wherever a batch is made, it is the same batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_recipe

from pose.data.wflw import load_wflw
from pose.distributed import ALONE, Ranks
from pose.errors import InputError
from pose.feed import Feed, open_feed
from pose.inputs import TrainingBatch
from pose.loader import MemoryLoader
from pose.order import BatchOrder
from pose.recipe import Recipe

STEPS = (0, 1, 2, 3, 7)  # three make an epoch; the last is a jump, as a resumed run makes one


def feed(root: Path, ranks: Ranks = ALONE, train: dict[str, Any] | None = None, **input: Any) -> Feed:
    values = tiny_recipe(root, input={"crop": "opencv4", **input}, train={"device": "auto", **(train or {})})
    recipe, faces = Recipe.model_validate(values), load_wflw(root, "train")
    order = BatchOrder(len(faces), recipe.train.batch_size, seed=5, drop_last=recipe.train.drop_last)
    return open_feed(recipe, faces, 5, order, ranks, last=9)


def batches(source: Feed) -> list[TrainingBatch]:
    return [source.batch(step) for step in STEPS]


def same(one: TrainingBatch, other: TrainingBatch) -> bool:
    pairs = (one.pixels, other.pixels), (one.target, other.target), (one.weight, other.weight)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    "input",
    [
        pytest.param({"images": "disk"}, id="decoded at every use"),
        pytest.param({"images": "disk", "sampling": "workers", "workers": 2}, id="made by two processes"),
        pytest.param({"images": "disk", "sampling": "workers"}, id="made like that, but here"),
        pytest.param({"images": "cache"}, id="from a cache"),
        pytest.param({"sampling": "device"}, id="drawn on the device"),
        pytest.param({"sampling": "device", "impl": "triton"}, id="drawn and cropped by the fused kernels"),
        pytest.param(
            {"images": "cache", "sampling": "device", "pixel_bytes": 4}, id="from a cache, four bytes a pixel"
        ),
    ],
)
def test_every_way_to_make_a_batch_makes_the_same_bits(face_set: Path, tmp_path: Path, input: dict[str, Any]) -> None:
    wanted = batches(feed(face_set))
    found = batches(feed(face_set, cache=str(tmp_path / "cache"), **input))
    assert all(map(same, found, wanted))
    assert not torch.equal(wanted[0].pixels, wanted[3].pixels)


@pytest.mark.parametrize("sampling", ["host", "device", "workers"])
def test_a_fourth_channel_is_zero_and_the_others_stay(face_set: Path, sampling: str) -> None:
    images = "disk" if sampling == "workers" else "memory"
    three, four = (
        feed(face_set, images=images, sampling=sampling, channels=channels, train={"precision": "bf16"}).batch(0)
        for channels in (3, 4)
    )
    assert four.pixels.dtype == torch.bfloat16
    assert torch.equal(four.pixels[:, :3], three.pixels)
    assert not four.pixels[:, 3].any()


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_ranks_share_a_batch_out_without_doubles(face_set: Path, sampling: str) -> None:
    whole = feed(face_set, sampling=sampling, train={"batch_size": 7}).batch(1)
    shares = [feed(face_set, Ranks(rank, 3), sampling=sampling, train={"batch_size": 7}).batch(1) for rank in range(3)]
    assert [len(share.pixels) for share in shares] == [3, 2, 2]
    for rank, share in enumerate(shares):
        assert torch.equal(share.pixels, whole.pixels[rank::3])
        assert torch.equal(share.target, whole.target[rank::3])


@pytest.mark.parametrize("sampling", ["host", "device"])
def test_a_kept_partial_batch_has_the_rest_of_the_epoch(face_set: Path, sampling: str) -> None:
    source = feed(face_set, sampling=sampling, train={"batch_size": 5, "drop_last": False})
    assert [len(source.batch(step).pixels) for step in range(5)] == [5, 5, 2, 5, 5]


def test_a_gpu_without_room_gets_its_pixels_from_the_host_and_cannot_hold_a_graph(
    face_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = batches(feed(face_set))
    real = MemoryLoader.__init__

    def without_room(self: MemoryLoader, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        self.resident = False

    monkeypatch.setattr(MemoryLoader, "__init__", without_room)
    assert all(map(same, batches(feed(face_set, sampling="device")), wanted))

    with pytest.raises(InputError, match=r"train\.graph: a captured step needs the training faces' pixels on the GPU"):
        feed(face_set, sampling="device", train={"graph": True})
