"""`python -m bench.report PATH`: an experiment, or the result of a kernel benchmark, as one HTML page and short tables.

An experiment's folder gets `report.html` and `report.csv`; a JSON file that `python -m bench.kernels` or
pytest-benchmark wrote gets a page of its name beside it. The page needs nothing else: no scripts, no network. Building
it again from the same files gives the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pose.errors import InputError, run_command
from pose.files import write_atomically

if TYPE_CHECKING:
    from bench.experiment import Curve, Experiment, FaceErrors, LevelsTrial
    from bench.face_views import FaceView
    from bench.interval import Interval
    from bench.level_verdicts import LevelVerdict
    from bench.nme_verdicts import Comparison
    from bench.result import OpError
    from bench.rule import Rule
    from bench.samples import Tile
    from bench.speed_summary import ScalingRow, SpeedRow

PAGE = "report.html"
TABLE = "report.csv"
TIMES = "times.csv"
TEMPLATE = "report.html.j2"
SPEED_TEMPLATE = "throughput.html.j2"


def build(path: Path | str) -> Path:
    """Write the page of an experiment's folder (and its `report.csv`) or of a kernel result; returns the page's path.

    `path` is as the command takes it. Raises `InputError` when it is neither, or the page cannot be written.
    """
    from bench.experiment import read_experiment
    from bench.kernels.report import kernel_file, read_timed, write_kernel_report

    if (file := kernel_file(Path(path))) is not None:
        return write_kernel_report(read_timed(file), file)
    return write_report(read_experiment(path))


def write_report(experiment: Experiment) -> Path:
    """Write `report.html`, `report.csv` and for a time to NME `times.csv` into its folder; returns the page's path."""
    from bench.export import csv_text, speed_csv_text, times_csv_text

    page = experiment.folder / PAGE
    speed = experiment.measure == "throughput"
    table = speed_csv_text(experiment) if speed else csv_text(experiment)
    write_atomically(experiment.folder / TABLE, table.encode(errors="backslashreplace"))
    if experiment.measure == "time_to_nme":
        write_atomically(experiment.folder / TIMES, times_csv_text(experiment).encode(errors="backslashreplace"))
    text = speed_html_text(experiment) if speed else html_text(experiment)
    write_atomically(page, text.encode(errors="backslashreplace"))
    return page


def speed_html_text(experiment: Experiment) -> str:
    """The page of an experiment that measures throughput."""
    from bench import plots, speed_summary, summary
    from bench.experiment import CONTACT_SHEET, GATES, TRIALS
    from bench.interval import Interval
    from bench.page import render
    from bench.references import noise_sentence
    from bench.samples import contact_sheet_uri

    warnings = [*experiment.problems, *summary.cautions(experiment), *speed_summary.speed_cautions(experiment)]
    try:
        sheet = contact_sheet_uri(experiment.folder / CONTACT_SHEET)
    except InputError as error:
        warnings.append(str(error).replace(f"{experiment.folder}/", ""))
        sheet = None
    rows = speed_summary.speed_rows(experiment)
    scaling = speed_summary.scaling_rows(experiment)
    gpu = speed_summary.machine(experiment)
    colors = {variant: place for place, variant in enumerate(experiment.variants)}
    if gpu is not None:
        bars, unit = [(row.variant, row.speed) for row in rows], f"images per second on {gpu}"
    else:  # what a CPU does in a second is of no interest, how variants compare may be
        bars, unit = [], f"speed, {experiment.baseline} = 1"
        for row in rows:
            if row.baseline:
                bars.append((row.variant, Interval(1, 1, 1)))
            elif row.ratio is not None:
                value = row.ratio.value
                bars.append((row.variant, row.ratio.interval or Interval(value, value, value)))
    filters: dict[str, Callable[..., Any]] = {
        "seconds": _seconds,
        "interval": speed_summary.interval_text,
        "ratio": speed_summary.ratio_text,
        "percent": speed_summary.percent_text,
        "share": speed_summary.share_text,
        "memory": speed_summary.memory_text,
        "rate": summary.rate_text,
        "address": quote,
    }
    return render(
        SPEED_TEMPLATE,
        filters,
        experiment=experiment,
        verdict=summary.verdict(experiment),
        headline=speed_summary.headline(experiment),
        gpu=gpu,
        rows=rows,
        noise=noise_sentence(experiment),
        waterfall=plots.waterfall(steps, experiment.baseline) if (steps := _gains(experiment, rows)) else None,
        scaling=scaling,
        scaling_figure=plots.scaling_lines(_by_kind(scaling)) if scaling else None,
        kernels=_kernels(experiment, warnings),
        gates=summary.gate_rows(experiment),
        gates_file=GATES,
        notes=speed_summary.speed_notes(experiment),
        figure=plots.speed_bars(bars, colors, unit) if bars else None,
        environments=summary.environments(experiment),
        started=_started(experiment),
        contact_sheet=sheet,
        warnings=_shortened(warnings),
        trials_folder=TRIALS,
        table_file=TABLE,
        commands=_commands(experiment),
    )


