"""Partitions of runs as record batches: cut without copying, checked, and joined where they are small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from tierstore.cache.block import encoder_of

from .checks import partition_checks
from .sound import check_sound

# Slices below this are joined with their neighbours: a batch costs its reader microseconds whatever it holds.
SMALL_BYTES = 256 << 10
JOINED_BYTES = 4 << 20
FEW_ROWS = 16384
BYTES_SCHEMA = pa.schema([pa.field("", pa.uint8(), nullable=False)])


def byte_batch(buffer: pa.Buffer) -> pa.RecordBatch:
    """Bytes as a batch of one column, so that they are cut and checked like rows."""
    return pa.record_batch([pa.Array.from_buffers(pa.uint8(), buffer.size, [None, buffer], 0)], schema=BYTES_SCHEMA)


def cut(batches: list[pa.RecordBatch], start: int, end: int, pointing: Sequence[int], where: str) -> pa.RecordBatch:
    """Rows start to end of a run. Without a copy where the run is one block, as it is but for rows larger than segments.

    pointing: columns to look at first, see sound.py. Raises CorruptionError, with ``where``, for rows that cannot be touched.
    """
    parts, at = [], 0
    for batch in batches:
        first, last = max(start - at, 0), min(end - at, batch.num_rows)
        if first < last:
            parts.append(batch.slice(first, last - first))
            check_sound(parts[-1], pointing, where)
        at += batch.num_rows
    if len(parts) == 1:
        return parts[0]
    rows = pa.Table.from_batches(parts, batches[0].schema).combine_chunks()
    return rows.to_batches()[0] if rows.num_rows else batches[0].slice(0, 0)


def first_damaged(batch: pa.RecordBatch, starts: np.ndarray, checks: np.ndarray) -> int | None:
    """Of a slice that begins with the first of some partitions: the position of the first whose check fails.

    starts: n + 1, as in the manifest; checks: n.
    """
    relative = (starts - starts[0]).astype(starts.dtype)
    wrong = np.flatnonzero(partition_checks(batch, relative) != checks)
    return int(wrong[0]) if len(wrong) else None


def coalesced(
    batches: list[pa.RecordBatch], numbers: list[np.ndarray]
) -> tuple[list[pa.RecordBatch], list[np.ndarray]]:
    """The same rows and their numbers, neighbours with few rows as one batch: putting a batch in order has a price of its own.

    Batches with dictionaries, which may differ, stay as they are.
    """
    if len(batches) < 2 or encoder_of(batches[0].schema).stream:
        return batches, numbers
    rows: list[list[pa.RecordBatch]] = [[]]
    ids: list[list[np.ndarray]] = [[]]
    count = 0
    for batch, own in zip(batches, numbers, strict=True):
        if rows[-1] and (batch.num_rows >= FEW_ROWS or count >= FEW_ROWS):
            rows.append([])
            ids.append([])
            count = 0
        rows[-1].append(batch)
        ids[-1].append(own)
        count += batch.num_rows
    return [pa.concat_batches(part) if len(part) > 1 else part[0] for part in rows], [np.concatenate(i) for i in ids]


def joined(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order, small batches joined to some of JOINED_BYTES (which copies them)."""
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        own = batch.nbytes
        if own >= SMALL_BYTES and not held:
            yield batch
            continue
        if own >= SMALL_BYTES or size + own > JOINED_BYTES:
            yield from _joined(held)
            held, size = [], 0
        if own >= SMALL_BYTES:
            yield batch
        else:
            held.append(batch)
            size += own
    yield from _joined(held)


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) < 2 or encoder_of(batches[0].schema).stream:  # dictionaries may not fit one index type together
        return batches
    return [pa.concat_batches(batches)]
