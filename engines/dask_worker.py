"""A worker's data in the store, and its memory as its limits should see it."""

from __future__ import annotations

import functools
import logging
from typing import Any

from tierstore.cache.spread import forget_mapped

from . import dask_tasks as tasks

log = logging.getLogger("tierstore")

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
