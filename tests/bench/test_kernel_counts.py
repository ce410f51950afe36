from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bench.kernels.counts import (
    asked_facts,
    device_events,
    device_facts,
    gpu_nodes,
    graph_launches,
    peak_extra_bytes,
    profiled_launches,
    waits_for_gpu,
)

# As the CUDA driver answers (cuda.h): nodes first counted, then listed; a graph of 7 nodes of these types
DRIVER = """
#include <stddef.h>
static int kinds[] = {0, 1, 2, 5, 0, 6, 3};
int cuGraphGetNodes(void *graph, void **nodes, size_t *count) {
    if (graph != (void *)0x123456789abcULL) return 1;
    if (nodes) for (size_t i = 0; i < *count; i++) nodes[i] = &kinds[i];
    *count = 7;
    return 0;
}
int cuGraphNodeGetType(void *node, int *kind) { *kind = *(int *)node; return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "driver.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return library


def test_kernels_copies_and_fills_are_counted_and_other_nodes_are_not(driver: Path) -> None:
    assert gpu_nodes(0x123456789ABC, str(driver)) == 4


def test_a_driver_that_does_not_answer_counts_nothing(driver: Path) -> None:
    assert gpu_nodes(1, str(driver)) is None
    assert gpu_nodes(0x123456789ABC, "no_such_driver.so") is None
    assert gpu_nodes(0x123456789ABC, "libc.so.6") is None


def test_ranges_drawn_over_the_gpu_work_are_no_launches() -> None:
    categories = ["kernel", "gpu_memcpy", "gpu_memset", "gpu_user_annotation", "cuda_runtime", "cpu_op", "kernel"]
    events = [{"ph": "X", "cat": category} for category in categories]
    assert device_events({"traceEvents": [*events, {"ph": "M"}]}) == 4


def test_what_nvidia_smi_does_not_know_is_left_out() -> None:
    facts = asked_facts("1980, 3201, 1980, [N/A], 700.00, 580.10\n")
    assert facts["clock_sm_mhz"] == 1980.0
    assert facts["clock_memory_max_mhz"] is None
    assert facts["driver"] == "580.10"  # a name, no number
    assert set(asked_facts("").values()) == {None}
    assert asked_facts("").keys() == facts.keys()


def test_a_cpu_has_no_clocks() -> None:
    assert device_facts(torch.device("cpu")) == {"name": "CPU"}


@pytest.mark.gpu
def test_launches_memory_and_waits_of_known_calls() -> None:
    values = torch.rand(2**20, device="cuda")
    assert graph_launches(lambda _: values + 1) == 1
    assert graph_launches(lambda _: (values + 1) * 2) == 2
    assert profiled_launches(lambda _: (values + 1) * 2) in (2, None)
    assert peak_extra_bytes(lambda _: values + 1) == values.nbytes
    assert not waits_for_gpu(lambda _: values + 1)
    assert waits_for_gpu(lambda _: values.sum().item())
    assert device_facts(torch.device("cuda", 0))["multiprocessors"]
