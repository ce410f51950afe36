"""What the results of an experiment say: its verdict in one sentence, the rows of its tables, and what to be wary of.

Metrics are fractions here as in `result.json`; pages show NME and failure rate x 100.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.experiment import AnyTrial, Experiment, Gate, Trial
from bench.nme_verdicts import compare, experiment_rule
from bench.published import PUBLISHED
from bench.result import SUBSETS, Environment, OpError, SubsetMetrics, Throughput, Timings
from bench.rule import changes

INTERPRETER = "TRITON_INTERPRET"  # set by a trial on the CPU whose loss is a Triton kernel
Metric = Literal["nme", "failure_rate", "auc"]


@dataclass(frozen=True)
class Cell:
    """One figure of a table: the mean over `seeds` trials and their sample standard deviation (None for one trial)."""

    state: Literal["value", "unknown", "no faces"]
    mean: float = math.nan
    deviation: float | None = None
    seeds: int = 0


@dataclass(frozen=True)
class Row:
    """One line of a table, with a cell per subset in the order of `SUBSETS`."""

    label: str
    kind: Literal["baseline", "variant", "mean shape", "published"]
    cells: tuple[Cell, ...]
    seeds: int = 0


@dataclass(frozen=True)
class Verdict:
    state: Literal["passed", "failed", "incomplete", "ungated"]
    sentence: str


@dataclass(frozen=True)
class GateRow:
    gate: Gate
    more: int  # gates of the same name and variant that passed, too

    @property
    def detail(self) -> str:
        return self.gate.detail + (f"; and {self.more} more" if self.more else "")


@dataclass(frozen=True)
class Speed:
    """A variant's training speed over all windows of its trials, images per second."""

    variant: str
    median: float
    windows: tuple[float, ...]
    trials: int
    batch_size: str
    window_steps: str
    warmup_steps: str
    input_share: float | None
    ratio: float | None  # to the baseline's median


def verdict(experiment: Experiment) -> Verdict:
    """Whether the trials are done and the gates passed."""
    total = len(experiment.config["trials"])
    done, failed, missing = experiment.done, len(experiment.failures), len(experiment.missing)
    trials = [f"{done} of {total} {'trial is' if total == 1 else 'trials are'} done"]
    if failed:
        trials.append(f"{failed} failed")
    if missing:
        trials.append(f"{missing} missing")

    judged, lost = experiment.gates, [gate for gate in experiment.gates if not gate.passed]
    if lost:
        parts = []
        for what, some in (
            ("failed", [gate for gate in lost if not gate.inconclusive]),
            ("inconclusive", [gate for gate in lost if gate.inconclusive]),
        ):
            named = list(dict.fromkeys(f"{gate.gate} ({gate.variant})" for gate in some))
            names = ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")
            if some:
                verb = what if what == "failed" else f"{'is' if len(some) == 1 else 'are'} {what}"
                parts.append(f"{len(some)} of {len(judged)} gates {verb}: {names}")
        gates = "; ".join(parts)
    elif judged:
        gates = "the only gate passed" if len(judged) == 1 else f"all {len(judged)} gates passed"
    else:
        gates = "no gate was judged"

    if done < total:
        state: Literal["passed", "failed", "incomplete", "ungated"] = "incomplete"
    elif lost:
        state = "failed"
    else:
        state = "passed" if judged else "ungated"
    return Verdict(state, f"{_parity(experiment)}{', '.join(trials)}; {gates}.")


def gate_rows(experiment: Experiment) -> list[GateRow]:
    """The gates that failed, those that are inconclusive, and one row for all of a variant's that passed alike."""
    lost = [gate for gate in experiment.gates if not gate.passed]
    passed: dict[tuple[str, str], list[Gate]] = {}
    for gate in experiment.gates:
        if gate.passed:
            passed.setdefault((gate.gate, gate.variant), []).append(gate)
    return [
        *(GateRow(gate, 0) for gate in sorted(lost, key=lambda gate: gate.inconclusive)),
        *(GateRow(first, len(others)) for first, *others in passed.values()),
    ]


def _parity(experiment: Experiment, named: int = 3) -> str:
    """What the gating subsets say of each variant, as the beginning of a sentence; nothing where none gates."""
    if experiment.measure != "training":
        return ""
    pairs: dict[tuple[str, str], list[str]] = {}
    for one in compare(experiment):
        if one.gating:
            pairs.setdefault((one.variant, one.reference), []).append(one.state)
    order = ("DIFFERENT", "INCONCLUSIVE", "EQUIVALENT")  # the worst of a variant's subsets is its own
    found = {pair: min(states, key=order.index) for pair, states in pairs.items()}
    words = {
        "DIFFERENT": "DIFFERENT from",
        "INCONCLUSIVE": "neither EQUIVALENT to nor DIFFERENT from",
        "EQUIVALENT": "EQUIVALENT to",
    }
    parts = [f"{variant} is {words[state]} {reference}" for (variant, reference), state in found.items()]
    if len(parts) > named:
        counts = {state: sum(one == state for one in found.values()) for state in order}
        parts = [f"{count} of {len(found)} variants are {state}" for state, count in counts.items() if count]
    return f"{', '.join(parts)}: " if parts else ""


