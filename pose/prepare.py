"""Make the crop cache of a set of faces ahead of training: every picture decoded once, for all runs to come."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    from pose.data.faces import Faces

EPILOG = """SOURCE is a recipe or an experiment (YAML), a folder in WFLW's official layout, or an annotation file in
MMPose's JSON form. A run finds its cache with `input: {images: cache, cache: FOLDER}`, and makes what is missing.
A build that was interrupted goes on from where it was."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pose.prepare", description=__doc__, epilog=EPILOG)
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: the recipe's input.cache, or data/cache")
    parser.add_argument("--images", type=Path, help="folder of a JSON file's pictures (default: images beside it)")
    parser.add_argument("--split", choices=("train", "test", "both"), default="both", help="default: both")
    parser.add_argument("--scale", type=float, help="of the training crops (default: the recipe's, or 0.25)")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one for each CPU)")
    parser.add_argument("--check", action="store_true", help="make no cache: verify every byte of what is there")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="settings",
        help="change a value of the recipe; may be given several times",
    )
    options = parser.parse_args(arguments)
    if options.scale is not None and not 0 <= options.scale < 1:
        raise InputError(f"--scale {options.scale}: 0 to 1 (excluded) is wanted")
    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers {options.workers}: at least one is wanted")
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from pose.cache import build_cache, cache_folder, open_cache
    from pose.regions import training_reach

    root, scale, splits = _asked(options)
    for split, faces in splits.items():
        reach = training_reach(scale) if split == "train" else 1.0
        folder = cache_folder(root, faces, reach)
        begun = time.perf_counter()
        decoded = None
        if not options.check:
            decoded = build_cache(folder, faces, reach, label=f"decoding {split} faces", workers=options.workers)
        seconds = time.perf_counter() - begun
        size = open_cache(folder, faces, reach).pixels.numel() / 1e9
        what = f"{split}: {len(faces)} faces, {size:.3f} GB"
        if decoded is not None:
            print(f"{what}, made in {seconds:.1f} s ({decoded / 1e6 / seconds:.0f} MB/s): {folder}")
        else:
            print(f"{what}, {'every byte as it should be' if options.check else 'there already'}: {folder}")
    return 0


def _asked(options: argparse.Namespace) -> tuple[Path, float, dict[str, Faces]]:
    """(folder of the caches, scale of the training crops, faces by split)."""
    from pose.data.source import load_path, load_split

    names = ("train", "test") if options.split == "both" else (options.split,)
    if options.source.suffix in (".yaml", ".yml"):
        data, root, scale = _of_recipe(options.source, options.settings)
        splits = {name: load_split(data, name) for name in names}
    else:
        if options.settings:
            raise InputError(f"--set {options.settings[0]}: goes with a recipe; {options.source} is none")
        root, scale = "data/cache", 0.25
        if options.source.is_dir():
            splits = {name: load_path(options.source, options.images, name) for name in names}
        elif options.split == "both":
            raise InputError(f"--split both: {options.source} is one split; say train or test")
        else:
            splits = {options.split: load_path(options.source, options.images, options.split)}
    return options.out or Path(root), scale if options.scale is None else options.scale, splits


def _of_recipe(path: Path, settings: list[str]) -> tuple[Any, str, float]:
    """The data, cache folder and scale of a recipe; an experiment's variants share the data, and it is its base's."""
    from pose.recipe import OF_EXPERIMENTS, Recipe, validate
    from pose.yaml_layers import read_layers

    layers = read_layers(path, settings)
    kept = {key: value for key, value in layers.values.items() if key not in OF_EXPERIMENTS}
    recipe = validate(Recipe, kept, layers)
    return recipe.data, recipe.input.cache, recipe.train.augment.scale


if __name__ == "__main__":
    run_command(main)
