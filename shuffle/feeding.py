"""What writers are given, in the shape in which they keep it."""

from __future__ import annotations

import ctypes

import numpy as np
import pyarrow as pa

from .run import RunPlan


def batches_of(data: pa.RecordBatch | pa.Table) -> list[pa.RecordBatch]:
    if isinstance(data, pa.RecordBatch):
        return [data] if data.num_rows else []
    if isinstance(data, pa.Table):
        return [batch for batch in data.to_batches() if batch.num_rows]
    raise TypeError(f"a pyarrow RecordBatch or Table is needed, not {type(data).__name__}")


def column_of(batch: pa.RecordBatch, name: str) -> pa.Array:
    if batch.schema.get_field_index(name) < 0:
        raise ValueError(f"there is no column {name!r}, or more than one; columns are {batch.schema.names}")
    return batch.column(batch.schema.get_field_index(name))


def whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def batch_at(address: int, plan: RunPlan) -> pa.RecordBatch:
    """The batch that was put in place: what readers will see."""
    payload = pa.foreign_buffer(address, plan.payload_bytes, plan)
    return pa.ipc.read_record_batch(payload.slice(plan.schema_bytes), plan.schema)


def halves(batches: list[pa.RecordBatch], ids: list[np.ndarray]) -> list[tuple[list[pa.RecordBatch], list[np.ndarray]]]:
    """The same rows in two parts."""
    half = sum(batch.num_rows for batch in batches) // 2
    first: tuple[list[pa.RecordBatch], list[np.ndarray]] = ([], [])
    second: tuple[list[pa.RecordBatch], list[np.ndarray]] = ([], [])
    for batch, numbers in zip(batches, ids, strict=True):
        rows = min(half, batch.num_rows)
        half -= rows
        for part, cut, chosen in (
            (first, batch.slice(0, rows), numbers[:rows]),
            (second, batch.slice(rows), numbers[rows:]),
        ):
            if cut.num_rows:
                part[0].append(cut)
                part[1].append(chosen)
    return [first, second]


def join(parts: list[memoryview], address: int, total: int) -> None:
    """Copy parts one behind the other to an address, and zeros up to a whole line."""
    target = memoryview((ctypes.c_char * (-(-total // 64) * 64)).from_address(address)).cast("B")
    at = 0
    for part in parts:
        target[at : at + len(part)] = part
        at += len(part)
    target[total:] = bytes(len(target) - total)
