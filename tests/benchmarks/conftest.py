"""Benchmarks run with `pytest --benchmark-only` alone; the ordinary suite times nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("benchmark_only"):
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="a benchmark: pytest --benchmark-only runs it"))
