"""The live view of trials that run here: a table that stays up to date on a terminal."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.plan import Trial
from bench.status import Row, group, live, running_row


class Board:
    """Knows how far the trials of one launch are without reading any but the one that runs."""

    def __init__(self, trials: Sequence[Trial], out: Path, view: Any) -> None:
        self._trials = trials
        self._out = out
        self._view = view
        self._rows = {trial.id: Row(trial.id, "queued") for trial in trials}
        self._seconds: dict[str, list[float]] = {}  # by variant, of trials that this launch has finished
        self._running: Trial | None = None
        self._begun = 0.0

    def done_before(self, trial: Trial) -> None:
        self._rows[trial.id] = Row(trial.id, "done")

    def begin(self, trial: Trial) -> None:
        self._running, self._begun = trial, time.monotonic()
        self.refresh()

    def end(self, trial: Trial, failure: str | None = None) -> None:
        """`failure`: why it has no result."""
        seconds = time.monotonic() - self._begun
        if failure is None:
            self._seconds.setdefault(trial.variant, []).append(seconds)
        self._rows[trial.id] = Row(trial.id, "done" if failure is None else "failed", note=failure or "")
        self._running = None
        self.refresh()

    def refresh(self) -> None:
        if self._view is not None:
            self._view.update(group(self.rows(), self.seconds_left()), refresh=True)

    def rows(self) -> list[Row]:
        from bench.trial import STATUS, read_status

        if self._running is not None:
            trial = self._running
            self._rows[trial.id] = running_row(trial.id, read_status(trial.folder(self._out) / STATUS))
        return list(self._rows.values())

    def seconds_left(self) -> float | None:
        """Until all trials are over, if those to come take as long as those of their variant took, or of any; None
        before the first is finished."""
        known = [value for values in self._seconds.values() for value in values]
        if not known:
            return None
        total = 0.0
        for trial in self._trials:
            expected = statistics.fmean(self._seconds.get(trial.variant, known))
            if trial is self._running:
                total += max(expected - (time.monotonic() - self._begun), 0.0)
            elif self._rows[trial.id].state == "queued":
                total += expected
        return total


@contextmanager
def board(trials: Sequence[Trial], out: Path) -> Iterator[Board | None]:
    """A board on the terminal; None where there is none."""
    if not (sys.stderr is not None and sys.stderr.isatty()):
        yield None
        return
    with live() as view:
        shown = Board(trials, out, view)
        shown.refresh()
        yield shown
