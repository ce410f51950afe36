"""The crop cache: the regions of a set of faces, decoded once and kept on disk.

A cache is a folder:

    pixels.u8      the regions' pixels at native resolution, interleaved RGB, one after the other in the faces' order
    index.npy      (N, 6) int64: offset, height, width, x and y in the picture, the picture's width
    manifest.json  what it was made from and for, and the SHA-256 of the other two; written last

Without its manifest a cache does not exist. While it is built, `journal.jsonl` lists the pictures whose pixels are
safely on the disk, each with the SHA-256 of its regions, so that a build that was killed goes on from there.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels import RaggedImages
from pose.data.faces import Faces
from pose.data.images import image_size, read_image
from pose.errors import InputError, refuse_any
from pose.files import write_atomically
from pose.geometry import PADDING
from pose.progress import progress
from pose.regions import MARGIN, Box, cut, faces_by_picture, outside, region_box, warn_of_outside

PIXELS, INDEX, MANIFEST, JOURNAL, LOCK = "pixels.u8", "index.npy", "manifest.json", "journal.jsonl", ".lock"
FORMAT, VERSION = "wingbench crop cache", 1
_PART = 2**26  # bytes that are hashed as one
_BATCH = 64  # pictures between two entries of the journal: each waits for the disk, while decoding goes on


def cache_folder(root: Path, faces: Faces, reach: float) -> Path:
    """Where below `root` the cache of these faces lies, so that one folder serves many sets."""
    return root / f"{faces.digest()}-reach{reach:.4f}"


def open_or_build(root: Path, faces: Faces, reach: float, label: str) -> RaggedImages:
    """The cached regions of `faces` below `root`, made first where they are missing."""
    folder = cache_folder(root, faces, reach)
    build_cache(folder, faces, reach, label=label)
    return open_cache(folder, faces, reach)


def open_cache(folder: Path, faces: Faces, reach: float) -> RaggedImages:
    """The regions of `faces`, their pixels mapped from the file, every byte verified.

    reach: the longest side that crops will cover, in padded sides. Raises `InputError` for a cache that is missing,
    damaged, of other faces or pictures, or made for smaller crops or by a later version.
    """
    manifest = _manifest(folder)
    wanted = {"faces": len(faces), "digest": faces.digest(), "padding": PADDING, "margin": MARGIN}
    for key, value in wanted.items():
        if manifest.get(key) != value:
            raise InputError(
                f"{folder / MANIFEST}: made for other faces or crops ({key} {manifest.get(key)!r}, wanted {value!r}); "
                "choose another folder or run pose.prepare"
            )
    if not manifest["reach"] >= reach:  # nor where it is NaN
        raise InputError(
            f"{folder / MANIFEST}: made for crops of up to {manifest['reach']:.4g} padded sides, wanted {reach:.4g}; "
            "choose another folder or run pose.prepare"
        )
    if manifest["pictures_sha256"] != _pictures_digest(list(faces_by_picture(faces))):
        raise InputError(
            f"{folder / MANIFEST}: made from pictures of other names or sizes than those at hand; {_remedy(folder)}"
        )
    pixels, index = folder / PIXELS, folder / INDEX
    table = _index(index, manifest)
    try:
        size = pixels.stat().st_size
    except OSError as error:
        raise InputError(f"{pixels}: {error.strerror or error}; {_remedy(folder)}") from None
    if size != manifest["bytes"]:
        raise InputError(f"{pixels}: holds {size} bytes, its manifest says {manifest['bytes']}; {_remedy(folder)}")
    offset, height, width = table[:, 0], table[:, 1], table[:, 2]
    ends = offset + 3 * height * width
    if len(table) != len(faces) or (table < 0).any() or (height < 1).any() or (width < 1).any() or ends.max() > size:
        raise InputError(f"{index}: a region lies outside the pixels; {_remedy(folder)}")
    if _hashes(pixels) != manifest["sha256"]:
        raise InputError(f"{pixels}: its bytes are not those its manifest was written for; {_remedy(folder)}")
    # Never written to; torch has no read-only tensors, and a private map costs nothing
    mapped = torch.from_file(str(pixels), shared=False, size=size, dtype=torch.uint8)
    at, tall, wide, left, top, full = (torch.from_numpy(np.ascontiguousarray(column)) for column in table.T)
    return RaggedImages(mapped, at, tall, wide, torch.stack([left, top], dim=1), full)


def build_cache(folder: Path, faces: Faces, reach: float, *, label: str, workers: int | None = None) -> int | None:
    """Make the cache of `faces` in `folder`; returns the bytes of pixels decoded for it, None if it was there already.

    workers: threads that decode (default: the CPUs this process may use). A build that was interrupted goes on from
    what it had; of two at once the second waits for the first. Raises `InputError` for pictures that cannot be read,
    one for all of them, and for a folder that cannot be written.
    """
    if (folder / MANIFEST).exists():  # asked first: a finished cache may lie where nobody can write
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if (folder / MANIFEST).exists():
                return None
            return _build(folder, faces, float(reach), label, workers or len(os.sched_getaffinity(0)))
    except OSError as error:
        raise InputError(f"cannot write the crop cache {folder}: {error.strerror or error}") from None


def _build(folder: Path, faces: Faces, reach: float, label: str, workers: int) -> int:
    numbers = faces_by_picture(faces)
    pictures = list(numbers)
    boxes, widths, cut_off = _boxes(faces, numbers, reach, label, workers)
    sizes = np.array([box.bytes for box in boxes], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    table = np.array(
        [
            (at, b.bottom - b.top, b.right - b.left, b.left, b.top, w)
            for at, b, w in zip(offsets, boxes, widths, strict=True)
        ],
        dtype=np.int64,
    )
    made_from = _pictures_digest(pictures)
    plan = hashlib.sha256(repr((VERSION, faces.digest(), reach, PADDING, MARGIN, made_from)).encode()).hexdigest()
    extents = [[(int(offsets[face]), int(sizes[face])) for face in numbers[path]] for path in pictures]
    journal = _Journal(folder, plan, extents, workers)
    with journal, _threads(workers) as pool, progress(label, len(pictures)) as update:
        todo = [picture for picture in range(len(pictures)) if picture not in journal.safe]

        def write(picture: int) -> str | InputError:
            path = pictures[picture]
            try:
                pixels = read_image(path)
                regions = [cut(faces, face, pixels, reach).pixels for face in numbers[path]]
                if [region.size for region in regions] != [size for _, size in extents[picture]]:
                    raise InputError(f"{path}: its header promised another size")
            except InputError as error:
                return error
            return journal.write(picture, regions)

        problems: list[str] = []
        written: dict[int, str] = {}
        for picture, outcome in zip(todo, pool.map(write, todo), strict=True):
            if isinstance(outcome, InputError):
                problems.append(str(outcome))
            else:
                written[picture] = outcome
            if len(written) == _BATCH:
                journal.note(written)
                written = {}
            update(picture + 1)
        journal.note(written)
        refuse_any(label, problems)
    _save_index(folder / INDEX, table)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "program": _program(),
        "faces": len(faces),
        "digest": faces.digest(),
        "padding": PADDING,
        "reach": reach,
        "margin": MARGIN,
        "pictures": len(pictures),
        "pictures_sha256": made_from,
        "bytes": int(sizes.sum()),
        "sha256": _hashes(folder / PIXELS),
        "index_sha256": hashlib.sha256((folder / INDEX).read_bytes()).hexdigest(),
    }
    write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1).encode() + b"\n")
    (folder / JOURNAL).unlink(missing_ok=True)
    warn_of_outside(faces, cut_off, label)
    return sum(size for picture in todo for _, size in extents[picture])


def _pictures_digest(pictures: list[Path]) -> str:
    """Changes with the name of any picture and with its file's size."""
    try:
        described = [(path.name, path.stat().st_size) for path in pictures]
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror or error}") from None
    return hashlib.sha256(repr(described).encode()).hexdigest()


