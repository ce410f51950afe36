"""A two-node SLURM cluster for each process that tests; none where one cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from mini_cluster import MiniCluster, why_not


def _started(**settings: str) -> Iterator[MiniCluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    cluster = MiniCluster(int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), **settings)
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def _cluster() -> Iterator[MiniCluster]:
    yield from _started()


@pytest.fixture
def cluster(_cluster: MiniCluster) -> Iterator[MiniCluster]:
    """With accounting where the packages for it are installed; what a test leaves there is ended."""
    yield _cluster
    _cluster.clear()


@pytest.fixture(scope="module")
def plain_cluster() -> Iterator[MiniCluster]:
    """Without accounting, and its arrays are of four jobs at most."""
    yield from _started(MINI_SLURM_ACCOUNTING="none", MINI_SLURM_MAX_ARRAY="4")
