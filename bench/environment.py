"""What a trial ran on and with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from bench.checkout import CODE, checkout, output
from bench.result import Environment
from slurm.call import JOB, NODES

PACKAGES = ("torch", "torchvision", "triton", "numpy", "pillow")
VARIABLES = ("CUDA_", "CUBLAS_", "NCCL_", "OMP_", "MKL_", "TORCH", "PYTORCH_", "TRITON_", "NVIDIA_TF32_OVERRIDE")
PLACES = ("_DIR", "_HOME", "_PATH")  # where something lies changes nothing


def environment() -> Environment:
    """The environment of this process."""
    commit, dirty = checkout(CODE)
    gpu = torch.cuda.is_available()
    return Environment(
        commit=commit,
        dirty=dirty,
        host=platform.node(),
        platform=platform.platform(),
        python=platform.python_version(),
        packages={name: version for name in PACKAGES if (version := _version(name)) is not None},
        cpu=_cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if gpu else None,
        driver=output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else None,
        cuda=torch.version.cuda,
        job=os.environ.get(JOB),
        nodes=os.environ[NODES].split(",") if NODES in os.environ else None,
        variables={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(VARIABLES) and not name.endswith(PLACES)
        },
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
