"""Every Arrow type through the store: here, and in the frames that other nodes get. And several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from tests.shuffle.rows import expected, read_all, write
from tierstore.cache.buffers import Buffers
from tierstore.service.store import Store
from tierstore.shuffle.elsewhere import Remote
from tierstore.shuffle.receipt import Receipt
from tierstore.shuffle.remote import Fetch
from tierstore.shuffle.serving import Serving

PARTITIONS = 5


class Loopback:
    """A connection to a node that is this process: what a handler sends, a sink gets."""

    def __init__(self, store: Store):
        self._handlers = Serving(lambda: self._registry(store)).handlers()

    @staticmethod
    def _registry(store: Store) -> Any:
        requests: Any = store._control.requests  # type: ignore[attr-defined]
        return requests.table["shuffle_open"].__self__

    def call(self, name: str, /, **arguments: Any) -> Any:
        return self._handlers[name](_Call(arguments, None, None))

    def fetch(self, name: str, arguments: dict[str, Any], sink: Any, arrived: Any = None) -> Any:
        return self._handlers[name](_Call(arguments, sink, arrived))


class _Call:
    def __init__(self, arguments: dict[str, Any], sink: Any, arrived: Any):
        self._arguments, self._sink, self._arrived = arguments, sink, arrived

    def argument(self, name: str, kind: Callable[..., Any], default: Any = ...) -> Any:
        return self._arguments[name] if default is ... else self._arguments.get(name, default)

    def send(self, head: dict[str, Any], parts: Any, check: int | None = None) -> None:
        raw = b"".join(bytes(memoryview(part)) for part in parts)
        self._sink(head, len(raw))[:] = raw
        self._arrived(head)


def pieces_from_afar(
    store: Store, shuffle: Any, receipts: list[Receipt], first: int, last: int
) -> list[pa.RecordBatch]:
    """Rows as another node gets them."""
    shuffle.peer = lambda node: Loopback(store)
    remote = Remote(shuffle, "there", receipts)
    assert not remote.lost
    fetch = Fetch(remote, [(receipt, 0) for receipt in receipts], first, last, True)
    try:
        return [piece.rows for receipt in receipts for piece in fetch.pieces(receipt)]
    finally:
        fetch.stop()


def test_every_type(store: Store, values: ModuleType, kind: Any) -> None:
    column = values.make(kind, 300, 1)
    count = len(column)
    table = pa.table({"k": np.arange(count) % 40, "x": column})
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = []
        for number in range(2):
            with shuffle.writer(number) as writer:
                half = table.slice(number * (count // 2), count // 2)
                writer.write(half.slice(0, 70), by=["k"])
                writer.write(half.slice(70), by=["k"])
            receipts.append(writer.receipt)
        assert store.verify(payloads=True)["ok"]  # hashes made while checks are, whatever these read
        here = shuffle.read(receipts=receipts).read_all()
        assert here.schema.equals(table.schema)
        parts = [part for _, part in shuffle.read_partitions(receipts=receipts)]
        afar = pa.Table.from_batches(pieces_from_afar(store, shuffle, receipts, 0, PARTITIONS), here.schema)
        wanted = sorted(map(repr, table.slice(0, count // 2 * 2).to_pylist()))
        for found in (here, pa.concat_tables(parts), afar):
            assert sorted(map(repr, found.to_pylist())) == wanted


def test_threads_of_one_handle(store: Store) -> None:
    with store.shuffle("app", 0, 7) as shuffle, ThreadPoolExecutor(6) as pool:
        receipts = list(pool.map(lambda number: write(shuffle, number, 20_000), range(12)))
        tables = list(pool.map(lambda _: read_all(shuffle, receipts), range(6)))
    assert all(table.equals(expected(range(12), 20_000)) for table in tables)


def test_memory_goes_back(store: Store) -> None:
    """Frames that were read are memory for the next ones."""
    buffers = Buffers()
    with store.shuffle("app", 0, 7) as shuffle:
        receipts = [write(shuffle, number, 20_000) for number in range(4)]
        shuffle.buffers = buffers
        for _ in range(3):
            rows = pieces_from_afar(store, shuffle, receipts, 0, 7)
            assert sum(batch.num_rows for batch in rows) == 80_000
            del rows
        assert len(buffers._free) <= 4
