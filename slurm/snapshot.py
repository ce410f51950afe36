"""A copy of the code for jobs that wait: an edit while they do changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

COMMIT = "COMMIT"  # file beside the packages: commit and "clean" or "changed", one line

_LEFT_OUT = ("__pycache__",)


def snapshot(packages: Sequence[Path], folder: Path, commit: str | None, dirty: bool | None) -> Path:
    """Copy `packages` (their folders) below `folder`, once for each content; returns what to put on PYTHONPATH.

    submitit's own snapshot asks git for the files and rsync for the copy; this one takes the files as they lie,
    whether they are checked in or not, and needs neither. `commit` and `dirty` are kept for `recorded_commit`.
    """
    state = f"{commit} {dirty} {content_digest(packages)}"
    whole = folder / hashlib.sha256(state.encode()).hexdigest()[:12]
    if whole.is_dir():
        return whole
    partial = folder / f".{whole.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for path, name in _files(packages):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, partial / name)
        (partial / COMMIT).write_text(f"{commit or ''} {'changed' if dirty else 'clean'}\n" if commit else "\n")
        with suppress(FileExistsError):
            partial.rename(whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return whole


def content_digest(packages: Sequence[Path]) -> str:
    """Changes with the name or the content of any file of `packages` (their folders)."""
    digest = hashlib.sha256()
    for path, name in _files(packages):
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def recorded_commit(root: Path) -> tuple[str | None, bool | None] | None:
    """The commit of a snapshot and whether files had been changed since; None where `root` is no snapshot."""
    try:
        words = (root / COMMIT).read_text().split()
    except OSError:
        return None
    return (words[0], words[1] == "changed") if len(words) == 2 else (None, None)


def _files(packages: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    for package in packages:
        for path in sorted(package.rglob("*")):
            if path.is_file() and not any(part in _LEFT_OUT for part in path.parts):
                yield path, f"{package.name}/{path.relative_to(package)}"
