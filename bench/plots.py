"""The report's figures, as SVG that stands inside an HTML page.

Colours are CSS variables of the page (`--series-0` ... `--ink`, `--muted`, `--grid`), so that one figure serves a light
and a dark page. The same numbers give the same bytes.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bench.summary import Speed, rate_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.experiment import Curve

NUM_SERIES = 8  # colours before they repeat, then with other dashes
MAX_POINTS = 400  # of one loss curve; more cannot be seen and swells the page

# matplotlib wants real colours: these stand for the page's variables and are replaced in the SVG
_INK, _MUTED, _GRID = "#020201", "#020202", "#020203"
_SERIES = tuple(f"#0101{i:02x}" for i in range(NUM_SERIES))
_VARIABLES = {_INK: "--ink", _MUTED: "--muted", _GRID: "--grid"} | {c: f"--series-{i}" for i, c in enumerate(_SERIES)}
# Curves that lie on each other stay visible, also in print
_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 1.6), (2.2, 1.4), (7, 1.6, 1.6, 1.6), (4, 1.2), (1.2, 1.2))

_STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "report",  # matplotlib's own ids are random otherwise
    "path.simplify": True,
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a variant may be called "$x$"
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "xtick.minor.visible": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def loss_curves(curves: Mapping[str, Sequence[Curve]], colors: Mapping[str, int]) -> str:
    """Training loss against step: every trial thin, the median over a variant's trials thick. `colors` gives places."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        positive = all((curve.loss > 0).all() for trials in curves.values() for curve in trials)
        for variant, trials in curves.items():
            color, dashes = _look(colors[variant])
            steps, losses = _common(trials)
            if len(trials) > 1:
                for loss in losses:
                    axes.plot(*_thinned(steps, loss), color=color, linewidth=0.7, alpha=0.4)
            axes.plot(
                *_thinned(steps, np.median(losses, axis=0)),
                color=color,
                dashes=dashes or (None, None),
                linewidth=1.7,
                label=_short(variant),
            )
        if positive:
            _logarithmic(axes)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.set_xlim(left=0)
        _legend(figure, axes, "upper right", (1, 1))
        what = "logarithmic" if positive else "linear"
        return _svg(figure, "loss", f"Training loss against step for {_listed(curves)}, {what} axis.")


