"""Operations and bytes of a step, and what GPUs can do at best."""

from __future__ import annotations

import pytest

from bench.gauges import process_age, read_gauges
from bench.limits import peak_flops
from bench.work import bytes_per_image, flops_per_image


def test_operations_of_resnet50_are_the_known_ones() -> None:
    # 4.089 GMAC forward at 224 px (torchvision's table of weights), (256/224)^2 of it at 256 px, and the backward pass
    # twice that but for the first convolution's input: 64 x 128 x 128 outputs of 147 products each
    forward = 4.089e9 * (256 / 224) ** 2
    backward = 2 * forward - 64 * 128 * 128 * 147
    assert flops_per_image("resnet50", 256) == pytest.approx(2 * (forward + backward), rel=1e-3)  # of four digits


def test_bytes_of_resnet50_are_those_of_fused_kernels() -> None:
    # 509 MB an image, counted kernel by kernel for torch.compile's code in bf16; the rule leaves out 1 to 2 %
    assert bytes_per_image("resnet50", 256, 2) == pytest.approx(509e6, rel=0.01)
    assert bytes_per_image("resnet50", 256, 4) == 2 * bytes_per_image("resnet50", 256, 2)


def test_bytes_of_the_tiny_network_add_up_by_hand() -> None:
    # At 64 px: inputs and outputs of the five convolutions, in elements
    inputs = [3 * 64**2, 16 * 32**2, 32 * 16**2, 64 * 8**2, 128 * 4**2]
    outputs = [16 * 32**2, 32 * 16**2, 64 * 8**2, 128 * 4**2, 128 * 2**2]
    elements = 3 * (sum(inputs) + sum(outputs)) - inputs[0] - outputs[0] + (8 + 2) * sum(outputs)
    assert bytes_per_image("tiny", 64, 4) == 4 * elements


@pytest.mark.parametrize(
    ("gpu", "precision", "tera"),
    [
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H100 80GB HBM3", "tf32", 495),
        ("NVIDIA H100 PCIe", "fp16", 756),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5),
        ("NVIDIA A100 80GB PCIe", "bf16", 312),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2),
    ],
)
def test_a_known_gpu_has_its_datasheets_peak(gpu: str, precision: str, tera: float) -> None:
    assert peak_flops(gpu, precision) == pytest.approx(tera * 1e12)


# Names that begin like a known one are other GPUs
@pytest.mark.parametrize("gpu", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100", "NVIDIA H200 NVL 2", "Tesla T4"])
def test_an_unknown_gpu_has_no_peak(gpu: str) -> None:
    assert peak_flops(gpu, "bf16") is None


def test_no_peak_is_known_for_fp64() -> None:
    assert peak_flops("NVIDIA H200", "fp64") is None


def test_gauges_that_a_gpu_does_not_have_are_unknown_and_other_output_is_none() -> None:
    gauges = read_gauges("1980, 3201, [N/A], 700.00, 41\n")
    assert gauges is not None
    assert (gauges.sm_clock_mhz, gauges.power_w, gauges.temperature_c) == (1980, None, 41)
    assert read_gauges("No devices were found\n") is None


def test_a_process_is_at_least_as_old_as_what_it_has_timed() -> None:
    assert process_age(0.0) > 0
    assert process_age(1e9) == 1e9
