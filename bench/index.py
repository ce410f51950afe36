"""An index of an experiment's records: one file in place of thousands that would be opened one by one.

index.jsonl in the experiment's folder: a line with the version, then a line per record, [folder, file, size, mtime_ns,
content]. The plain files are the truth: an entry counts only while its file has the size and time that were noted. A
missing or damaged index is made again by whoever reads next, and one that cannot be written is done without.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pose.errors import InputError
from pose.files import write_atomically

INDEX = "index.jsonl"
FEWEST = 200  # trials; fewer are read as fast without
_VERSION = 1
_SETTLED_NS = 2_000_000_000  # a file as young as that may still change without another time


class Index:
    """What the index in `folder` knows; and what it should, once `note` has told it."""

    def __init__(self, folder: Path, trials: int) -> None:
        self._path = folder / INDEX
        self._used = trials >= FEWEST
        self._entries: dict[tuple[str, str], tuple[int, int, Any]] = _read(self._path) if self._used else {}
        self._seen: dict[tuple[str, str], tuple[int, int, Any]] = {}
        self._stale = False

    def content(self, file: Path) -> Any:
        """The JSON content of a record, from the index where that is up to date.

        Raises ValueError or RecursionError where it is no JSON, OSError where it cannot be read.
        """
        if not self._used:
            return json.loads(file.read_bytes())
        key, status = (file.parent.name, file.name), file.stat()
        known = self._entries.get(key)
        if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
            self._seen[key] = known
            return known[2]
        content = json.loads(file.read_bytes())
        if time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            self._seen[key] = (status.st_size, status.st_mtime_ns, content)
            self._stale = True
        return content

    def save(self) -> None:
        """Write the index if it does not hold all that was read, or holds more."""
        if not self._used or not (self._stale or len(self._seen) != len(self._entries)):
            return
        lines = [json.dumps([_VERSION])]
        lines += [
            json.dumps([*key, size, at, content], separators=(",", ":"))
            for key, (size, at, content) in self._seen.items()
        ]
        with suppress(InputError, OSError, ValueError):
            write_atomically(self._path, "\n".join([*lines, ""]).encode())


def _read(path: Path) -> dict[tuple[str, str], tuple[int, int, Any]]:
    try:
        first, *lines = path.read_bytes().splitlines()
        if json.loads(first) != [_VERSION]:
            return {}
        entries = {}
        for line in lines:
            folder, file, size, at, content = json.loads(line)
            entries[folder, file] = (size, at, content)
    except (OSError, ValueError, TypeError, RecursionError):
        return {}
    return entries
