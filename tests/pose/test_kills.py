"""A run that is killed at any moment goes on as if nothing had been: a few kills; `make stress` has many."""

from __future__ import annotations

from pathlib import Path

from kills import end_alike


def test_a_run_killed_thrice_ends_with_the_same_bits(face_set: Path, tmp_path: Path) -> None:
    end_alike(face_set, tmp_path, kills=3, seed=0, checkpoint_every=2, ema=0.9, evaluate_every=4)


def test_so_does_one_of_two_ranks_of_which_one_is_killed(face_set: Path, tmp_path: Path) -> None:
    end_alike(face_set, tmp_path, kills=1, seed=1, ranks=2, checkpoint_every=1)