def _boxes(
    faces: Faces, numbers: dict[Path, list[int]], reach: float, label: str, workers: int
) -> tuple[list[Box], list[int], list[int]]:
    """Each face's region, its picture's width, and which faces reach out of theirs: from the headers alone.

    Where a header is bad the other pictures are decoded, too, so that one error names all that are.
    """

    def measure(path: Path) -> tuple[int, int, list[tuple[int, Box]]] | str:
        try:
            width, height = image_size(path)
            return width, height, [(n, region_box(faces, n, width, height, reach)) for n in numbers[path]]
        except InputError as error:
            return str(error)

    def broken(path: Path) -> str | None:
        try:
            read_image(path)
        except InputError as error:
            return str(error)
        return None

    boxes: dict[int, Box] = {}
    widths: dict[int, int] = {}
    problems: dict[Path, str] = {}
    cut_off = []
    with _threads(workers) as pool:
        for path, outcome in zip(numbers, pool.map(measure, numbers), strict=True):
            if isinstance(outcome, str):
                problems[path] = outcome
                continue
            width, height, found = outcome
            for number, box in found:
                boxes[number], widths[number] = box, width
                if outside(faces, number, width, height):
                    cut_off.append(number)
        others = [path for path in numbers if path not in problems] if problems else []
        with progress(label, len(others)) as update:
            for done, (path, problem) in enumerate(zip(others, pool.map(broken, others), strict=True), start=1):
                if problem is not None:
                    problems[path] = problem
                update(done)
    refuse_any(label, [problems[path] for path in numbers if path in problems])
    every = range(len(faces))
    return [boxes[n] for n in every], [widths[n] for n in every], cut_off