def html_text(experiment: Experiment) -> str:
    """The page."""
    from bench import plots, speed_summary, summary
    from bench.experiment import CONTACT_SHEET, GATES, TRIALS, read_curve, read_faces
    from bench.nme_verdicts import signed
    from bench.page import render
    from bench.published import PUBLISHED
    from bench.references import noise_sentence
    from bench.result import SUBSETS
    from bench.samples import contact_sheet_uri, sample_tiles
    from pose.drawing import PREDICTED, TRUE

    warnings = [*experiment.problems, *summary.cautions(experiment)]

    def attempt(read: Any, *arguments: Any) -> Any:
        """What `read` gives, or None and a warning: a file that is lost costs the page one figure, not the page."""
        try:
            return read(*arguments)
        except InputError as error:
            warnings.append(str(error).replace(f"{experiment.folder}/", ""))
            return None

    curves: dict[str, list[Curve]] = {}
    faces: dict[str, list[FaceErrors]] = {}
    samples: list[tuple[str, int, list[Tile]]] = []
    for variant in experiment.variants:
        for trial in experiment.of_variant(variant):
            curve, errors = attempt(read_curve, trial.folder), attempt(read_faces, trial.folder)
            if curve is not None and len(curve.step):
                curves.setdefault(variant, []).append(curve)
            if errors is not None and len(errors.nme):
                faces.setdefault(variant, []).append(errors)
                if variant not in [name for name, _, _ in samples]:
                    tiles = attempt(sample_tiles, errors, experiment.folder)
                    samples.append((variant, trial.result.seed, tiles or []))

    colors = {variant: place for place, variant in enumerate(experiment.variants)}
    nme = {variant: [one.nme for one in trials] for variant, trials in faces.items()}
    mean_shape = next((one.mean_shape_nme for trials in faces.values() for one in trials), None)
    speeds = summary.speeds(experiment)
    figures = {
        "loss": plots.loss_curves(curves, colors) if curves else None,
        "ced": plots.ced_curves(nme, colors, mean_shape) if nme else None,
        "throughput": plots.throughput_bars(speeds, colors) if speeds else None,
    }

    filters: dict[str, Callable[..., Any]] = {
        "cell": summary.cell_text,
        "signed": signed,
        "seconds": _seconds,
        "rate": summary.rate_text,
        "address": quote,
    }
    return render(
        TEMPLATE,
        filters,
        experiment=experiment,
        verdict=summary.verdict(experiment),
        headline=_headline(experiment),
        subsets=SUBSETS,
        counts=summary.face_counts(experiment),
        tables={metric: summary.rows(experiment, metric) for metric in ("nme", "failure_rate", "auc")},
        parity=_parity(experiment, warnings) if experiment.measure == "training" else None,
        levels=_levels(experiment, colors),
        intervals=_intervals(faces),
        published=[
            (label, [numbers[subset] for subset in SUBSETS])
            for label, numbers in (PUBLISHED.items() if summary.has_real_faces(experiment) else ())
        ],
        noise=noise_sentence(experiment),
        kernels=_kernels(experiment, warnings),
        op_errors=summary.worst_op_errors(experiment),
        speeds=speeds,
        timings=summary.timings(experiment),
        times=speed_summary.time_rows(experiment),
        thresholds=speed_summary.thresholds(experiment),
        gpu=speed_summary.machine(experiment),
        environments=summary.environments(experiment),
        started=_started(experiment),
        several_losses=len({_loss(trial.result.config) for trial in experiment.results}) > 1,
        trial_cells=summary.trial_cells,
        figures=figures,
        samples=samples,
        point_colors=[("predicted", f"rgb{PREDICTED}"), ("true", f"rgb{TRUE}")],
        contact_sheet=attempt(contact_sheet_uri, experiment.folder / CONTACT_SHEET),
        warnings=_shortened(warnings),
        trials_folder=TRIALS,
        gates=summary.gate_rows(experiment),
        gates_file=GATES,
        table_file=TABLE,
        times_file=TIMES,
        commands=_commands(experiment),
    )


