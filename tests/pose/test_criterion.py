"""The loss that a recipe names, where it can run and where it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, tiny_recipe, write_yaml

from pose.criterion import refuse_unavailable
from pose.errors import InputError
from pose.recipe import WingLoss


def test_a_kernel_is_refused_where_triton_has_no_device() -> None:
    refuse_unavailable(WingLoss(kind="wing"), torch.device("mps"))
    with pytest.raises(InputError, match=r"loss\.impl: triton: .* the tensors are on mps; wanted CUDA tensors"):
        refuse_unavailable(WingLoss(kind="wing", impl="triton"), torch.device("mps"))


def test_training_with_a_kernel_on_a_cpu_says_how_to_switch_the_interpreter_on(face_set: Path, tmp_path: Path) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(face_set, loss={"kind": "wing", "impl": "triton"}))
    command = [sys.executable, "-m", "pose.train", str(recipe), "--out", str(tmp_path / "out")]
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(command, cwd=REPOSITORY, env=without, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert "loss.impl: triton" in ended.stderr
    assert "set the environment variable TRITON_INTERPRET=1 before Python starts" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()
