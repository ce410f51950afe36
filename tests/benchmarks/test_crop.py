"""How long cropping 64 faces to 256 px takes on one CPU core: `crop_faces` in plain torch, and OpenCV 4 with numpy.

The faces' regions are as large as they are cut from pictures of 1024 px for training. pytest-benchmark times one side
after the other; `extra_info` has the ratio of the two in turns, which a busy machine disturbs less.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from crops import ragged

from bench.kernels.clock import cpu_threads
from kernels import crop_faces
from kernels.crop_reference import MEAN, STD
from pose.data.wflw import load_wflw
from pose.geometry import PADDING, crop_matrix, mirrored_center
from pose.regions import training_reach

BATCH, SIZE, PICTURE = 64, 256, 1024
ROUNDS = 7
# Sides of the faces, before padding. "wflw": those of 64 faces of the test set
SIDES = ("150", "250", "440", "800", "wflw")
OF_IMAGENET = np.array(MEAN, dtype=np.float32), np.array(STD, dtype=np.float32)


class Batch:
    """Regions of smooth noise around faces in the middle of a picture; published scales and rotations."""

    def __init__(self, sides: np.ndarray, flips: bool) -> None:
        rng = np.random.default_rng(0)
        self.flips = rng.random(BATCH) < 0.5 if flips else np.zeros(BATCH, dtype=bool)
        reach = np.ceil(sides * PADDING * training_reach(0.25)).astype(int) + 6
        self.regions = [
            cv2.resize(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8), (side, side))
            for side in np.minimum(reach, PICTURE).tolist()
        ]
        widths = np.array([region.shape[1] for region in self.regions])
        center = np.stack([widths / 2, widths / 2], axis=1)
        center[self.flips] = mirrored_center(center, widths)[self.flips]
        scale = np.clip(1 + rng.normal(0, 0.25, BATCH), 0.75, 1.25)
        turn = np.clip(rng.normal(0, 30, BATCH), -60, 60) * (rng.random(BATCH) < 0.6)
        self.matrices = crop_matrix(center, sides * PADDING * scale, turn, SIZE)
        self.tensors = (
            ragged(self.regions),
            torch.arange(BATCH),
            torch.from_numpy(self.matrices),
            torch.from_numpy(self.flips),
        )

    def torch(self) -> torch.Tensor:
        return crop_faces(*self.tensors, size=SIZE, mode="exact")

    def opencv(self) -> np.ndarray:
        """(B, S, S, 3): both sides leave their crops channels last, as the regions are."""
        out = np.empty((BATCH, SIZE, SIZE, 3), dtype=np.float32)
        mean, std = OF_IMAGENET
        for crop, region, matrix, flip in zip(out, self.regions, self.matrices, self.flips, strict=True):
            image = np.ascontiguousarray(region[:, ::-1]) if flip else region
            warped = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)
            crop[:] = (warped.astype(np.float32) / 255 - mean) / std
        return out


@functools.lru_cache(maxsize=1)
def prepared(side: str, flips: bool, samples: Path) -> Batch:
    if side != "wflw":
        return Batch(np.full(BATCH, float(side)), flips)
    faces = load_wflw(samples / "wflw_test_annotations", "test")
    return Batch(faces.side[:: len(faces) // BATCH][:BATCH], flips)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    with cpu_threads(1):
        yield
    cv2.setNumThreads(threads)


def seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


@pytest.mark.parametrize("way", ["opencv", "torch"])
@pytest.mark.parametrize("flips", [False, True], ids=["upright", "half-mirrored"])
@pytest.mark.parametrize("side", SIDES)
def test_time_of_cropping_a_batch(benchmark: Any, wflw_samples: Path, side: str, flips: bool, way: str) -> None:
    batch = prepared(side, flips, wflw_samples)
    off = np.abs(batch.torch().permute(0, 2, 3, 1).numpy() - batch.opencv()).mean() * 255 * min(STD)
    assert off < 1, "what is timed is wrong"  # grey levels: OpenCV rounds positions to 1/32 px and levels to integers
    benchmark.group = f"crop {BATCH} faces of {side} px{', half of them mirrored' if flips else ''}"
    benchmark.pedantic(getattr(batch, way), rounds=ROUNDS, warmup_rounds=1)
    if way == "torch":
        ratios = [seconds(batch.opencv) / seconds(batch.torch) for _ in range(ROUNDS)]
        benchmark.extra_info["times as fast as opencv"] = round(statistics.median(ratios), 2)
