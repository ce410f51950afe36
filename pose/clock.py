"""Time spent in training steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Window(NamedTuple):
    """Some steps in a row: their number, their seconds, and how many of those went into making batches."""

    steps: int
    seconds: float
    input_seconds: float


class Clock:
    """Time spent in steps, window by window; `outside` cuts evaluation and checkpoints out."""

    def __init__(self) -> None:
        self.windows: list[Window] = []
        self._open()

    def _open(self) -> None:
        self.steps = 0
        self.input_seconds = 0.0
        self.started = time.perf_counter()

    def steps_per_second(self) -> float:
        """Of the window that is open."""
        return self.steps / (time.perf_counter() - self.started)

    def close_window(self) -> None:
        self.windows.append(Window(self.steps, time.perf_counter() - self.started, self.input_seconds))
        self._open()

    @contextmanager
    def outside(self) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.started += time.perf_counter() - begun

    def steady(self, steps: int) -> tuple[list[Window], int]:
        """The windows of `steps` steps without the first tenth of them (one at least), and the steps left out."""
        full = [window for window in self.windows if window.steps == steps]
        warmup = min(max(1, math.ceil(len(full) / 10)), max(0, len(full) - 1))
        return full[warmup:], warmup * steps
