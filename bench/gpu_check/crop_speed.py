"""How many faces a second the input's kernels make alone, on the GPU's clock: crops, and draws, targets and crops.

The faces are a recipe's, where they lie on the GPU for training. Calls walk through batches of other faces; variants
take turns, as in `bench.kernels`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.gpu_check.result import Crops
    from bench.kernels.clock import Effort
    from pose.data.faces import Faces
    from pose.feed import DeviceFeed
    from pose.recipe import Recipe

BATCHES = 8  # of other faces: their pixels and crops exceed the L2 cache many times
JUDGED = "crop alone, opencv4, packed pixels, 4 channels"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.crop_speed", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="an experiment")
    parser.add_argument("--variant", required=True, help="one that makes its batches on the device")
    parser.add_argument("--out", type=Path, metavar="FILE", help="leave the times there as JSON")
    options = parser.parse_args(arguments)
    return _run(options.config, options.variant, options.out)


def _run(config: Path, variant: str, out: Path | None) -> int:
    import torch

    from bench.gpu_check.variant import recipe_of
    from bench.kernels.clock import Effort
    from bench.result import write_record
    from pose.data.source import load_split

    recipe = recipe_of(config, variant)
    if recipe.input.sampling != "device":
        raise InputError(f"--variant {variant}: input.sampling is {recipe.input.sampling}; wanted device")
    faces = load_split(recipe.data, "train")
    device = torch.device("cuda", torch.cuda.current_device())
    result: Crops = measure(recipe, faces, Effort(), device)
    if out is not None:
        write_record(result, out)
    for row in result.rows:
        print(f"{row.name}: {result.batch_size / statistics.median(row.seconds):,.0f} images per second")
    return 0


def measure(recipe: Recipe, faces: Faces, effort: Effort, device: torch.device) -> Crops:
    """Time the ways to make a batch of `recipe`'s size from `faces`. CUDA only."""
    import torch

    from bench.gpu_check.result import Crops, CropSpeed
    from bench.kernels.clock import gpu_seconds, record
    from pose.distributed import Ranks
    from pose.feed import DeviceFeed, open_feed
    from pose.order import BatchOrder

    order = BatchOrder(len(faces), recipe.train.batch_size, 0, drop_last=True)
    plain = recipe.model_copy(update={"input": recipe.input.model_copy(update={"pixel_bytes": 3})})
    feed = open_feed(plain, faces, 0, order, Ranks(device=device), BATCHES)
    if not isinstance(feed, DeviceFeed):
        raise InputError("the GPU has no room for the faces' pixels")
    calls = calls_of(feed, min(BATCHES, order.steps_per_epoch))
    recordings = {name: record(call, BATCHES, effort) for name, call in calls.items()}
    samples = gpu_seconds(recordings, effort)
    return Crops(
        gpu=torch.cuda.get_device_name(device),
        batch_size=recipe.train.batch_size,
        region_bytes=feed.images.pixels.nbytes,
        faces=len(faces),
        rows=[CropSpeed(name=name, judged=name == JUDGED, seconds=seconds) for name, seconds in samples.items()],
    )


def calls_of(feed: DeviceFeed, batches: int) -> dict[str, Callable[[int], Any]]:
    """Name -> what makes batch number i, of `batches` that are drawn beforehand."""
    from kernels import crop_faces
    from pose.precision import pixel_dtype

    config = feed.recipe.input
    dtype = pixel_dtype(feed.recipe.train.precision)
    drawn = []
    for step in range(batches):
        feed.place(step)
        number = feed.number.clone()
        drawn.append((number, draw(feed, number)))
    packed = feed.images.packed()

    def cropping(images: Any, mode: str, channels: int) -> Callable[[int], Any]:
        def call(index: int) -> Any:
            number, (matrix, flip, _, _) = drawn[index % batches]
            return crop_faces(
                images,
                number,
                matrix,
                flip,
                size=config.size,
                mode=mode,
                channels=channels,
                dtype=dtype,
                impl=config.impl,
            )

        return call

    def sampling(index: int) -> Any:
        return draw(feed, drawn[index % batches][0])

    crop = cropping(packed, "opencv4", 4)
    return {
        JUDGED: crop,
        "crop alone, opencv4, packed pixels, 3 channels": cropping(packed, "opencv4", 3),
        "crop alone, opencv4, 3 bytes a pixel, 3 channels": cropping(feed.images, "opencv4", 3),
        "crop alone, exact, packed pixels, 4 channels": cropping(packed, "exact", 4),
        "draws and targets alone": sampling,
        "draws, targets and crop": lambda index: (sampling(index), crop(index)),
    }


def draw(feed: DeviceFeed, number: Tensor) -> Any:
    """Matrices, flips, targets and weights of the faces `number`, as `feed` draws them."""
    from kernels import sample_faces

    return sample_faces(
        feed.columns,
        number,
        feed.epoch,
        seed=feed.seed,
        sampling=feed.sampling,
        flip_index=feed.flip_index,
        quantiles=feed.quantiles,
        size=feed.recipe.input.size,
        impl=feed.recipe.input.impl,
    )


if __name__ == "__main__":
    run_command(main)
