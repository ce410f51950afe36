"""Run trials as jobs: send what is missing, wait for what was sent, whoever sent it."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bench import caches, submissions
from bench.block import block_call
from bench.checkout import CODE, PACKAGES, checkout
from bench.experiment import TRIALS
from bench.launch import finished_result, in_short, prepared_call, terminated_like_interrupted
from bench.outcome import NOT_ITS_FAULT, failure_of
from bench.plan import Trial
from bench.resources import MAX_REQUEUES
from bench.result import FAILURE, RESULT, THROUGHPUT, Failure, write_record
from bench.submissions import Job
from pose.errors import InputError
from slurm.backend import Kind, backend
from slurm.cluster import Slurm
from slurm.local import Local
from slurm.marks import note_cancelled
from slurm.request import Refused, Request
from slurm.snapshot import snapshot
from slurm.states import JobState, Silent

RESUBMISSIONS = 3  # of a trial whose nodes were taken away, by one launcher
SETTLE_SECONDS = 5.0  # between a job's end and the verdict on it: its last files may be on their way from another node
POLL_SECONDS = (1.0, 15.0)  # from the first look to the last of a long wait
BACK = ("PENDING", "REQUEUED", "REQUEUE_HOLD")  # where a job is before it runs, the first time or again
LINE_SECONDS = 60.0  # between lines that say what is still running


@dataclass
class _Waiting:
    """What this launcher waits for, and how often it has sent each trial."""

    jobs: dict[str, Job] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    over_since: dict[str, float] = field(default_factory=dict)
    resubmitted: dict[str, int] = field(default_factory=dict)


class Dispatcher:
    """Sends trials of one experiment to one cluster, and waits for them.

    Only `out` is remembered: a launcher that is started again, after whatever end of the one before it, finds there
    what was sent.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        out: Path,
        requests: Mapping[str, Request],
        cluster: Slurm | Local,
        parallel: int | None,
    ) -> None:
        self._trials = {trial.id: trial for trial in trials}
        self._labels = {
            trial.id: f"[{number}/{len(trials)}] {trial.variant}, {trial.label}"
            for number, trial in enumerate(trials, start=1)
        }
        self._out = out
        self._requests = requests
        self._cluster = cluster
        self._parallel = parallel if parallel is not None or cluster.detached else 1
        self._held: list[Trial] = []  # what may not be sent yet, where there is no queue but this
        self._waiting = _Waiting()

    def run(self, *, detach: bool = False) -> str | None:
        """Send what has neither a result nor a job that is alive, and unless `detach` wait until all jobs are over.

        Returns None, or the sentence of a trial that found the user's input wrong: the rest is then cancelled.
        Raises `InputError` where the cluster refuses a job; nothing that this call has sent stays queued then.
        """
        with terminated_like_interrupted():
            self._settle()
            self._send(self._adopt())
            if detach:
                return None
            try:
                return self._wait()
            except KeyboardInterrupt:
                count = len(self._waiting.jobs)
                if count:
                    print(
                        f"{count} job{'s' if count > 1 else ''} of this experiment go{'es' if count == 1 else ''} on "
                        "without this launcher; the same command waits for them again, with --status it shows and "
                        "with --cancel it ends them",
                        file=sys.stderr,
                    )
                raise

    def _settle(self) -> None:
        """End what a launcher sent that died before it knew what: none of that can run without it."""
        for folder, submission in submissions.read_all(self._out):
            if submission.jobs is None:
                try:
                    for job in backend(submission.cluster).end_orphans(submission.name, folder):
                        print(f"job {job} was sent by a launcher that died meanwhile: cancelled", file=sys.stderr)
                except Silent as error:
                    raise InputError(f"{error}: cannot tell what was sent before; try again later") from None
                submissions.write(submission.model_copy(update={"jobs": []}), folder)

    def _adopt(self) -> list[Trial]:
        """Find the jobs of earlier launchers; returns the trials that have neither a result nor a job."""
        everything = list(self._trials.values())
        unfinished = [
            trial
            for trial in everything
            if finished_result(trial, self._out) is None or caches.wanted_again(trial, everything, self._out)
        ]
        done = len(everything) - len(unfinished)
        if done:
            print(f"{done} of {len(everything)} trials: done before")
        refuse_alive(self._out, but_of=self._cluster.kind)
        jobs = submissions.latest(submissions.read_all(self._out))
        mine = [jobs[trial.id] for trial in unfinished if trial.id in jobs]
        mine = [job for job in mine if job.submission.cluster == self._cluster.kind]
        try:
            states = submissions.look(mine, self._cluster)
        except Silent as error:
            raise InputError(f"{error}: cannot tell what was sent before; try again later") from None
        for job in mine:
            label, state = self._labels[job.trial], states[job.id]
            if state.alive:
                self._waiting.jobs[job.trial] = job
                print(f"{label}: job {job.id} is {_words(state)}")
            else:
                failure = failure_of(job, state, self._trials[job.trial].folder(self._out))
                print(f"{label}: FAILED before ({failure.message}); runs again", file=sys.stderr)
        return [trial for trial in unfinished if trial.id not in self._waiting.jobs]

    # What is sent

    def _send(self, trials: Sequence[Trial]) -> None:
        """Send `trials`, or hold them back where the cluster has no queue."""
        if not self._cluster.detached:
            self._held += trials
            self._send_held()
            return
        before = dict(self._waiting.jobs)
        last: list[str] = []
        try:
            for group in self._groups(trials):
                needed = [name for trial in group for name in trial.needs]
                after = [self._waiting.jobs[name].id for name in needed if name in self._waiting.jobs]
                jobs = self._submit(group, [*after, *(last if self._parallel is not None else ())])
                last = sorted({job.id.partition("_")[0] for job in jobs})
        except Refused as error:
            cancel(job for trial, job in self._waiting.jobs.items() if trial not in before)
            raise InputError(f"the cluster refuses the job: {error}") from None

    def _send_held(self) -> None:
        room = (self._parallel or 1) - len(self._waiting.jobs)
        for trial in list(self._held):
            if room <= 0:
                return
            held = {other.id for other in self._held}
            if any(name in self._waiting.jobs or name in held for name in trial.needs):
                continue
            self._held.remove(trial)
            self._submit([trial], [])
            room -= 1

    def _groups(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Trials that go as one job each, or as one array: of equal requests, and not more than an array may have.

        One that needs what another leaves goes by itself, after that. Measurements of speed go as blocks.
        """
        assert isinstance(self._cluster, Slurm)
        alike: dict[Request, list[Trial]] = {}
        blocks: dict[tuple[Request, int], list[Trial]] = {}
        alone = []
        for trial in trials:
            request = self._requests[trial.id]
            if trial.needs:
                alone.append([trial])
            elif trial.block is not None:
                blocks.setdefault((request, trial.block), []).append(trial)
            else:
                alike.setdefault(request, []).append(trial)
        most = self._cluster.largest_array() if any(len(group) > 1 for group in alike.values()) else 1
        split = [group[start : start + most] for group in alike.values() for start in range(0, len(group), most)]
        return [*split, *blocks.values(), *alone]

    @cached_property
    def _code(self) -> tuple[tuple[str | None, bool | None], Path]:
        """Commit and copy of the code, the same for all that this launcher sends."""
        commit = checkout(CODE)
        packages = [CODE / package for package in PACKAGES]
        return commit, snapshot(packages, self._out.absolute() / submissions.CODE, *commit)

    def _submit(self, trials: Sequence[Trial], after: Sequence[str]) -> list[Job]:
        request = self._requests[trials[0].id]
        folder = submissions.new_folder(self._out)
        name = submissions.job_name(trials[0].experiment, folder)
        commit, code = self._code
        calls = []
        for trial in trials:
            call = prepared_call(trial, self._out, request.gpus_per_rank > 0 if self._cluster.detached else None)
            calls.append(call.resumable(MAX_REQUEUES) if request.requeue else call)
        block = self._cluster.detached and trials[0].block is not None
        if block:
            folder.mkdir(parents=True, exist_ok=True)
            calls = [block_call(calls, [trial.record(self._out) for trial in trials], folder)]
        intent = submissions.intent(
            name, self._cluster.kind, [t.id for t in trials], request.ranks, request.minutes, request.requeue, commit
        )
        submissions.write(intent, folder)
        try:
            ids = self._cluster.submit(
                calls, request, name=name, folder=folder, search_path=code, parallel=self._parallel, after=after
            )
        except Refused:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        ids = ids * len(trials) if block else ids
        submission = intent.model_copy(update={"jobs": ids})
        submissions.write(submission, folder)
        jobs = [Job(trial.id, job, folder, submission) for trial, job in zip(trials, ids, strict=True)]
        for job in jobs:
            self._waiting.jobs[job.trial] = job
        if len(jobs) == 1:
            print(f"{self._labels[trials[0].id]}: sent as job {ids[0]}")
        elif block:
            print(f"{len(jobs)} measurements: sent as job {ids[0]}, in which they alternate")
        else:
            limit = f", {self._parallel} at a time" if self._parallel is not None else ""
            print(f"{len(jobs)} trials: sent as jobs {ids[0]} to {ids[-1]}{limit}")
        sys.stdout.flush()
        return jobs

    # What is waited for

    def _wait(self) -> str | None:
        from bench.status import watching

        pause = POLL_SECONDS[0]
        silent = False
        with watching(self._out, LINE_SECONDS) as show:
            while self._waiting.jobs or self._held:
                try:
                    states = submissions.look(self._waiting.jobs.values(), self._cluster)
                    if silent:
                        print("the cluster answers again", file=sys.stderr)
                    silent = False
                except Silent as error:
                    if not silent:
                        print(f"warning: {error}; waiting until one does", file=sys.stderr)
                    silent = True
                    states = {}
                changed, unusable_input = self._take(states)
                if unusable_input is not None:
                    cancel(self._waiting.jobs.values())
                    return unusable_input
                if self._held:
                    self._send_held()
                show({trial: self._waiting.states.get(trial) for trial in self._waiting.jobs})
                pause = POLL_SECONDS[0] if changed else min(pause * 1.1, POLL_SECONDS[1])
                if self._waiting.jobs:
                    time.sleep(min(pause, SETTLE_SECONDS) if self._waiting.over_since else pause)
        return None

    def _take(self, states: Mapping[str, JobState]) -> tuple[bool, str | None]:
        """Act on the jobs' states: whether any has changed, and the sentence of a trial with unusable input."""
        changed = False
        again: list[Trial] = []  # sent together: those of a block belong into one job
        running = {self._waiting.jobs[name].id for name, s in self._waiting.states.items() if s.name == "RUNNING"}
        for name, job in list(self._waiting.jobs.items()):
            trial = self._trials[name]
            result = finished_result(trial, self._out) if trial.record(self._out).exists() else None
            if result is not None:
                print(f"{self._labels[name]}: {in_short(result)}, job {job.id}", flush=True)
                self._forget(name)
                changed = True
                continue
            state = states.get(job.id)
            if state is None:
                continue
            before = self._waiting.states.get(name)
            if before is None or before.name != state.name:
                changed = True
                if state.name == "RUNNING" and job.id not in running:
                    running.add(job.id)
                    print(f"{self._labels[name]}: job {job.id} runs on {state.nodes or 'this machine'}", flush=True)
                elif before is not None and state.name in BACK and before.name not in BACK:
                    print(f"{self._labels[name]}: job {job.id} is {_words(state)} again", flush=True)
            self._waiting.states[name] = state
            if state.hopeless:
                cancel(self._waiting.jobs.values())
                raise InputError(f"the cluster will never start job {job.id} ({state.reason}); all jobs are cancelled")
            if state.alive:
                self._waiting.over_since.pop(name, None)
            elif time.monotonic() - self._waiting.over_since.setdefault(name, time.monotonic()) >= SETTLE_SECONDS:
                changed = True
                failure = failure_of(job, state, trial.folder(self._out))
                self._forget(name)
                if failure.kind == "input":
                    return True, failure.message
                if self._may_be_sent_again(trial, job, failure):
                    again.append(trial)
        if again:
            self._send(again)
        return changed, None

    def _may_be_sent_again(self, trial: Trial, job: Job, failure: Failure) -> bool:
        """Whether it was lost through no fault of its own; else it is given up."""
        label, log = self._labels[trial.id], trial.folder(self._out) / "log.txt"
        again = self._waiting.resubmitted.get(trial.id, 0) + 1
        if failure.kind in NOT_ITS_FAULT and again <= RESUBMISSIONS:
            print(f"{label}: job {job.id} lost ({failure.message}); sent again", file=sys.stderr, flush=True)
            self._waiting.resubmitted[trial.id] = again
            return True
        write_record(failure, trial.folder(self._out) / FAILURE)
        print(f"{label}: FAILED, job {job.id}, see {log}: {failure.message}", file=sys.stderr)
        print(failure.traceback or failure.log or "", end="", file=sys.stderr, flush=True)
        return False

    def _forget(self, name: str) -> None:
        for known in (self._waiting.jobs, self._waiting.states, self._waiting.over_since):
            known.pop(name, None)


def cancel(jobs: Iterable[Job]) -> list[str]:
    """End those of `jobs` that are alive, each on the cluster it was sent to; returns the ids of those."""
    by_folder: dict[Path, list[Job]] = {}
    for job in jobs:
        by_folder.setdefault(job.folder, []).append(job)
    ended: list[str] = []
    for folder, group in by_folder.items():
        sent = group[0].submission
        ids = list(dict.fromkeys(job.id for job in group))  # measurements of a block share one
        cancelled = backend(sent.cluster).cancel(ids, name=sent.name, folder=folder)
        for one in cancelled:
            note_cancelled(folder, one)
        ended += cancelled
    return ended


def refuse_alive(out: Path, but_of: Kind | None = None) -> None:
    """Raise `InputError` where jobs that were sent to another cluster than `but_of` are alive and have no result."""
    unfinished = [
        job
        for job in submissions.latest(submissions.read_all(out)).values()
        if not any((out / TRIALS / job.trial / record).exists() for record in (RESULT, THROUGHPUT))
    ]
    for kind, jobs in submissions.by_cluster(unfinished).items():
        if kind == but_of:
            continue
        try:
            states = submissions.look(jobs, backend(kind))
        except (Refused, Silent) as error:
            raise InputError(f"{error}: cannot tell whether jobs that were sent there are still at work") from None
        if any(state.alive for state in states.values()):
            raise InputError(f"{out}: jobs of --cluster {kind} are still at work here; --cancel ends them")


def _words(state: JobState) -> str:
    return state.name.lower() + (f" ({state.reason})" if state.name == "PENDING" and state.reason else "")
