"""Every kernel on fresh random inputs against its oracle, in memory that holds something else beforehand.

Losses and gradients against the formulas in float64, crops and draws bit for bit against plain torch on the host. Runs
on a GPU, or in Triton's interpreter with --small. This is also what compute-sanitizer watches.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.kernels.cases import Case
    from bench.kernels.result import Check
    from kernels import FaceColumns, RaggedImages

EXIT_WRONG = 1
EPILOG = "exit codes: 0 every kernel is right; 1 one is not; 2 the input is wrong or the output cannot be written"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.numerics", description=__doc__, epilog=EPILOG)
    parser.add_argument("--seed", type=int, metavar="N", help="of the inputs; default: another one each time")
    parser.add_argument("--small", action="store_true", help="a few faces: for the interpreter and compute-sanitizer")
    parser.add_argument("--out", type=Path, metavar="FILE", help="leave the figures there as JSON")
    options = parser.parse_args(arguments)
    import torch

    gpu = torch.cuda.is_available()
    if not gpu and not options.small:
        raise InputError("no CUDA GPU here: Triton's interpreter takes its place with --small")
    if not gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    seed = options.seed if options.seed is not None else secrets.randbelow(2**31)
    return _run(torch.device("cuda" if gpu else "cpu"), seed, options.small, options.out)


def _run(device: torch.device, seed: int, small: bool, out: Path | None) -> int:
    import torch

    from bench.gpu_check.result import Numerics
    from bench.kernels.report import check_lines
    from bench.result import write_record

    checks = [*loss_checks(device, seed, small), *crop_checks(device, seed, small), *draw_checks(device, seed, small)]
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else None
    if out is not None:
        write_record(Numerics(gpu=gpu, seed=seed, small=small, checks=checks), out)
    print(f"seed {seed}")
    print("\n".join(check_lines(checks)))
    return 0 if all(check.verdict == "PASS" for check in checks) else EXIT_WRONG


def loss_checks(device: torch.device, seed: int, small: bool) -> list[Check]:
    """Worst error of each loss and dtype over modes, weights and sizes; and whether a second run has the same bits."""
    from bench.kernels.cases import LOSSES, make_inputs, triton_variant
    from bench.kernels.error import kernel_error
    from bench.kernels.result import judged

    checks = []
    variant = triton_variant()
    for loss in LOSSES:
        for dtypes in _DTYPES:
            cases = list(_cases(loss, dtypes, small))
            errors = [kernel_error(case, variant, make_inputs(case, 1, device, seed)) for case in cases]
            relative, ulp = _limits(loss, dtypes[0], interpreted=device.type == "cpu")
            name = f"{loss}, {dtypes[0]} with {dtypes[1]}"
            over = sum(error.poisoned for error in errors)
            how = f"largest of {len(errors)} cases, {over} of them written over NaNs"
            for what, figure, unit, limit in (
                ("loss", max(error.loss_relative for error in errors), "relative", relative),
                ("gradient", max(error.gradient_ulp for error in errors), "ulp", ulp),
                ("runs that differ", sum(not error.repeats for error in errors), "", 0),
            ):
                checks.append(judged(f"{name}: {what}", figure, unit, limit, limit, higher_is_better=False, how=how))
    return checks


_DTYPES = (
    ("float32", "float32"),
    ("bfloat16", "float32"),
    ("bfloat16", "bfloat16"),
    ("float16", "float32"),
    ("float64", "float64"),
)


def _cases(loss: str, dtypes: tuple[str, str], small: bool) -> Iterator[Case]:
    """Sizes that leave vectors, tiles and programs partly empty; weights in every layout for one pair of dtypes.

    Of the small ones, 3 faces are a part of a tile, 23 several programs with full tiles and a part of one.
    """
    from bench.kernels.cases import WEIGHTS, Case

    batches = (3, 23) if small else (1, 3, 23, 64, 1021, 4096)
    weights: Sequence[str] = ("none",) if small else ("none", "sample_landmark")
    if dtypes == ("float32", "float32"):
        weights = WEIGHTS
    for batch in batches:
        for weight in weights:
            one = Case(loss, "loss_and_grad", *dtypes, (batch, 98, 2), weight)
            through = replace(one, mode="forward_backward")
            yield from (one, replace(through, upstream="other"), *([] if small else [through]))


def _limits(loss: str, pred_dtype: str, *, interpreted: bool) -> tuple[float, float]:
    """(relative error of a loss, error of its gradient in units in the last place)."""
    if pred_dtype == "float64":
        return 1e-12, 4500.0  # 4500 ulp are 1e-12
    if pred_dtype == "float32":
        return 3e-7, 64.0 if loss == "adaptive_wing" else 4.0  # the power is ill-conditioned
    return 3e-7, 1.0001 if interpreted else 1.0  # the interpreter cuts where a GPU rounds


def crop_checks(device: torch.device, seed: int, small: bool) -> list[Check]:
    """Elements of a batch of crops that differ from plain torch on the host; random regions, turns and flips."""
    import torch

    from bench.kernels.result import judged
    from kernels import crop_faces

    images, index, matrix, flip = _random_crops(seed, 6 if small else 256, 48 if small else 256)
    size = 48 if small else 256
    checks = []
    for name, options in (
        ("bytes", {"dtype": torch.uint8, "normalize": False}),
        ("fp32", {"dtype": torch.float32}),
        ("bf16, 4 channels", {"dtype": torch.bfloat16, "channels": 4}),
        ("fp16", {"dtype": torch.float16}),
    ):
        common: dict[str, Any] = {**options, "mode": "opencv4", "size": size}
        wanted = crop_faces(images, index, matrix, flip, impl="reference", **common)
        for packed in (False, True):
            pixels = (images.packed() if packed else images).to(device)
            given: Any = pixels, index.to(device), matrix.to(device), flip.to(device)

            def crop(given: Any = given, common: Any = common) -> Tensor:
                return crop_faces(*given, impl="triton", **common)

            found = _over_something_else(crop)
            differ = int((_bits(found.cpu()) != _bits(wanted)).sum())
            what = f"crop like OpenCV 4, {name}{', packed pixels' if packed else ''}: elements that differ"
            how = f"of {wanted.numel():,}, from plain torch on the host"
            checks.append(judged(what, differ, "", 0, 0, higher_is_better=False, how=how))
    return [*checks, _exact_crop_check(device, images, index, matrix, flip, size)]


def _exact_crop_check(
    device: torch.device, images: RaggedImages, index: Tensor, matrix: Tensor, flip: Tensor, size: int
) -> Check:
    """Mode exact has no bits to keep: grey levels from plain torch, whose positions are rounded otherwise."""
    import torch

    from bench.kernels.result import judged
    from kernels import crop_faces

    options: dict[str, Any] = {"mode": "exact", "size": size, "dtype": torch.float32, "normalize": False}
    wanted = crop_faces(images, index, matrix, flip, impl="reference", **options)
    given: Any = images.to(device), index.to(device), matrix.to(device), flip.to(device)
    found = _over_something_else(lambda: crop_faces(*given, impl="triton", **options)).cpu()
    off = (found.double() - wanted.double()).abs().nan_to_num(nan=float("inf")).max()
    how = "largest difference from plain torch on the host, whose grid_sample is 0.007 off; rounding a level is 0.5"
    return judged("crop, exact", float(off), "levels", 0.01, 0.01, higher_is_better=False, how=how)


def draw_checks(device: torch.device, seed: int, small: bool) -> list[Check]:
    """Numbers that differ between the fused draws, matrices, targets and weights and those of the host."""
    import torch

    from bench.kernels.result import judged
    from kernels import Sampling, sample_faces
    from pose.augment import quantiles
    from pose.targets import flip_index

    count = 37 if small else 5000
    columns = _random_columns(seed, count)
    number = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cpu = torch.device("cpu")
    differ, of = 0, 0
    for epoch in (0, 209, 2**31):

        def draw(where: torch.device, impl: str, epoch: int = epoch) -> Any:
            return sample_faces(
                columns.to(where),
                number.to(where),
                torch.tensor(epoch, device=where),
                seed=seed,
                sampling=Sampling(),
                flip_index=flip_index(where),
                quantiles=quantiles(where),
                impl=impl,
            )

        for mine, wanted in zip(draw(device, "triton"), draw(cpu, "reference"), strict=True):
            differ += int((_bits(mine.cpu()) != _bits(wanted)).sum())
            of += wanted.numel()
    name = "draws, matrices, targets, weights: numbers that differ"
    return [judged(name, differ, "", 0, 0, higher_is_better=False, how=f"of {of:,}, from plain torch on the host")]


def _random_crops(seed: int, count: int, size: int) -> tuple[RaggedImages, Tensor, Tensor, Tensor]:
    """Regions of 8 to 160 px, crops within, across and beyond them; (regions, index, matrix, flip)."""
    import torch

    from kernels import RaggedImages
    from pose.geometry import crop_matrix

    random = torch.Generator().manual_seed(seed)
    sides = torch.randint(8, 161, (count, 2), generator=random).tolist()
    pictures = [torch.randint(0, 256, (h, w, 3), generator=random, dtype=torch.uint8) for h, w in sides]
    extent = torch.tensor(sides, dtype=torch.float64).flip(1)
    center = extent * (1.4 * torch.rand(count, 2, generator=random, dtype=torch.float64) - 0.2)
    side = 4 * 100 ** torch.rand(count, generator=random, dtype=torch.float64)
    turn = 120 * torch.rand(count, generator=random, dtype=torch.float64) - 60
    matrix = torch.from_numpy(crop_matrix(center.numpy(), side.numpy(), turn.numpy(), size))
    flip = torch.rand(count, generator=random) < 0.5
    return RaggedImages.from_images(pictures), torch.randperm(count, generator=random), matrix, flip


def _random_columns(seed: int, count: int) -> FaceColumns:
    import torch

    from kernels import FaceColumns
    from pose.landmarks import NUM_LANDMARKS

    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, dtype=torch.float64)

    center, side = 1024 * uniform(count, 2), 20 + 880 * uniform(count)
    points = center[:, None] + side[:, None, None] * (1.4 * uniform(count, NUM_LANDMARKS, 2) - 0.7)
    full_width = torch.randint(300, 2000, (count,), generator=random)
    return FaceColumns(points=points.float(), center=center, side=side, full_width=full_width)


def _over_something_else(call: Callable[[], Tensor]) -> Tensor:
    """The result of a second `call`, for which freed blocks full of other values wait."""
    import torch

    first = call()
    for _ in range(3):
        torch.full_like(first, 77)
    del first
    return call()


def _bits(value: Tensor) -> Tensor:
    import torch

    same_width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return value.contiguous().view(same_width[value.element_size()])


if __name__ == "__main__":
    run_command(main)
