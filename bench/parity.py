"""`python -m bench.parity DIR`: are the variants of an experiment the same?

The verdicts are those of `bench.nme_verdicts`, and of `bench.level_verdicts` below the NME.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pose.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.parity",
        description="Judge whether the variants of an experiment are the same, by the rule fixed before it ran.",
        epilog="exit codes: 0 every gate of parity passed; 1 one is inconclusive or different; 2 no experiment",
    )
    parser.add_argument("path", metavar="DIR", type=Path, help="an experiment's folder such as results/smoke")
    path: Path = parser.parse_args(arguments).path

    from bench.experiment import read_experiment
    from bench.nme_verdicts import compare
    from bench.terminal import show_parity
    from pose.errors import InputError

    experiment = read_experiment(path)
    if experiment.measure != "training":
        raise InputError(f"{path}: measures {experiment.measure}, and parity is judged on trainings")
    found = compare(experiment)
    show_parity(experiment, found)
    return int(any(one.gating and one.state != "EQUIVALENT" for one in found))


if __name__ == "__main__":
    run_command(main)
