"""The report in short for a terminal; plain text without colours where there is none."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import speed_summary as speed
from bench.experiment import Experiment
from bench.level_verdicts import level_verdicts
from bench.nme_verdicts import Comparison, compare, experiment_rule
from bench.references import noise_sentence
from bench.result import SUBSETS
from bench.summary import cautions, cell_text, face_counts, gate_rows, rate_text, rows, speeds, verdict

PLAIN_WIDTH = 120  # columns where the output is no terminal and so has no width
SHORT = {"expression": "expr", "illumination": "illum", "occlusion": "occl"}
COLORS = {"passed": "green", "failed": "red", "incomplete": "red", "ungated": "yellow"}
STATE_COLORS = {
    **{"EQUIVALENT": "green", "DIFFERENT": "bold red", "INCONCLUSIVE": "yellow"},
    **{"SAME": "green", "not measured": "dim"},
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, which says that a gate failed


def show(experiment: Experiment, console: Console | None = None) -> None:
    """Print the verdict, the tables of speed and NME, gates, failures and warnings."""
    console = console or console_of()
    found = verdict(experiment)
    console.print()
    console.print(Text(f"{experiment.name}: {found.sentence}", style=f"bold {COLORS[found.state]}"))
    console.print()
    if experiment.timed:
        console.print(_throughput_table(experiment), "")
        if speed.scaling_rows(experiment):
            console.print(_scaling_table(experiment), "")
        console.print(Text(f"Noise floor: {noise_sentence(experiment)}"))
        for note in speed.speed_notes(experiment):
            console.print(Text(note, style="dim"))
    if speed.time_rows(experiment):
        console.print(_time_table(experiment), "")
    if experiment.results:
        console.print(_nme_table(experiment, console), "")
    comparisons = compare(experiment) if experiment.measure == "training" else []
    if comparisons:
        _print_parity(experiment, [one for one in comparisons if one.gating or one.subset == "test"], console)
    if speeds(experiment):
        console.print(_speed_table(experiment), "")
    if experiment.gates:
        console.print(_gate_table(experiment), "")
    for failed in experiment.failures:
        console.print(
            Text(f"failed: {failed.folder.name}: {failed.failure.kind}: {failed.failure.message}", style="red")
        )
    for name in experiment.missing:
        console.print(Text(f"missing: {name} has no result that counts", style="red"))
    for text in (*experiment.problems, *cautions(experiment), *speed.speed_cautions(experiment)):
        console.print(Text(f"warning: {text}", style="yellow"))


def show_parity(experiment: Experiment, comparisons: Sequence[Comparison], console: Console | None = None) -> None:
    """Print every comparison and the levels below it."""
    console = console or console_of()
    console.print()
    _print_parity(experiment, comparisons, console)
    for text in experiment.problems:
        console.print(Text(f"warning: {text}", style="yellow"))


def _print_parity(experiment: Experiment, comparisons: Sequence[Comparison], console: Console) -> None:
    rule = experiment_rule(experiment)
    utf8 = console.encoding.lower().startswith("utf")
    table = table_of(f"Parity: NME x 100 within {'±' if utf8 else '+-'} {rule.margin:g} at alpha {rule.alpha:g}")
    for name in ("", "against", "on", "verdict", "difference"):
        table.add_column(name, overflow="fold")
    table.add_column("FR@10", justify="right", no_wrap=True)
    for one in comparisons:
        table.add_row(
            Text(one.variant),
            Text(one.reference),
            one.subset + ("" if one.gating else ", informs"),
            Text(one.state, style=STATE_COLORS[one.state]),
            Text(_plain(one.sentence, utf8)),
            "" if one.failure_rate is None else _plain(f"{one.failure_rate:+.2f}", utf8),
        )
    console.print(table, "")
    if experiment.levels:
        levels = table_of("Levels of parity below the NME")
        for name in ("", "level", "verdict", "by how much"):
            levels.add_column(name, overflow="fold")
        for trial in experiment.levels:
            for found in level_verdicts(trial.result):
                levels.add_row(
                    Text(found.variant),
                    found.level,
                    Text(found.state, style=STATE_COLORS[found.state]),
                    Text(_plain(found.sentence, utf8)),
                )
        console.print(levels, "")


def _plain(text: str, utf8: bool) -> str:
    return text if utf8 else text.replace("±", "+-").replace("−", "-")


def console_of() -> Console:
    console = _Console(highlight=False)
    # A line that a narrow terminal wraps can be read, a number that the table cuts cannot
    return _Console(highlight=False, width=max(console.width, 80) if console.is_terminal else PLAIN_WIDTH)


def table_of(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)


def _nme_table(experiment: Experiment, console: Console) -> Table:
    utf8 = console.encoding.lower().startswith("utf")
    several = len(experiment.config["seeds"]) > 1
    table = table_of("NME x 100" + (", mean over seeds (deviation of the test set's)" if several else ""))
    table.add_column("", overflow="fold")
    for subset, count in zip(SUBSETS, face_counts(experiment), strict=True):
        table.add_column(Text(f"{SHORT.get(subset, subset)}\n{count}"), justify="right", no_wrap=subset == "test")
    for row in rows(experiment, "nme"):
        label = row.label
        if row.kind == "published":
            label = f"published: {label}"
        elif row.kind == "baseline" and label != "baseline":
            label = f"{label} (baseline)"
        test, *subsets = row.cells
        shown = [cell_text(test, plus_minus="±" if utf8 else "+-")]
        shown += [f"{100 * cell.mean:.2f}" if cell.state == "value" else cell.state for cell in subsets]
        table.add_row(Text(label), *shown, style="dim" if row.kind == "published" else None)
    return table


def _speed_table(experiment: Experiment) -> Table:
    table = table_of("Training throughput, images per second")
    for name in ("", "median", "slowest", "fastest", "windows", "batch"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in speeds(experiment):
        numbers = (row.median, min(row.windows), max(row.windows))
        table.add_row(
            Text(row.variant), *(f"{number:,.1f}" for number in numbers), str(len(row.windows)), row.batch_size
        )
    return table


def _throughput_table(experiment: Experiment) -> Table:
    gpu = speed.machine(experiment)
    table = table_of(f"Training speed{f' on {gpu}' if gpu else ', ratios first: not measured on one kind of GPU'}")
    columns = ["images/s", "ratio"] if gpu else ["ratio", "images/s,\nthis machine"]
    for name in ("", "batch", *columns, "to row\nabove", "input's\nshare", "input\nalone", "first\nstep"):
        table.add_column(name, justify="right" if name else "left", overflow="fold", no_wrap=name in columns)
    for name in ("memory", "model\nFLOPs", "floor"):
        table.add_column(name, justify="right")
    for row in speed.speed_rows(experiment):
        both = [
            _stacked(speed.interval_text(row.speed)),
            "1" if row.baseline else _stacked(speed.ratio_text(row.ratio)),
        ]
        ranks = f"\n{row.world_size} ranks" if row.world_size > 1 else ""
        table.add_row(
            Text(row.variant),
            f"{row.batch_size:,}{ranks}",
            *map(Text, both if gpu else reversed(both)),
            Text(_stacked(speed.ratio_text(row.gain))),
            Text(_stacked(speed.share_text(row.input_share))),
            rate_text(row.input_alone.value),
            f"{row.first_step:.1f} s",
            speed.memory_text(row.memory),
            speed.percent_text(row.utilisation),
            speed.percent_text(row.floor_share),
        )
    return table


def _stacked(text: str) -> str:
    """A value above its interval: eleven columns have to fit."""
    return text.replace(" [", "\n[")


def _scaling_table(experiment: Experiment) -> Table:
    table = table_of("Scaling")
    for name in ("", "beside", "", "ranks", "batch", "images/s", "efficiency"):
        table.add_column(name, justify="left" if name in ("", "beside") else "right", overflow="fold")
    for row in speed.scaling_rows(experiment):
        table.add_row(
            Text(row.variant),
            Text(row.alone),
            row.kind,
            str(row.world_size),
            f"{row.batch_size:,}",
            Text(speed.interval_text(row.speed)),
            Text(speed.ratio_text(row.efficiency)),
        )
    return table


def _time_table(experiment: Experiment) -> Table:
    gpu = speed.machine(experiment)
    table = table_of(f"Seconds to NME x 100, on {gpu or 'this machine'}")
    for name in ("", "caches", "batch", *(f"{nme:g}" for nme in speed.thresholds(experiment)), "whole trial"):
        table.add_column(name, justify="left" if name in ("", "caches") else "right", overflow="fold")
    for row in speed.time_rows(experiment):
        cells = [
            f"{seconds:,.1f}" if seconds is not None else "not reached" if row.trials == 1 else f"reached by {reached}"
            for seconds, reached in zip(row.seconds, row.reached, strict=True)
        ]
        table.add_row(Text(row.variant), row.caches, f"{row.batch_size:,}", *cells, f"{row.total:,.1f}")
    return table


def _gate_table(experiment: Experiment) -> Table:
    table = table_of("Gates")
    for name in ("gate", "variant", "verdict", "detail"):
        table.add_column(name, overflow="fold")
    for row in gate_rows(experiment):
        gate = row.gate
        failed = Text("inconclusive", style="yellow") if gate.inconclusive else Text("FAILED", style="bold red")
        mark = Text("passed", style="green") if gate.passed else failed
        table.add_row(Text(gate.gate), Text(gate.variant), mark, Text(row.detail))
    return table
