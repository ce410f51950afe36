"""`python -m bench.compare BASE NEW`: has anything got worse since? Decided by intervals, figure by figure."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from bench.figures import Figure, Source
    from bench.interval import Interval
    from bench.references import Bounds

Verdict = Literal["REGRESSION", "MISSING", "unclear", "same", "better"]
WORST_FIRST: tuple[Verdict, ...] = ("REGRESSION", "MISSING", "unclear", "better", "same")
FAILING = ("REGRESSION", "MISSING")
TOLERANCE, MARGIN = 5.0, 0.05
ADVICE = {
    "unclear": "unclear: a single sample, or an interval that lies across the bound: more repeats or seeds would tell",
}
ONE_PROCESS = "of one process: the interval does not hold what differs between processes, and repeats would"


@dataclass(frozen=True)
class Change:
    """One figure then and now. `change`: in percent, or in the figure's unit where its bounds are."""

    name: str
    unit: str
    base: float
    new: float | None
    change: float | None
    low: float | None  # of the change's 95 % interval
    high: float | None
    lower: float | None  # bounds
    upper: float | None
    in_percent: bool
    verdict: Verdict


def compared(base: Figure, new: Figure | None, bounds: Bounds, *, percent: bool) -> Change:
    """Judge `new` beside `base`.

    REGRESSION: the whole interval of the change lies beyond the bound on the bad side, or the figure is no number (one
    above 0 for what is compared in percent). better: it lies on the good side of no change, by as much as the bad
    side's bound allows. same: it lies within. unclear: neither, or there is no interval, as of a single sample.
    """
    lower, upper = bounds
    verdict: Verdict
    if new is None:
        return Change(base.name, base.unit, base.value, None, None, None, None, lower, upper, percent, "MISSING")
    if not all(math.isfinite(one.value) and (one.value > 0 or not percent) for one in (base, new)):
        return Change(
            base.name, base.unit, base.value, new.value, None, None, None, lower, upper, percent, "REGRESSION"
        )
    change, low, high = _change(base, new, percent=percent)
    sign = 1 if base.better == "higher" else -1
    bound = lower if base.better == "higher" else upper
    room = math.inf if bound is None else abs(bound)
    # Up is good: how bad it may be at worst, and how good at best
    ends = (-math.inf, math.inf) if low is None or high is None else (low, high)
    worst, best = sorted(sign * end for end in ends)
    if best < -room:
        verdict = "REGRESSION"
    elif worst > room:
        verdict = "better"
    elif worst >= -room and low is not None:
        verdict = "same"
    else:
        verdict = "unclear"
    return Change(base.name, base.unit, base.value, new.value, change, low, high, lower, upper, percent, verdict)


def _change(base: Figure, new: Figure, *, percent: bool) -> tuple[float, float | None, float | None]:
    """The change with its interval; halves of independent intervals add up like standard deviations.

    So combined, t intervals of 2 to 8 normal samples a side, with standard deviations up to three times each other's,
    hold the true difference in 96 to 99 % of 200,000 simulations; Welch's interval in 90 % for 8 samples beside 2.
    """
    if not percent:
        change = new.value - base.value
        if base.interval is None or new.interval is None:
            return change, None, None
        half = math.hypot(*(_half(i.value, i.low, i.high) for i in (base.interval, new.interval)))
        return change, change - half, change + half
    ratio = new.value / base.value
    if base.interval is None or new.interval is None:
        return 100 * (ratio - 1), None, None
    logs = [_logs(interval) for interval in (base.interval, new.interval)]
    if None in logs:
        return 100 * (ratio - 1), None, None
    half = math.hypot(*(value for value in logs if value is not None))
    return 100 * (ratio - 1), 100 * (ratio * math.exp(-half) - 1), 100 * (ratio * math.exp(half) - 1)


def _half(value: float, low: float, high: float) -> float:
    return max(high - value, value - low)


def _logs(interval: Interval) -> float | None:
    """Half the interval's width on a logarithmic scale; None where it reaches 0."""
    if interval.low <= 0:
        return None
    return _half(math.log(interval.value), math.log(interval.low), math.log(interval.high))


def compare(
    base: dict[str, tuple[Figure, Bounds, bool]], new: Source, *, across_systems: bool
) -> tuple[list[Change], list[str]]:
    """Every figure of `base` beside that of `new`, worst first, and what differs between the systems.

    Raises `InputError` where the fingerprints differ, unless they may.
    """
    now = {figure.name: figure for figure in new.figures}
    common = [name for name in base if name in now]
    if not common:
        raise InputError(f"{new.path}: has none of the figures that it is compared with, such as {next(iter(base))!r}")
    differing = _differing([(base[name][0], now[name]) for name in common])
    if differing and not across_systems:
        raise InputError(
            f"{new.path}: was measured under other conditions: {'; '.join(differing)} (--across-systems compares "
            "all the same)"
        )
    changes = [
        compared(figure, now.get(name), bounds, percent=percent) for name, (figure, bounds, percent) in base.items()
    ]
    return sorted(changes, key=lambda change: WORST_FIRST.index(change.verdict)), differing


