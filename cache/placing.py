"""For packages above: objects of one block that are put into their segment by their maker, and read block by block."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from tierstore.ringbuf import layout

from .appender import ObjectWriter, RowTooLarge
from .block import placed
from .record import payload_start, record_bytes
from .store import Store

Numbered = Callable[[int], None]


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
    numbered: Numbered | None = None,
    /,
    *,
    pool: str,
    group: str,
) -> int:
    """Store an object of class KEEP whose payload ``fill(address)`` puts in place; the payload's XXH3-64.

    kind: of layout.KIND_*.  payload_bytes: at most what room_for() says of an empty segment.
    group: objects of one group share segments with no others, until end_group().
    numbered: told the object's version before anything of it is visible; see delete_version().
    """
    store._check_open()
    size = (payload_bytes + 63) & ~63
    assert record_bytes(len(key.encode()), size) <= store._appender.room, payload_bytes
    writer = _writer(store, key, pool, group, None, numbered)
    try:
        payload_hash = writer.write_placed(placed(kind, rows, size, schema_bytes, fill))
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return payload_hash


def _writer(
    store: Store, key: str, pool: str, group: str, schema: pa.Schema | None, numbered: Numbered | None
) -> ObjectWriter:
    writer = ObjectWriter(store._appender, key, store._pool(pool), layout.CLASS_KEEP, 0, schema, group)
    if numbered is not None:
        numbered(writer.version)
    return writer


def put_batch(
    store: Store,
    key: str,
    batch: pa.RecordBatch,
    numbered: Numbered | None = None,
    /,
    *,
    pool: str,
    group: str,
) -> int:
    """Store a batch of any type and size as an object of class KEEP; the XXH3-64 of its root's payload. numbered: as above."""
    store._check_open()
    writer = _writer(store, key, pool, group, batch.schema, numbered)
    try:
        writer.write_batch(batch)
        writer.close_batches()
    except RowTooLarge:
        writer.abort()
        writer = _writer(store, key, pool, group, batch.schema, numbered)
        writer.write_whole(pa.Table.from_batches([batch]))
    except BaseException:
        writer.abort()
        raise
    return writer.payload_hash


def put_large_bytes(
    store: Store,
    key: str,
    value: bytes | bytearray,
    numbered: Numbered | None = None,
    /,
    *,
    pool: str,
    group: str,
) -> int:
    """Store bytes of any size as an object of class KEEP; the XXH3-64 of its root's payload. numbered: as above."""
    store._check_open()
    writer = _writer(store, key, pool, group, None, numbered)
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


def delete_version(store: Store, key: str, version: int) -> bool:
    """Remove an object if it is still what one put made, and not what another put there; whether this was so."""
    store._check_open()
    session, reader = store._session, store._reader
    place, epoch, asked = reader.place(key), session.epoch, False
    while (root := reader.find(key, 0, 0)) is not None and root.version == version:
        if session.submit(store._control.alive, layout.OP_DELETE, 0, place, 0, root.item) == 1:
            return True
        asked = True  # moved or replaced meanwhile
    # Gone after the question: carried out by a daemon that died before it answered.
    return asked and root is None and session.epoch != epoch
