"""For packages above: objects of one block that are put into their segment by their maker, and read block by block."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words

from .appender import ObjectWriter, RowTooLarge
from .block import Payload, placed
from .lean import Lean
from .record import payload_start, record_bytes
from .store import Store


def room_for(store: Store, key_bytes: int, pool: str, group: str) -> tuple[int, int]:
    """Payload bytes that fit the rest of the open segment of a group, and those that fit an empty one."""
    appender = store._appender
    left = appender.remaining(store._pool(pool), layout.CLASS_KEEP, group)
    overhead = payload_start(key_bytes) + layout.GRANULE
    return max(0, left - overhead), appender.room - overhead


def put_placed(
    store: Store,
    key: str,
    kind: int,
    rows: int,
    payload_bytes: int,
    schema_bytes: int,
    fill: Callable[[int], None],
    *,
    pool: str,
    group: str,
) -> int:
    """Store an object of class KEEP whose payload ``fill(address)`` puts in place; the payload's XXH3-64.

    kind: of layout.KIND_*.  payload_bytes: at most what room_for() says of an empty segment.
    group: objects of one group share segments with no others, until end_group().
    """
    store._check_open()
    size = (payload_bytes + 63) & ~63
    assert record_bytes(len(key.encode()), size) <= store._appender.room, payload_bytes
    writer = _writer(store, key, pool, group, None)
    try:
        payload_hash = writer.write_placed(placed(kind, rows, size, schema_bytes, fill))
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return payload_hash


def _writer(store: Store, key: str, pool: str, group: str, schema: pa.Schema | None) -> ObjectWriter:
    return ObjectWriter(store._appender, key, store._pool(pool), layout.CLASS_KEEP, 0, schema, group)


def put_batch(
    store: Store,
    key: str,
    batch: pa.RecordBatch,
    *,
    pool: str,
    group: str,
) -> int:
    """Store a batch of any type and size as an object of class KEEP; the XXH3-64 of its root's payload."""
    store._check_open()
    writer = _writer(store, key, pool, group, batch.schema)
    try:
        writer.write_batch(batch)
        writer.close_batches()
    except RowTooLarge:
        writer.abort()
        writer = _writer(store, key, pool, group, batch.schema)
        writer.write_whole(pa.Table.from_batches([batch]))
    except BaseException:
        writer.abort()
        raise
    return writer.payload_hash


def put_large_bytes(
    store: Store,
    key: str,
    value: bytes | bytearray | memoryview,
    *,
    pool: str,
    group: str,
) -> int:
    """Store bytes of any size as an object of class KEEP; the XXH3-64 of its root's payload."""
    store._check_open()
    writer = _writer(store, key, pool, group, None)
    try:
        writer.write_bytes(value)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return writer.payload_hash


def end_group(store: Store, group: str) -> None:
    """Give the open segments of a group back, as nothing will be put into it any more (if something is, it opens others)."""
    store._check_open()
    store._appender.retire_group(group)


class Placing:
    """An object of class KEEP (opaque bytes) in two steps, so that another process can fill it: begin, then finish() or abort().

    arena, offset: where the payload goes, as the number of an arena and a position in its file; see arena_of().
    Callers: one thread. A process that ends before finish() leaves nothing visible.
    """

    def __init__(self, store: Store, key: str, size: int, *, pool: str, group: str = ""):
        store._check_open()
        padded = (size + 63) & ~63
        if record_bytes(len(key.encode()), padded) > store._appender.room:
            raise ValueError(f"{size} bytes in one piece: a segment has {store._appender.room}, with key and header")
        self._store, self._pad = store, padded - size
        self._writer = _writer(store, key, pool, group, None)
        try:
            # One piece, so that the object's size is told without the padding; nobody copies from its address.
            pieces = (ctypes.c_uint64 * 2)(0, size)
            payload = Payload(layout.KIND_BYTES, 0, pieces, 1 if size else 0, padded, 0, [], self._filled)
            lease, at = self._writer.claim_placed(payload)
        except BaseException:
            self._writer.abort()
            raise
        self.address = int(lease.words[words.L_BASE // 8]) + at
        grant = store._session.grant
        self.arena = next(
            number
            for number, arena in enumerate(grant.arenas)
            if arena.first <= lease.segment < arena.first + arena.segment_count
        )
        inside = (lease.segment - grant.arenas[self.arena].first) * grant.segment_bytes
        self.offset = layout.ARENA_HEADER_BYTES + inside + at
        self._size = size

    def _filled(self, address: int) -> None:
        ctypes.memset(address + self._size, 0, self._pad)

    def finish(self) -> int:
        """The bytes are in place: make the object visible; the XXH3-64 of its payload. Raises as a put does."""
        try:
            payload_hash = self._writer.finish_placed()
            self._writer.close()
        except BaseException:
            self._writer.abort()
            raise
        return payload_hash

    def abort(self) -> None:
        """Nothing of it becomes visible. The other process must not write there any more."""
        self._writer.abort()


def arena_of(store: Store, lean: Lean, address: int, size: int) -> tuple[int, int] | None:
    """Which arena's file a range of memory is mapped from, and where it lies in the file; None for private memory."""
    session = store._session
    for number, arena in enumerate(session.grant.arenas):
        whole = layout.ARENA_HEADER_BYTES + arena.segment_count * session.grant.segment_bytes
        if arena.mapped:
            start = int(session.addresses[arena.first]) - layout.ARENA_HEADER_BYTES
        elif number in lean._mappings:
            start = lean._mappings[number].address
        else:
            continue
        if start <= address and address + size <= start + whole:
            return number, address - start
    return None