def rows(experiment: Experiment, metric: Metric) -> list[Row]:
    """Variants in the config's order, the mean shape, and for the NME on real data the published models."""
    table = []
    for variant in experiment.variants:
        results = [trial.result for trial in experiment.of_variant(variant)]
        if results:
            kind: Literal["baseline", "variant"] = "baseline" if variant == experiment.baseline else "variant"
            cells = _cells([result.metrics for result in results], metric)
            table.append(Row(variant, kind, cells, len(results)))
    if experiment.results:
        references = [trial.result.mean_shape for trial in experiment.results]
        # Every trial predicts the same mean shape, so that a deviation between them would be noise of the last digit
        cells = tuple(
            Cell(
                cell.state, cell.mean, cell.deviation if cell.deviation and cell.deviation > 1e-9 else None, cell.seeds
            )
            for cell in _cells(references, metric)
        )
        table.append(Row("mean shape", "mean shape", cells))
    if metric == "nme" and has_real_faces(experiment):
        for label, numbers in PUBLISHED.items():
            table.append(Row(label, "published", tuple(Cell("value", numbers[s] / 100) for s in SUBSETS)))
    return table


def trial_cells(trial: Trial) -> tuple[Cell, ...]:
    """The NME of one trial in every subset."""
    return _cells([trial.result.metrics], "nme")


def has_real_faces(experiment: Experiment) -> bool:
    """Whether the experiment ran on WFLW itself: published numbers say nothing beside any other data."""
    data = experiment.config.get("data")
    return isinstance(data, dict) and data.get("kind") in ("wflw", "mmpose")


def face_counts(experiment: Experiment) -> tuple[str, ...]:
    """Test faces of each subset, as text: a number, a range where trials differ, or "unknown"."""
    return tuple(
        _span(
            [t.result.metrics[s].count for t in experiment.results if s in t.result.metrics],
            "unknown",
        )
        for s in SUBSETS
    )


def worst_op_errors(experiment: Experiment) -> list[tuple[str, Trial, OpError]]:
    """For each variant the trial whose loss and gradient come closest to their limits, or pass them."""
    table = []
    for variant in experiment.variants:
        trials = experiment.of_variant(variant)
        if trials:
            trial = max(trials, key=lambda t: _strain(t.result.op_error))
            table.append((variant, trial, trial.result.op_error))
    return table


def speeds(experiment: Experiment) -> list[Speed]:
    """Training speed of each variant that measured it."""
    table: list[Speed] = []
    base: float | None = None
    for variant in (experiment.baseline, *(v for v in experiment.variants if v != experiment.baseline)):
        measured: list[Throughput] = [
            trial.result.throughput for trial in experiment.of_variant(variant) if trial.result.throughput
        ]
        windows = [w for one in measured for w in one.windows if math.isfinite(w)]
        if not windows:
            continue
        median = statistics.median(windows)
        base = median if variant == experiment.baseline else base
        shares = [one.input_share for one in measured if one.input_share is not None]
        table.append(
            Speed(
                variant=variant,
                median=median,
                windows=tuple(windows),
                trials=len(measured),
                batch_size=_span([one.batch_size for one in measured]),
                window_steps=_span([one.window_steps for one in measured]),
                warmup_steps=_span([one.warmup_steps for one in measured]),
                input_share=statistics.fmean(shares) if shares else None,
                ratio=median / base if base and variant != experiment.baseline else None,
            )
        )
    order = {variant: position for position, variant in enumerate(experiment.variants)}
    return sorted(table, key=lambda speed: order[speed.variant])


def timings(experiment: Experiment) -> list[tuple[str, Timings]]:
    """Seconds of each phase, averaged over a variant's trials."""
    table = []
    for variant in experiment.variants:
        records = [trial.result.timings for trial in experiment.of_variant(variant)]
        if records:
            mean = {name: statistics.fmean(getattr(one, name) for one in records) for name in Timings.model_fields}
            table.append((variant, Timings(**mean)))
    return table


def environments(experiment: Experiment) -> list[tuple[Environment, list[AnyTrial]]]:
    """The distinct environments, each with the trials that ran in it, most trials first."""
    groups: dict[str, tuple[Environment, list[AnyTrial]]] = {}
    for trial in experiment.everything:
        environment = trial.environment
        groups.setdefault(environment.model_dump_json(), (environment, []))[1].append(trial)
    return sorted(groups.values(), key=lambda group: -len(group[1]))


