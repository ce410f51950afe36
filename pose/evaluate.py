"""Evaluate a checkpoint on WFLW: NME, failure rate and AUC on the test set and its six subsets."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

from pose.errors import run_command

EPILOG = """CHECKPOINT is a published MMPose file (.pth) or one that pose.train wrote. DATA is a folder in WFLW's
official layout (it holds WFLW_images and WFLW_annotations) or an annotation file in MMPose's JSON form. The defaults
are the published protocol: 256 px crops in the arithmetic of OpenCV 4, flip test, no shift, fp32."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pose.evaluate", description=__doc__, epilog=EPILOG)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--images", type=Path, help="folder of a JSON file's pictures (default: images beside it)")
    parser.add_argument("--split", choices=("train", "test"), default="test", help="of the official layout")
    parser.add_argument("--size", type=int, help="side of the crop in pixels (default: the checkpoint's, or 256)")
    parser.add_argument("--crop", choices=("opencv4", "exact"), help="default: the checkpoint's, or opencv4")
    parser.add_argument(
        "--flip-test", action=argparse.BooleanOptionalAction, default=True, help="average with the mirror image's"
    )
    parser.add_argument("--flip-shift", type=float, default=0.0, help="pixels; 0 as published, 1 as MMPose 1.x")
    parser.add_argument("--precision", choices=("fp64", "fp32", "tf32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="folder for metrics.json and faces.npz (per-face points and NME)")
    options = parser.parse_args(arguments)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    from pose.checkpoint import load_model_and_recipe
    from pose.data.source import load_path
    from pose.distributed import Ranks
    from pose.evaluator import Evaluator, table
    from pose.files import writable_folder, write_atomically
    from pose.landmarks import ATTRIBUTES
    from pose.precision import select_device
    from pose.recipe import Evaluate, prediction_input, validate
    from pose.yaml_layers import Layers

    device = select_device(options.device)
    if options.out is not None:
        writable_folder(options.out)
    named = ("batch_size", "flip_test", "flip_shift", "precision")
    evaluation = validate(Evaluate, {name: getattr(options, name) for name in named}, Layers(source="command line"))
    model, recipe = load_model_and_recipe(options.checkpoint)
    config = prediction_input(recipe, options.size, options.crop)

    faces = load_path(options.data, options.images, options.split)
    result = Evaluator(faces, config, evaluation, Ranks(device=device)).evaluate(model)
    rows = result.rows()
    print(table(rows))
    empty = [row.name for row in rows if row.count == 0]
    unknown = [name for name, known in zip(ATTRIBUTES, faces.attributes_known, strict=True) if not known]
    if empty:
        warnings.warn(f"no face of these subsets is in {options.data}: {', '.join(empty)}", stacklevel=1)
    if unknown:
        warnings.warn(f"{options.data} does not say which faces belong to {', '.join(unknown)}", stacklevel=1)
    if options.out is not None:
        metrics = {row.name: {k: _null(v) for k, v in vars(row).items() if k != "name"} for row in rows}
        write_atomically(options.out / "metrics.json", json.dumps(metrics, indent=1).encode() + b"\n")
        result.save(options.out / "faces.npz")
        print(f"wrote {options.out / 'metrics.json'} and {options.out / 'faces.npz'}")
    return 0


def _null(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run_command(main)
