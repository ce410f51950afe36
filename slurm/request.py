"""What a job asks of the cluster."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

GpuRequest = Literal["gpus_per_node", "gpus_per_task", "gres"]


class Refused(Exception):
    """The cluster does not take a job: its text is the scheduler's own sentence."""


@dataclass(frozen=True)
class Request:
    """Nodes, ranks and limits of a job; what is None is left to the cluster. Equal requests can share an array."""

    nodes: int = 1
    ranks_per_node: int = 1
    gpus_per_rank: int = 0
    gpu_request: GpuRequest = "gpus_per_node"  # clusters differ in which they take
    gpu_type: str | None = None  # "h100", where a type has to be named
    cpus_per_rank: int | None = None
    memory_gb: float | None = None  # per node
    minutes: int = 60
    signal_seconds: int = 120  # how long before the limit a job is told of it
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    setup: tuple[str, ...] = ()  # lines of shell, run on the first node before the ranks start
    requeue: bool = False  # whether Slurm may start the job again after a preemption or the death of a node

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node

    def parameters(self) -> dict[str, Any]:
        """The parameters of submitit's `SlurmExecutor`."""
        more: dict[str, Any] = {"requeue" if self.requeue else "no-requeue": True}
        gpus = self.gpus_per_rank if self.gpu_request == "gpus_per_task" else self.gpus_per_rank * self.ranks_per_node
        if gpus:
            typed = f"{self.gpu_type}:{gpus}" if self.gpu_type else str(gpus)
            name = self.gpu_request.replace("_", "-")
            more[name] = f"gpu:{typed}" if name == "gres" else typed
        setup = list(self.setup)
        if self.cpus_per_rank is not None:  # from Slurm 22.05 on srun does not inherit it, up to 23.11
            setup.append(f"export SRUN_CPUS_PER_TASK={self.cpus_per_rank}")
        if self.memory_gb is not None:
            more["mem"] = f"{round(self.memory_gb * 1024)}M"
        values = {
            "nodes": self.nodes,
            "ntasks_per_node": self.ranks_per_node,
            "cpus_per_task": self.cpus_per_rank,
            "time": self.minutes,
            "signal_delay_s": min(self.signal_seconds, self.minutes * 30),
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "exclusive": self.exclusive or None,
        }
        return {
            **{name: value for name, value in values.items() if value is not None},
            "wckey": None,
            "setup": setup,
            "additional_parameters": more,
            "stderr_to_stdout": True,
            "srun_args": ["--kill-on-bad-exit=1"],
        }


def exports(search_path: Path) -> list[str]:
    """Lines of shell that have a job's Python take its modules from `search_path`, whatever lies in its folder."""
    return [f'export PYTHONSAFEPATH=1 PYTHONPATH={shlex.quote(str(search_path))}"${{PYTHONPATH:+:$PYTHONPATH}}"']
