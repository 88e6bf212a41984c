"""A table under a key cut into pieces: some of its blocks each, so that several processes can map it between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import NotFound, TierstoreError

from .block import decode_batch, decode_stream
from .store import Store


class ObjectPiece(NamedTuple):
    """Blocks of one put of one object, in the order of its rows; block 0, the root, holds the last ones."""

    key: str
    version: int
    blocks: tuple[int, ...]


def pieces_of(store: Store, key: str, piece_bytes: int) -> tuple[pa.Schema, list[ObjectPiece]]:
    """The schema of a table, and all of it as pieces of some blocks; a block larger than piece_bytes is a piece.

    Raises: NotFound, TierstoreError if the key holds bytes.
    """
    store._check_open()
    info, root = store.info(key), store._find(key)
    schema = _schema(store, key, root)
    order = [*range(1, root.block_count), 0]
    if root.kind == layout.KIND_STREAM_PIECE:  # one row spans them: they make sense together only
        return schema, [ObjectPiece(key, root.version, tuple(order))]
    count = max(1, piece_bytes * len(order) // max(1, info["bytes"]))
    groups = [tuple(order[first : first + count]) for first in range(0, len(order), count)]
    return schema, [ObjectPiece(key, root.version, group) for group in groups]


def read_piece(store: Store, piece: ObjectPiece, columns: list[str] | None = None) -> list[pa.RecordBatch]:
    """The batches of a piece, as Store.get() gives them: without copying from ``dram`` and ``pmem``.

    Raises: NotFound if the object was deleted, evicted or replaced since it was cut into pieces.
    """
    store._check_open()
    root = store._reader.find(piece.key, 0, piece.version)
    if root is None:
        raise _gone(piece)
    if root.kind == layout.KIND_STREAM_PIECE:
        table = store.get(piece.key, columns)
        if store._find(piece.key).version != piece.version:
            raise _gone(piece)
        return list(table.to_batches())
    blocks = [root if number == 0 else store._reader.find(piece.key, number, piece.version) for number in piece.blocks]
    found = [block for block in blocks if block is not None]
    if len(found) < len(blocks):
        raise _gone(piece)
    schema, batches = _schema(store, piece.key, root), []
    for number, block in zip(piece.blocks, found, strict=True):
        payload = block.payload(False)
        if root.kind == layout.KIND_STREAM:
            batches += decode_stream(payload).to_batches()
        else:
            batches.append(decode_batch(payload, schema, 0 if number else root.schema_bytes))
    chosen = batches if columns is None else [batch.select(columns) for batch in batches]
    if store._session.injecting:
        whole = sum(batch.get_total_buffer_size() for batch in batches)
        store._charge(found, sum(batch.get_total_buffer_size() for batch in chosen) / max(1, whole))
    return chosen


def _schema(store: Store, key: str, root: Any) -> pa.Schema:
    if root.kind == layout.KIND_BATCH:
        return store._schemas.parse(root.payload(False).slice(0, root.schema_bytes).to_pybytes())
    if root.kind == layout.KIND_STREAM:
        return decode_stream(root.payload(False)).schema
    if root.kind == layout.KIND_STREAM_PIECE:
        return store.get(key).schema
    raise TierstoreError(f"key {key!r:.200} holds bytes, not a table")


def _gone(piece: ObjectPiece) -> NotFound:
    return NotFound(
        f"key {piece.key!r:.200} was deleted, evicted or replaced while a job read it: put it with keep=True, which is not evicted"
    )
