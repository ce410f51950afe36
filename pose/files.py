"""Writing files so that a crash, a full disk or a second reader never meets half of one."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pose.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it replaces `path` when the block ends, and is removed if it fails.

    The content is on the disk before the name changes. Raises `InputError` when it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what a writer of `path` that was killed has left beside it. Nobody may be writing it."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):
            temporary.unlink()


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk, too; some file systems do not sync folders, and the content is safe either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def writable_folder(path: Path) -> Path:
    """Make the folder `path` if it is missing and try to write in it: better now than after hours of work.

    Raises `InputError` when it cannot be written.
    """
    trial = path / f".writable.{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from None
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by a file with `content`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def link(source: Path, path: Path) -> bool:
    """Replace `path` by a second name for the file `source`, which is not written again; False where that cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.hardlink_to(source)
        temporary.replace(path)
    except OSError:  # a file system without links
        return False
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # two names of one file: renaming one to the other does nothing
    _sync_folder(path.parent)
    return True
