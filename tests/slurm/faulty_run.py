"""`bench.run` whose trials do what FAULTS in the environment says: {variant: [rank, how, step]}, JSON.

The jobs find this file on PYTHONPATH. What happens once is noted in the trial's folder, so that a second attempt is
undisturbed. `how` "hold" waits at that step until the file FAULTS_GO exists.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any


def run_trial(argument: str) -> int:
    from bench import trial
    from pose.stepper import Stepper

    folder = Path(argument)
    variant = json.loads((folder / "trial.json").read_bytes())["variant"]
    fault = json.loads(os.environ.get("FAULTS", "{}")).get(variant)
    if fault is not None:
        rank, how, at = fault
        real = Stepper.run

        def run(stepper: Stepper, step: int) -> Any:
            if how == "slow":
                time.sleep(0.2)
                if os.environ.get("RANK", "0") == "0":
                    with (folder / "steps.txt").open("a") as file:
                        file.write(f"{step}\n")
            elif step == at and os.environ.get("RANK", "0") == str(rank):
                _happen(how)
            return real(stepper, step)

        Stepper.run = run  # type: ignore[method-assign]
    return trial.run_trial(argument)


def _happen(how: str) -> None:
    if how == "raise":
        raise ValueError("broken on purpose")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "memory":
        blocks = []
        while True:
            blocks.append(bytearray(os.urandom(1 << 20)) * 64)
            time.sleep(0.02)
    raise AssertionError(how)


if __name__ == "__main__":
    import bench.dispatch
    import bench.run
    from pose.errors import run_command

    real_call = bench.dispatch.prepared_call
    bench.dispatch.prepared_call = lambda *arguments: replace(  # type: ignore[attr-defined]
        real_call(*arguments), function="faulty_run:run_trial"
    )
    sys.argv[0] = "bench.run"
    run_command(bench.run.main)
