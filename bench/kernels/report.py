"""The result of a kernel benchmark as one HTML page beside its JSON file, and as a short table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError
from pose.files import write_atomically

if TYPE_CHECKING:
    from bench.kernels.result import Check, KernelResult
    from bench.kernels.summary import Comparison

TEMPLATE = "kernels/report.html.j2"  # seen from bench/page.py


def kernel_file(path: Path) -> Path | None:
    """The JSON file that `path` names: itself, or its folder's `kernels.json`; None where it names an experiment."""
    from bench.experiment import CONFIG
    from bench.kernels.result import KERNELS

    if not path.is_dir():
        return path if path.exists() or path.suffix == ".json" else None
    return path / KERNELS if (path / KERNELS).exists() and not (path / CONFIG).exists() else None


def read_timed(file: Path) -> KernelResult:
    """As `read_kernel_result`, and refuses what cannot be drawn: a time or a size that is not above zero."""
    from bench.kernels.result import read_kernel_result

    result = read_kernel_result(file)
    for number, m in enumerate(result.measurements):
        if min(m.seconds) <= 0 or m.elements <= 0:
            what = "seconds" if min(m.seconds) <= 0 else "elements"
            raise InputError(f"{file}: measurements.{number}.{what}: must be above 0")
    return result


def write_kernel_report(result: KernelResult, file: Path) -> Path:
    """Write the page of a result that was read from `file` beside it, with its name; returns the page's path."""
    page = file.with_suffix(".html")
    write_atomically(page, html_text(result, file).encode(errors="backslashreplace"))
    return page


def html_text(result: KernelResult, file: Path) -> str:
    """The page."""
    from bench.kernels import plots, summary
    from bench.page import minute, render

    return render(
        TEMPLATE,
        {
            "time": summary.time_text,
            "bytes": summary.bytes_text,
            "ratio": summary.ratio_text,
            "shape": summary.shape_text,
            "rate": summary.rate_text,
        },
        result=result,
        file=file.name,
        name=file.stem,
        say=summary,
        verdict=summary.verdict(result),
        warnings=summary.cautions(result),
        variants=summary.variants(result),
        pairs=summary.pairs(result),
        tables=_tables(result),
        costs=summary.costs(result),
        interpreted=summary.interpreted(result),
        latency=plots.latency(result),
        bandwidth=plots.bandwidth(result),
        device=_device(result),
        started=minute(result.started),
        commands=_commands(result, file),
    )


def show(result: KernelResult) -> None:
    """Print the verdict and each figure beside its target; without figures, the range of each ratio."""
    from bench.kernels.summary import cautions, headline, sorted_checks, verdict

    print(verdict(result).sentence)
    if result.checks:
        print("", *check_lines(sorted_checks(result)), "", sep="\n")
    print(plain(headline(result)))
    for text in result.failures:
        print(f"not measured: {text}")
    for text in cautions(result):
        print(plain(f"warning: {text}"))


_ASCII = str.maketrans({"≥": ">=", "≤": "<=", "×": "x", "µ": "u", "–": "-", "−": "-", "±": "+-"})


def plain(text: str) -> str:
    """`text` for a terminal that knows no more than ASCII."""
    return text.translate(_ASCII)


def check_lines(checks: Sequence[Check]) -> list[str]:
    """A table of checks for any terminal: verdict, figure, target, limit and, what may be long, the name."""
    rows = [["verdict", "measured", "target", "limit", "figure"]]
    rows += [[plain(cell) for cell in _cells(check)] for check in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers, name in rows:
        middle = (cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *middle, name]))
    return lines


def _cells(check: Check) -> list[str]:
    from bench.kernels.summary import bound_text, figure_text

    return [
        check.verdict,
        figure_text(check.figure, check.unit),
        bound_text(check, check.target),
        bound_text(check, check.limit),
        check.name,
    ]


def _tables(result: KernelResult) -> list[tuple[str, list[tuple[str, list[Comparison]]]]]:
    """What was timed for real: per clock, per loss and mode, the comparisons."""
    from bench.kernels.summary import CLOCKS, LOSSES, MODES, clocks, comparisons

    tables = []
    for clock in clocks(result):
        groups: dict[str, list[Comparison]] = {}
        for one in comparisons(result):
            if one.clock == clock:
                loss, mode = one.facet.loss, one.facet.mode
                groups.setdefault(f"{LOSSES.get(loss, loss)}: {MODES.get(mode, mode)}", []).append(one)
        tables.append((CLOCKS.get(clock, clock), list(groups.items())))
    return tables


def _device(result: KernelResult) -> str:
    """What is known of the device, with the units that the names end with."""
    from bench.kernels.summary import bytes_text

    units = {"mhz": "MHz", "w": "W"}
    parts = []
    for name, value in result.device.items():
        what, _, unit = name.rpartition("_")
        if value is None:
            continue
        if unit == "bytes" and isinstance(value, int | float):
            parts.append(f"{what.replace('_', ' ')} {bytes_text(value)}")
        elif unit in units and isinstance(value, int | float):
            parts.append(f"{what.replace('_', ' ')} {value:g} {units[unit]}")
        else:
            parts.append(str(value) if name == "name" else f"{name.replace('_', ' ')} {value}")
    return ", ".join(parts)


def _commands(result: KernelResult, file: Path) -> str:
    """How to measure again from the same code, and how to make this page again."""
    import shlex

    checkout = [f"git checkout {shlex.quote(result.environment.commit)}"] if result.environment.commit else []
    return "\n".join([*checkout, result.command, f"python -m bench.report {shlex.quote(str(file))}"])
