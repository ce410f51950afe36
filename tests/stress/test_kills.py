"""Twenty kills at random moments leave no trace in what a run ends with. Takes minutes: `make stress`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kills import end_alike

KILLS = 20

pytestmark = pytest.mark.stress


@pytest.mark.parametrize(
    "train",
    [
        pytest.param({"checkpoint_every": 1}, id="a checkpoint after every step"),
        pytest.param(
            {"checkpoint_every": 2, "ema": 0.9, "evaluate_every": 4}, id="moving average, evaluations, best checkpoint"
        ),
        pytest.param({"checkpoint_every": 2, "precision": "fp16"}, id="loss scaler"),
    ],
)
def test_a_run_killed_twenty_times_ends_with_the_same_bits(
    face_set: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    end_alike(face_set, tmp_path, kills=KILLS, seed=0, **train)


def test_so_does_one_of_two_ranks_of_which_one_is_killed(face_set: Path, tmp_path: Path) -> None:
    end_alike(face_set, tmp_path, kills=KILLS, seed=1, ranks=2, checkpoint_every=1, ema=0.9)
