"""A GPU check as a short table in the terminal."""

from __future__ import annotations

from pathlib import Path

from bench.gpu_check.figures import counts
from bench.gpu_check.result import GPU_CHECK, GpuCheck
from bench.kernels.report import check_lines, plain

TARGETS_ARE_FOR = "NVIDIA H200"


def show(result: GpuCheck, out: Path) -> None:
    """Print every figure beside its target, stage by stage, how each part ended, and one line of it all, last."""
    for stage, checks in result.checks.items():
        print(f"\n{stage}")
        print("\n".join(check_lines(checks)))
        for check in checks:
            if check.verdict != "PASS" and check.how:
                print(plain(f"  {check.verdict}: {check.name}: {check.how}"))
    print()
    for task in result.tasks:
        print(f"{task.name}: {task.state}, {task.seconds:.0f} s{f' ({task.detail})' if task.detail else ''}")
    gpu = result.identity.get("gpu")
    if gpu != TARGETS_ARE_FOR:
        print(f"The targets are for an {TARGETS_ARE_FOR}; this is an {gpu}.")
    number = counts(result.checks)
    print(
        f"{number['PASS']} figures meet their targets, {number['SHORT']} only their limits, "
        f"{number['FAIL']} miss them, {number['unmeasured']} are unmeasured: {out / GPU_CHECK}"
    )
