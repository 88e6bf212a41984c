"""What the tests of the shuffle store share: rows whose sum tells whether any is missing or twice there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from tierstore.cache.store import Store as CacheStore
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.receipt import Receipt

PARTITIONS = 7


def rows_of(map_index: int, count: int = 5000) -> pa.Table:
    """Rows that no other map has."""
    first = map_index * 1_000_000
    numbers = np.arange(first, first + count)
    words = pa.array([f"row {number}" if number % 5 else None for number in numbers.tolist()])
    return pa.table({"k": numbers % 1000, "n": numbers, "v": numbers * 0.5, "w": words})


def write(shuffle: Shuffle, map_index: int, count: int = 5000, attempt: str | None = None) -> Receipt:
    """attempt: where it is given, what is written is the same in every store."""
    with shuffle.writer(map_index, attempt) as writer:
        if attempt is not None:
            writer._nonce = "0" * 16
        writer.write(rows_of(map_index, count), by=["k"])
    return writer.receipt


def read_all(shuffle: Shuffle, receipts: Iterable[Receipt]) -> pa.Table:
    return shuffle.read(receipts=receipts).read_all().sort_by("n")


def expected(maps: Sequence[int], count: int = 5000) -> pa.Table:
    return pa.concat_tables([rows_of(number, count) for number in maps]).sort_by("n")


def keys_left(store: Store) -> list[str]:
    return list(store.keys("shuffle/"))


def run_of(store: CacheStore, receipt: Receipt) -> str:
    """The key of the first run of an attempt."""
    return next(key for key in sorted(store.keys(receipt.name.key + "/")))
