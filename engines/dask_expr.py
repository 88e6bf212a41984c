"""``shuffle_method="tierstore"``: the expression of a shuffle through the store, and how Dask comes to know of it.

Dask has no registration of shuffle methods: Shuffle._lower() takes a fixed list of names. register() replaces this one
method; for all other names it calls the one that was there. That is checked for the versions of Dask named in TESTED, and
for any other by a self-test: a small shuffle, compared with pandas.
"""

from __future__ import annotations

import functools
import threading
import uuid
import warnings
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask._task_spec import List, Task, TaskRef
from dask.dataframe.dask_expr import _shuffle
from dask.utils import get_default_shuffle_method

from tierstore.ringbuf.errors import ConfigError

from . import dask_tasks as tasks

METHOD = "tierstore"
TESTED = ("2026.8",)
VERSION_MIN = (2026, 8)
BARRIER = "tierstore-barrier-"
TRANSFER = "tierstore-transfer-"

_turn = threading.Lock()
_original: Any = None


class TierShuffle(_shuffle.SimpleShuffle):  # type: ignore[misc]
    """A shuffle through the store: a transfer for each input partition, one barrier, a task for each output partition."""

    @functools.cached_property
    def _meta(self) -> pd.DataFrame:
        meta: pd.DataFrame = self.frame._meta.drop(columns=self.partitioning_index)
        return meta

    def _layer(self) -> dict[Any, Any]:
        token = self._name.split("-")[-1]
        # Keys are of the expression, so that equal shuffles are one; the data are of this submission of it.
        app = tasks.app_name(token, uuid.uuid4().hex[:12])
        graph: dict[Any, Any] = {}
        column = self.partitioning_index
        for number in range(self.frame.npartitions):
            key = (f"{TRANSFER}{token}", number)
            source = TaskRef((self.frame._name, number))
            graph[key] = Task(key, tasks.transfer, source, app, self.npartitions_out, number, column)
        maps = List(*(task.ref() for task in graph.values()))
        barrier = Task(f"{BARRIER}{token}", tasks.gather, app, self.npartitions_out, maps)
        graph[barrier.key] = barrier
        partitions = self._partitions if self._filtered else range(self.npartitions_out)
        for number, partition in enumerate(partitions):
            key = (self._name, number)
            graph[key] = Task(key, tasks.unpack, barrier.ref(), partition, self._meta)
        return graph


def lower(self: Any) -> Any:
    """In place of Shuffle._lower()."""
    if (self.method or get_default_shuffle_method()) != METHOD:
        return _original(self)
    _tell_scheduler()
    return TierShuffle(
        self.frame,
        self.partitioning_index,
        self.npartitions_out,
        self.ignore_index,
        self.options,
        self.original_partitioning_index,
    )


def _tell_scheduler() -> None:
    """Install the plugin in the scheduler of the client that is in use."""
    try:
        from distributed import default_client

        install(default_client())
    except (ImportError, ValueError):
        return


def install(client: Any) -> Any:
    """Install the scheduler's plugin, once for each scheduler. Of an asynchronous client: something to await."""
    from .dask_plugin import ShufflePlugin

    told = getattr(client, "_tierstore_told", None)
    address = client.scheduler.address if client.scheduler else None
    if address is None or told == address:
        return None
    client._tierstore_told = address
    return client.register_plugin(ShufflePlugin())


def register(client: Any = None) -> Any:
    """Let Dask know of ``shuffle_method="tierstore"``; again: nothing more happens.

    client:  also install the scheduler's plugin now. Without it that happens at the first shuffle.
    Raises:  ConfigError if this version of Dask does not take it.
    Returns: for an asynchronous client something to await.
    """
    global _original
    with _turn:
        if _original is None:
            _check_version()
            _original = _shuffle.Shuffle._lower
            _shuffle.Shuffle._lower = lower
            if not dask.__version__.startswith(TESTED):
                try:
                    self_test()
                except BaseException:
                    _shuffle.Shuffle._lower, _original = _original, None
                    raise
    return install(client) if client is not None else None


def unregister() -> None:
    """Dask as it was."""
    global _original
    with _turn:
        if _original is not None:
            _shuffle.Shuffle._lower, _original = _original, None


def _check_version() -> None:
    found = tuple(int(part) for part in dask.__version__.split(".")[:2])
    if found < VERSION_MIN:
        least = ".".join(map(str, VERSION_MIN))
        raise ConfigError("dask", dask.__version__, f"version {least} or later: pip install 'tierstore[dask]'")
    expected = ["frame", "partitioning_index", "npartitions_out", "ignore_index", "options"]
    if not hasattr(_shuffle.Shuffle, "_lower") or _shuffle.SimpleShuffle._parameters[:5] != expected:
        tested = ", ".join(f"{version}.*" for version in TESTED)
        raise ConfigError("dask", dask.__version__, f"one whose shuffle is made as in {tested}; use another method")


def self_test() -> None:
    """A small shuffle in this process, compared with pandas. Raises ConfigError."""
    frame = pd.DataFrame({"k": np.arange(60) % 7, "x": np.arange(60) / 8.0, "s": [f"row {n}" for n in range(60)]})
    with dask.config.set(scheduler="sync"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shuffled = dd.from_pandas(frame, 4).shuffle("k", npartitions=3, shuffle_method=METHOD)
            parts = dask.compute(*shuffled.to_delayed())
        except Exception as error:
            raise ConfigError("dask", dask.__version__, f"another version: its self-test fails ({error!r})") from error
    once = all(sum(key in part["k"].array for part in parts) == 1 for key in range(7))
    whole = pd.concat(parts).sort_index()
    if not once or not np.array_equal(whole["x"].to_numpy(), frame["x"].to_numpy()):
        raise ConfigError("dask", dask.__version__, "another version: its self-test gives other rows than pandas")
