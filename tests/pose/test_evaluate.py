"""The commands that train and evaluate, called as a user calls them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, tiny_recipe, write_yaml

from pose.checkpoint import save_mmpose
from pose.data.wflw import load_wflw
from pose.distributed import ALONE
from pose.errors import run_command
from pose.evaluate import main
from pose.evaluator import Evaluator, table
from pose.geometry import PADDING, crop_matrix
from pose.metrics import SubsetRow
from pose.model import DeepPose
from pose.recipe import Evaluate, Input


def command(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A resnet18 in the published layout."""
    path = tmp_path_factory.mktemp("model") / "model.pth"
    save_mmpose(DeepPose("resnet18", seed=1), path)
    return path


def test_evaluation_is_crop_forward_flip_test_decode_and_nme_written_out(wflw_samples: Path) -> None:
    import cv2

    faces = load_wflw(wflw_samples / "wflw_mini", "test")
    model = DeepPose("tiny", seed=3).eval()
    with torch.no_grad():
        model.head.weight.mul_(30)  # so that the points spread and mirror images differ
    config, options = Input(size=96, crop="opencv4"), Evaluate(batch_size=3)
    result = Evaluator(faces, config, options, ALONE).evaluate(model, shown=False)
    pairs = [*((i, 32 - i) for i in range(16)), *((33 + i, 46 - i) for i in range(5)), (38, 50), (39, 49), (40, 48)]
    pairs += [(41, 47), *((60 + i, 72 - i) for i in range(5)), (65, 75), (66, 74), (67, 73), (55, 59), (56, 58)]
    pairs += [(76, 82), (77, 81), (78, 80), (87, 83), (86, 84), (88, 92), (89, 91), (95, 93), (96, 97)]
    partner = {i: i for i in range(98)} | dict(pairs) | {b: a for a, b in pairs}
    swap = [partner[i] for i in range(98)]
    for face in range(4):
        picture = cv2.imread(str(faces.image[face]))[..., ::-1]
        side = faces.side[face] * PADDING
        matrix = crop_matrix(faces.center[face], side, 0.0, 96)
        crop = cv2.warpAffine(picture, matrix, (96, 96)).astype(np.float32) / np.float32(255)
        crop = (crop - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        pixels = torch.from_numpy(crop.transpose(2, 0, 1).copy())[None]
        with torch.no_grad():
            direct, mirrored = model(pixels)[0].double().numpy(), model(pixels.flip(3))[0].double().numpy()
        mirrored = mirrored[swap]
        mirrored[:, 0] = 1 - mirrored[:, 0]
        points = faces.center[face] + side * ((direct + mirrored) / 2 - 0.5)
        np.testing.assert_allclose(result.points[face], points, rtol=0, atol=1e-3)  # float32 in another batch size
        true = faces.points[face]
        distances = np.sqrt(((result.points[face] - true) ** 2).sum(1))
        corners = np.sqrt(((true[60] - true[72]) ** 2).sum())
        assert result.nme[face] == pytest.approx(distances.mean() / corners, rel=1e-12)


def test_evaluation_leaves_the_model_and_the_number_format_as_they_were(face_set: Path) -> None:
    model = DeepPose("tiny", seed=3).double().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    evaluator = Evaluator(load_wflw(face_set, "test"), Input(size=64, crop="exact"), Evaluate(precision="tf32"), ALONE)
    assert np.isfinite(evaluator.score(model))
    assert model.training
    assert all(value.dtype == before[name].dtype for name, value in model.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32)


@pytest.mark.parametrize("form", ["official", "json"])
def test_a_checkpoint_is_evaluated_on_the_real_faces_in_both_forms(
    published: Path, wflw_samples: Path, tmp_path: Path, form: str
) -> None:
    data = wflw_samples / ("wflw_mini" if form == "official" else "mmpose_form/test_wflw.json")
    ended = command("pose.evaluate", published, data, "--out", tmp_path)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert rows[0] == ["subset", "faces", "NME", "FR@10", "AUC@10"]
    assert rows[1][:2] == ["test", "4"]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert float(rows[1][2]) == pytest.approx(100 * metrics["test"]["nme"], abs=0.005)
    with np.load(tmp_path / "faces.npz") as faces:
        assert faces["nme"].mean() == pytest.approx(metrics["test"]["nme"])
    if form == "official":  # four faces without any attribute
        assert "warning: no face of these subsets is in" in ended.stderr
        assert [row[:4] for row in rows[2:8]] == [[name, "0", "no", "faces"] for name in list(metrics)[1:]]
        assert metrics["pose"] == {"count": 0, "nme": None, "failure_rate": None, "auc": None}
    else:
        assert "does not say which faces belong to pose, expression" in ended.stderr
        assert list(metrics) == ["test"]


def test_both_forms_give_the_same_nme(published: Path, wflw_samples: Path, tmp_path: Path) -> None:
    values = []
    for form in ("wflw_mini", "mmpose_form/test_wflw.json"):
        assert main([str(published), str(wflw_samples / form), "--size", "128", "--out", str(tmp_path)]) == 0
        values.append(json.loads((tmp_path / "metrics.json").read_text())["test"]["nme"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_training_leaves_a_checkpoint_that_evaluates_to_the_same_table(face_set: Path, tmp_path: Path) -> None:
    recipe = write_yaml(tmp_path / "recipe.yaml", tiny_recipe(face_set))
    trained = command("pose.train", recipe, "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    evaluated = command("pose.evaluate", tmp_path / "run" / "checkpoint.pt", face_set)
    assert evaluated.returncode == 0, evaluated.stderr
    rows = evaluated.stdout.splitlines()[:8]
    assert rows == trained.stdout.splitlines()[:8]
    again = command("pose.train", recipe, "--out", tmp_path / "run")
    assert again.returncode == 0, again.stderr
    assert "resuming after step 6 of 6" in again.stdout


def test_a_signal_to_the_process_group_finishes_the_step_and_saves(face_set: Path, tmp_path: Path) -> None:
    """As a scheduler cancels a job: the signal reaches the decoding processes, too."""
    changes = {"steps": 100_000, "checkpoint_every": 3}
    values = tiny_recipe(face_set, train=changes, input={"images": "disk", "workers": 2})
    recipe = write_yaml(tmp_path / "recipe.yaml", values)
    line = [sys.executable, "-m", "pose.train", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(line, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 3, printed
    assert "stopped by SIGTERM after step" in printed
    assert "Traceback" not in printed


def test_bad_input_exits_with_2_and_one_sentence(
    published: Path, wflw_samples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "pickle.pth").write_bytes(pickle.dumps({"state_dict": Payload()}))
    torch.save({"state_dict": Payload()}, tmp_path / "torch.pth")
    broken = torch.load(published, weights_only=True)
    broken["state_dict"]["keypoint_head.fc.weight"] = torch.zeros(136, 512)
    torch.save(broken, tmp_path / "shape.pth")
    data = wflw_samples / "wflw_mini"
    cases = [
        ((tmp_path / "none.pth", data), "none.pth"),
        ((tmp_path / "pickle.pth", data), "pickle.pth"),
        ((tmp_path / "torch.pth", data), "torch.pth"),
        ((tmp_path / "shape.pth", data), "keypoint_head.fc.weight has shape (136, 512), wanted (196, 512)"),
        ((published, tmp_path / "nowhere"), "nowhere: no such folder or file"),
        ((published, tmp_path), "no such list"),
        ((published, data, "--batch-size", "0"), "command line: batch_size: must be greater than 0"),
        ((published, data, "--size", "4"), "--size: size: must be"),
        ((published, data, "--size", "0"), "--size: size: must be"),
        ((published, data, "--flip-shift", "nan"), "command line: flip_shift: must be"),
        ((published, data, "--images", tmp_path), "--images"),
        ((published, data, "--out", "/proc/nothing"), "/proc/nothing"),
    ]
    for arguments, message in cases:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda line=arguments: main([str(word) for word in line]))
        captured = capsys.readouterr().err
        assert ended.value.code == 2, captured
        assert captured.startswith("error: ")
        assert message in captured
        assert captured.count("\n") == 1
    assert not (tmp_path / "executed").exists()


def test_the_table_says_so_where_a_subset_has_no_faces() -> None:
    nan = float("nan")
    text = table([SubsetRow("test", 4, 0.0464, 0.25, 0.5), SubsetRow("pose", 0, nan, nan, nan)])
    lines = [line.split() for line in text.splitlines()]
    assert lines[1] == ["test", "4", "4.64", "25.00", "50.00"]
    assert lines[2] == ["pose", "0", "no", "faces"]
    assert "nan" not in text
