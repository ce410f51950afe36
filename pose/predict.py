"""`python -m pose.predict`: the landmarks of faces in pictures, as JSON and drawn.

For each picture, DIR/NAME.landmarks.json holds

    {"image": path, "width": pixels, "height": pixels,
     "model": {"checkpoint": path, "backbone": name, "size": crop side, "crop": mode, "flip_test": bool},
     "faces": [{"box": [x, y, w, h] or null, "center": [x, y], "side": padded side, "points": [[x, y], ... 98]}]}

with all coordinates in pixels of the upright picture, and DIR/NAME.landmarks.png the picture with the points on it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True)
class Face:
    """A square to crop: center and padded side in pixels, and the box that it came from, None for a whole picture."""

    box: Box | None
    center: tuple[float, float]
    side: float


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from pose.checkpoint import load_model_and_recipe
    from pose.data.images import read_image
    from pose.precision import select_device
    from pose.predictor import predict_faces
    from pose.recipe import prediction_input

    device = select_device(arguments.device)
    boxes = _boxes(arguments)
    model, recipe = load_model_and_recipe(arguments.checkpoint)
    config = prediction_input(recipe, arguments.size, arguments.crop)
    size, crop = config.size, config.crop
    model.to(device).eval()
    about = {"checkpoint": str(arguments.checkpoint), "backbone": model.backbone_name, "size": size, "crop": crop}
    about["flip_test"] = arguments.flip_test

    records = []
    for path, wanted in zip(arguments.images, boxes, strict=True):
        image = read_image(path)
        height, width = image.shape[:2]
        faces = [_face(path, box, width, height) for box in wanted] or [_whole(width, height)]
        centers, sides = [face.center for face in faces], [face.side for face in faces]
        points = predict_faces(model, image, centers, sides, size, crop, flip_test=arguments.flip_test)
        records.append(
            {
                "image": str(path),
                "width": width,
                "height": height,
                "model": about,
                "faces": [
                    {"box": face.box, "center": face.center, "side": face.side, "points": found.round(3).tolist()}
                    for face, found in zip(faces, points, strict=True)
                ],
            }
        )
    # Nothing is written before every picture is known to be good
    for record, name in zip(records, _names(arguments.images), strict=True):
        picture = _write(record, read_image(record["image"]), arguments.out / name)
        faces_text = f"{len(record['faces'])} face{'s' if len(record['faces']) > 1 else ''}"
        print(f"{record['image']}: {faces_text} -> {picture.with_suffix('.json')}, {picture}")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pose.predict",
        description="Find the 98 landmarks of faces. Without boxes each picture is taken for one face that fills it.",
    )
    parser.add_argument("checkpoint", type=Path, help="a training checkpoint or a published .pth file")
    parser.add_argument("images", type=Path, nargs="+", metavar="image")
    boxes = parser.add_mutually_exclusive_group()
    boxes.add_argument(
        "--box",
        action="append",
        metavar="X,Y,W,H",
        help="a face in the only image, pixels; repeat for more; below 0: --box=-5,...",
    )
    boxes.add_argument("--boxes", type=Path, metavar="FILE", help='JSON: {"image as given here": [[x, y, w, h], ...]}')
    parser.add_argument("--out", type=Path, default=Path("predictions"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of the crop (default: the checkpoint's, or 256)"
    )
    parser.add_argument("--crop", choices=("exact", "opencv4"), help="default: the checkpoint's, or opencv4")
    parser.add_argument(
        "--flip-test", action=argparse.BooleanOptionalAction, default=True, help="average with the mirror image's"
    )
    return parser


def _boxes(arguments: argparse.Namespace) -> list[list[Box]]:
    """The boxes of each image; an empty list for a picture that is one face."""
    if arguments.box:
        if len(arguments.images) > 1:
            raise InputError(f"--box is for one image, {len(arguments.images)} were given: use --boxes")
        return [[_box(text.split(","), f"--box {text}") for text in arguments.box]]
    if arguments.boxes is None:
        return [[] for _ in arguments.images]
    try:
        listed = json.loads(arguments.boxes.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {arguments.boxes}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{arguments.boxes} is not JSON: {error}") from None
    boxes = []
    for image in map(str, arguments.images):
        of_image = listed.get(image) if isinstance(listed, dict) else None
        if not isinstance(of_image, list) or not of_image:
            raise InputError(f'{arguments.boxes}: no boxes for {image}, wanted "{image}": [[x, y, w, h], ...]')
        boxes.append([_box(box, f"{arguments.boxes}: {image}") for box in of_image])
    return boxes


def _box(numbers: Any, source: str) -> Box:
    try:
        x, y, w, h = (float(number) for number in numbers)
    except (TypeError, ValueError):
        raise InputError(f"{source}: 4 numbers wanted, x,y,w,h in pixels") from None
    return x, y, w, h


def _face(image: Path, box: Box, width: int, height: int) -> Face:
    """The square of a detector's box, padded as in training."""
    from pose.geometry import PADDING, box_to_square

    text = ",".join(f"{number:g}" for number in box)
    x, y, w, h = box
    if not all(abs(number) < 1e6 for number in box) or w < 1 or h < 1:
        raise InputError(f"{image}: the box {text} is empty: a width and height of at least 1 pixel are wanted")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise InputError(f"{image}: the box {text} lies outside the picture of {width} x {height} pixels")
    center, side = box_to_square(x, y, w, h)
    return Face(box, (float(center[0]), float(center[1])), side * PADDING)


def _whole(width: int, height: int) -> Face:
    """The square around the whole picture, not padded: whoever cut the picture to the face left a border already."""
    return Face(None, (width / 2, height / 2), float(max(width, height)))


def _names(images: Sequence[Path]) -> list[str]:
    """A file name for each image; pictures of one name in several folders are numbered."""
    names: list[str] = []
    for image in images:
        name, count = image.stem, 1
        while name in names:
            count += 1
            name = f"{image.stem}-{count}"
        names.append(name)
    return names


def _write(record: dict[str, Any], image: np.ndarray, base: Path) -> Path:
    from PIL import Image

    from pose.drawing import draw_landmarks
    from pose.files import replacing, write_atomically

    for face in record["faces"]:
        image = draw_landmarks(image, face["points"])
    picture = base.with_name(f"{base.name}.landmarks.png")
    with replacing(picture) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
    write_atomically(base.with_name(f"{base.name}.landmarks.json"), json.dumps(record).encode())
    return picture


if __name__ == "__main__":
    run_command(main)
