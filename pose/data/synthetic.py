"""The synthetic face set: rendered faces with 98 landmarks and six attributes, in WFLW's official layout.

A face is a function of (seed, split, index, size) alone: attributes first, then a scene that has them
(`pose.data.face_scene`), then its pixels (`pose.data.face_render`). Shares of the attributes, spread of pose, and so
the mean shape's error follow WFLW's test list.

    python -m pose.data.synthetic ROOT [--train 7500] [--test 2500] [--size 256] [--seed 0] [--workers N]
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pose.errors import InputError, run_command
from pose.files import write_atomically
from pose.progress import Update

if TYPE_CHECKING:
    import numpy as np

    from pose.data.face_scene import Scene

GENERATOR_VERSION = 1  # raise it with any change of what is drawn: sets of another version are not reused
MANIFEST = "manifest.json"
SPLITS = ("train", "test")

_EVENTS = ("Portrait", "Street", "Stage", "Sports", "Office", "Party", "Market", "Travel")
_LISTS = "WFLW_annotations/list_98pt_rect_attr_train_test"
_CHUNK = 20  # faces a task: short enough for a smooth bar, long enough to hide the hand-over
_SIZES = (64, 1024)
_WIDEST = 8192  # pixels of a photograph
_PHOTO = "photo"
_GRAIN = 5.0  # standard deviation in levels
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True, eq=False)
class SyntheticFace:
    """image: (H, W, 3) uint8 RGB. points: (98, 2) float64, pixels of the image. attributes: (6,) bool, WFLW's order."""

    image: np.ndarray
    points: np.ndarray
    attributes: np.ndarray


