"""Figures as SVG that stands inside an HTML page.

Colours are CSS variables of the page (`--series-0` ... `--ink`, `--muted`, `--grid`), so that one figure serves a light
and a dark page. The same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_SERIES = 8  # colours before they repeat, then with other dashes

# matplotlib wants real colours: these stand for the page's variables and are replaced in the SVG
INK, MUTED, GRID = "#020201", "#020202", "#020203"
_SERIES = tuple(f"#0101{i:02x}" for i in range(NUM_SERIES))
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(_SERIES)}
# Curves that lie on each other stay visible, also in print
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 1.6), (2.2, 1.4), (7, 1.6, 1.6, 1.6), (4, 1.2), (1.2, 1.2))

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "report",  # matplotlib's own ids are random otherwise
    "path.simplify": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a variant may be called "$x$"
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def new_figure(width: float = 5.4, height: float = 3.5, *, fitted: bool = True) -> tuple[Figure, Axes]:
    """A figure in inches, with margins fitted to its labels, or left to the caller.

    5.4 in are 518 CSS pixels, so that its text is as large as the page's on a wide screen.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained" if fitted else None, facecolor="none")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(facecolor="none")


def svg_text(figure: Figure, name: str, alt: str) -> str:
    """The figure as an <svg> element that may stand beside others on one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)  # every figure counts its ids from 1
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    label = html.escape(alt)
    return re.sub(r"<svg\b", f'<svg role="img" aria-label="{label}" class="figure"', text, count=1).strip()


def look(place: int) -> tuple[str, tuple[float, ...]]:
    """Colour and dashes of the series at `place`."""
    return _SERIES[place % NUM_SERIES], _DASHES[place % len(_DASHES)]


def logarithmic(
    axes: Axes, which: Literal["x", "y"], text: Callable[[float], str] = "{:g}".format, *, dense: bool = True
) -> None:
    """Make one axis logarithmic between its present limits, with at least two numbers on it whatever its range.

    Within two decades 2 and 5 get numbers, or only 3 where `dense` is off.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = sorted(axis.get_view_interval())
    subdivisions = (1.0,) if high >= 150 * low else (1.0, 2.0, 5.0) if dense else (1.0, 3.0)
    # Between 2 and 5 there may be no tick at all
    locator = LogLocator(subs=subdivisions, numticks=12) if high > 6 * low else MaxNLocator(6)
    axis.set_major_locator(locator)
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())
