"""Run an experiment: train every variant with every seed, or measure its speed, judge the results and report them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pose.errors import InputError, run_command

EXIT_GATE, EXIT_MISSING = 1, 3
DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml"

EPILOG = """exit codes: 0 all trials done and every gate passed; 1 a gate failed; 2 the input is wrong or the output
cannot be written; 3 trials are missing (crashed, non-finite loss, cancelled); 130 interrupted: start again to go on"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__, epilog=EPILOG)
    parser.add_argument(
        "config", type=Path, nargs="?", default=DEFAULT_CONFIG, metavar="CONFIG", help="default: configs/smoke.yaml"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="settings",
        help="change a value of the config; may be given several times",
    )
    parser.add_argument("--cluster", choices=("here", "local", "slurm"), default="here", help="where trials run")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/NAME, NAME from the config")
    options = parser.parse_args(arguments)
    if options.cluster != "here":
        raise InputError(f"--cluster {options.cluster}: trials can only run here so far")
    return _run(options.config, options.settings, options.out)


def _run(config: Path, settings: Sequence[str], out: Path | None) -> int:
    from bench.config import load_experiment
    from bench.experiment import read_experiment
    from bench.gates import judge, write_gates
    from bench.launch import launch
    from bench.plan import plan
    from bench.preflight import refuse_few_faces, refuse_impossible, refuse_launched
    from bench.report import write_report
    from bench.store import claim, write_contact_sheet, write_experiment
    from bench.terminal import show
    from pose.data.source import fingerprint, load_split

    refuse_launched()
    experiment, recipes = load_experiment(config, settings)
    refuse_impossible(recipes)
    # Makes a synthetic set once, and finds missing files before any trial
    train_faces, test_faces = (load_split(experiment.data, split) for split in ("train", "test"))
    refuse_few_faces(recipes, len(train_faces), len(test_faces))
    trials = plan(experiment, recipes, fingerprint(experiment.data, train_faces, test_faces))
    out = out if out is not None else Path("results") / experiment.name
    with claim(out):
        write_contact_sheet(test_faces, out)
        write_experiment(experiment, trials, out)
        unusable_input = launch(trials, out)

        report = read_experiment(out)
        gates = judge(experiment.gates, [trial.result for trial in report.results])
        write_gates(gates, out)
        report = replace(report, gates=tuple(gates))
        page = write_report(report)
        show(report)
        print(f"report: {page}")
    if unusable_input is not None:
        raise InputError(unusable_input)
    missing = len(trials) - report.done
    if missing:
        print(f"{missing} of {len(trials)} trials are missing", file=sys.stderr)
        return EXIT_MISSING
    return 0 if all(gate.passed for gate in gates) else EXIT_GATE


if __name__ == "__main__":
    run_command(main)