def ced_curves(
    nme: Mapping[str, Sequence[np.ndarray]], colors: Mapping[str, int], mean_shape: np.ndarray | None = None
) -> str:
    """Cumulative error distribution: share of faces with at most a given NME; `nme` holds one (N,) array per trial.

    The axis ends at 10 %, or further where fewer than half the faces of some variant have so small an error.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        everyone = {variant: np.concatenate(list(trials)) for variant, trials in nme.items()}
        end = max(_reach(errors) for errors in everyone.values())
        grid = np.linspace(0, end, 201)
        for variant, trials in nme.items():
            color, dashes = _look(colors[variant])
            shares = np.stack([_share_below(errors, grid) for errors in trials])
            if len(trials) > 1:
                axes.fill_between(100 * grid, 100 * shares.min(0), 100 * shares.max(0), color=color, alpha=0.18, lw=0)
            line = 100 * shares.mean(0)
            axes.plot(
                100 * grid, line, color=color, dashes=dashes or (None, None), linewidth=1.7, label=_short(variant)
            )
        if mean_shape is not None:
            line = 100 * _share_below(mean_shape, grid)
            axes.plot(100 * grid, line, color=_MUTED, linewidth=1.3, dashes=(1.5, 1.5), label="mean shape")
        if end > 0.10:
            axes.axvline(10, color=_MUTED, linewidth=0.8)
            axes.annotate("10 %", (10, 101), color=_MUTED, fontsize=9, ha="center", va="bottom", annotation_clip=False)
        axes.set_xlim(0, 100 * end)
        axes.set_ylim(0, 100)
        axes.set_xlabel("NME × 100")
        axes.set_ylabel("faces with at most this error (%)")
        _legend(figure, axes, "lower right", (1, 0.05))  # below the curves, above the mean shape's
        shares_at_ten = ", ".join(f"{v} {100 * float(np.mean(e <= 0.10)):.1f} %" for v, e in everyone.items())
        return _svg(
            figure, "ced", f"Cumulative error distribution. Faces with an NME of at most 10 %: {shares_at_ten}."
        )


def throughput_bars(speeds: Sequence[Speed], colors: Mapping[str, int]) -> str:
    """Images per second: a bar to the median over all windows, a line from the slowest window to the fastest."""
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure, axes = _figure(height=0.75 + 0.46 * len(speeds))
        top = max(max(speed.windows) for speed in speeds)
        for place, speed in enumerate(speeds):
            color, _ = _look(colors[speed.variant])
            low, high = min(speed.windows), max(speed.windows)
            axes.barh(place, speed.median, height=0.52, color=color, alpha=0.75, linewidth=0)
            axes.plot([low, high], [place, place], color=_INK, linewidth=1.1, marker="|", markersize=7)
            axes.annotate(
                f"{rate_text(speed.median)}",
                (high, place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(speeds)), [_short(speed.variant) for speed in speeds])
        axes.tick_params(axis="y", labelcolor=_INK, length=0)
        axes.set_ylim(len(speeds) - 0.5, -0.5)
        axes.set_xlim(0, 1.18 * top)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("images per second")
        alt = "; ".join(f"{speed.variant} {rate_text(speed.median)}" for speed in speeds)
        return _svg(figure, "throughput", f"Training speed in images per second, medians: {alt}.")


def _figure(width: float = 5.4, height: float = 3.5) -> tuple[Figure, Axes]:
    """A figure in inches; 5.4 in are 518 CSS pixels, so that its text is as large as the page's on a wide screen."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot(facecolor="none")


def _svg(figure: Figure, name: str, alt: str) -> str:
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


def _look(place: int) -> tuple[str, tuple[float, ...]]:
    return _SERIES[place % NUM_SERIES], _DASHES[place % len(_DASHES)]


def _legend(
    figure: Figure,
    axes: Axes,
    place: Literal["lower right", "upper right"],
    anchor: tuple[float, float],
    inside: int = 4,
) -> None:
    """Names within the axes where they are few, below them where they would hide the curves."""
    handles, names = axes.get_legend_handles_labels()
    if len(names) <= inside:
        axes.legend(handles, names, loc=place, bbox_to_anchor=anchor)
        return
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(names) / 2))
    figure.legend(handles, names, loc="outside lower left", ncols=2)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subdivisions = (1.0, 2.0, 5.0) if high < 150 * low else (1.0,)
    # Between 2 and 5 there may be no tick at all
    locator = LogLocator(subs=subdivisions, numticks=12) if high > 6 * low else MaxNLocator(6)
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _common(trials: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Steps that every trial logged (S,), and the losses there (trials, S)."""
    steps = trials[0].step
    for curve in trials[1:]:
        steps = np.intersect1d(steps, curve.step)
    return steps, np.stack([curve.loss[np.searchsorted(curve.step, steps)] for curve in trials])


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over blocks, where there are more points than can be seen."""
    block = -(-len(x) // MAX_POINTS)
    if block <= 1:
        return x, y
    starts = np.arange(0, len(x), block)
    counts = np.diff(np.append(starts, len(x)))
    return np.add.reduceat(x.astype(np.float64), starts) / counts, np.add.reduceat(y, starts) / counts


def _share_below(errors: np.ndarray, grid: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.sort(errors), grid, side="right") / len(errors)


def _reach(errors: np.ndarray) -> float:
    """Where the axis of these errors ends: 0.10, or the 90th percentile rounded up to 0.05 where most exceed 0.10."""
    if np.mean(errors <= 0.10) >= 0.5:
        return 0.10
    return min(1.0, math.ceil(float(np.quantile(np.fmin(errors, 1.0), 0.9)) / 0.05) * 0.05)


def _short(name: str, length: int = 26) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names)
