"""Clusters of Dask for tests of faults: workers that are processes with nannies, at a daemon of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

import tierstore
import tierstore.dask
from tierstore.service.store import Store

from .dask_jobs import Witness
from .procs import Daemon

WAIT_S = 40.0  # for anything: a test that hangs fails
SETTINGS: dict[str, Any] = {
    "distributed.worker.preload": ["tierstore.dask"],
    "dataframe.shuffle.method": "tierstore",
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.work-stealing": False,  # else what is run again depends on who was idle
    "distributed.scheduler.no-workers-timeout": "30s",
    "distributed.comm.timeouts.connect": "10s",
    # So long after a worker was lost Dask's cluster looks whether it is back, and if not closes its nanny for good. It does
    # not see that it was back meanwhile and is being replaced again, as where tests kill one after the other.
    "distributed.deploy.lost-worker-timeout": "1h",
}


def until(condition: Callable[[], object], seconds: float = WAIT_S) -> None:
    """Wait for something; AssertionError if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(folder: Path, dram: str = "32MiB") -> Iterator[Daemon]:
    """A daemon in memory; it and what this process has open of it end with the test, also where that was killed."""
    made = Daemon(folder, "--dram", dram, "--ephemeral")
    try:
        yield made.start()
    finally:
        made.end()
        tierstore.dask.close()
        tierstore.dask.unregister()


@contextlib.contextmanager
def processes(folder: Path, daemon: Daemon, workers: int = 2, **settings: Any) -> Iterator[Client]:
    """A client of workers that are processes of one thread; they note in folder what they do, see dask_jobs.py.

    settings: of ``distributed.worker.memory``.

    Each has a port of its own, so one that is replaced comes back at the same address: Dask may think that it never left.
    """
    options = {"nthreads": 1, "dashboard_address": ":0", "local_directory": str(folder / "workers")}
    nannies = {
        number: {"cls": Nanny, "options": {**options, "worker_port": port}}
        for number, port in enumerate(ports(workers))
    }
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "dashboard_address": ":0"}}
    memory = {f"distributed.worker.memory.{name}": value for name, value in settings.items()}
    os.environ["TIERSTORE_SOCKET"] = daemon.socket
    try:
        with dask.config.set(SETTINGS | memory), SpecCluster(nannies, scheduler) as cluster, Client(cluster) as client:
            tierstore.dask.register(client)
            client.register_plugin(Witness(str(folder)))
            yield client
    finally:
        del os.environ["TIERSTORE_SOCKET"]


@contextlib.contextmanager
def threads(folder: Path, workers: int, dram: str = "64MiB") -> Iterator[tuple[Store, Client]]:
    """An embedded store, and a client of workers that are threads of this process."""
    store = tierstore.open(dram=dram, segment="1MiB")
    store.shuffle("first", 0, 1).end_app()  # the part of the store that serves shuffles opens files of its own
    tierstore.dask.use(store)
    tierstore.dask.register()
    terms: dict[str, Any] = {"n_workers": workers, "threads_per_worker": 1, "processes": False}
    terms |= {"dashboard_address": ":0", "local_directory": str(folder / "workers")}
    try:
        with LocalCluster(**terms) as cluster, Client(cluster) as client:
            tierstore.dask.register(client)
            yield store, client
    finally:
        tierstore.dask.unregister()
        tierstore.dask.use(None)
        store.close()


def ports(count: int) -> list[int]:
    """Free ports, below those that the system hands out."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 1000 * 10, 32_000):
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no ports are free")


def addresses(client: Client) -> set[str]:
    """The workers that the scheduler has. (What the client says of it may be some seconds old.)"""
    return {str(address) for address in client.run_on_scheduler(_workers)}


def _workers(dask_scheduler: Any) -> list[str]:
    return list(dask_scheduler.workers)


def apps(daemon: Daemon) -> list[str]:
    """The applications of shuffles that a daemon has, without workers' data."""
    with daemon.connect() as store:
        found = [str(entry["app"]) for entry in store._control.call("shuffle_list")]
    return [name for name in found if not name.startswith("dask-data-")]


def nothing_left(client: Client, daemon: Daemon) -> None:
    """Neither tasks in the scheduler nor shuffles in the daemon, and what the daemon has adds up."""
    until(lambda: not client.run_on_scheduler(known))
    until(lambda: not apps(daemon))
    with daemon.connect() as store:
        report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


def known(dask_scheduler: Any) -> tuple[Any, ...]:
    """What a scheduler and its plugin still know of."""
    from tierstore.engines.dask_plugin import NAME

    plugin = dask_scheduler.plugins[NAME]
    return (*dask_scheduler.tasks, *plugin._aside, *plugin._apps)
