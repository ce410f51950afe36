"""The faces that a recipe, or a path on the command line, names."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pose.data.faces import Faces
from pose.data.images import check_images_exist
from pose.data.mmpose import load_mmpose
from pose.data.wflw import list_path, load_wflw
from pose.errors import InputError
from pose.recipe import MmposeData, SyntheticData, WflwData


def prepare(data: WflwData | MmposeData | SyntheticData) -> WflwData | MmposeData:
    """Make the synthetic set if it is not there yet; returns where the faces lie, in one of WFLW's two forms."""
    if not isinstance(data, SyntheticData):
        return data
    from pose.data.synthetic import GENERATOR_VERSION, generate  # numpy code that only made sets need

    name = f"v{GENERATOR_VERSION}-train{data.train}-test{data.test}-size{data.size}-seed{data.seed}"
    if data.photo is not None:
        name += f"-photo{data.photo}"
    root = generate(
        Path(data.root) / name, train=data.train, test=data.test, size=data.size, seed=data.seed, photo=data.photo
    )
    return WflwData(kind="wflw", root=str(root))


def load_split(data: WflwData | MmposeData | SyntheticData, split: str) -> Faces:
    """The faces of `split` ("train" or "test"), every picture of which exists. Raises `InputError` otherwise."""
    place = prepare(data)
    if isinstance(place, WflwData):
        source, faces = list_path(place.root, split), load_wflw(place.root, split)
    else:
        source = Path(place.train if split == "train" else place.test)
        faces = load_mmpose(source, place.images)
    check_images_exist(faces, source)
    return faces


def fingerprint(data: WflwData | MmposeData | SyntheticData, train: Faces, test: Faces) -> str:
    """A digest of both splits: annotations, sizes of the picture files and, for drawn faces, the renderer's version."""
    from pose.data.synthetic import GENERATOR_VERSION

    version = GENERATOR_VERSION if isinstance(data, SyntheticData) else 0
    sizes = [path.stat().st_size for faces in (train, test) for path in faces.image]
    return hashlib.sha256(repr((train.digest(), test.digest(), sizes, version)).encode()).hexdigest()[:16]


def load_path(path: Path, images: Path | None, split: str) -> Faces:
    """The faces under `path`: a folder in the official layout, or an annotation file in MMPose's form.

    images: the folder that a JSON file's names are relative to; by default `images` beside it.
    """
    if path.is_dir():
        if images is not None:
            raise InputError(f"--images {images}: goes with a JSON file; {path} is a folder with WFLW_images in it")
        return load_split(WflwData(kind="wflw", root=str(path)), split)
    if path.suffix == ".json" or path.is_file():
        root = images if images is not None else path.parent / "images"
        return load_split(MmposeData(kind="mmpose", train=str(path), test=str(path), images=str(root)), split)
    raise InputError(f"{path}: no such folder or file")
