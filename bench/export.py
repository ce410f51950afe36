"""A report as JSON and CSV: what the page says, for programs. Every figure names the file that it is from."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.experiment import AnyTrial, Experiment
    from bench.kernels.result import KernelResult

FORMAT = 1  # rises when a key changes its meaning or goes


def experiment_json(experiment: Experiment) -> str:
    """Verdict, gates, parity, speeds, trials, failures and warnings of an experiment; NMEs of trials as fractions."""
    from bench import speed_summary, summary
    from bench.level_verdicts import level_verdicts
    from bench.nme_verdicts import compare, experiment_rule
    from bench.references import noise_floor, noise_sentence

    verdict = summary.verdict(experiment)
    content: dict[str, Any] = {
        "format": FORMAT,
        "experiment": experiment.name,
        "measure": experiment.measure,
        "verdict": asdict(verdict),
        "gates": [gate.model_dump() for gate in experiment.gates],
        "noise_floor": {"sentence": noise_sentence(experiment), "known": noise_floor(experiment) is not None},
        "failures": [
            {"trial": one.folder.name, "variant": one.variant, "seed": one.seed, **one.failure.model_dump()}
            for one in experiment.failures
        ],
        "missing": list(experiment.missing),
        "warnings": [
            *experiment.problems, *summary.cautions(experiment), *speed_summary.speed_cautions(experiment)
        ],
        "trials": [_trial(trial) for trial in experiment.everything],
    }  # fmt: skip
    if experiment.measure == "training":
        content["rule"] = experiment_rule(experiment).model_dump()
        content["parity"] = [asdict(one) for one in compare(experiment)]
        content["levels"] = [
            {**asdict(one), "result": _file(trial)}
            for trial in experiment.levels
            for one in level_verdicts(trial.result)
        ]
    if experiment.timed:
        content["speeds"] = [asdict(row) for row in speed_summary.speed_rows(experiment)]
        content["scaling"] = [asdict(row) for row in speed_summary.scaling_rows(experiment)]
    times = speed_summary.time_rows(experiment)
    if times:
        content["times"] = [asdict(row) for row in times]
        content["thresholds"] = speed_summary.thresholds(experiment)
    return json.dumps(finite(content), indent=1, ensure_ascii=False) + "\n"


def csv_text(experiment: Experiment) -> str:
    """One line per trial and subset, metrics as fractions; what a trial does not know is left empty."""
    from bench.experiment import TRIALS
    from bench.result import RESULT, SUBSETS

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    metrics = ("count", "nme", "failure_rate", "auc")
    writer.writerow(["trial", "variant", "seed", "subset", *metrics, "images_per_second", "seconds", "result"])
    for trial in experiment.results:
        result = trial.result
        speed = result.throughput.images_per_second if result.throughput else None
        for subset in SUBSETS:
            row = result.metrics.get(subset)
            numbers = [getattr(row, name, None) for name in metrics]
            path = f"{TRIALS}/{trial.folder.name}/{RESULT}"
            writer.writerow(
                [result.trial, result.variant, result.seed, subset, *numbers, speed, result.timings.total, path]
            )
    return buffer.getvalue()


def times_csv_text(experiment: Experiment) -> str:
    """One line per trial and NME; seconds from the start of the process, empty where the NME was not reached."""
    from bench.speed_summary import seconds_to, thresholds

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["trial", "variant", "seed", "repeat", "caches", "nme_x100", "seconds", "process_seconds"])
    for trial in experiment.results:
        one = trial.result
        for nme in thresholds(experiment):
            times = (seconds_to(trial, nme), one.process_seconds)
            writer.writerow([one.trial, one.variant, one.seed, one.repeat, one.caches, nme, *times])
    return buffer.getvalue()


def speed_csv_text(experiment: Experiment) -> str:
    """One line per trial of a throughput; seconds, bytes, and images per second of all ranks together."""
    from bench.experiment import TRIALS
    from bench.result import THROUGHPUT

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    estimates = ("images_per_second", "input_alone", "resident", "input_share")
    writer.writerow(
        [
            *("trial", "variant", "repeat", "world_size", "batch_size", "gpu"),
            *(f"{name}{end}" for name in estimates for end in ("", "_low", "_high")),
            *("first_step_from_process", "first_step_from_stepper", "warmup_steps", "warmup_seconds"),
            *("memory_of", "memory_allocated", "memory_reserved", "model_flops_utilisation", "floor_share"),
            *("seconds", "result"),
        ]
    )
    for trial in experiment.timed:
        one = trial.result
        found = (
            one.training.images_per_second,
            one.input_alone.images_per_second,
            one.resident.images_per_second,
            one.input_share,
        )
        writer.writerow(
            [
                *(one.trial, one.variant, one.repeat, one.world_size, one.batch_size, one.environment.gpu),
                *(number for estimate in found for number in (estimate.value, estimate.low, estimate.high)),
                *(one.first_step_from_process, one.first_step_from_stepper),
                *(one.training.warmup_steps, one.training.warmup_seconds),
                *(one.memory.of, one.memory.allocated, one.memory.reserved),
                *(one.model_flops_utilisation, one.floor_share),
                *(one.seconds, f"{TRIALS}/{trial.folder.name}/{THROUGHPUT}"),
            ]
        )
    return buffer.getvalue()


def kernel_json(result: KernelResult) -> str:
    """The result of a kernel benchmark as it was read."""
    return result.model_dump_json(indent=1) + "\n"


def kernel_csv(result: KernelResult) -> str:
    """A line per measurement; seconds, bytes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = ("loss", "mode", "variant", "pred_dtype", "target_dtype", "elements", "weight", "upstream", "clock")
    more = ("median", "bytes_per_second", "launches", "peak_extra_bytes", "compile_seconds")
    writer.writerow([*columns, "shape", *more])
    for one in result.measurements:
        shape = "x".join(map(str, one.shape))
        writer.writerow([*(getattr(one, name) for name in columns), shape, *(getattr(one, name) for name in more)])
    return buffer.getvalue()


def _trial(trial: AnyTrial) -> dict[str, Any]:
    one = trial.result
    known = {"trial": one.trial, "variant": one.variant, "seed": one.seed, "result": _file(trial)}
    for key in ("metrics", "training"):
        value = getattr(one, key, None)
        if key == "metrics" and value is not None:
            known[key] = {subset: row.model_dump() for subset, row in value.items()}
        elif value is not None:
            known["images_per_second"] = value.images_per_second.model_dump()
    return known


def _file(trial: AnyTrial) -> str:
    from bench.experiment import TRIALS

    return f"{TRIALS}/{trial.folder.name}/{trial.file}"


def finite(value: Any) -> Any:
    """`value` as JSON holds it: lists for tuples, and None for a number that is not finite."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