@dataclass
class _Journal:
    """The pixels' file while it is filled, and which pictures' regions are safe in it, with their SHA-256.

    extents: (offset, bytes) of each picture's regions. A journal of another plan is begun anew.
    """

    folder: Path
    plan: str
    extents: list[list[tuple[int, int]]]
    workers: int

    def __enter__(self) -> _Journal:
        noted = self._read()
        if not noted:
            (self.folder / PIXELS).unlink(missing_ok=True)
        self._pixels = os.open(self.folder / PIXELS, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            with _threads(self.workers) as pool:
                found = zip(noted.items(), pool.map(self._digest, noted), strict=True)
                self.safe = {picture: digest for (picture, digest), now in found if digest == now}
            os.posix_fallocate(self._pixels, 0, self._total)  # a full disk is found now
            lines = [{"plan": self.plan}, _entry(self.safe)]  # without the half line that a crash may have left
            write_atomically(self.folder / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines).encode())
            self._entries = (self.folder / JOURNAL).open("a")
        except BaseException:
            os.close(self._pixels)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pixels)
        self._entries.close()

    def write(self, picture: int, regions: Sequence[np.ndarray]) -> str:
        """Write a picture's regions to their places; returns their SHA-256."""
        hasher = hashlib.sha256()
        for (offset, _), region in zip(self.extents[picture], regions, strict=True):
            content = region.reshape(-1).data
            hasher.update(content)
            while content:
                written = os.pwrite(self._pixels, content, offset)
                content, offset = content[written:], offset + written
        return hasher.hexdigest()

    def note(self, written: dict[int, str]) -> None:
        """Put what was written on the disk, and then say that it is there."""
        os.fsync(self._pixels)
        self._entries.write(json.dumps(_entry(written)) + "\n")
        self._entries.flush()
        os.fsync(self._entries.fileno())

    @property
    def _total(self) -> int:
        return sum(size for extent in self.extents for _, size in extent)

    def _read(self) -> dict[int, str]:
        noted: dict[int, str] = {}
        with suppress(OSError, ValueError, LookupError, AttributeError, TypeError):
            lines = (self.folder / JOURNAL).read_text().splitlines()
            if (self.folder / PIXELS).stat().st_size != self._total or json.loads(lines[0])["plan"] != self.plan:
                return {}
            for line in lines[1:]:  # the last one may be half there: what it lists is written again
                noted |= {picture: digest for picture, digest in json.loads(line) if self.extents[picture]}
        return noted

    def _digest(self, picture: int) -> str:
        hasher = hashlib.sha256()
        for offset, size in self.extents[picture]:
            hasher.update(os.pread(self._pixels, size, offset))
        return hasher.hexdigest()


def _entry(pictures: dict[int, str]) -> list[tuple[int, str]]:
    return sorted(pictures.items())


def _program() -> str:
    try:
        return version("wingbench")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "unknown"


@contextmanager
def _threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that an error or Ctrl-C ends after what they are at, not after all that was asked of them."""
    with ThreadPoolExecutor(workers) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process builds here."""
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{folder}: holds no finished crop cache; run pose.prepare") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON; {_remedy(folder)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not the manifest of a crop cache; choose another folder")
    if manifest.get("version") != VERSION:
        raise InputError(
            f"{path}: version {manifest.get('version')!r}, this program reads version {VERSION}; choose another folder"
        )
    kinds: dict[str, Any] = {"bytes": int, "sha256": list, "index_sha256": str, "pictures_sha256": str, "reach": float}
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise InputError(f"{path}: {key} is missing or no {kind.__name__}; {_remedy(folder)}")
    return manifest


def _index(path: Path, manifest: dict[str, Any]) -> np.ndarray:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; {_remedy(path.parent)}") from None
    if hashlib.sha256(content).hexdigest() != manifest["index_sha256"]:
        raise InputError(f"{path}: its bytes are not those its manifest was written for; {_remedy(path.parent)}")
    try:
        table = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        table = np.empty(0)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 6:
        raise InputError(f"{path}: no index of a crop cache; {_remedy(path.parent)}")
    return np.asarray(table)


def _save_index(path: Path, table: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, table, allow_pickle=False)
    write_atomically(path, buffer.getvalue())


def _hashes(path: Path) -> list[str]:
    """SHA-256 of each part of the file; hashing, like reading, lets go of the interpreter's lock."""
    size = path.stat().st_size

    def digest(start: int) -> str:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(_PART)).hexdigest()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(digest, range(0, size, _PART)))


def _remedy(folder: Path) -> str:
    return f"remove {folder} and run pose.prepare"