@dataclass(frozen=True)
class _Parity:
    """What the template's section on parity shows."""

    rule: Rule
    level: int  # percent, of the intervals
    reference: str | None  # that all are compared with; None for several
    lacking: bool  # whether some comparison has fewer pairs than seeds were planned
    comparisons: list[Comparison]
    faces: dict[tuple[str, str, str], FaceView]
    figure: str | None


def _parity(experiment: Experiment, warnings: list[str], drawn: int = 16) -> _Parity | None:
    from bench import plots
    from bench.face_views import face_views
    from bench.interval import Interval
    from bench.nme_verdicts import compare, experiment_rule

    comparisons = compare(experiment)
    if not any(one.differences for one in comparisons):
        return None
    rule = experiment_rule(experiment)
    views, problems = face_views(experiment)
    warnings += [text for text in problems if text not in warnings]
    shown = [one for one in comparisons if one.differences]
    if len(shown) > drawn:
        shown = [one for one in shown if one.gating or one.subset == "test"][:drawn]
    several = len({one.variant for one in shown}) > 1
    rows = [
        (
            f"{one.variant}, {one.subset}" if several else one.subset,
            one.test.mean if one.test is not None else one.differences[0],
            Interval(one.test.mean, one.test.low, one.test.high) if one.test is not None else None,
        )
        for one in shown
    ]
    return _Parity(
        rule,
        round(100 * (1 - 2 * rule.alpha)),
        next(iter(references)) if len(references := {one.reference for one in comparisons}) == 1 else None,
        any(len(one.differences) < one.planned for one in comparisons),
        comparisons,
        {(view.variant, view.reference, view.subset): view for view in views},
        plots.parity_intervals(rows, rule.margin),
    )


@dataclass(frozen=True)
class _Levels:
    verdicts: list[tuple[LevelsTrial, list[LevelVerdict]]]
    op_errors: list[tuple[str, OpError]]
    figure: str | None


def _levels(experiment: Experiment, colors: dict[str, int]) -> _Levels | None:
    from bench import plots
    from bench.level_verdicts import level_verdicts

    if not experiment.levels:
        return None
    results = [trial.result for trial in experiment.levels]
    return _Levels(
        [(trial, level_verdicts(trial.result)) for trial in experiment.levels],
        [(one.variant, error) for one in results for error in one.op_errors],
        plots.trajectories(
            {one.variant: one.trajectory.update for one in results if one.trajectory is not None},
            [one.twin.update for one in results if one.twin is not None],
            colors,
        ),
    )


def _intervals(faces: Mapping[str, Sequence[FaceErrors]]) -> list[tuple[str, list[Interval | None]]]:
    """Of each variant the NME with an interval over faces and seeds, by subset."""
    from bench.published import nme_intervals
    from bench.result import SUBSETS

    found = [(variant, nme_intervals(trials)) for variant, trials in faces.items()]
    return [(variant, [cells.get(subset) for subset in SUBSETS]) for variant, cells in found if cells]


def _gains(experiment: Experiment, rows: Sequence[SpeedRow]) -> list[tuple[str, float, Interval | None]]:
    """The steps of the waterfall: from the baseline on, each row's gain over the one above it, while there is one."""
    from bench.noise import is_again

    steps: list[tuple[str, float, Interval | None]] = []
    started = False
    for row in rows:
        if started and row.gain is None:
            break
        if started and row.gain is not None and not is_again(experiment, row.variant):
            steps.append((row.variant, row.gain.value, row.gain.interval))
        started = started or row.baseline
    return steps


def _by_kind(rows: Sequence[ScalingRow]) -> dict[str, list[tuple[int, float, Interval | None]]]:
    lines: dict[str, list[tuple[int, float, Interval | None]]] = {}
    for row in sorted(rows, key=lambda row: row.world_size):
        name = f"{row.kind}, beside {row.alone}"
        lines.setdefault(name, []).append((row.world_size, row.efficiency.value, row.efficiency.interval))
    return lines


@dataclass(frozen=True)
class _Kernels:
    file: str
    sentence: str
    latency: Any
    bandwidth: Any


