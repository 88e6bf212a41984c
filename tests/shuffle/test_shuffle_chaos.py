"""Faults at random over three nodes, with an oracle; a bounded slice here, a thousand in the soak."""

from __future__ import annotations

import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from tierstore.emulation.chaos import NODES, Cluster, run

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("TEST_SEED", "1"))


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("runs", [6, pytest.param(500, marks=pytest.mark.soak)])
def test_exact_rows_or_the_lost_maps(runs: int, replicas: int, tmp_path: Path) -> None:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(NODES)]
    ports = [entry.getsockname()[1] for entry in sockets]
    for entry in sockets:
        entry.close()
    cluster, seen = Cluster(tmp_path, ports, SEED, replicas), Counter[str]()
    try:
        for number in range(runs):
            seed = SEED * 1_000_000 + replicas * 100_000 + number
            try:
                seen[run(cluster, seed)] += 1
            except Exception as error:
                raise AssertionError(f"run with seed {seed}, after {dict(seen)}: {error}") from error
    finally:
        cluster.end()
    assert sum(seen.values()) == runs
