"""Where the GPU time of a variant's training step goes: kernels by name, in groups, the longest first.

Reads torch's profiler over a few steps in steady state. What falls short of a target is looked for here first.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pose.errors import InputError, run_command

if TYPE_CHECKING:
    import torch

    from bench.gpu_check.result import KernelTime, StepProfile
    from pose.data.faces import Faces
    from pose.recipe import Recipe

WARMUP, STEPS = 12, 8
SHOWN = 25  # lines

# The first that fits: names as cuDNN, ATen, Inductor and this project give them
GROUPS = (
    ("loss", r"loss_kernel|scale_kernel"),
    ("input", r"crop_kernel|tables_kernel|sample_kernel"),
    ("optimizer", r"adam|multi_tensor|foreach"),
    ("batch norm", r"batch_?norm|bn_fw|bn_bw|welford"),
    ("fused by Inductor", r"^triton_"),
    ("convolution", r"conv|xmma|cutlass|cudnn|gemm|sm\d+_|wgrad|dgrad|implicit|nvjet"),
    ("pooling", r"pool"),
    ("copies and fills", r"memcpy|memset|copy|fill|cat_"),
    ("elementwise", r"elementwise|vectorized|unrolled"),
    ("reduction", r"reduce"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check.step_profile", description=__doc__)
    parser.add_argument("config", type=Path, metavar="CONFIG", help="an experiment")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--out", type=Path, metavar="FILE", help="leave all kernels there as JSON")
    options = parser.parse_args(arguments)
    return _run(options.config, options.variant, options.out)


def _run(config: Path, variant: str, out: Path | None) -> int:
    import torch

    from bench.gpu_check.variant import recipe_of
    from bench.result import write_record
    from pose.data.source import load_split

    recipe = recipe_of(config, variant)
    device = torch.device("cuda", torch.cuda.current_device())
    trace = profile(recipe, load_split(recipe.data, "train"), device)
    found = summed(trace, STEPS, variant, recipe.train.batch_size, torch.cuda.get_device_name())
    if not found.kernels:
        raise InputError("the profiler saw no kernel: it cannot read this GPU")
    if out is not None:
        write_record(found, out)
    print("\n".join(lines(found)))
    return 0


def profile(recipe: Recipe, faces: Faces, device: torch.device) -> dict[str, Any]:
    """The profiler's trace of `STEPS` steps of `recipe`."""
    import json
    import tempfile

    import torch

    from pose.distributed import Ranks
    from pose.stepper import Stepper

    last = WARMUP + STEPS
    stepper = Stepper(recipe, faces, seed=0, ranks=Ranks(device=device), last=last)
    with closing(stepper), stepper.settings():
        for step in range(WARMUP):
            stepper.run(step)
        stepper.finish()
        with torch.profiler.profile(acc_events=True) as profiler:  # of all activities that there are
            for step in range(WARMUP, last):
                stepper.run(step)
            stepper.finish()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            trace: dict[str, Any] = json.loads(path.read_text(errors="replace"))
    return trace


def summed(trace: Mapping[str, Any], steps: int, variant: str, batch_size: int, gpu: str) -> StepProfile:
    """The GPU's work in a trace, by kernel."""
    from bench.gpu_check.result import KernelTime, StepProfile

    seconds: defaultdict[str, float] = defaultdict(float)
    launches: defaultdict[str, int] = defaultdict(int)
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            seconds[event["name"]] += event["dur"] / 1e6  # microseconds
            launches[event["name"]] += 1
    kernels = [
        KernelTime(name=name, group=group_of(name), seconds=seconds[name] / steps, launches=launches[name] / steps)
        for name in sorted(seconds, key=lambda name: -seconds[name])
    ]
    total = sum(one.seconds for one in kernels)
    return StepProfile(gpu=gpu, variant=variant, batch_size=batch_size, steps=steps, seconds=total, kernels=kernels)


def group_of(kernel: str) -> str:
    """What a kernel of this name is for, as far as the name tells."""
    return next((group for group, pattern in GROUPS if re.search(pattern, kernel, re.IGNORECASE)), "other")


def lines(found: StepProfile) -> list[str]:
    """Groups, then kernels, with their share of the GPU time of a step."""

    def line(name: str, kernels: Iterable[KernelTime]) -> str:
        kernels = list(kernels)
        seconds, count = sum(one.seconds for one in kernels), sum(one.launches for one in kernels)
        return f"{1e3 * seconds:9.3f} ms {100 * seconds / found.seconds:5.1f} % {count:8.1f}  {name[:90]}"

    groups: defaultdict[str, list[KernelTime]] = defaultdict(list)
    for one in found.kernels:
        groups[one.group].append(one)
    by_time = sorted(groups.items(), key=lambda item: -sum(one.seconds for one in item[1]))
    return [
        f"{found.variant}, batch {found.batch_size}: {1e3 * found.seconds:.3f} ms of GPU work a step; "
        "time, share, launches a step",
        *(line(group, kernels) for group, kernels in by_time),
        "",
        *(line(one.name, [one]) for one in found.kernels[:SHOWN]),
    ]


if __name__ == "__main__":
    run_command(main)
