"""The figures of an experiment's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from bench.interval import Interval
from bench.nme_verdicts import signed
from bench.summary import Speed, rate_text
from bench.svg import INK, MUTED, STYLE, logarithmic, look, new_figure, svg_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.experiment import Curve

MAX_POINTS = 400  # of one loss curve; more cannot be seen and swells the page
_WIDEST = 8.0  # margins that the axis of differences reaches at most


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


def parity_intervals(rows: Sequence[tuple[str, float, Interval | None]], margin: float) -> str:
    """Differences in NME x 100 with their intervals, one under the other, over the band of +- `margin`."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=0.9 + 0.3 * len(rows))
        color, _ = look(0)
        axes.axvspan(-margin, margin, color=MUTED, alpha=0.15, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        ends_seen = [end for _, value, i in rows for end in ((i.low, i.high, value) if i is not None else (value,))]
        far = min(max(2 * margin, *map(abs, ends_seen)), _WIDEST * margin)  # the margin has to be seen
        for place, (_, value, interval) in enumerate(rows):
            if abs(value) > far:
                side = math.copysign(1, value)
                axes.plot([side * far], [place], color=color, marker=">" if side > 0 else "<", markersize=5)
                shift, anchor = (-8, "right") if side > 0 else (8, "left")
                axes.annotate(
                    signed(value, 2), (side * far, place), (shift, 0), textcoords="offset points",
                    ha=anchor, va="center", color=INK,
                )  # fmt: skip
                continue
            if interval is not None:
                ends = (interval.low, interval.high)
                axes.plot(ends, [place, place], color=color, linewidth=1.6, marker="|", markersize=7)
            axes.plot([value], [place], color=color, marker="o", markersize=4.5)
        axes.set_yticks(range(len(rows)), [_short(name, 34) for name, _, _ in rows])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(-1.08 * far, 1.08 * far)
        axes.xaxis.set_major_locator(MaxNLocator(5, symmetric=True))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference in NME × 100")
        alt = "; ".join(f"{name} {value:+.3f}" for name, value, _ in rows)
        return svg_text(figure, "parity", f"Differences in NME x 100, margin {margin:g}: {alt}.")


def trajectories(
    lines: Mapping[str, Sequence[float | None]], twins: Sequence[Sequence[float | None]], colors: Mapping[str, int]
) -> str | None:
    """Distance of weights against step, logarithmic; `twins`: of one ulp. None where nothing is above 0."""
    import matplotlib as mpl
    from matplotlib.ticker import MaxNLocator

    def positive(values: Sequence[float | None]) -> tuple[list[int], list[float]]:
        found = [(step, v) for step, v in enumerate(values, start=1) if v is not None and v > 0]
        return [step for step, _ in found], [v for _, v in found]

    if not any(positive(values)[0] for values in [*lines.values(), *twins]):
        return None
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=3.0)
        for number, values in enumerate(twins):
            label = "one ulp of one weight" if number == 0 else None
            axes.plot(*positive(values), color=MUTED, dashes=(3, 1.5), linewidth=1.3, label=label)
        for variant, values in lines.items():
            steps, distances = positive(values)
            if not steps:
                continue
            color, dashes = look(colors[variant])
            style = dashes or (None, None)
            axes.plot(steps, distances, color=color, dashes=style, linewidth=1.7, marker="o", markersize=3,
                      label=_short(variant))  # fmt: skip
        logarithmic(axes, "y", "{:.0e}".format)
        axes.set_xlabel("step")
        axes.set_ylabel("distance of weights")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, axes, "lower right", (1, 0.02), inside=0)  # curves may be anywhere
        last = "; ".join(
            f"{name} {values[-1]:.1e}" for name, values in lines.items() if values and values[-1] is not None
        )
        return svg_text(figure, "trajectory", f"Distance of weights by step, logarithmic; at the last step: {last}.")


def waterfall(steps: Sequence[tuple[str, float, Interval | None]], base: str) -> str:
    """Gains one on top of the other: each bar goes from what was reached before to that times its ratio.

    steps: name, ratio to the one before and its interval.
    """
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=0.95 + 0.34 * (len(steps) + 1))
        reached = 1.0
        axes.plot([1, 1], [-0.3, 0.3], color=INK, linewidth=2)
        edges = [1.0]
        for place, (_, ratio, interval) in enumerate(steps, start=1):
            color, _ = look(0 if ratio >= 1 else 1)
            after = reached * ratio
            low, high = sorted((reached, after))
            axes.barh(place, high - low, left=low, height=0.55, color=color, alpha=0.75, linewidth=0)
            ends = [after, after] if interval is None else [reached * interval.low, reached * interval.high]
            if interval is not None:
                axes.plot(ends, [place, place], color=INK, linewidth=1.1, marker="|", markersize=6)
            text = f"× {ratio:.2f}"
            axes.annotate(text, (max(high, *ends), place), xytext=(6, 0), textcoords="offset points", va="center")
            axes.plot([after, after], [place + 0.28, place + 0.72], color=MUTED, linewidth=0.7)
            edges += [low, high, *ends]
            reached = after
        names = [base, *(name for name, _, _ in steps)]
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(len(names) - 0.4, -0.6)
        span = max(edges) / min(edges)
        axes.set_xlim(min(edges) / span**0.06, max(edges) * span**0.2)
        logarithmic(axes, "x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"speed, {base} = 1")
        alt = "; ".join(f"{name} times {ratio:.2f}" for name, ratio, _ in steps)
        return svg_text(figure, "waterfall", f"Gains in speed one after the other from {base}: {alt}.")


def scaling_lines(lines: Mapping[str, Sequence[tuple[int, float, Interval | None]]]) -> str:
    """Efficiency against ranks: a line for weak and one for strong scaling; each starts at one rank, efficiency 1."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure, axes = new_figure(height=3.0)
        axes.axhline(1, color=MUTED, linewidth=0.8)
        top = 1.0
        for place, (name, points) in enumerate(lines.items()):
            color, dashes = look(place)
            ranks, values = [1, *(p[0] for p in points)], [1.0, *(p[1] for p in points)]
            axes.plot(ranks, values, color=color, dashes=dashes or (None, None), marker="o", markersize=4, label=name)
            top = max(top, *values)
            for count, _, interval in points:
                if interval is not None:
                    axes.plot([count, count], [max(interval.low, 0), interval.high], color=color, linewidth=1.1,
                              marker="_", markersize=7)  # fmt: skip
                    top = max(top, min(interval.high, 1.5))
        counts = sorted({1, *(p[0] for points in lines.values() for p in points)})
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_ylim(0, 1.08 * top)
        axes.set_xlabel("ranks")
        axes.set_ylabel("efficiency")
        _legend(figure, axes, "lower right", (1, 0.02))
        alt = "; ".join(
            f"{name}: " + ", ".join(f"{c} ranks {v:.2f}" for c, v, _ in points) for name, points in lines.items()
        )
        return svg_text(figure, "scaling", f"Scaling efficiency. {alt}.")


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
