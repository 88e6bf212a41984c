"""What runs in Spark's Python workers: the store of their node, and the pieces of a scan, read through it.

A worker process does many tasks, so it keeps its connection. Nothing here fails a task because a store is away: pieces of
Parquet files are then read from the files. A table under a key is nowhere else, so its tasks fail, and are tried again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tierstore.cache import object_pieces
from tierstore.cache.columns import pieces
from tierstore.ringbuf.errors import PeerLost, TierstoreError
from tierstore.service.client import connect
from tierstore.service.config import load_config
from tierstore.service.store import Store

# After nobody answered, nobody is asked for this long.
DOWN_S = 5.0

Function = Callable[[Iterator[pa.RecordBatch]], Iterable[pa.RecordBatch | pa.Table]]

_stores: dict[str, Store] = {}
_down_until: dict[str, float] = {}


def socket_path(named: str | None) -> str:
    """Where this node's daemon listens: as named, else TIERSTORE_SOCKET, else as configured."""
    found = named or os.environ.get("TIERSTORE_SOCKET") or load_config().resolve().socket
    assert found is not None
    return found


def store_at(socket: str | None) -> Store:
    """This process's store of this node's daemon. Raises PeerLost if nobody answers; within DOWN_S at once."""
    path = socket_path(socket)
    known = _stores.get(path)
    if known is not None:
        if not known._closed and known._control.answers():
            return known
        _leave(path, known)
    if time.monotonic() < _down_until.get(path, 0.0):
        raise PeerLost(f"no daemon answers at {path}")
    try:
        _stores[path] = made = connect(path)
    except (PeerLost, OSError):
        _down_until[path] = time.monotonic() + DOWN_S
        raise
    return made


def _leave(path: str, store: Store) -> None:
    """Its daemon is gone. What was handed out of it stays valid. Closing waits for a restart, so no task waits for that."""
    del _stores[path]
    pieces.forget(store)
    threading.Thread(target=_close, args=(store,), daemon=True).start()


def _close(store: Store) -> None:
    with contextlib.suppress(TierstoreError, OSError):
        store.close()


def store_or_none(socket: str | None) -> Store | None:
    """As store_at(); None if nobody answers."""
    try:
        return store_at(socket)
    except (TierstoreError, OSError):
        return None


@dataclass(frozen=True)
class ObjectPlan:
    """What the pieces of a table under a key have in common; the counterpart of columns.pieces.Plan."""

    name: str
    schema: pa.Schema
    filter: Any

    def read(self, piece: object_pieces.ObjectPiece, store: Store) -> Iterator[pa.RecordBatch]:
        """The rows of one piece for which the filter is true. Raises NotFound."""
        names = self.schema.names
        if self.filter is None:
            yield from object_pieces.read_piece(store, piece, names)
            return
        for batch in object_pieces.read_piece(store, piece):
            kept = pa.Table.from_batches([batch]).filter(self.filter)
            yield from kept.select(names).to_batches()


Plan = pieces.Plan | ObjectPlan


def read(plan: Plan, piece: Any, socket: str | None) -> Iterator[pa.RecordBatch]:
    """The batches of a piece, through this node's store as far as there is one."""
    if isinstance(plan, ObjectPlan):
        return plan.read(piece, store_at(socket))
    return plan.read(piece, store_or_none(socket))


class Task:
    """The function that Spark's mapInArrow runs: row by row, the number of a piece in, what fn makes of the piece out."""

    def __init__(self, plan: Plan, planned: list[Any], fn: Function, socket: str | None):
        self._plan, self._pieces, self._fn, self._socket = plan, planned, fn, socket

    def __call__(self, numbers: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for number in itertools.chain.from_iterable(batch.column(0).to_pylist() for batch in numbers):
            for made in self._fn(read(self._plan, self._pieces[number], self._socket)):
                yield from made.to_batches() if isinstance(made, pa.Table) else [made]
