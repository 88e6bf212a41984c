"""The data that benchmarks put: batches of ten float64 columns, and byte values."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
COLUMN_COUNT = 10
NAMES = [f"c{index}" for index in range(COLUMN_COUNT)]
Floats = npt.NDArray[np.float64]


def size_text(size: int) -> str:
    """64 KiB, 1 MiB."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def columns_of(size: int, seed: int) -> list[Floats]:
    """Ten random columns, together at most this many bytes; whole cache lines each."""
    rows = size // (8 * COLUMN_COUNT) // 8 * 8
    random = np.random.Generator(np.random.SFC64(seed))
    return [random.random(rows) for _ in range(COLUMN_COUNT)]


def batch_of(columns: list[Floats]) -> pa.RecordBatch:
    """Columns as a record batch, not copied."""
    return pa.RecordBatch.from_arrays([pa.array(column) for column in columns], NAMES)


def batch(size: int, seed: int) -> pa.RecordBatch:
    """A batch of about this many bytes."""
    return batch_of(columns_of(size, seed))


def sum_arrays(columns: list[Floats]) -> float:
    """The sum of all columns."""
    return float(sum(column.sum() for column in columns))


def sum_table(table: pa.Table | pa.RecordBatch) -> float:
    """The sum of all columns, by NumPy in place, chunk by chunk."""
    batches = table.to_batches() if isinstance(table, pa.Table) else [table]
    return float(sum(column.to_numpy().sum() for part in batches for column in part.columns))


def same_sum(found: float, expected: float) -> bool:
    """Whether two sums of the same numbers agree, whatever the order of the additions."""
    return abs(found - expected) <= 1e-9 * max(1.0, abs(expected))


def put_in_one_block(store: Any, key: str, data: pa.RecordBatch) -> None:
    """Put a batch that fits a segment as one block.

    A put splits a batch to fill the open segment, if much of that is left; so fill it with something else first.
    """
    room = store._appender.room
    while data.nbytes + 64 * KIB > store._appender.remaining(0, 0) >= room // 8:
        store.put_bytes("filler", bytes(room // 16))
    store.put(key, data)
    if store.info(key)["blocks"] != 1:
        raise ValueError(f"{key} lies in {store.info(key)['blocks']} blocks")
