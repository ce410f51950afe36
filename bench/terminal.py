"""The report in short for a terminal; plain text without colours where there is none."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.experiment import Experiment
from bench.summary import SUBSETS, cautions, cell_text, face_counts, rows, speeds, verdict

PLAIN_WIDTH = 120  # columns where the output is no terminal and so has no width
SHORT = {"expression": "expr", "illumination": "illum", "occlusion": "occl"}
COLORS = {"passed": "green", "failed": "red", "incomplete": "red", "ungated": "yellow"}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would exit with 1, which says that a gate failed


def show(experiment: Experiment, console: Console | None = None) -> None:
    """Print the verdict, the NME table, throughput, gates, failures and warnings."""
    if console is None:
        console = _Console(highlight=False)
        # A line that a narrow terminal wraps can be read, a number that the table cuts cannot
        console = _Console(highlight=False, width=max(console.width, 80) if console.is_terminal else PLAIN_WIDTH)
    found = verdict(experiment)
    console.print()
    console.print(Text(f"{experiment.name}: {found.sentence}", style=f"bold {COLORS[found.state]}"))
    console.print()
    if experiment.results:
        console.print(_nme_table(experiment, console), "")
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
    for text in (*experiment.problems, *cautions(experiment)):
        console.print(Text(f"warning: {text}", style="yellow"))


def _table(title: str) -> Table:
    return Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)


def _nme_table(experiment: Experiment, console: Console) -> Table:
    utf8 = console.encoding.lower().startswith("utf")
    several = len(experiment.config["seeds"]) > 1
    table = _table("NME x 100" + (", mean over seeds (deviation of the test set's)" if several else ""))
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
    table = _table("Training throughput, images per second")
    for name in ("", "median", "slowest", "fastest", "windows", "batch"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for speed in speeds(experiment):
        numbers = (speed.median, min(speed.windows), max(speed.windows))
        table.add_row(
            Text(speed.variant), *(f"{number:,.1f}" for number in numbers), str(len(speed.windows)), speed.batch_size
        )
    return table


def _gate_table(experiment: Experiment) -> Table:
    table = _table("Gates")
    for name in ("gate", "variant", "verdict", "detail"):
        table.add_column(name, overflow="fold")
    for gate in experiment.gates:
        mark = Text("passed", style="green") if gate.passed else Text("FAILED", style="bold red")
        table.add_row(Text(gate.gate), Text(gate.variant), mark, Text(gate.detail))
    return table
