"""Run the parts of a GPU check one after the other, within a time limit; the same call again goes on."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

from bench.checkout import CODE
from bench.gpu_check.evidence import LEDGER, read_ledger
from bench.gpu_check.result import Ledger, State, TaskRecord
from bench.gpu_check.tasks import MISSING, Task
from bench.result import write_record
from pose.errors import InputError
from slurm.ranks import Rank, end

GRACE_SECONDS = 15.0  # from the request to stop on
Identity = Mapping[str, str | None]


def run(wanted: Sequence[Task], tasks: Sequence[Task], out: Path, identity: Identity, limit: float) -> Ledger:
    """Run what is not done of `wanted`, for `limit` seconds at most; what failed before comes last.

    The ledger lists all `tasks`, and is written after each. identity: of the code and the machine. Raises `InputError`
    if the folder holds a check of others.
    """
    begun = time.monotonic()
    before = read_ledger(out)
    if before is not None and before.identity != dict(identity):
        other = ", ".join(key for key in identity if before.identity.get(key) != identity[key])
        raise InputError(f"{out / LEDGER}: a check of something else ({other} differs); choose another --out")
    records = {record.name: record for record in before.tasks} if before is not None else {}
    ledger = _write(out, identity, tasks, records)
    for task in _in_turn(wanted, records):
        left = limit - (time.monotonic() - begun)
        if left < task.needs:
            print(f"{task.name}: left for the next time: {left:.0f} s are left of {limit:.0f}", flush=True)
            continue
        earlier = records[task.name].seconds if task.name in records else 0.0
        one = _run(task, out, left)
        records[task.name] = one.model_copy(update={"seconds": earlier + one.seconds})
        ledger = _write(out, identity, tasks, records)
    return ledger


def _in_turn(tasks: Sequence[Task], records: Mapping[str, TaskRecord]) -> list[Task]:
    """What is to run: unfinished parts, then failed ones, each stage's preparation before the first of its parts."""

    def state(task: Task) -> str:
        return records[task.name].state if task.name in records else "not run"

    wanted = [task for task in tasks if not task.always and state(task) != "done"]
    wanted.sort(key=lambda task: state(task) == "failed")
    found: list[Task] = []
    for task in wanted:
        found += [one for one in tasks if one.always and one.stage == task.stage and one not in found]
        found.append(task)
    return found


def _run(task: Task, out: Path, left: float) -> TaskRecord:
    command = task.command(out, left)
    print(f"== {task.name}: {shlex.join(command)}", flush=True)
    log = out / "logs" / f"{task.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(CODE), os.environ.get("PYTHONPATH"))))
    ended: SimpleQueue[Rank] = SimpleQueue()
    begun = time.monotonic()
    stopped = False
    with log.open("ab", buffering=0) as file:

        def write(line: bytes) -> None:
            file.write(line)
            sys.stdout.write(line.decode(errors="replace"))
            sys.stdout.flush()

        environment = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        process = Rank(0, command, environment, write, ended)
        try:
            ended.get(timeout=max(1.0, left - GRACE_SECONDS))
        except Empty:
            stopped = True
            end([process], GRACE_SECONDS)
        except BaseException:
            end([process], GRACE_SECONDS)
            raise
        finally:
            process.kill()
    state, detail = _outcome(task, out, process, stopped)
    seconds = time.monotonic() - begun
    print(f"== {task.name}: {state} after {seconds:.0f} s{f': {detail}' if detail else ''}", flush=True)
    return TaskRecord(
        stage=task.stage, name=task.name, state=state, seconds=seconds, command=shlex.join(command), detail=detail
    )


def _outcome(task: Task, out: Path, process: Rank, stopped: bool) -> tuple[State, str]:
    if stopped:
        return "unfinished", "stopped at the time limit"
    code = process.exit_code
    if code in task.ends and (out / task.leaves).exists():
        return "done", ""
    if code == MISSING:
        failed = _failed_trials(out / task.leaves)
        return ("failed", failed) if failed else ("unfinished", "not all of it was begun")
    cause = f"killed by {process.signal}" if process.signal else f"exit code {code}"
    lines = process.tail.strip().splitlines()
    told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
    return "failed", f"{cause}: {told[:300]}" if told else cause


def _failed_trials(leaves: Path) -> str:
    from bench.experiment import read_experiment

    failures = read_experiment(leaves.parent).failures
    return "; ".join(f"{one.folder.name}: {one.failure.message[:200]}" for one in failures[:3])


def _write(out: Path, identity: Identity, tasks: Sequence[Task], records: Mapping[str, TaskRecord]) -> Ledger:
    empty = {
        task.name: TaskRecord(stage=task.stage, name=task.name, state="not run", seconds=0.0, command="")
        for task in tasks
        if not task.always
    }
    ledger = Ledger(identity=dict(identity), tasks=list({**empty, **records}.values()))
    write_record(ledger, out / LEDGER)
    return ledger