def cautions(experiment: Experiment) -> list[str]:
    """What makes the trials of this experiment hard to compare with each other or to repeat."""
    found = []
    for what, values in _varying(experiment).items():
        common = max(values, key=lambda value: len(values[value]))
        listed = "; ".join(f"{value} in {_names(trials)}" for value, trials in values.items() if value != common)
        listed = f"{listed}; {common} in the other {len(values[common])}"
        found.append(f"The trials ran with different {what}: {listed}.")
    if experiment.measure == "training":
        found += changes(experiment.rules, experiment_rule(experiment))
    dirty = [trial for trial in experiment.everything if trial.environment.dirty]
    if dirty:
        found.append(f"Uncommitted changes were in the checkout of {_names(dirty, experiment.done)}.")
    resumed = [trial for trial in experiment.results if trial.result.resumed_at]
    if resumed:
        names = _names(resumed, len(experiment.results))
        found.append(f"The timings of {names} are of the part after an interruption.")
    interpreted = [trial for trial in experiment.everything if _interpreted(trial)]
    if interpreted:
        names = _names(interpreted, experiment.done)
        found.append(f"The kernel of {names} ran in Triton's interpreter: its numbers count, its speed says nothing.")
    for subset, text in zip(SUBSETS, face_counts(experiment), strict=True):
        if "–" in text:
            found.append(f"The trials have different numbers of test faces in the subset {subset}: {text}.")
    return found


def _interpreted(trial: AnyTrial) -> bool:
    loss = trial.result.config.get("loss")
    triton = isinstance(loss, dict) and loss.get("impl") == "triton"
    return triton and INTERPRETER in trial.environment.variables


def _varying(experiment: Experiment) -> dict[str, dict[str, list[AnyTrial]]]:
    """Every property of the environment that takes several values, with the trials of each value."""
    properties: dict[str, Callable[[Environment], object]] = {
        "commits": lambda e: e.commit[:12] if e.commit else "no commit",
        "hosts": lambda e: e.host,
        "platforms": lambda e: e.platform,
        "Python versions": lambda e: e.python,
        "processors": lambda e: f"{e.cpu} ({e.cpus} logical)",
        "thread counts": lambda e: e.threads,
        "GPUs": lambda e: e.gpu or "no GPU",
        "GPU drivers": lambda e: e.driver or "no driver",
    }
    for name in sorted({name for t in experiment.everything for name in t.environment.packages}):
        properties[f"versions of {name}"] = lambda e, name=name: e.packages.get(name, "none")  # type: ignore[misc]
    for name in sorted({name for t in experiment.everything for name in t.environment.variables} - {INTERPRETER}):
        properties[f"values of {name}"] = lambda e, name=name: e.variables.get(name, "unset")  # type: ignore[misc]
    varying = {}
    for what, of in properties.items():
        values: dict[str, list[AnyTrial]] = {}
        for trial in experiment.everything:
            values.setdefault(str(of(trial.environment)), []).append(trial)
        if len(values) > 1:
            varying[what] = values
    return varying


def _names(trials: Sequence[AnyTrial], everyone: int = -1, shown: int = 4) -> str:
    if len(trials) == everyone:
        return "all trials" if everyone > 1 else "the trial"
    names = [trial.label for trial in trials[:shown]]
    return ", ".join(names) + (f" and {len(trials) - shown} more" if len(trials) > shown else "")


def _cells(tables: Sequence[Mapping[str, SubsetMetrics]], metric: Metric) -> tuple[Cell, ...]:
    return tuple(
        _cell([v for table in tables if (v := _value(table, s, metric)) is not None], _state(tables, s))
        for s in SUBSETS
    )


def _cell(values: Sequence[float], otherwise: Literal["unknown", "no faces"]) -> Cell:
    if not values:
        return Cell(otherwise)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Cell("value", statistics.fmean(values), deviation, len(values))


def _value(metrics: Mapping[str, SubsetMetrics], subset: str, metric: Metric) -> float | None:
    value: float | None = getattr(metrics[subset], metric) if subset in metrics else None
    return value if value is not None and math.isfinite(value) else None


def _state(tables: Iterable[Mapping[str, SubsetMetrics]], subset: str) -> Literal["unknown", "no faces"]:
    """Why there is no number: nobody knows which faces belong to the subset, or none does."""
    return "no faces" if any(subset in table and table[subset].count == 0 for table in tables) else "unknown"


def _strain(error: OpError) -> float:
    """The larger of the two errors, each in parts of its limit."""
    pairs = ((error.loss_relative, error.loss_relative_limit), (error.gradient_ulp, error.gradient_ulp_limit))
    return max(
        math.inf if value is None or value > limit else value / limit if limit else 0.0 for value, limit in pairs
    )


def rate_text(value: float) -> str:
    """Images per second to three digits, or to whole ones."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(values: Sequence[Any], otherwise: str = "") -> str:
    if not values:
        return otherwise
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def cell_text(cell: Cell, sign: bool = False, plus_minus: str = "±") -> str:
    """A cell x 100 as text: "9.41 ± 0.12", "unknown" or "no faces"."""
    if cell.state != "value":
        return cell.state
    mean = f"{100 * cell.mean:{'+' if sign else ''}.2f}"
    if sign:
        mean = mean.replace("-", "−")  # as wide as the plus sign
    return mean if cell.deviation is None else f"{mean} {plus_minus} {100 * cell.deviation:.2f}"
