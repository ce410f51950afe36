"""The command `python -m pose.predict`."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pose.checkpoint import Checkpoint, save_checkpoint, save_mmpose
from pose.errors import InputError
from pose.model import DeepPose
from pose.predict import main
from pose.predictor import predict_faces


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a trained checkpoint (64 px crops), a published one, and a picture of 120 x 80 pixels."""
    monkeypatch.chdir(tmp_path)
    model = DeepPose("tiny", seed=4)
    recipe = {"input": {"size": 64, "crop": "exact"}}
    save_checkpoint("last.pt", Checkpoint(recipe, 1, "tiny", 98, model.state_dict()))
    save_mmpose(model, tmp_path / "published.pth")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("face.png")
    return tmp_path


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_box_gives_points_as_json_and_a_picture(here, capsys):
    assert main(["last.pt", "face.png", "--box", "30,20,40,30", "--box", "60.5,10,20,50", "--out", "out"]) == 0
    assert sorted(p.name for p in (here / "out").iterdir()) == ["face.landmarks.json", "face.landmarks.png"]
    assert "2 faces" in capsys.readouterr().out
    record = json.loads((here / "out" / "face.landmarks.json").read_text())
    assert (record["image"], record["width"], record["height"]) == ("face.png", 120, 80)
    assert record["model"] == {
        **{"checkpoint": "last.pt", "backbone": "tiny", "size": 64, "crop": "exact", "flip_test": True},
    }
    first, second = record["faces"]
    assert first["box"] == [30, 20, 40, 30]
    assert (first["center"], first["side"]) == ([50, 35], 50)  # 1.25 x the longer side
    assert (second["center"], second["side"]) == ([70.5, 35], 62.5)
    model = DeepPose("tiny", seed=4).eval()
    expected = predict_faces(model, pixels_of("face.png"), [[50, 35], [70.5, 35]], [50, 62.5], 64, "exact")
    assert np.abs(np.array([first["points"], second["points"]]) - expected).max() < 1e-3  # written to 3 decimals
    drawn = pixels_of("out/face.landmarks.png")
    assert drawn.shape == (80, 120, 3)
    assert (drawn != pixels_of("face.png")).any()


def test_a_picture_without_a_box_is_one_face_that_fills_it(here):
    assert main(["published.pth", "face.png", "--no-flip-test", "--device", "cpu"]) == 0
    record = json.loads((here / "predictions" / "face.landmarks.json").read_text())
    assert record["model"]["size"] == 256  # a published file says nothing else
    assert record["model"]["crop"] == "opencv4"
    assert record["model"]["flip_test"] is False
    (face,) = record["faces"]
    assert (face["box"], face["center"], face["side"]) == (None, [60, 40], 120)
    assert np.shape(face["points"]) == (98, 2)


def test_boxes_of_many_pictures_come_from_a_file(here):
    (here / "sub").mkdir()
    Image.fromarray(pixels_of("face.png")).save("sub/face.png")
    (here / "boxes.json").write_text('{"face.png": [[10, 10, 50, 50]], "sub/face.png": [[0, 0, 9, 9], [1, 1, 9, 9]]}')
    command = ["last.pt", "face.png", "sub/face.png", "--boxes", "boxes.json", "--out", "out"]
    assert main([*command, "--size", "32", "--crop", "opencv4"]) == 0
    names = ["face-2.landmarks.json", "face-2.landmarks.png", "face.landmarks.json", "face.landmarks.png"]
    assert sorted(p.name for p in (here / "out").iterdir()) == names
    second = json.loads((here / "out" / "face-2.landmarks.json").read_text())
    assert second["image"] == "sub/face.png"
    assert len(second["faces"]) == 2
    assert (second["model"]["size"], second["model"]["crop"]) == (32, "opencv4")


def test_pictures_are_never_written_over(here):
    before = (here / "face.png").read_bytes()
    assert main(["last.pt", "face.png", "--out", "."]) == 0
    assert (here / "face.png").read_bytes() == before
    assert (here / "face.landmarks.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["last.pt", "nowhere.png"], r"nowhere\.png"),
        (["last.pt", "face.png", "cut.jpg"], r"cut\.jpg"),
        (["last.pt", "face.png", "--box", "1,2,3"], r"--box 1,2,3: 4 numbers wanted"),
        (["last.pt", "face.png", "--box", "1,2,3,four"], r"--box 1,2,3,four: 4 numbers wanted"),
        (["last.pt", "face.png", "--box", "10,10,0,5"], r"face\.png: the box 10,10,0,5 is empty"),
        (["last.pt", "face.png", "--box", "10,10,-5,5"], r"face\.png: the box 10,10,-5,5 is empty"),
        (["last.pt", "face.png", "--box", "10,nan,5,5"], r"face\.png: the box 10,nan,5,5"),
        (["last.pt", "face.png", "--box", "10,10,inf,5"], r"face\.png: the box 10,10,inf,5"),
        (["last.pt", "face.png", "--box", "120,10,5,5"], r"face\.png: the box .* outside the picture of 120 x 80"),
        (["last.pt", "face.png", "--box=-9,10,9,5"], r"face\.png: the box .* outside the picture"),
        (["last.pt", "face.png", "other.png", "--box", "1,1,9,9"], r"--box is for one image, 2 were given"),
        (["last.pt", "face.png", "--boxes", "none.json"], r"none\.json: No such file"),
        (["last.pt", "face.png", "--boxes", "cut.jpg"], r"cut\.jpg is not JSON"),
        (["last.pt", "face.png", "--boxes", "list.json"], r"list\.json: no boxes for face\.png"),
        (["last.pt", "face.png", "--boxes", "odd.json"], r"odd\.json: face\.png: 4 numbers wanted"),
        (["last.pt", "face.png", "--size", "3"], r"--size: size: must be greater than or equal to 32 \(given: 3\)"),
        (["last.pt", "face.png", "--out", "face.png"], r"face\.png/face\.landmarks\.png"),
        (["wrong.pth", "face.png"], r"wrong\.pth.*head\.fc\.weight has shape \(10, 128\), wanted \(196, 128\)"),
        (["cut.jpg", "face.png"], r"cut\.jpg is not a PyTorch file"),
        (["nowhere.pt", "face.png"], r"nowhere\.pt: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(here, arguments, said):
    Image.fromarray(pixels_of("face.png")).save("whole.jpg")
    (here / "cut.jpg").write_bytes((here / "whole.jpg").read_bytes()[:900])
    (here / "list.json").write_text("[1]")
    (here / "odd.json").write_text('{"face.png": [[1, 2, 3]]}')
    content = torch.load("published.pth", weights_only=True)
    content["state_dict"]["keypoint_head.fc.weight"] = torch.zeros(10, 128)
    torch.save(content, "wrong.pth")
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    with pytest.raises(InputError, match=said):
        main(arguments)
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(here):
    with pytest.raises(InputError, match="device cuda: this machine has no GPU"):
        main(["last.pt", "face.png", "--device", "cuda"])


def test_the_command_exits_with_2_and_one_sentence(here, pytestconfig):
    command = [sys.executable, "-m", "pose.predict", str(here / "last.pt"), str(here / "face.png"), "--box", "1,2,3"]
    done = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: --box 1,2,3: 4 numbers wanted, x,y,w,h in pixels\n"


def test_help_loads_nothing_heavy(pytestconfig):
    code = (
        "import sys\nfrom pose.predict import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\nassert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=pytestconfig.rootpath, check=True, stdout=subprocess.DEVNULL)
