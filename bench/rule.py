"""The rule that parity is judged by, as it was before any trial ran, and what was changed since.

parity.json in an experiment's folder: every rule it has had, oldest first, each with how many results were there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from bench.result import Record, read_record, write_record
from pose.errors import InputError

RULE = "parity.json"


class Rule(Record):
    """When two variants count as the same. `gating` is empty where the experiment has no `parity` section."""

    margin: float  # NME x 100
    alpha: float
    gating: list[str]  # subsets
    compared: dict[str, str]  # every variant that is judged, and what it is compared with
    seeds: list[int]
    length: str  # of a training: "210 epochs"
    weights: Literal["last"] = "last"  # which checkpoint is evaluated: the last one, never the best


class Noted(Record):
    rule: Rule
    when: str  # ISO 8601, UTC
    results: int  # that the experiment had by then


class Rules(Record):
    schema_version: Literal[1] = 1
    rules: list[Noted]


def rule_of(config: Mapping[str, Any], where: str = "parity") -> Rule:
    """The rule of an experiment's resolved config; without a `parity` section the default one, which only informs.

    Raises `InputError`, beginning with `where`, for a section that is none.
    """
    from bench.config import Parity, compared

    section = config.get("parity")
    try:
        parity = Parity(gating=[]) if section is None else Parity.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    train = config.get("train")
    train = train if isinstance(train, dict) else {}
    return Rule(
        margin=parity.margin,
        alpha=parity.alpha,
        gating=list(parity.gating),
        compared=compared(config["variants"], config["baseline"], parity.against),
        seeds=config["seeds"],
        length=next((f"{train[key]} {key}" for key in ("epochs", "steps") if train.get(key) is not None), "any length"),
    )


def note_rule(rule: Rule, out: Path, results: int) -> None:
    """Leave `rule` in the experiment's folder, beside those it had; `results`: trials that are done by now."""
    path = out / RULE
    before = read_record(path, Rules).rules if path.exists() else []
    if before and before[-1].rule == rule:
        return
    now = Noted(rule=rule, when=datetime.now(UTC).isoformat(timespec="seconds"), results=results)
    write_record(Rules(rules=[*before, now]), path)


def read_rules(out: Path, problems: list[str]) -> list[Noted]:
    """What was noted; a file that cannot be read is named in `problems`."""
    path = out / RULE
    try:
        return read_record(path, Rules).rules if path.exists() else []
    except (InputError, OSError) as error:
        problems.append(f"{RULE}: {str(error).removeprefix(f'{path}: ')}; whether the rule was changed is not known")
        return []


def changes(noted: Sequence[Noted], now: Rule | None = None) -> list[str]:
    """A sentence for each change of the rule that came after results. now: the rule that the config holds."""
    found = []
    if noted and noted[0].results:
        found.append(f"The rule of parity was written when {_results(noted[0].results)} there already.")
    for before, after in itertools.pairwise(noted):
        if after.results:
            what = _differing(before.rule, after.rule)
            found.append(f"The rule of parity was changed when {_results(after.results)} there ({after.when}): {what}.")
    if noted and now is not None and noted[-1].rule != now:
        what = _differing(noted[-1].rule, now)
        found.append(f"The rule in experiment.yaml is not the one that was noted in {RULE} before: {what}.")
    return found


def _differing(before: Rule, after: Rule) -> str:
    return "; ".join(
        f"{key} {_text(getattr(before, key))} → {_text(getattr(after, key))}"
        for key in Rule.model_fields
        if getattr(before, key) != getattr(after, key)
    )


def _results(count: int) -> str:
    return f"{count} {'result was' if count == 1 else 'results were'}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} with {other}" for name, other in value.items()) or "none"
    return str(value)
