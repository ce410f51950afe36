"""TensorBoard events of a training: `tensorboard --logdir RESULTS` shows all trials below a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Events:
    """Writes scalars to `folder`/tensorboard; a disk that is full costs the events, not the training.

    start: steps that were finished before. Of a run that goes on, what was written of later steps is hidden; one that
    begins anew starts with an empty folder.
    """

    def __init__(self, folder: Path, start: int, say: Callable[[str], None]) -> None:
        self._say = say
        self._writer: Any = None
        self._try(self._open, folder / FOLDER, start)

    def scalars(self, step: int, **values: float) -> None:
        """After `step` finished steps."""
        self._try(self._add, step, values)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._try(self._writer.close)
        self._writer = None

    def _open(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # 0.1 s, and not every process trains

        if not start:
            shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder), purge_step=start + 1 if start else None)

    def _add(self, step: int, values: dict[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def _try(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except (OSError, ValueError, RuntimeError) as error:  # the writer's thread passes on what it met
            self._writer = None
            self._say(f"warning: no TensorBoard events from here on: {error}")
