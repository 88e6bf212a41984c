"""A worker's data in the store, and its memory as its limits should see it; a daemon where none runs."""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import subprocess
import sys
import time
from typing import Any

from tierstore.cache.spread import forget_mapped
from tierstore.ringbuf.errors import PeerLost, TierstoreError
from tierstore.service.client import connect

from . import dask_tasks as tasks

log = logging.getLogger("tierstore")

IDLE_S = 30.0
START_S = 120.0  # kernels may have to be compiled first
SHARED_MAX = 0.3  # of a worker's limit: more pages of the store than that are not kept in its page tables


def keep_data(worker: Any) -> None:
    """Let a worker's data go to the store where Dask would write them to files. Before it has any."""
    from distributed.spill import SpillBuffer

    from .dask_data import TierBuffer, TierSlow

    own = worker.data
    if not isinstance(own, SpillBuffer) or isinstance(own, TierBuffer) or own:
        return
    manager = worker.memory_manager
    slow = TierSlow(tasks.home.store, manager.max_spill)
    manager.data = worker.state.data = TierBuffer(slow, int(own.fast.n))
    slow.lost = functools.partial(_end_worker, worker)
    tasks.home.needed = slow.reads
    slow.relieve = worker.monitor.get_process_memory = OwnMemory(manager.memory_limit or 0)


def _end_worker(worker: Any) -> None:
    """A worker says that it has values which it cannot read: its tasks fail, and those of others would ask it for ever.

    So it ends, and what it had is computed again. Its nanny replaces it.
    """
    log.error("values of worker %s are lost with its store: it ends", worker.address)
    worker.loop.add_callback(worker.close, nanny=False, reason="tierstore-data-lost")


def drop_data(worker: Any) -> None:
    """The worker ends: delete what it has in the store."""
    from .dask_data import TierBuffer

    if isinstance(worker.data, TierBuffer):
        worker.data._slow_uncached.close()


class OwnMemory:
    """Bytes of memory that are this process's own: without the store's, which it has mapped and others have, too.

    In place of SystemMonitor.get_process_memory(), which Dask's limits are compared with. Nannies look at all that is
    resident, so the store's pages are taken out of the page tables when they are many.
    """

    def __init__(self, limit: int):
        self._shared_max = int(limit * SHARED_MAX)
        self._files = _status()["RssFile"]  # programs and libraries

    def __call__(self) -> int:
        found = _status()
        files = max(0, found["RssFile"] - self._files)
        if self._shared_max and found["RssShmem"] + files > self._shared_max:
            store = tasks.home.opened
            if store is not None:
                forget_mapped(store)
        return found["RssAnon"] + min(found["RssFile"], self._files)


def _status() -> dict[str, int]:
    """Resident bytes of this process, by kind."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        lines = [line.split() for line in file if line.startswith("Rss")]
    return {line[0].rstrip(":"): int(line[1]) << 10 for line in lines}


def start_daemon(idle_s: float = IDLE_S) -> bool:
    """Start this node's daemon if none runs, once for all processes that ask; it ends when nobody uses it any more.

    Its sizes are those of the configuration (TIERSTORE_CONFIG, TIERSTORE_DRAM, TIERSTORE_PMEM, ...). Returns whether it was
    started. idle_s: how long it stays without clients.  Raises PeerLost if it does not come up.
    """
    path = tasks.socket_path()
    if _answers(path):
        return False
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.starting", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _answers(path):
            return False
        command = [sys.executable, "-m", "tierstore.engines.dask_daemon", str(idle_s)]
        environment = {**os.environ, "TIERSTORE_SOCKET": path}
        with open(f"{path}.log", "ab") as log:
            quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + START_S
        while not _answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerLost(f"the daemon at {path} did not start: see {path}.log")
            time.sleep(0.05)
    process.returncode = 0  # it is on its own from here on, and nobody waits for it
    return True


def _answers(path: str) -> bool:
    try:
        connect(path).close()
    except TierstoreError:
        return False
    return True