def _differing(pairs: Sequence[tuple[Figure, Figure]]) -> list[str]:
    found: dict[str, None] = {}
    for base, new in pairs:
        for key in dict.fromkeys([*base.fingerprint, *new.fingerprint]):
            before, after = base.fingerprint.get(key, "not known"), new.fingerprint.get(key, "not known")
            if before != after:
                found[f"{key} {before} and {after}"] = None
    return list(found)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="Compare two measurements figure by figure, or one with a system's reference values.",
        epilog="exit codes: 0 nothing has got worse; 1 a figure has, or is missing; 2 the two cannot be compared",
    )
    what = "an experiment's folder, a kernels.json, a pytest-benchmark JSON"
    parser.add_argument("base", metavar="BASE", type=Path, help=f"{what}, or a file of reference values (.yaml)")
    parser.add_argument("new", metavar="NEW", type=Path, help=what)
    parser.add_argument("--update", action="store_true", help="write BASE, a .yaml, anew from NEW")
    parser.add_argument("--across-systems", action="store_true", help="compare what ran under other conditions, too")
    parser.add_argument(
        "--tolerance",
        type=_positive,
        default=TOLERANCE,
        metavar="PERCENT",
        help="where BASE has no bounds (default: 5)",
    )
    parser.add_argument(
        "--margin", type=_positive, default=MARGIN, metavar="POINTS", help="the same of an NME x 100 (default: 0.05)"
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    options = parser.parse_args(arguments)

    from bench.figures import read_source
    from bench.references import default_bounds, figures_of, read_reference

    stored = options.base.suffix in (".yaml", ".yml")
    if options.update and not stored:
        raise InputError(f"--update: {options.base}: reference values are kept in a .yaml file")
    new = read_source(options.new)
    if options.update:
        return _update(options, new)
    sources = [new]
    if stored:
        base = figures_of(read_reference(options.base))
    else:
        source = read_source(options.base)
        sources.insert(0, source)
        base = {
            figure.name: (figure, *default_bounds(figure, options.tolerance, options.margin))
            for figure in source.figures
        }
    damaged = [f"{one.path}: {problem}" for one in sources for problem in one.damaged]
    if damaged:  # what was there is not known, so nobody can say that nothing has got worse
        raise InputError(damaged[0])
    changes, differing = compare(base, new, across_systems=options.across_systems)
    _print(changes, options.format)
    notes = [f"compared across {text}" for text in differing]
    notes += [f"warning: {one.path}: {problem}" for one in sources for problem in one.problems]
    alone = {one.name for one in (*new.figures, *(figure for figure, _, _ in base.values())) if one.one_process}
    alone &= {change.name for change in changes}
    if alone:
        count = f"{len(alone)} figures are" if len(alone) > 1 else "1 figure is"
        notes.append(f"{count} {ONE_PROCESS} ({min(alone)}{', ...' if len(alone) > 1 else ''})")
    extra = len({figure.name for figure in new.figures} - base.keys())
    if extra:
        notes.append(
            f"{extra} {'figure' if extra == 1 else 'figures'} of {new.path} {'is' if extra == 1 else 'are'} new"
        )
    notes += [text for verdict, text in ADVICE.items() if any(change.verdict == verdict for change in changes)]
    for note in notes:
        print(note, file=sys.stderr)
    return int(any(change.verdict in FAILING for change in changes))


def _update(options: argparse.Namespace, new: Source) -> int:
    from datetime import UTC, datetime

    from bench.references import figures_of, make_reference, read_reference, shown, write_reference

    path: Path = options.base
    before = read_reference(path) if path.exists() else None
    if before is not None:
        changes, _ = compare(figures_of(before), new, across_systems=options.across_systems)
        _print(changes, options.format)
    command = shlex.join(["python", "-m", "bench.compare", shown(path), shown(new.path), "--update"])
    reference = make_reference(
        new,
        before,
        tolerance=options.tolerance,
        margin=options.margin,
        written=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
    )
    write_reference(reference, path)
    if reference.provenance.dirty:
        print("warning: uncommitted changes were in the checkout that was measured", file=sys.stderr)
    print(f"{path}: {len(reference.figures)} figures written")
    return 0


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _print(changes: Sequence[Change], form: str) -> None:
    if form == "json":
        import json

        print(json.dumps([_finite(asdict(change)) for change in changes], indent=1))
    elif form == "csv":
        import csv

        rows = [_finite(asdict(change)) for change in changes]
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        _table(changes)


def _finite(row: dict[str, object]) -> dict[str, object]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _table(changes: Sequence[Change]) -> None:
    from rich.text import Text

    from bench.terminal import console_of, table_of

    counts = [
        f"{sum(one.verdict == v for one in changes)} {v}" for v in WORST_FIRST if any(c.verdict == v for c in changes)
    ]
    table = table_of(f"{len(changes)} figures: {', '.join(counts)}")
    for name in ("verdict", "figure", "then", "now", "change", "bounds"):
        table.add_column(name, justify="left" if name in ("verdict", "figure") else "right", overflow="fold")
    colors = {"REGRESSION": "bold red", "MISSING": "bold red", "unclear": "yellow", "better": "green", "same": ""}
    for one in changes:
        unit = " %" if one.in_percent else ""
        change = "–" if one.change is None else f"{one.change:+.3g}{unit}"
        if one.low is not None and one.high is not None:
            change += f" [{one.low:+.3g}, {one.high:+.3g}]"
        ends = ["–" if bound is None else f"{bound:+g}{unit}" for bound in (one.lower, one.upper)]
        table.add_row(
            Text(one.verdict, style=colors[one.verdict]),
            Text(one.name),
            f"{one.base:.4g} {one.unit}",
            "–" if one.new is None or not math.isfinite(one.new) else f"{one.new:.4g}",
            change,
            ", ".join(ends),
        )
    console_of().print(table)


if __name__ == "__main__":
    run_command(main)
