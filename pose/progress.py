"""Progress of long work: a bar on a terminal, a plain line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_INTERVAL = 10.0  # seconds


class Update(Protocol):
    def __call__(self, done: int, note: str = "", *, total: int | None = None) -> None: ...


@contextmanager
def progress(label: str, total: int, *, shown: bool = True) -> Iterator[Update]:
    """Show how much of `total` is done; the block calls what it is given with the count so far and a short note.

    A call may correct `total`, where it is known only later.
    """
    if not shown:
        yield lambda done, note="", *, total=None: None
    elif sys.stderr is not None and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TimeRemainingColumn(), TextColumn("{task.fields[note]}")),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(label, total=total, note="")
            yield lambda done, note="", *, total=None: bar.update(task, completed=done, note=note, total=total)
    else:
        start = last = time.monotonic()

        def line(done: int, note: str = "", *, total: int | None = total) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= PLAIN_INTERVAL or (done == total and now - start >= PLAIN_INTERVAL):
                last = now
                print(f"{label}: {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)

        yield line
