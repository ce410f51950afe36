"""The figures of a kernel report: small multiples, each a panel in the page's grid, all of one kind to one scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.kernels.result import KernelResult, Measurement
from bench.kernels.summary import (
    CLOCKS,
    FUSED,
    LOSSES,
    MODES,
    REPLACED_BY,
    VARIANTS,
    Comparison,
    Facet,
    comparisons,
    in_unit,
    place_in,
    share,
    time_text,
    variants,
)
from bench.svg import MUTED, NUM_SERIES, STYLE, logarithmic, look, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 3.4, 2.4  # inches: 326 CSS pixels, three beside each other on a wide page
# A mark of matplotlib's, and the same one drawn for the key
_MARKS = (
    ("o", '<circle cx="14" cy="6" r="3.2"/>'),
    ("s", '<path d="M11 3h6v6h-6z"/>'),
    ("D", '<path d="M14 1.8 18.2 6 14 10.2 9.8 6z"/>'),
    ("^", '<path d="M14 2.2 17.8 9.4h-7.6z"/>'),
    ("v", '<path d="M14 9.8 10.2 2.6h7.6z"/>'),
)
_DOTTED = (1.1, 1.7)  # host wall time


@dataclass(frozen=True)
class Panel:
    title: str
    svg: str


@dataclass(frozen=True)
class Key:
    """An entry of a key: a line with its mark as <svg>, and what it stands for."""

    svg: str
    name: str


@dataclass(frozen=True)
class Multiples:
    """Panels in groups, each with its heading, and the key to all of them."""

    keys: list[Key]
    groups: list[tuple[str, list[Panel]]]


def latency(result: KernelResult) -> Multiples | None:
    """Time per call against elements: a panel per facet, grouped by mode.

    A line per variant, solid for GPU time and dotted for host wall time where both are there; the band is the spread.
    A facet is left out where there is nothing to compare: one size, or one variant of several. None if all are.
    """
    facets = _grouped(comparisons(result), lambda case: case.facet)
    lines = {facet: _lines(group, lambda case: case.timed) for facet, group in facets.items()}
    enough = min(2, len(variants(result)))
    lines = {
        facet: found
        for facet, found in lines.items()
        if _several_sizes(found) and len({variant for variant, _ in found}) >= enough
    }
    shown = [m for found in lines.values() for line in found.values() for m in line]
    if not shown:
        return None
    scales = _limits(m.elements for m in shown), _limits(second for m in shown for second in m.spread)
    places = _places({m.variant for m in shown}, VARIANTS)
    both = len({m.clock for m in shown}) > 1

    def panel(number: int, facet: Facet) -> Panel:
        title = f"{LOSSES.get(facet.loss, facet.loss)}, {facet.inputs}"
        alt = f"Time per call of {title}, {MODES.get(facet.mode, facet.mode)}: "
        return Panel(title, _latency_svg(lines[facet], scales, places, both, f"latency{number}", alt))

    keys = [Key(_key_svg(place), name) for name, place in places.items()]
    if both:
        present = {m.clock for m in shown}
        keys += [Key(_line_svg(clock), CLOCKS.get(clock, clock)) for clock in sorted(present, key=_clock_order)]
    return Multiples(keys, _by_mode(lines, panel))


def bandwidth(result: KernelResult) -> Multiples | None:
    """Share of the measured ceiling that the fused kernels reach on the GPU clock, in percent, against elements.

    A panel per mode and inputs, a line per loss; the band is the spread. None where no loss has several sizes.
    """
    fused = [
        case
        for case in comparisons(result)
        if case.facet.loss not in REPLACED_BY and FUSED in case.timed and share(result, case.timed[FUSED]) is not None
    ]
    facets = _grouped(fused, lambda case: replace(case.facet, loss=""))
    lines = {facet: _lines(group, lambda c: {c.facet.loss: c.timed[FUSED]}) for facet, group in facets.items()}
    lines = {facet: found for facet, found in lines.items() if _several_sizes(found)}
    shown = [m for found in lines.values() for line in found.values() for m in line]
    if not shown:
        return None
    shares = {id(m): 100 * (share(result, m) or 0.0) for m in shown}
    scales = _limits(m.elements for m in shown), (0.0, max(108.0, *(1.05 * value for value in shares.values())))
    # Colours of their own: a colour that is a variant in one figure should not be a loss in the next
    places = {name: len(VARIANTS) + place for name, place in _places({m.loss for m in shown}, tuple(LOSSES)).items()}

    def panel(number: int, facet: Facet) -> Panel:
        alt = f"Share of the bandwidth ceiling, {facet.inputs}, {MODES.get(facet.mode, facet.mode)}: "
        return Panel(facet.inputs, _bandwidth_svg(lines[facet], shares, scales, places, f"bandwidth{number}", alt))

    keys = [Key(_key_svg(place, _loss_dashes(place)), LOSSES.get(name, name)) for name, place in places.items()]
    return Multiples(keys, _by_mode(lines, panel))


Lines = dict[tuple[str, str], list[Measurement]]  # (what the line stands for, clock) -> measurements by size
Scales = tuple[tuple[float, float], tuple[float, float]]  # limits of both axes


def _latency_svg(lines: Lines, scales: Scales, places: Mapping[str, int], both: bool, name: str, alt: str) -> str:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = _panel()
        for (variant, clock), line in lines.items():
            lows, highs = zip(*(m.spread for m in line), strict=True)
            dashes = _DOTTED if both and clock != "gpu" else ()
            _draw(axes, line, [m.median for m in line], lows, highs, places[variant], dashes)
        axes.set_ylim(*scales[1])
        logarithmic(axes, "y", lambda seconds: "{:.3g} {}".format(*in_unit(seconds)))
        _finish(axes, scales[0])
        said = [
            f"{variant}{f', {CLOCKS.get(clock, clock)}' if both else ''} {_ends(line, lambda m: time_text(m.median))}"
            for (variant, clock), line in lines.items()
        ]
        return svg_text(figure, name, f"{alt}{'; '.join(said)}.")


def _bandwidth_svg(
    lines: Lines, shares: Mapping[int, float], scales: Scales, places: Mapping[str, int], name: str, alt: str
) -> str:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = _panel()
        axes.axhline(100, color=MUTED, linewidth=0.9, zorder=1.5)
        for (loss, _), line in lines.items():
            middle = [shares[id(m)] for m in line]
            lows = [shares[id(m)] * m.median / m.spread[1] for m in line]
            highs = [shares[id(m)] * m.median / m.spread[0] for m in line]
            _draw(axes, line, middle, lows, highs, places[loss], _loss_dashes(places[loss]))
        axes.set_ylim(*scales[1])
        _finish(axes, scales[0])
        axes.yaxis.set_major_formatter("{x:g} %")
        said = [
            f"{LOSSES.get(loss, loss)} {_ends(line, lambda m: f'{shares[id(m)]:.0f} %')}"
            for (loss, _), line in lines.items()
        ]
        return svg_text(figure, name, f"{alt}{'; '.join(said)}.")


def _panel() -> tuple[Figure, Axes]:
    """The same margins in every panel, so that they line up; what the vertical axis is stands above them all."""
    figure, axes = new_figure(WIDTH, HEIGHT, fitted=False)
    figure.subplots_adjust(left=0.18, right=0.985, bottom=0.2, top=0.97)
    return figure, axes


def _draw(
    axes: Axes,
    line: Sequence[Measurement],
    middle: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    place: int,
    dashes: tuple[float, ...],
) -> None:
    color, _ = look(place)
    sizes = [m.elements for m in line]
    axes.fill_between(sizes, lows, highs, color=color, alpha=0.22, linewidth=0)
    axes.plot(
        sizes,
        middle,
        color=color,
        dashes=dashes or (None, None),
        linewidth=1.2 if dashes == _DOTTED else 1.7,
        marker=_MARKS[place % len(_MARKS)][0],
        markersize=3 if dashes == _DOTTED else 4,
        markeredgewidth=0,
    )


def _finish(axes: Axes, sizes: tuple[float, float]) -> None:
    axes.set_xlim(*sizes)
    logarithmic(axes, "x", _count_text, dense=sizes[1] < 30 * sizes[0])
    axes.set_xlabel("elements")
    axes.minorticks_off()  # they would be most of the page's bytes


def _grouped(found: Iterable[Comparison], key: Callable[[Comparison], Facet]) -> dict[Facet, list[Comparison]]:
    groups: dict[Facet, list[Comparison]] = {}
    for case in found:
        groups.setdefault(key(case), []).append(case)
    return groups


def _lines(group: Iterable[Comparison], members: Callable[[Comparison], Mapping[str, Measurement]]) -> Lines:
    """`group` is in the order of size, and so is each line."""
    lines: Lines = {}
    for case in group:
        for name, m in members(case).items():
            lines.setdefault((name, case.clock), []).append(m)
    return lines


def _several_sizes(lines: Lines) -> bool:
    return any(len({m.elements for m in line}) > 1 for line in lines.values())


def _by_mode(facets: Iterable[Facet], panel: Callable[[int, Facet], Panel]) -> list[tuple[str, list[Panel]]]:
    """Plain inputs first, so that a row of the page's grid is a loss and a column a pair of dtypes."""
    groups: dict[str, list[Panel]] = {}
    for number, facet in enumerate(sorted(facets, key=lambda facet: (facet.rank[1], facet.rank[4:], facet.rank))):
        groups.setdefault(MODES.get(facet.mode, facet.mode), []).append(panel(number, facet))
    return list(groups.items())


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Of a logarithmic axis: room beyond the outermost values."""
    found = list(values)
    return min(found) / 1.5, max(found) * 1.5


def _places(names: Iterable[str], known: Sequence[str]) -> dict[str, int]:
    """A known name's place is its own, whatever else is shown; the others follow."""
    ordered = sorted(names, key=lambda name: (place_in(name, known), name))
    strangers = [name for name in ordered if name not in known]
    return {n: known.index(n) if n in known else len(known) + strangers.index(n) for n in ordered}


