"""What is made of what Slurm's commands say, and of what they do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import dispatch, submissions
from slurm.ending import ending
from slurm.marks import begin, end
from slurm.states import JobState, Silent, Step, states

SACCT = """12_0|COMPLETED|0:0|node1
12_0.batch|COMPLETED|0:0|node1
12_1|FAILED|1:0|node[1-2]
12_1.batch|FAILED|1:0|node1
12_1.0|OUT_OF_MEMORY|0:125|node[1-2]
13|CANCELLED by 1000|0:0|None assigned
14_[2-3,5%2]|PENDING|0:0|None assigned
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose programs are all that can be found."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def program(folder: Path, name: str, text: str = "", code: int = 0) -> None:
    (folder / f"{name}.txt").write_text(text)
    (folder / name).write_text(f"#!/bin/sh\ncat '{folder}/{name}.txt'\nexit {code}\n")
    (folder / name).chmod(0o755)


def test_the_accounting_tells_of_ended_jobs_and_their_steps(commands: Path) -> None:
    program(commands, "squeue")
    program(commands, "sacct", SACCT)
    found = states(["12_0", "12_1", "13"])
    assert found["12_0"].name == "COMPLETED"
    assert found["12_1"].steps == (Step("batch", "FAILED", 1, 0), Step("0", "OUT_OF_MEMORY", 0, 125))
    assert found["13"] == JobState("CANCELLED", "by 1000")
    assert not any(state.alive for state in found.values())


def test_a_job_that_is_back_in_the_queue_is_alive_whatever_the_accounting_says(commands: Path) -> None:
    program(commands, "squeue", "13|PENDING|BeginTime|\n")
    program(commands, "sacct", "13|NODE_FAIL|1:0|node2\n")
    assert states(["13"])["13"] == JobState("PENDING", "BeginTime")


def test_an_accounting_that_lags_behind_does_not_keep_an_ended_job_alive(commands: Path) -> None:
    program(commands, "squeue", "13|FAILED|NonZeroExitCode|node1\n")
    program(commands, "sacct", "13|RUNNING|0:0|node1\n")
    program(commands, "scontrol", "JobId=13 JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0\n")
    assert states(["13"])["13"] == JobState("FAILED", "NonZeroExitCode", "node1", exit_code=3)


def test_without_accounting_the_controller_is_enough(commands: Path) -> None:
    program(commands, "squeue", "13|FAILED|NonZeroExitCode|node1\n14|RUNNING|None|node2\n")
    program(commands, "sacct", code=1)
    program(commands, "scontrol", "JobId=13 JobState=FAILED Reason=NonZeroExitCode ExitCode=0:9\n")
    found = states(["13", "14", "15"])
    assert (found["13"].signal, found["13"].alive) == (9, False)
    assert found["14"].alive
    assert found["15"] == JobState("GONE")


def test_without_the_controller_the_accounting_is_enough(commands: Path) -> None:
    program(commands, "squeue", code=1)
    program(commands, "sacct", SACCT)
    found = states(["12_0", "14_3"])
    assert (found["12_0"].name, found["14_3"].name) == ("COMPLETED", "PENDING")


def test_a_cluster_that_says_nothing_is_no_end_of_a_job(commands: Path) -> None:
    program(commands, "squeue", code=1)
    program(commands, "sacct", code=1)
    with pytest.raises(Silent):
        states(["13"])