def annotate(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (98, 2) and attributes (6,) of a face, without drawing it: those that `render` gives."""
    from pose.data.face_scene import compose

    _check(seed, split, index, size)
    scene = compose(seed, split, index, size)
    return scene.points, scene.attributes


def render(seed: int, split: str, index: int, size: int) -> SyntheticFace:
    """Draw face `index` of `split` ("train" or "test"); `size` is the typical side of the picture in pixels.

    A pixel's value may differ by a level or two with the machine or the threads of BLAS; a stored set is always drawn
    on one thread. Raises ValueError for an unknown split, a negative seed or index, or a size outside 64 to 1024.
    """
    _check(seed, split, index, size)
    scene, image, _ = _draw(seed, split, index, size)
    return SyntheticFace(image, scene.points, scene.attributes)


def generate(
    root: Path,
    *,
    train: int,
    test: int,
    size: int = 256,
    seed: int = 0,
    photo: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write a set of `train` and `test` faces under `root`, one a picture, and return `root`.

    photo: width of the photographs that the pictures are set into, in pixels, stored as progressive JPEGs like WFLW's,
    whose faces fill a part of photographs 1024 pixels wide; None stores the pictures as they are drawn.

    The set is built in a folder beside `root` and renamed when it is complete. A complete set of the same parameters
    is kept as it is. The files do not depend on `workers` (default: the CPUs this process may use), nor a face on the
    counts. Raises `InputError` if a count is below 1, seed or size is out of range, `root` holds anything else, or
    the set cannot be written.
    """
    root = Path(root)
    for name, count in (("train", train), ("test", test)):
        if count < 1:
            raise InputError(f"synthetic set: {name} is {count}; it takes at least one face")
    if seed < 0:
        raise InputError(f"synthetic set: seed is {seed}; it must not be negative")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise InputError(f"synthetic set: size is {size}; it must be {_SIZES[0]} to {_SIZES[1]} pixels")
    if photo is not None and not 2 * size <= photo <= _WIDEST:
        raise InputError(f"synthetic set: photo is {photo}; it must be {2 * size} (twice the size) to {_WIDEST} pixels")
    if workers is not None and workers < 1:
        raise InputError(f"synthetic set: workers is {workers}; it takes at least one")
    parameters = {"generator": GENERATOR_VERSION, "train": train, "test": test, "size": size, "seed": seed}
    if photo is not None:
        parameters[_PHOTO] = photo
    if _is_complete(root, parameters):
        return root

    root = Path(os.path.abspath(root))  # noqa: PTH100 -- of a link the parent, and no resolving of it
    building = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        lists = _write_faces(building, {"train": train, "test": test}, (size, seed, photo), workers, progress)
        manifest = {**parameters, "lists": {split: _digest(text) for split, text in lists.items()}}
        for split, text in lists.items():
            write_atomically(_list_path(building, split), text.encode())
        write_atomically(building / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        try:
            building.replace(root)  # an empty folder at `root` gives way
        except OSError:
            if not _is_complete(root, parameters):  # unless another process has just made the same set
                raise
    except OSError as error:
        raise InputError(f"cannot write the synthetic set {root}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return root


def _check(seed: int, split: str, index: int, size: int) -> None:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; wanted one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index are {seed} and {index}; wanted numbers that are not negative")
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise ValueError(f"size is {size}; wanted {_SIZES[0]} to {_SIZES[1]} pixels")


def _draw(seed: int, split: str, index: int, size: int) -> tuple[Scene, np.ndarray, int]:
    """The scene, its picture, and the JPEG quality to store that with."""
    from pose.data.face_look import draw_look
    from pose.data.face_render import render_pixels
    from pose.data.face_scene import compose, stream

    scene = compose(seed, split, index, size)
    random = stream(seed, split, index, 1)
    look = draw_look(random, scene.attributes)
    return scene, render_pixels(scene, look, random), look.lens.quality


# --- a set on the disk ----------------------------------------------------------------------------------------


def _list_path(root: Path, split: str) -> Path:
    return root / _LISTS / f"list_98pt_rect_attr_{split}.txt"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _is_complete(root: Path, parameters: dict[str, int]) -> bool:
    """Whether `root` is a set of these parameters. Raises `InputError` if it holds anything else; False if nothing."""
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        lists = {split: manifest["lists"][split] for split in SPLITS}
        stored = {name: manifest[name] for name in parameters if name != _PHOTO} | {_PHOTO: manifest.get(_PHOTO)}
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{root}: is there already and is not a synthetic set; name another folder") from None
        raise InputError(f"cannot read the synthetic set {root}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{root / MANIFEST}: not the manifest of a synthetic set; name another folder") from None
    wanted = {_PHOTO: None, **parameters}
    differing = [f"{name} {stored[name]}, not {wanted[name]}" for name in wanted if stored[name] != wanted[name]]
    if differing:
        raise InputError(f"{root}: holds a synthetic set with {', '.join(differing)}; name another folder")
    for split, digest in lists.items():
        path = _list_path(root, split)
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise InputError(f"{path}: missing or changed since it was made; remove {root} to make the set again")
    return True


def _write_faces(
    root: Path, counts: dict[str, int], look: tuple[int, int, int | None], workers: int | None, shown: bool
) -> dict[str, str]:
    """Draw all faces into `root`, of a look of (size, seed, photo); returns the text of each split's list."""
    from pose.progress import progress

    chunks = [
        (split, start, min(start + _CHUNK, count))
        for split, count in counts.items()
        for start in range(0, count, _CHUNK)
    ]
    for event in range(len(_EVENTS)):
        (root / "WFLW_images" / _folder(event)).mkdir(parents=True)
    count = min(workers or _usable_cpus(), len(chunks))
    drawn: dict[tuple[str, int], list[str]] = {}
    crews = [_Crew(root, look, chunks[i::count]) for i in range(count)]
    with progress("drawing faces", sum(counts.values()), shown=shown) as update:
        pool = ThreadPoolExecutor(count)
        try:
            for task in as_completed([pool.submit(crew.collect, drawn, update) for crew in crews]):
                task.result()
        finally:
            for crew in crews:
                crew.process.kill()  # no effect on one that has ended
            pool.shutdown()
    return {split: "".join(line for key in sorted(drawn) if key[0] == split for line in drawn[key]) for split in counts}


class _Crew:
    """A process that draws some chunks and hands their lines back.

    A fresh interpreter that runs this module: multiprocessing would import the caller's main module again, which a
    script without a guard, or one read from a pipe, does not survive. BLAS runs on one thread, whatever `workers` is,
    so that the bits are the same.
    """

    def __init__(self, root: Path, look: tuple[int, int, int | None], chunks: list[tuple[str, int, int]]) -> None:
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        place = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        size, seed, photo = look
        task = json.dumps({"root": str(root), "seed": seed, "size": size, "photo": photo, "chunks": chunks})
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pose.data.synthetic_crew", task],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=environment,
        )

    def collect(self, drawn: dict[tuple[str, int], list[str]], update: Update) -> None:
        """Put the lines of each chunk into `drawn` as they come. Raises OSError if a picture cannot be written."""
        with self.process:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                message = json.loads(line)
                if "error" in message:
                    raise OSError(*message["error"])
                drawn[message["split"], message["start"]] = message["lines"]
                update(sum(len(lines) for lines in list(drawn.values())))
        if self.process.returncode != 0:
            raise ChildProcessError(errno.ECHILD, "a process that drew faces was killed (out of memory?)")


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _folder(event: int) -> str:
    return f"{event}--{_EVENTS[event]}"


def write_chunk(
    root: Path, seed: int, split: str, start: int, stop: int, size: int, photo: int | None = None
) -> list[str]:
    """Draw and write the pictures of faces `start` to `stop`; returns their lines of the list."""
    import numpy as np
    from PIL import Image

    lines = []
    for index in range(start, stop):
        scene, pixels, quality = _draw(seed, split, index, size)
        event = index % len(_EVENTS)
        name = f"{_folder(event)}/{event}_{_EVENTS[event]}_{split}_{index:05d}.jpg"
        shift = np.zeros(2, dtype=int)
        if photo is not None:
            pixels, shift = _set_into_photo(pixels, photo, index)
        Image.fromarray(pixels).save(root / "WFLW_images" / name, quality=quality, progressive=photo is not None)
        numbers = [f"{value:.6f}" for value in (scene.points + shift).ravel()]
        box = np.array(_detector_box(scene)) + np.tile(shift, 2)
        numbers += [str(value) for value in (*box, *scene.attributes.astype(int))]
        lines.append(" ".join([*numbers, name]) + "\n")
    return lines


def _set_into_photo(pixels: np.ndarray, width: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of 4:3 around the picture, and where in it x and y 0 are: another place for each face.

    The picture's edges go on in stripes with a grain, which make a JPEG of a photograph's size and no second face.
    """
    import numpy as np

    tall, wide = pixels.shape[:2]
    free = np.maximum(0, np.array([width - wide, width * 3 // 4 - tall]))
    before = np.array([index * 7919, index * 104729]) % (free + 1)
    margins = [(int(before[axis]), int(free[axis] - before[axis])) for axis in (1, 0)]
    photo = np.pad(pixels, [*margins, (0, 0)], mode="edge")
    grain = np.random.default_rng(index).normal(0, _GRAIN, photo.shape[:2])
    (top, _), (left, _) = margins
    grain[top : top + tall, left : left + wide] = 0
    return np.clip(photo + grain[:, :, None], 0, 255).astype(np.uint8), before


def _detector_box(scene: Scene) -> tuple[int, int, int, int]:
    """A box as WFLW's detector gives: taller than the points', reaching to the forehead, cut at the picture's edge."""
    low, high = scene.points.min(0), scene.points.max(0)
    side = float((high - low).max())
    x, y = (low + high) / 2 - (0.0, 0.14 * side)
    half_width, half_height = 0.47 * side, 0.61 * side
    return (
        max(round(float(x - half_width)), 0),
        max(round(float(y - half_height)), 0),
        min(round(float(x + half_width)), scene.width - 1),
        min(round(float(y + half_height)), scene.height - 1),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pose.data.synthetic", description="Draw a synthetic face set.")
    parser.add_argument("root", type=Path, metavar="ROOT", help="the folder to make; it gets the official WFLW layout")
    parser.add_argument("--train", type=int, default=7500, help="training faces (default: %(default)s)")
    parser.add_argument("--test", type=int, default=2500, help="test faces (default: %(default)s)")
    parser.add_argument(
        "--size", type=int, default=256, help="typical side of a picture, pixels (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other faces (default: %(default)s)")
    parser.add_argument(
        "--photo", type=int, help="width of photographs to set the pictures into, pixels (default: none)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: the CPUs there are)")
    return parser


def main() -> int:
    options = _parser().parse_args()
    root = generate(
        options.root,
        train=options.train,
        test=options.test,
        size=options.size,
        seed=options.seed,
        photo=options.photo,
        workers=options.workers,
    )
    print(f"{root}: {options.train} training and {options.test} test faces of about {options.size} pixels a side")
    return 0


if __name__ == "__main__":
    run_command(main)
