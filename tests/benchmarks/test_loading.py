"""How long it takes to read annotation lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pose.data.wflw import load_wflw


def test_reading_the_2500_faces_of_the_test_list(benchmark: Any, wflw_samples: Path) -> None:
    faces = benchmark.pedantic(load_wflw, (wflw_samples / "wflw_test_annotations", "test"), rounds=5, warmup_rounds=1)
    assert len(faces) == 2500
