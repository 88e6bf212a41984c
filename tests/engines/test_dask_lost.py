"""What workers hold in the store when its daemon is killed, or when it is lost: right values, and nothing waits for ever."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tierstore.emulation.procs import Daemon

pytest.importorskip("dask")
pytest.importorskip("distributed")

from distributed import Client, Future, wait  # noqa: E402

from tierstore.emulation import dask_cluster  # noqa: E402
from tierstore.emulation.dask_cluster import WAIT_S, addresses, until  # noqa: E402
from tierstore.emulation.dask_jobs import check, shuffled  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.soak]

COUNT, SIZE = 14, 250_000
TOTAL = float(SIZE * sum(range(COUNT)))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with dask_cluster.serving(tmp_path, dram="64MiB") as made:
        yield made


@pytest.fixture
def client(tmp_path: Path, daemon: Daemon) -> Iterator[Client]:
    """Workers that keep next to nothing in their own memory."""
    with dask_cluster.processes(tmp_path, daemon, target=0.0001, spill=False, pause=False, terminate=False) as client:
        yield client


def values(client: Client) -> list[Future]:
    """Arrays, of which at least half are in the store."""
    made = client.map(lambda n: np.full(SIZE, n, "f8"), range(COUNT), pure=False)
    wait(made, timeout=WAIT_S)
    moved = client.run(lambda dask_worker: len(dask_worker.data.slow)).values()
    assert sum(moved) >= COUNT // 2
    return made


def total(client: Client, arrays: list[Future]) -> float:
    """Each array is read where it is, and with one that may be another worker's."""
    one = client.map(lambda x: float(x.sum()), arrays, pure=False)
    two = client.map(lambda x, y: float(x.sum() + y.sum()), arrays, arrays[::-1], pure=False)
    wait([*one, *two], timeout=WAIT_S)
    assert sum(client.gather(two)) == 2 * TOTAL
    return sum(client.gather(one))


def test_daemon_killed(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    """The memory of the one that was killed is still mapped. Shuffles take the next one."""
    arrays = values(client)
    assert total(client, arrays) == TOTAL
    daemon.kill()
    daemon.start()
    check(client.compute(shuffled(tmp_path)).result(timeout=WAIT_S))
    assert total(client, arrays) == TOTAL
    more = client.map(lambda n: np.full(SIZE, n, "f8"), range(COUNT), pure=False)
    assert total(client, more) == TOTAL


def test_values_lost(client: Client, daemon: Daemon) -> None:
    """Tasks that read them fail; the workers end and are replaced, and then the values are made again."""
    arrays = values(client)
    before = set(client.run(os.getpid).values())
    with daemon.connect() as store:
        for key in store.keys("shuffle/dask-data-"):
            store.delete(key)
    sums = client.map(lambda x: float(x.sum()), arrays, pure=False)
    wait(sums, timeout=WAIT_S)
    errors = [error for future in sums if (error := future.exception(timeout=WAIT_S)) is not None]
    assert errors and all(type(error).__module__ == "tierstore.ringbuf.errors" for error in errors), errors
    until(lambda: len(addresses(client)) == 2 and not before <= set(client.run(os.getpid).values()))
    assert total(client, arrays) == TOTAL