def _loss_dashes(place: int) -> tuple[float, ...]:
    """Kernels that all reach the ceiling lie on each other."""
    return look(place - len(VARIANTS))[1]


def _clock_order(clock: str) -> tuple[int, str]:
    return place_in(clock, tuple(CLOCKS)), clock


def _key_svg(place: int, dashes: tuple[float, ...] = ()) -> str:
    color = f"var(--series-{place % NUM_SERIES})"
    mark = _MARKS[place % len(_MARKS)][1]
    pattern = f' stroke-dasharray="{" ".join(f"{2 * length:g}" for length in dashes)}"' if dashes else ""
    line = f'<path d="M1 6h26" stroke="{color}" stroke-width="2"{pattern}/>'
    return f'<svg class="key" width="28" height="12" aria-hidden="true"><g fill="{color}">{line}{mark}</g></svg>'


def _line_svg(clock: str) -> str:
    dashes = "" if clock == "gpu" else ' stroke-dasharray="2 2.6"'
    line = f'<path d="M1 6h26" stroke="var(--muted)" stroke-width="2"{dashes}/>'
    return f'<svg class="key" width="28" height="12" aria-hidden="true">{line}</svg>'


def _ends(line: Sequence[Measurement], text: Callable[[Measurement], str]) -> str:
    """The smallest and the largest size of a line in words."""
    ends = [line[0], line[-1]] if len(line) > 1 else line
    return " to ".join(f"{text(m)} at {m.elements:,} elements" for m in ends)


def _count_text(count: float) -> str:
    """10k, 1M: an axis has no room for zeros."""
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:g}{letter}"
    return f"{count:g}"
