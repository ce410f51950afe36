"""The figures of an experiment's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from bench.interval import Interval
from bench.summary import Speed, rate_text
from bench.svg import INK, MUTED, STYLE, logarithmic, look, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.experiment import Curve

MAX_POINTS = 400  # of one loss curve; more cannot be seen and swells the page


def loss_curves(curves: Mapping[str, Sequence[Curve]], colors: Mapping[str, int]) -> str:
    """Training loss against step: every trial thin, the median over a variant's trials thick. `colors` gives places."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = new_figure()
        positive = all((curve.loss > 0).all() for trials in curves.values() for curve in trials)
        for variant, trials in curves.items():
            color, dashes = look(colors[variant])
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
            logarithmic(axes, "y")
        axes.set_xlabel("step")
        axes.set_ylabel("training loss")
        axes.set_xlim(left=0)
        _legend(figure, axes, "upper right", (1, 1))
        what = "logarithmic" if positive else "linear"
        return svg_text(figure, "loss", f"Training loss against step for {_listed(curves)}, {what} axis.")


def ced_curves(
    nme: Mapping[str, Sequence[np.ndarray]], colors: Mapping[str, int], mean_shape: np.ndarray | None = None
) -> str:
    """Cumulative error distribution: share of faces with at most a given NME; `nme` holds one (N,) array per trial.

    The axis ends at 10 %, or further where fewer than half the faces of some variant have so small an error.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = new_figure()
        everyone = {variant: np.concatenate(list(trials)) for variant, trials in nme.items()}
        end = max(_reach(errors) for errors in everyone.values())
        grid = np.linspace(0, end, 201)
        for variant, trials in nme.items():
            color, dashes = look(colors[variant])
            shares = np.stack([_share_below(errors, grid) for errors in trials])
            if len(trials) > 1:
                axes.fill_between(100 * grid, 100 * shares.min(0), 100 * shares.max(0), color=color, alpha=0.18, lw=0)
            line = 100 * shares.mean(0)
            axes.plot(
                100 * grid, line, color=color, dashes=dashes or (None, None), linewidth=1.7, label=_short(variant)
            )
        if mean_shape is not None:
            line = 100 * _share_below(mean_shape, grid)
            axes.plot(100 * grid, line, color=MUTED, linewidth=1.3, dashes=(1.5, 1.5), label="mean shape")
        if end > 0.10:
            axes.axvline(10, color=MUTED, linewidth=0.8)
            axes.annotate("10 %", (10, 101), color=MUTED, fontsize=9, ha="center", va="bottom", annotation_clip=False)
        axes.set_xlim(0, 100 * end)
        axes.set_ylim(0, 100)
        axes.set_xlabel("NME × 100")
        axes.set_ylabel("faces with at most this error (%)")
        _legend(figure, axes, "lower right", (1, 0.05))  # below the curves, above the mean shape's
        shares_at_ten = ", ".join(f"{v} {100 * float(np.mean(e <= 0.10)):.1f} %" for v, e in everyone.items())
        return svg_text(
            figure, "ced", f"Cumulative error distribution. Faces with an NME of at most 10 %: {shares_at_ten}."
        )


def throughput_bars(speeds: Sequence[Speed], colors: Mapping[str, int]) -> str:
    """Images per second: a bar to the median over all windows, a line from the slowest window to the fastest."""
    bars = [(speed.variant, Interval(speed.median, min(speed.windows), max(speed.windows))) for speed in speeds]
    alt = "; ".join(f"{speed.variant} {rate_text(speed.median)}" for speed in speeds)
    return _bars(bars, colors, "images per second", f"Training speed in images per second, medians: {alt}.")


def speed_bars(bars: Sequence[tuple[str, Interval]], colors: Mapping[str, int], unit: str) -> str:
    """The speed of each variant in `unit`, with its interval."""
    alt = "; ".join(f"{variant} {rate_text(interval.value)}" for variant, interval in bars)
    return _bars(bars, colors, unit, f"Training speed, {unit}: {alt}.")


def _bars(bars: Sequence[tuple[str, Interval]], colors: Mapping[str, int], unit: str, alt: str) -> str:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=0.75 + 0.46 * len(bars))
        for place, (variant, interval) in enumerate(bars):
            color, _ = look(colors[variant])
            low, high = interval.low, interval.high
            axes.barh(place, interval.value, height=0.52, color=color, alpha=0.75, linewidth=0)
            axes.plot([low, high], [place, place], color=INK, linewidth=1.1, marker="|", markersize=7)
            axes.annotate(
                rate_text(interval.value),
                (high, place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
            )
        axes.set_yticks(range(len(bars)), [_short(variant) for variant, _ in bars])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1.18 * max(interval.high for _, interval in bars))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        return svg_text(figure, "throughput", alt)


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
