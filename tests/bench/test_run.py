"""The whole way from a config to a report, with real trial processes on a set of eighteen small pictures."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LIST_FOLDER, REPOSITORY, shell_environment, tiny_recipe, write_face_set, write_yaml

from bench.result import Result, read_result
from bench.store import claim
from bench.trial import process_environment
from pose.recipe import Recipe

VARIANTS = {"baseline": {}, "direct": {"loss": {"gradient": "direct"}}, "fused": {"loss": {"impl": "triton"}}}


def run(*arguments: str | Path, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.run", *map(str, arguments)]
    variables = {**shell_environment(), "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=variables, check=False)


def config(folder: Path, root: Path, name: str = "experiment.yaml", **top: Any) -> Path:
    sections = {key: top.pop(key) for key in list(top) if key in ("train", "input", "loss", "model")}
    return write_yaml(folder / name, {**tiny_recipe(root, **sections), **top})


def results(out: Path) -> dict[str, Result]:
    return {path.parent.name: read_result(path) for path in sorted(out.glob("trials/*/result.json"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, face_set: Path) -> tuple[Path, Path, str]:
    """An experiment of three variants that has run: (config, output folder, what it printed)."""
    folder = tmp_path_factory.mktemp("run")
    path = config(folder, face_set, variants=VARIANTS, gates={"op_error": True})
    ended = run(path, "--out", folder / "out")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return path, folder / "out", ended.stdout


def test_every_trial_leaves_a_complete_result(finished: tuple[Path, Path, str], face_set: Path) -> None:
    _, out, _ = finished
    done = results(out)
    assert [result.variant for result in done.values()] == ["baseline", "direct", "fused"]
    for name, result in done.items():
        assert result.trial == name
        assert result.seed == 0
        assert (result.train_faces, result.test_faces, result.steps) == (12, 6, 6)
        assert result.config["data"]["root"] == str(face_set)
        assert result.environment.packages["torch"]
        assert result.environment.variables["OMP_NUM_THREADS"] == "1"
        assert result.environment.threads == 1
        with np.load(out / "trials" / name / "faces.npz", allow_pickle=False) as faces:
            assert faces["predicted"].shape == (6, 98, 2)
            assert result.metrics["test"].nme == pytest.approx(faces["nme"].mean(), rel=1e-12)
            assert result.mean_shape["test"].nme == pytest.approx(faces["mean_shape_nme"].mean(), rel=1e-12)
        assert {"checkpoint.pt", "curve.csv", "log.txt"} <= {path.name for path in (out / "trials" / name).iterdir()}


def test_every_way_to_the_gradient_ends_with_the_same_faces(finished: tuple[Path, Path, str]) -> None:
    _, out, _ = finished
    one, *others = (np.load(path)["predicted"] for path in sorted(out.glob("trials/*/faces.npz")))
    for other in others:  # pixels: Adam turns the last bit of a gradient into a step now and then
        assert abs(one - other).max() < 0.5


def test_a_fused_kernel_on_a_cpu_is_interpreted_and_the_report_says_so(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    variables = {result.variant: result.environment.variables for result in results(out).values()}
    assert variables["fused"]["TRITON_INTERPRET"] == "1"
    sentence = "The kernel of fused (seed 0) ran in Triton"
    assert sentence in printed
    assert sentence in (out / "report.html").read_text()


def test_the_terminal_and_the_page_show_the_results(finished: tuple[Path, Path, str]) -> None:
    _, out, printed = finished
    for result in results(out).values():
        assert result.metrics["test"].nme is not None
        assert f"{100 * result.metrics['test'].nme:.2f}" in printed
        assert f"{100 * result.metrics['test'].nme:.2f}" in (out / "report.html").read_text()
    assert f"report: {out / 'report.html'}" in printed
    assert (out / "contact_sheet.png").stat().st_size > 1000


def test_a_finished_trial_is_not_run_again(finished: tuple[Path, Path, str]) -> None:
    path, out, _ = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("trials/*/result.json")}
    ended = run(path, "--out", out)
    assert ended.returncode == 0
    assert ended.stdout.count("done before") == 3
    assert before == {file: file.stat().st_mtime_ns for file in out.glob("trials/*/result.json")}


def test_a_truncated_result_is_named_and_its_trial_runs_again(finished: tuple[Path, Path, str]) -> None:
    path, out, _ = finished
    file = next(out.glob("trials/direct-*/result.json"))
    content = file.read_bytes()
    file.write_bytes(content[:200])
    ended = run(path, "--out", out)
    assert ended.returncode == 0, ended.stderr
    assert f"{file}: not JSON" in ended.stderr
    assert ended.stdout.count("done before") == 2
    again, before = read_result(file), Result.model_validate_json(content)
    assert again.metrics == before.metrics


def test_a_folder_of_another_experiment_is_refused(
    finished: tuple[Path, Path, str], tmp_path: Path, face_set: Path
) -> None:
    _, out, _ = finished
    ended = run(config(tmp_path, face_set, name="other.yaml", description="x"), "--set", "name=other", "--out", out)
    assert ended.returncode == 2
    assert "holds the experiment 'tiny', not 'other'" in ended.stderr


def test_results_of_another_experiment_or_other_faces_do_not_count_as_done(
    finished: tuple[Path, Path, str], tmp_path: Path
) -> None:
    path, out, _ = finished
    shutil.copytree(out / "trials", tmp_path / "out" / "trials")
    ended = run(path, "--set", "name=other", "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert "done before" not in ended.stdout
    assert {result.experiment for result in results(tmp_path / "out").values()} == {"other"}

    write_face_set(tmp_path / "faces", train=12, test=5)
    settings = ("--set", "name=other", "--set", f"data.root={tmp_path / 'faces'}", "--out", tmp_path / "out")
    assert "done before" not in run(path, *settings).stdout
    test_list = tmp_path / "faces" / LIST_FOLDER / "list_98pt_rect_attr_test.txt"
    test_list.write_text("\n".join(test_list.read_text().splitlines()[:4]) + "\n")
    ended = run(path, *settings)
    assert ended.returncode == 0, ended.stderr
    assert "done before" not in ended.stdout


def test_a_gate_that_does_not_hold_exits_with_1(finished: tuple[Path, Path, str]) -> None:
    path, out, _ = finished
    ended = run(path, "--out", out, "--set", "gates.mean_shape_ratio=1e-6")
    assert ended.returncode == 1
    gates = json.loads((out / "gates.json").read_text())
    assert {gate["gate"] for gate in gates if not gate["passed"]} == {"beats the mean shape"}


def test_a_trial_that_crashes_is_missing_and_does_not_stop_the_others(tmp_path: Path, face_set: Path) -> None:
    # A step of 1e30 drives the weights out of range: one variant's loss stops being finite
    variants = {"broken": {"train": {"lr": 1e30, "schedule": "constant"}}, "good": {}}
    path = config(tmp_path, face_set, variants=variants, train={"steps": 12})
    ended = run(path, "--out", tmp_path / "out")
    assert ended.returncode == 3, ended.stdout + ended.stderr
    assert "1 of 2 trials are missing" in ended.stderr
    failure = json.loads(next((tmp_path / "out").glob("trials/broken-*/failure.json")).read_text())
    assert failure["kind"] == "non_finite_loss"
    assert failure["step"] >= 1
    assert len(failure["faces"]) == 4
    assert [result.variant for result in results(tmp_path / "out").values()] == ["good"]
    assert failure["message"] in (tmp_path / "out" / "report.html").read_text().replace("&#39;", "'")


def test_a_second_launcher_on_a_folder_says_so_and_stops(tmp_path: Path, face_set: Path) -> None:
    with claim(tmp_path / "out"):
        second = run(config(tmp_path, face_set), "--out", tmp_path / "out")
    assert second.returncode == 2
    assert f"another launcher (process {os.getpid()} on {platform.node()}) is at work here" in second.stderr
    assert not (tmp_path / "out" / "trials").exists()


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, face_set: Path) -> None:
    path = config(tmp_path, face_set, train={"steps": 400, "checkpoint_every": 5, "log_every": 5})
    command = [sys.executable, "-m", "bench.run", str(path), "--out", str(tmp_path / "out")]
    launcher = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("trials/*/checkpoint.pt")):
        assert time.monotonic() < deadline
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.05)
    launcher.send_signal(signal.SIGINT)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert "interrupted" in errors
    (folder,) = (tmp_path / "out" / "trials").iterdir()
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["kind"] == "interrupted"
    assert not (folder / "result.json").exists()
    stopped = re.search(r"stopped by SIGTERM after step (\d+)", failure["message"])
    assert stopped
    ended = run(path, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert f"resuming after step {stopped[1]} of 400" in (folder / "log.txt").read_text()
    assert read_result(folder / "result.json").steps == 400
    assert not (folder / "failure.json").exists()


def test_what_must_be_set_before_an_import_is_in_the_trials_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def environment(**changes: Any) -> dict[str, str]:
        return process_environment(Recipe.model_validate(tiny_recipe(Path(), **changes)))

    assert environment() == {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    assert "OMP_NUM_THREADS" not in environment(train={"threads": None})
    ranks = {"parallel": {"world_size": 2}}
    assert environment(train={"threads": None, **ranks})["OMP_NUM_THREADS"] == "1"  # or each would take all cores
    assert environment(train={"threads": 3, **ranks})["OMP_NUM_THREADS"] == "3"
    assert environment(loss={"impl": "triton"})["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert environment(loss={"impl": "triton"}, train={"device": "auto"})["TRITON_INTERPRET"] == "1"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert "TRITON_INTERPRET" not in environment(loss={"impl": "triton"}, train={"device": "auto"})
    assert "TRITON_INTERPRET" not in environment(loss={"impl": "triton"}, train={"device": "cuda"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml: no such file"),
        (["--set", "los.omega=5"], "--set los.omega: los.omega: no such key; did you mean loss?"),
        (["--set", "loss.omega=ten"], "loss.omega: must be a valid number (given: 'ten')"),
        (["--set", "data.kind=wflw", "--set", "data.root=/nowhere"], "/nowhere/WFLW_annotations/"),
        (["--detach"], "--detach needs a queue to leave the jobs in: --cluster slurm, not here"),
        (
            ["--start-within", "9", "--cluster", "local"],
            "--start-within is for trials that run here, not with --cluster",
        ),
        (["--set", "train.device=cuda", "--set", "data.train=64", "--set", "data.test=64"], "device cuda: "),
    ],
)
def test_wrong_input_exits_with_2_and_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    if message.startswith("device cuda"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    ended = run(*arguments, "--out", tmp_path / "out", cwd=tmp_path)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_pictures_that_cannot_be_read_exit_with_2_and_name_the_file(tmp_path: Path) -> None:
    write_face_set(tmp_path / "faces", train=8, test=4)
    path = config(tmp_path, tmp_path / "faces", train={"batch_size": 4})
    picture = tmp_path / "faces/WFLW_images/0--Test/train_3.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 3])
    ended = run(path, "--out", tmp_path / "out")
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert f"error: {picture}: not a readable image" in ended.stderr
    assert "Traceback" not in ended.stderr
    picture.unlink()
    ended = run(path, "--out", tmp_path / "out")
    assert ended.returncode == 2
    assert f"no such image: {picture}" in ended.stderr
    assert not list((tmp_path / "out").glob("trials/*/result.json"))


def test_an_output_folder_that_cannot_be_made_exits_with_2(tmp_path: Path, face_set: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run(config(tmp_path, face_set), "--out", tmp_path / "file" / "out")
    assert ended.returncode == 2
    assert str(tmp_path / "file") in ended.stderr
    assert "Traceback" not in ended.stderr
