"""What became of a trial that ran as a job."""

from __future__ import annotations

from pathlib import Path

from bench.result import FAILURE, Failure, read_failure
from bench.submissions import Job
from pose.errors import InputError
from slurm.ending import Ending, ending
from slurm.states import JobState

# Ends that say nothing of the trial: it may be sent again
NOT_ITS_FAULT = ("node_fail", "preempted", "interrupted")


def failure_of(job: Job, state: JobState, trial_folder: Path) -> Failure:
    """Why a trial has no result although its job is over.

    What the trial has left itself tells most; unless it is what an earlier attempt left, or what one rank met as it
    lost another.
    """
    submission = job.submission
    found = ending(state, job.folder, job.id, submission.ranks, submission.minutes)
    own = _own(trial_folder)
    if own is not None and own.attempt >= found.attempt and _tells(own, found):
        return own
    return Failure(**vars(found), job=job.id, checkpoint=own.checkpoint if own is not None else None)


def _tells(own: Failure, found: Ending) -> bool:
    """Whether what a trial says is the cause of its end, rather than what followed from that."""
    by_slurm = found.kind in ("cancelled", "timeout", "preempted", "node_fail")
    if own.lost_rank:
        return not by_slurm and found.rank is None
    return not (own.kind == "interrupted" and by_slurm)


def _own(trial_folder: Path) -> Failure | None:
    try:
        return read_failure(trial_folder / FAILURE)
    except (InputError, OSError):
        return None
