"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# The kernels are decorated when they are first imported: where there is no GPU, Triton's interpreter has to be on by
# then, and nothing imports Triton before this file is read.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

REPOSITORY = Path(__file__).resolve().parents[1]
LIST_FOLDER = Path("WFLW_annotations/list_98pt_rect_attr_train_test")


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where there is a GPU, mark what runs on it, so that `-m gpu` is all of that; elsewhere skip what needs one."""
    for item in items:
        if torch.cuda.is_available():
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


def shell_environment() -> dict[str, str]:
    """os.environ without what is set above: for tests of whole commands, which have to see to it themselves."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the fused kernels run: on the GPU, or on the CPU in Triton's interpreter."""
    from kernels.loss_launch import INTERPRETED

    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(scope="session")
def wflw_samples() -> Path:
    """Folder with a few real WFLW faces (`wflw_mini`, `mmpose_form`, `wflw_test_annotations`)."""
    path = Path(os.environ.get("WFLW_SAMPLES", REPOSITORY.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real WFLW samples at {path} (name their folder in WFLW_SAMPLES)")
    return path


@pytest.fixture(scope="session")
def face_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in WFLW's official layout: 12 training and 6 test faces, points on noise with a dark disc per eye."""
    root = tmp_path_factory.mktemp("faces")
    write_face_set(root, train=12, test=6)
    return root


def write_face_set(root: Path, *, train: int, test: int) -> None:
    """Write a small set in the official layout; the pictures are noise, but the points are real positions in it."""
    rng = np.random.default_rng(0)
    (root / LIST_FOLDER).mkdir(parents=True)
    (root / "WFLW_images/0--Test").mkdir(parents=True)
    for split, count in (("train", train), ("test", test)):
        lines = []
        for face in range(count):
            width, height = rng.integers(90, 130, 2)
            name = f"0--Test/{split}_{face}.jpg"
            picture = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
            center, spread = np.array([width, height]) / 2 + rng.normal(0, 4, 2), rng.uniform(18, 30)
            angle = np.linspace(0, 2 * np.pi, 98, endpoint=False) + rng.normal(0, 0.05, 98)
            points = center + spread * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            eye = np.array([spread / 2, 0])
            points[60], points[72] = center - eye, center + eye
            for x, y in points[[60, 72]].astype(int):
                picture[y - 3 : y + 3, x - 3 : x + 3] = 0
            Image.fromarray(picture).save(root / "WFLW_images" / name, quality=95)
            numbers = " ".join(f"{value:.6f}" for value in points.ravel())
            box = " ".join(str(int(v)) for v in (*points.min(0), *points.max(0)))
            flags = " ".join(str(flag) for flag in (rng.random(6) < 0.4).astype(int))
            lines.append(f"{numbers} {box} {flags} {name}")
        (root / LIST_FOLDER / f"list_98pt_rect_attr_{split}.txt").write_text("\n".join(lines) + "\n")


def tiny_recipe(root: Path, **sections: dict[str, object]) -> dict[str, object]:
    """Values of a recipe for `face_set`: six steps of the tiny model at 64 px."""
    values: dict[str, object] = {
        "name": "tiny",
        "data": {"kind": "wflw", "root": str(root)},
        "input": {"size": 64, "crop": "exact"},
        "model": {"backbone": "tiny", "start_at_mean_shape": True},
        "loss": {"kind": "wing"},
        "train": {
            "steps": 6,
            "batch_size": 4,
            "lr": 2e-3,
            "schedule": "cosine",
            "warmup": 0,
            "device": "cpu",
            "threads": 1,
        },
        "evaluate": {},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes}  # type: ignore[dict-item]
    return values


def write_yaml(path: Path, values: dict[str, object]) -> Path:
    """JSON is YAML."""
    path.write_text(json.dumps(values, indent=1))
    return path
