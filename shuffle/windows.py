"""From pieces, each ordered by partition, to partitions, each with the rows of all pieces.

Long slices are handed out as they lie. Short ones would cost their reader microseconds each, thousands of times; so
neighbouring partitions are put in order together, by the same counting sort that wrote them, in windows of bounded size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from tierstore.cache.block import decode_batch, encoder_of
from tierstore.cache.buffers import Buffers

from .output import Piece
from .run import RunPlan

SHORT_BYTES = 64 << 10
WINDOW_BYTES = 32 << 20


def by_partition(
    pieces: Sequence[Piece], partitions: int, buffers: Buffers
) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    """Each partition's number and batches, in order of the pieces. Cost: no copy, or one where slices are short.

    buffers: where the memory of copies comes from, and goes back to when nothing is over it any more.
    """
    rows = np.sum([np.diff(piece.starts.astype("i8")) for piece in pieces] or [np.zeros(partitions, "i8")], axis=0)
    total = sum(piece.rows.nbytes for piece in pieces)
    plain = len(pieces) < 2 or encoder_of(pieces[0].rows.schema).stream
    for first, last in cut_at(rows * (total / max(1, int(rows.sum()))), WINDOW_BYTES):
        size = sum(_slice(piece, first, last).nbytes for piece in pieces)
        long = size >= SHORT_BYTES * len(pieces) * (last - first)
        if plain or long or size > (WINDOW_BYTES if last - first == 1 else 4 * WINDOW_BYTES):
            for partition in range(first, last):
                yield (
                    partition,
                    [part for piece in pieces if (part := _slice(piece, partition, partition + 1)).num_rows],
                )
        else:
            yield from _window(pieces, first, last, buffers)


def cut_at(sizes: np.ndarray, most: float) -> Iterator[tuple[int, int]]:
    """Ranges of partitions, one after the other, each of at most so many bytes, or a single partition."""
    ends = np.cumsum(sizes)
    first = 0
    while first < len(sizes):
        before = float(ends[first - 1]) if first else 0.0
        last = max(first + 1, int(np.searchsorted(ends, before + most, "right")))
        yield first, last
        first = last


def _slice(piece: Piece, first: int, last: int) -> pa.RecordBatch:
    start = int(piece.starts[first])
    return piece.rows.slice(start, int(piece.starts[last]) - start)


def _window(
    pieces: Sequence[Piece], first: int, last: int, buffers: Buffers
) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
    count = last - first
    numbers = np.arange(count, dtype="u2" if count <= 1 << 16 else "u4")
    batches = [_slice(piece, first, last) for piece in pieces]
    ids = [np.repeat(numbers, np.diff(piece.starts[first : last + 1])) for piece in pieces]
    plan = RunPlan(pieces[0].rows.schema, batches, ids, count)
    whole = _ordered(plan, buffers)
    for number in range(count):
        start, end = int(plan.starts[number]), int(plan.starts[number + 1])
        yield first + number, [whole.slice(start, end - start)] if end > start else []


def _ordered(plan: RunPlan, buffers: Buffers) -> pa.RecordBatch:
    if not plan.in_place:
        return plan.batch()
    lent = buffers.take(plan.payload_bytes)
    plan.fill(lent.address)
    return decode_batch(pa.foreign_buffer(lent.address, plan.payload_bytes, lent), plan.schema, plan.schema_bytes)
