"""What a GPU can do at best: arithmetic by its datasheet, memory by copying."""

from __future__ import annotations

import re
import statistics

# TFLOP/s without sparsity by NVIDIA's datasheets, which give those with it for tensor cores: half of that here.
# 16 bit: bf16 and fp16 with sums in fp32. fp32 is what the ordinary cores do.
_PEAKS: dict[str, tuple[float, float, float]] = {  # name as the driver gives it -> 16 bit, TF32, fp32
    r"B200": (2250, 1100, 75),  # HGX B200: 4.5 and 2.2 PFLOP/s with sparsity
    r"H200": (989, 495, 67),  # H200 Tensor Core GPU, SXM
    r"H200 NVL": (835, 418, 60),
    r"H100 80GB HBM3": (989, 495, 67),  # H100 Tensor Core GPU, SXM
    r"H100 PCIe": (756, 378, 51),
    r"H100 NVL": (835, 418, 60),
    r"A100-(SXM4|PCIE)-\d+GB|A100 80GB PCIe": (312, 156, 19.5),  # A100 Tensor Core GPU
    r"L40S": (362, 183, 91.6),
    r"L40": (181, 90.5, 90.5),
    r"GeForce RTX 4090": (165.2, 82.6, 82.6),  # Ada architecture whitepaper, appendix A
    r"GeForce RTX 3090": (71, 35.6, 35.6),  # GA102 architecture whitepaper, table 2
}
_COLUMN = {"bf16": 0, "fp16": 0, "tf32": 1, "fp32": 2}
_COPIED = 2**30
_COPIES = 20


def peak_flops(gpu: str, precision: str) -> float | None:
    """FLOP/s of the GPU called `gpu` at best; None for one that is not in the table, and for fp64."""
    name = gpu.removeprefix("NVIDIA ")
    column = _COLUMN.get(precision)
    for pattern, peaks in _PEAKS.items():
        if column is not None and re.fullmatch(pattern, name):
            return peaks[column] * 1e12
    return None


def copy_bandwidth() -> float | None:
    """Bytes read and written per second by copies of a gigabyte on the current GPU; None where it has no room left."""
    import torch

    try:
        source = torch.zeros(_COPIED, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
    except torch.OutOfMemoryError:
        return None
    seconds = []
    for number in range(_COPIES + 2):
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        target.copy_(source)
        ended.record()
        ended.synchronize()
        if number >= 2:  # the first ones wake the memory up
            seconds.append(begun.elapsed_time(ended) / 1e3)
    return 2 * _COPIED / statistics.median(seconds)
