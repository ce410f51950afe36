"""Make `gpu_check.json` of what the parts of a check have left: the figures, and every sample that they come from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench.export import finite
from bench.gpu_check.evidence import read_evidence, read_ledger
from bench.gpu_check.figures import figures
from bench.gpu_check.result import GPU_CHECK, GpuCheck, Machine, State
from bench.nme_verdicts import compare
from bench.result import read_record, write_record
from pose.errors import InputError

MACHINE = "machine.json"
_REASONS: dict[State, str] = {
    "done": "It could not be measured",
    "unfinished": "It is not finished",
    "failed": "It failed",
    "not run": "It was not run",
}


def identity() -> dict[str, str | None]:
    """What all parts of a check have in common: the code, the kind of GPU, and the software that drives it."""
    from bench.checkout import CODE, PACKAGES
    from bench.environment import environment
    from slurm.snapshot import content_digest

    here = environment()
    return {
        "code": content_digest([CODE / package for package in PACKAGES])[:16],
        "gpu": here.gpu,
        "driver": here.driver,
        "cuda": here.cuda,
        **{name: here.packages.get(name) for name in ("torch", "torchvision", "triton")},
    }


def note_machine(out: Path, command: str) -> None:
    """Leave what the GPU and its machine are, with the clocks of this moment, right after work."""
    import torch

    from bench.environment import environment
    from bench.kernels.counts import device_facts

    facts = device_facts(torch.device("cuda", torch.cuda.current_device()))
    write_record(Machine(environment=environment(), device=facts, command=command), out / MACHINE)


def merged(out: Path) -> GpuCheck:
    """The whole check, which is also left in the folder. Raises `InputError` for a file that cannot be believed."""
    ledger = read_ledger(out)
    if ledger is None:
        raise InputError(f"{out}: no GPU check was begun here")
    found = read_evidence(out)
    machine = read_record(out / MACHINE, Machine) if (out / MACHINE).exists() else None
    records = {task.name: task for task in ledger.tasks}

    def why(name: str) -> str:
        task = records.get(name)
        reason = _REASONS[task.state if task is not None else "not run"]
        return f"{reason}: {task.detail}" if task is not None and task.detail else reason

    trained = found.time_to_nme.results if found.time_to_nme is not None else ()
    parity = found.parity
    result = GpuCheck(
        identity=ledger.identity,
        environment=machine.environment if machine is not None else None,
        device=machine.device if machine is not None else {},
        command=machine.command if machine is not None else "",
        tasks=ledger.tasks,
        checks=figures(found, why),
        tests=found.tests,
        numerics=found.numerics,
        memory=list(found.memory),
        kernels=found.kernels,
        crops=found.crops,
        profiles=list(found.profiles),
        throughput=[trial.result for trial in found.throughput.timed] if found.throughput is not None else [],
        time_to_nme=[trial.result for trial in trained],
        parity=[trial.result for trial in parity.results] if parity is not None else [],
        levels=[trial.result for trial in parity.levels] if parity is not None else [],
        verdicts=[finite(asdict(one)) for one in compare(parity)] if parity is not None else [],
    )
    write_record(result, out / GPU_CHECK)
    return result
