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
    """Of ``--preload tierstore.dask``: in a client, a scheduler, a worker.

    Of Dask's configuration: ``tierstore.worker-data`` (default true) puts workers' data into the store,
    ``tierstore.start-daemon`` (default true) starts the node's daemon if none runs.
    """
    import dask
    from distributed import Client, Scheduler, Worker

    register()
    if isinstance(server, Scheduler):
        from .dask_plugin import NAME, ShufflePlugin

        if NAME not in server.plugins:
            return server.register_scheduler_plugin(ShufflePlugin(), name=NAME, idempotent=True)
    elif isinstance(server, Client):
        return register(server)
    elif isinstance(server, Worker):
        from .dask_worker import keep_data
        from .node_daemon import started

        tasks.home.alone = server.address.startswith("inproc://")
        if not tasks.home.alone and dask.config.get("tierstore.start-daemon", True):
            started(tasks.socket_path())
        if dask.config.get("tierstore.worker-data", True):
            keep_data(server)
    return None


def dask_teardown(server: Any) -> None:
    """The server ends."""
    from distributed import Worker

    if isinstance(server, Worker):
        from .dask_worker import drop_data

        drop_data(server)
        if not tasks.home.alone:
            close()


def cluster(worker_data: bool = True, **options: Any) -> Any:
    """A LocalCluster whose workers keep data and shuffles in the store; options are LocalCluster's.

    The node's daemon is started if none runs, with the sizes of the configuration; it ends after the cluster.
    The method of shuffles is for the client to choose: ``dataframe.shuffle.method``.
    """
    import dask
    from distributed import LocalCluster

    from .node_daemon import started

    register()
    if options.get("processes", True):
        started(tasks.socket_path())
    names = ("scheduler", "worker")
    preload = {f"distributed.{name}.preload": [*dask.config.get(f"distributed.{name}.preload"), NAME] for name in names}
    with dask.config.set({**preload, "tierstore.worker-data": worker_data}):
        return LocalCluster(**options)


NAME = "tierstore.dask"

__all__ = ["METHOD", "close", "cluster", "dask_setup", "dask_teardown", "register", "self_test", "unregister", "use"]