def test_a_command_that_hangs_is_not_waited_for(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slurm.client.ANSWER_SECONDS", 0.3)
    (commands / "squeue").write_text("#!/bin/sh\nexec sleep 60\n")
    (commands / "squeue").chmod(0o755)
    program(commands, "sacct", SACCT)
    assert states(["13"])["13"].name == "CANCELLED"


@pytest.mark.parametrize(
    ("state", "kind", "message"),
    [
        (JobState("TIMEOUT"), "timeout", "ran into its time limit of 10 minutes"),
        (JobState("NODE_FAIL", nodes="node2"), "node_fail", "a node failed (node2)"),
        (JobState("PREEMPTED"), "preempted", "another job took its nodes"),
        (JobState("CANCELLED", "by 1000"), "cancelled", "was cancelled by 1000"),
        (JobState("FAILED", steps=(Step("0", "OUT_OF_MEMORY", 0, 125),)), "out_of_memory", "out of memory"),
        (JobState("FAILED", signal=11), "signal", "killed by SIGSEGV"),
        (JobState("FAILED", exit_code=7), "exception", "ended with exit code 7 and no result"),
        (JobState("GONE"), "exception", "ended without a result, and Slurm does not know it any more"),
    ],
    ids=lambda value: value.name if isinstance(value, JobState) else "",
)
def test_the_reason_of_an_end_is_in_the_states(tmp_path: Path, state: JobState, kind: str, message: str) -> None:
    found = ending(state, tmp_path, "12", ranks=4, minutes=10)
    assert (found.kind, found.message) == (kind, message)


def test_a_job_that_was_cancelled_before_it_began_is_so_though_slurm_has_forgotten_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cluster:
        def cancel(self, jobs: Sequence[str], *, name: str, folder: Path) -> list[str]:
            return [job for job in jobs if job != "12_0"]  # which has ended by itself

    monkeypatch.setattr(dispatch, "backend", lambda kind: Cluster())
    sent = submissions.intent("a", "slurm", ["t0", "t1"], 1, 10, False, (None, None))
    sent = sent.model_copy(update={"jobs": ["12_0", "12_1"]})
    assert dispatch.cancel(submissions.everything([(tmp_path, sent)])) == ["12_1"]
    kinds = [ending(JobState("GONE"), tmp_path, job, ranks=1).kind for job in ("12_0", "12_1")]
    assert kinds == ["exception", "cancelled"]


def test_the_rank_that_failed_first_is_told_with_its_traceback(tmp_path: Path) -> None:
    marks = [begin(tmp_path, "12", rank, attempt=0) for rank in range(4)]
    end(tmp_path, "12", marks[2], 1, "Traceback\nValueError: first\n")
    end(tmp_path, "12", marks[0], 1, "Traceback\nRuntimeError: second\n")
    found = ending(JobState("FAILED", exit_code=1), tmp_path, "12", ranks=4)
    assert (found.rank, found.message) == (2, "rank 2 of 4: ValueError: first")
    assert found.traceback == "Traceback\nValueError: first\n"


def test_what_an_earlier_attempt_left_is_no_reason(tmp_path: Path) -> None:
    end(tmp_path, "12", begin(tmp_path, "12", 0, attempt=0), 1, "Traceback\nRuntimeError: old\n")
    begin(tmp_path, "12", 1, attempt=1)
    found = ending(JobState("FAILED", signal=9), tmp_path, "12", ranks=2)
    assert (found.kind, found.attempt, found.traceback) == ("signal", 1, None)


def test_of_ranks_that_were_killed_srun_names_the_first(tmp_path: Path) -> None:
    text = "srun: error: node2: task 3: Segmentation fault\nsrun: error: node1: tasks 0-1: Killed\n"
    (tmp_path / "12_0_log.out").write_text(text)
    found = ending(JobState("FAILED", signal=11), tmp_path, "12", ranks=4)
    assert (found.kind, found.rank, found.message) == ("signal", 3, "rank 3 of 4: killed by SIGSEGV")


def test_a_rank_that_was_killed_is_the_cause_and_not_what_the_others_noted_before_they_were(tmp_path: Path) -> None:
    marks = [begin(tmp_path, "12", rank, attempt=0) for rank in range(2)]
    end(tmp_path, "12", marks[0], 3, None)
    text = "srun: error: node2: task 1: Killed\nsrun: error: node1: task 0: Exited with exit code 3\n"
    (tmp_path / "12_0_log.out").write_text(text)
    found = ending(JobState("FAILED", signal=9), tmp_path, "12", ranks=2)
    assert (found.kind, found.rank, found.message) == (
        "signal",
        1,
        f"rank 1 of 2: killed by SIGKILL on {marks[1].host}",
    )