def _kernels(experiment: Experiment, warnings: list[str]) -> _Kernels | None:
    """The figures of a kernel benchmark whose `kernels.json` lies in the experiment's folder."""
    from bench.kernels import plots, summary
    from bench.kernels.report import read_timed
    from bench.kernels.result import KERNELS

    file = experiment.folder / KERNELS
    if not file.exists():
        return None
    try:
        result = read_timed(file)
    except InputError as error:
        warnings.append(str(error).replace(f"{experiment.folder}/", ""))
        return None
    sentence = f"{summary.verdict(result).sentence} {summary.headline(result)}"
    return _Kernels(KERNELS, sentence, plots.latency(result), plots.bandwidth(result))


def _headline(experiment: Experiment, named: int = 4) -> str:
    """The test NME of the variants in one line; of many variants only the range."""
    from bench.summary import cell_text, rows

    found = [row for row in rows(experiment, "nme") if row.kind != "published" and row.cells[0].state == "value"]
    variants = [row for row in found if row.kind == "variant"]
    parts = [f"{row.label} {cell_text(row.cells[0])}" for row in found if row.kind == "baseline"]
    if len(variants) <= named:
        parts += [f"{row.label} {cell_text(row.cells[0])}" for row in variants]
    else:
        low, *_, high = sorted(100 * row.cells[0].mean for row in variants)
        parts.append(f"{len(variants)} variants {low:.2f} to {high:.2f}")
    parts += [f"{row.label} {cell_text(row.cells[0])}" for row in found if row.kind == "mean shape"]
    return f"Test NME × 100: {', '.join(parts)}." if found else ""


def _loss(config: dict[str, Any]) -> str:
    """What decides the scale of a loss curve: the function, not how it is computed."""
    loss = config.get("loss")
    return str({k: v for k, v in loss.items() if k not in ("impl", "gradient")}) if isinstance(loss, dict) else ""


def _shortened(warnings: Sequence[str], shown: int = 12) -> list[str]:
    """Of very many warnings the first."""
    more = len(warnings) - shown
    return [*warnings] if more <= 1 else [*warnings[:shown], f"… and {more} more."]


def _started(experiment: Experiment) -> str:
    """When the first trial started, to the minute."""
    from bench.page import minute

    return minute(min((trial.result.started for trial in experiment.everything), default=""))


def _commands(experiment: Experiment) -> str:
    """How to run the experiment again, beside its results and from the same code."""
    import shlex

    from bench.experiment import CONFIG

    folder = experiment.folder
    commits = {trial.environment.commit for trial in experiment.everything} - {None}
    return "\n".join(
        [
            *(
                f"git checkout {shlex.quote(str(commit))}"
                for commit in sorted(map(str, commits))[:1]
                if len(commits) == 1
            ),
            f"python -m bench.run {shlex.quote(str(folder / CONFIG))} --out {shlex.quote(f'{folder}-again')}",
            f"python -m bench.report {shlex.quote(str(folder))}",
        ]
    )


def _seconds(value: float) -> str:
    if value >= 3600:
        return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"
    if value >= 100:
        return f"{int(value // 60)} min {int(value % 60):02d} s"
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description=__doc__.splitlines()[0].split(": ", 1)[1]
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        help="an experiment's folder such as results/smoke, a folder that holds a kernels.json, or a JSON file that "
        "python -m bench.kernels or pytest --benchmark-json wrote",
    )
    parser.add_argument(
        "--format",
        choices=("terminal", "csv", "json"),
        default="terminal",
        help="what is printed; the page is written whatever it is",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    path: Path = options.path

    from bench import export, terminal
    from bench.experiment import read_experiment
    from bench.kernels import report as kernel_report

    if (file := kernel_report.kernel_file(path)) is not None:
        result = kernel_report.read_timed(file)
        page = kernel_report.write_kernel_report(result, file)
        if options.format == "terminal":
            kernel_report.show(result)
        else:
            print(export.kernel_json(result) if options.format == "json" else export.kernel_csv(result), end="")
    else:
        experiment = read_experiment(path)
        page = write_report(experiment)
        if options.format == "terminal":
            terminal.show(experiment)
        elif options.format == "json":
            print(export.experiment_json(experiment), end="")
        else:
            speed = experiment.measure == "throughput"
            print(export.speed_csv_text(experiment) if speed else export.csv_text(experiment), end="")
    if options.format == "terminal":
        print(f"report: {page}")
    return 0


if __name__ == "__main__":
    run_command(main)
