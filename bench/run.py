"""Run an experiment: train every variant with every seed, or measure its speed, judge the results and report them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from bench.config import Experiment
    from bench.plan import Trial
    from pose.recipe import Recipe
    from slurm.request import Request

EXIT_GATE, EXIT_MISSING = 1, 3
DEFAULT_CONFIG = Path(__file__).resolve().parents[1] / "configs" / "smoke.yaml"

EPILOG = """exit codes: 0 all trials done and every gate passed; 1 a gate failed; 2 the input is wrong, the output
cannot be written, or the cluster refuses a job; 3 trials are missing (crashed, non-finite loss, cancelled, still
queued); 130 interrupted: start again to go on"""


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
    parser.add_argument(
        "--cluster",
        choices=("here", "local", "slurm"),
        default="here",
        help="where trials run: one after the other and only as long as this command does (here, the default), as "
        "processes that outlive it (local), or as jobs of a SLURM cluster",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: results/NAME, NAME from the config")
    parser.add_argument(
        "--start-within",
        type=float,
        metavar="SECONDS",
        help="start no trial later than so long after the first; the same command goes on with the rest",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--detach", action="store_true", help="send the jobs and leave; the same command collects them")
    what.add_argument("--dry-run", action="store_true", help="print the sbatch scripts that would be sent")
    what.add_argument("--status", action="store_true", help="show how far the trials are")
    what.add_argument("--cancel", action="store_true", help="end the jobs that this experiment has sent, no others")
    options = parser.parse_args(arguments)
    if options.start_within is not None and options.cluster != "here":
        raise InputError(f"--start-within is for trials that run here, not with --cluster {options.cluster}")
    if options.detach and options.cluster != "slurm":
        raise InputError(f"--detach needs a queue to leave the jobs in: --cluster slurm, not {options.cluster}")
    if options.status or options.cancel:
        return _look_after(options.config, options.settings, options.out, cancel=options.cancel)
    if options.dry_run:
        return _print_scripts(options.config, options.settings, options.out)
    return _run(
        options.config,
        options.settings,
        options.out,
        options.cluster,
        detach=options.detach,
        start_within=options.start_within,
    )


@dataclass(frozen=True)
class _Place:
    """What the trials of each variant ask of the cluster, and how many may run at a time."""

    requests: dict[str, Request]  # by variant
    parallel: int | None


def _run(
    config: Path,
    settings: Sequence[str],
    out: Path | None,
    cluster: str,
    *,
    detach: bool,
    start_within: float | None = None,
) -> int:
    from bench.config import load_experiment
    from bench.experiment import read_experiment
    from bench.gates import judge, write_gates
    from bench.plan import plan
    from bench.preflight import refuse_few_faces, refuse_impossible, refuse_launched
    from bench.report import write_report
    from bench.resources import placement
    from bench.store import claim, write_contact_sheet, write_experiment
    from bench.terminal import show
    from pose.data.source import fingerprint, load_split

    refuse_launched()
    experiment, recipes = load_experiment(config, settings)
    refuse_impossible(recipes, this_machine=cluster != "slurm")
    place = _place(experiment, recipes) if cluster != "here" else None
    # Makes a synthetic set once, and finds missing files before any trial
    train_faces, test_faces = (load_split(experiment.data, split) for split in ("train", "test"))
    refuse_few_faces(recipes, len(train_faces), len(test_faces))
    placements = (
        {variant: [cluster, placement(request)] for variant, request in place.requests.items()} if place else None
    )
    trials = plan(experiment, recipes, fingerprint(experiment.data, train_faces, test_faces), placements)
    out = out if out is not None else Path("results") / experiment.name
    with claim(out):
        write_contact_sheet(test_faces, out)
        write_experiment(experiment, trials, out)
        unusable_input = _launch(trials, out, cluster, place, detach=detach, start_within=start_within)
        if detach:
            print(f"the same command without --detach waits for the jobs and reports on them; {out} holds all of it")

        report = read_experiment(out)
        missing = len(trials) - report.done
        if not (detach and missing):
            gates = judge(experiment.gates, report)
            write_gates(gates, out)
            report = replace(report, gates=tuple(gates))
            page = write_report(report)
            show(report)
            print(f"report: {page}")
    if unusable_input is not None:
        raise InputError(unusable_input)
    if missing:
        print(f"{missing} of {len(trials)} trials are missing", file=sys.stderr)
        return EXIT_MISSING
    return 0 if all(gate.passed for gate in report.gates) else EXIT_GATE


def _launch(
    trials: Sequence[Trial],
    out: Path,
    cluster: str,
    place: _Place | None,
    *,
    detach: bool,
    start_within: float | None,
) -> str | None:
    if place is None:
        from bench.dispatch import refuse_alive
        from bench.launch import launch

        refuse_alive(out)
        return launch(trials, out, start_within)
    from bench.dispatch import Dispatcher
    from slurm.backend import backend
    from slurm.request import Refused

    requests = {trial.id: place.requests[trial.variant] for trial in trials}
    try:
        return Dispatcher(
            trials, out, requests, backend("slurm" if cluster == "slurm" else "local"), place.parallel
        ).run(detach=detach)
    except Refused as error:
        raise InputError(f"--cluster {cluster}: {error}") from None


def _place(experiment: Experiment, recipes: dict[str, Recipe]) -> _Place:
    from bench.resources import request, with_system

    resources = with_system(experiment.resources)
    requests = {}
    for variant, recipe in recipes.items():
        try:
            requests[variant] = request(recipe, resources, resumable=experiment.measure == "training")
        except InputError as error:
            raise InputError(f"variant {variant}: {error}") from None
    return _Place(requests, resources.max_running)


def _print_scripts(config: Path, settings: Sequence[str], out: Path | None) -> int:
    """For each kind of job one script, as sbatch would get it; the faces are not looked at."""
    from bench import submissions
    from bench.config import load_experiment
    from bench.plan import plan
    from slurm.cluster import script
    from slurm.request import Refused

    experiment, recipes = load_experiment(config, settings)
    place = _place(experiment, recipes)
    out = out if out is not None else Path("results") / experiment.name
    alike: dict[tuple[Request, int | None, tuple[str, ...]], list[Trial]] = {}
    for trial in plan(experiment, recipes, faces=""):
        alike.setdefault((place.requests[trial.variant], trial.block, trial.needs), []).append(trial)
    for (request, block, _), trials in alike.items():
        folder = submissions.new_folder(out)
        name = submissions.job_name(experiment.name, folder)
        code = out.absolute() / submissions.CODE / "DIGEST"
        try:
            text = script(request, name=name, folder=folder, search_path=code,
                          count=len(trials) if block is None else 1, parallel=place.parallel)  # fmt: skip
        except Refused as error:
            raise InputError(f"--out: {error}") from None
        variants = dict.fromkeys(trial.variant for trial in trials)
        what = "trial" if block is None else "alternating measurement"
        print(f"### {len(trials)} {what}{'s' if len(trials) > 1 else ''} of {', '.join(variants)}\n{text}")
    return 0


def _look_after(config: Path, settings: Sequence[str], out: Path | None, *, cancel: bool) -> int:
    from bench import dispatch, status, submissions

    if out is None:
        from bench.config import load_experiment

        out = Path("results") / load_experiment(config, settings)[0].name
    if not cancel:
        status.show(out)
        return 0
    from bench.experiment import read_experiment
    from slurm.request import Refused
    from slurm.states import Silent

    read_experiment(out)  # or it is none
    try:
        ended = dispatch.cancel(submissions.everything(submissions.read_all(out)))
    except (Refused, Silent) as error:
        raise InputError(f"--cancel: {error}") from None
    print(f"{len(ended)} jobs cancelled{': ' + ', '.join(ended) if ended else ''}")
    return 0


if __name__ == "__main__":
    run_command(main)
