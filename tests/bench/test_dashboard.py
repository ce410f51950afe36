"""The live view while trials run here."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, shell_environment, tiny_recipe, write_yaml

from bench.board import Board
from bench.config import load_experiment
from bench.plan import Trial, plan
from bench.status import SHOWN, Row, group

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def experiment(folder: Path, faces: Path, **top: Any) -> Path:
    values = {
        **tiny_recipe(faces, train={"steps": 40, "log_every": 1}),
        "variants": {"a": {}, "b": {}},
        "gates": {"op_error": False},
    }
    return write_yaml(folder / "experiment.yaml", {**values, **top})


def environment() -> dict[str, str]:
    seen = {name: value for name, value in shell_environment().items() if not name.startswith("PYTEST")}
    return {**seen, "TERM": "xterm-256color", "COLUMNS": "130", "LINES": "40"}


def on_terminal(command: list[str]) -> tuple[str, int]:
    """What a command writes to a terminal, and its exit code."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(REPOSITORY)
        os.execve(command[0], command, environment())
    said = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not more:
            break
        said += more
    os.close(terminal)
    return said.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def command(path: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "bench.run", str(path), "--out", str(out)]


def test_a_terminal_shows_a_table_that_is_gone_when_the_report_comes(face_set: Path, tmp_path: Path) -> None:
    said, code = on_terminal(command(experiment(tmp_path, face_set), tmp_path / "out"))
    assert code == 0, said
    plain = ESCAPE.sub("", said)
    assert re.search(r"a-s0-[0-9a-f]{10}\s+running", plain)
    assert re.search(r"b-s0-[0-9a-f]{10}\s+queued", plain)
    assert "2 trials: 1 running, 1 queued" in plain
    assert "need about" in plain  # once the first is finished
    for line in ("[1/2] a, seed 0: NME ", "[2/2] b, seed 0: NME "):
        assert plain.count(line) == 1
    end = plain[plain.rindex("2 of 2 trials are done") :]
    assert "NME x 100" in end
    assert "queued" not in end
    assert "report: " in end


def test_elsewhere_there_are_plain_lines_and_no_control_characters(face_set: Path, tmp_path: Path) -> None:
    ended = subprocess.run(
        command(experiment(tmp_path, face_set), tmp_path / "out"),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    assert "queued" not in ended.stdout + ended.stderr
    assert [line for line in ended.stdout.splitlines() if line.startswith("[")][1].startswith("[2/2] b, seed 0: NME ")


def trials(tmp_path: Path, count: int) -> list[Trial]:
    path = experiment(tmp_path, Path("faces"), seeds=list(range(count)))
    return plan(*load_experiment(path), "faces")


def test_rows_say_what_is_done_failed_running_and_to_come(tmp_path: Path) -> None:
    planned = trials(tmp_path, 2)
    board = Board(planned, tmp_path / "out", None)
    board.done_before(planned[0])
    board.begin(planned[1])
    board.end(planned[1], "see log.txt")
    board.begin(planned[2])
    status = planned[2].folder(tmp_path / "out") / "status.json"
    status.parent.mkdir(parents=True)
    look = {"phase": "training", "step": 3, "steps": 9, "loss": 0.5, "images_per_second": 20.0, "eta": 61.0}
    status.write_text(json.dumps(look))
    done, failed, running, queued = board.rows()
    assert (done.state, failed.state, failed.note, queued.state) == ("done", "failed", "see log.txt", "queued")
    assert (running.state, running.step, running.steps, running.loss, running.speed, running.eta) == (
        "running", 3, 9, 0.5, 20.0, 61.0
    )  # fmt: skip


def test_what_is_left_is_estimated_from_trials_of_the_same_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("bench.board.time.monotonic", lambda: now[0])
    planned = trials(tmp_path, 3)  # a b, a b, a b
    board = Board(planned, tmp_path / "out", None)
    assert board.seconds_left() is None
    for trial, seconds in zip(planned[:2], (10.0, 30.0), strict=True):
        board.begin(trial)
        now[0] += seconds
        board.end(trial)
    assert board.seconds_left() == 2 * 10 + 2 * 30
    board.begin(planned[2])
    now[0] += 4
    assert board.seconds_left() == 6 + 30 + 10 + 30
    now[0] += 100  # longer than expected
    assert board.seconds_left() == 0 + 30 + 10 + 30


def test_of_very_many_trials_those_of_interest_are_shown() -> None:
    from rich.console import Console

    rows = [Row(f"t{i}", "done") for i in range(5000)] + [Row("now", "running"), Row("bad", "failed")]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(group(rows))
    text = captured.get()
    assert "now" in text
    assert "bad" in text
    assert text.count("done") == SHOWN - 2 + 1  # and in the summary
    assert "5002 trials: 5000 done, 1 running, 1 failed" in text
