"""How far trials are, as a launcher shows it that waits for some of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import write_yaml

from bench.result import Failure, write_record
from bench.status import rows
from bench.submissions import intent, write
from slurm.states import JobState

NAMES = {"a": "a-s0-0123456789", "b": "b-s0-0123456789", "c": "c-s0-0123456789"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An experiment of three trials, the first two of which were sent as jobs."""
    values = {"name": "e", "variants": {name: {} for name in NAMES}, "baseline": "a", "seeds": [0]}
    write_yaml(tmp_path / "experiment.yaml", {**values, "trials": list(NAMES.values())})
    sent = intent("e-1", "slurm", [NAMES["a"], NAMES["b"]], 1, 10, True, ("abc", False))
    write(sent.model_copy(update={"jobs": ["7_0", "7_1"]}), tmp_path / "jobs/20260101-000000.0-1")
    return tmp_path


def test_a_trial_that_its_launcher_has_given_up_has_failed_and_does_not_wait(out: Path) -> None:
    write_record(Failure(kind="signal", message="killed by SIGKILL"), out / "trials" / NAMES["a"] / "failure.json")
    found = rows(out, {NAMES["b"]: JobState("PENDING", "Priority")})
    assert [(row.state, row.job, row.note) for row in found] == [
        ("failed", "7_0", "killed by SIGKILL"),
        ("queued", "7_1", "Priority"),
        ("not sent", "", ""),
    ]


def test_a_running_trial_shows_what_it_says_of_itself(out: Path) -> None:
    status = out / "trials" / NAMES["b"] / "status.json"
    status.parent.mkdir(parents=True)
    status.write_text('{"phase": "training", "step": 3, "steps": 9, "loss": 0.5, "images_per_second": 20, "eta": 61.0}')
    row = rows(out, {NAMES["b"]: JobState("RUNNING", nodes="node1")})[1]
    assert (row.state, row.nodes, row.step, row.steps, row.eta) == ("running", "node1", 3, 9, 61.0)
    assert (row.note, row.loss, row.speed) == ("training", 0.5, 20)
