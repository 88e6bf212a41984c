"""Workers that are killed in the middle of a shuffle: right rows, and only what they were running is run again."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierstore.emulation.procs import Daemon

psutil = pytest.importorskip("psutil")
pytest.importorskip("dask")
pytest.importorskip("distributed")

from distributed import Client  # noqa: E402

from tierstore.emulation import dask_cluster  # noqa: E402
from tierstore.emulation.dask_cluster import WAIT_S, addresses, nothing_left, until  # noqa: E402
from tierstore.emulation.dask_jobs import again, begun, check, must_run_again, notes, shuffled  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Nannies replace the workers that tests kill; all of them live until the module ends, which looks for what is left."""


@pytest.fixture(scope="module", autouse=True)
def nothing_behind() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}, set(os.listdir("/dev/shm"))
    yield
    gc.collect()
    until(lambda: not {child.pid for child in psutil.Process().children(recursive=True)} - before[0] - helpers(), 10)
    until(lambda: not [name for name in {*os.listdir("/dev/shm")} - before[1] if f"-{os.getpid()}-" in name], 10)


def helpers() -> set[int]:
    """Processes that multiprocessing keeps."""
    return {p.pid for p in psutil.Process().children() if "resource_tracker" in " ".join(p.cmdline())}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the tests share with the workers."""
    return tmp_path_factory.mktemp("dask")


@pytest.fixture(scope="module")
def daemon(folder: Path) -> Iterator[Daemon]:
    with dask_cluster.serving(folder) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(daemon: Daemon, folder: Path) -> Iterator[Client]:
    """Two workers, each with an address of its own."""
    with dask_cluster.processes(folder, daemon) as client:
        yield client


@pytest.fixture
def client(cluster: Client, daemon: Daemon, folder: Path) -> Iterator[Client]:
    """Its two workers live; notes begin anew. Afterwards nothing is left."""
    until(lambda: len(addresses(cluster)) == 2)
    (folder / "notes").unlink(missing_ok=True)
    yield cluster
    nothing_left(cluster, daemon)


soak = pytest.mark.soak
STEPS = ["write", "gather", "read"]  # in a transfer, at the barrier, in an unpack
MORE = ["input 0", "input 5", "write done", "gather done", "read done", "output"]


@pytest.mark.parametrize("step", [*STEPS, *(pytest.param(step, marks=soak) for step in MORE)])
def test_killed(client: Client, folder: Path, step: str) -> None:
    (folder / f"kill {step}").touch()
    before = addresses(client)
    check(client.compute(shuffled(folder)).result(timeout=WAIT_S))
    found = notes(folder)
    assert again(found) == must_run_again(found), begun(found)
    until(lambda: addresses(client) == before)


def test_all_workers_restarted(client: Client, folder: Path) -> None:
    (folder / "hold read").touch()
    future = client.compute(shuffled(folder))
    until(lambda: any(line.what == "held" for line in notes(folder)))
    threading.Timer(1.0, (folder / "hold read").unlink).start()  # a worker waits a while for a task that does not end
    client.restart(timeout=WAIT_S)
    assert future.status == "cancelled"
    check(client.compute(shuffled(folder)).result(timeout=WAIT_S))


@pytest.mark.parametrize("stage", ["read", *(pytest.param(stage, marks=soak) for stage in ("write", "gather"))])
def test_daemon_killed(client: Client, daemon: Daemon, folder: Path, stage: str) -> None:
    """Its memory is lost; maps are written again, or the tasks that were held wait for the next daemon."""
    (folder / f"hold {stage}").touch()
    future = client.compute(shuffled(folder))
    until(lambda: any(line.what == "held" for line in notes(folder)))
    daemon.kill()
    (folder / f"hold {stage}").unlink()
    daemon.start()
    check(future.result(timeout=WAIT_S))
