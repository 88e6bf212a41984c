"""Dask: ``shuffle_method="tierstore"``. Users import it as ``tierstore.dask``; see docs/DASK.md.

    import tierstore.dask
    tierstore.dask.register(client)
    frame.shuffle("k", shuffle_method="tierstore")          # merge, groupby.apply, set_index, sort_values as well

or, in Dask's configuration, ``dataframe.shuffle.method: tierstore`` and ``distributed.client.preload: [tierstore.dask]``.
"""

from __future__ import annotations

from typing import Any

from tierstore.service.store import Store

from . import dask_tasks as tasks
from .dask_expr import METHOD, register, self_test, unregister


def use(store: Store | None) -> None:
    """Take this store in this process, for workers that are threads of it. None: none any more."""
    tasks.home.use(store)


def close() -> None:
    """Close this process's store and its handles of shuffles."""
    tasks.home.close()


def dask_setup(server: Any) -> Any:
    """Of ``--preload tierstore.dask``: in a client, a scheduler, a worker."""
    from distributed import Client, Scheduler

    register()
    if isinstance(server, Scheduler):
        from .dask_plugin import NAME, ShufflePlugin

        if NAME not in server.plugins:
            return server.register_scheduler_plugin(ShufflePlugin(), name=NAME, idempotent=True)
    elif isinstance(server, Client):
        return register(server)
    return None


def dask_teardown(server: Any) -> None:
    """The server ends."""
    from distributed import Worker

    if isinstance(server, Worker):
        close()


__all__ = ["METHOD", "close", "dask_setup", "dask_teardown", "register", "self_test", "unregister", "use"]
