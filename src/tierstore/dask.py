"""Dask with tierstore: ``tierstore.dask.register(client)``, or ``--preload tierstore.dask``. See docs/DASK.md."""

from tierstore.engines.dask import (
    METHOD,
    close,
    cluster,
    dask_setup,
    dask_teardown,
    register,
    self_test,
    unregister,
    use,
)

__all__ = ["METHOD", "close", "cluster", "dask_setup", "dask_teardown", "register", "self_test", "unregister", "use"]
