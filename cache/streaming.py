"""Objects read block by block: for what hands them on, and need not hold all of one that lies on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import NotFound

from .block import decode_batch, decode_stream
from .reading import Found
from .store import Store

VALUE = "value"  # the column of objects that hold bytes
PIECE_BYTES = 8 << 20  # of such an object in one row


class ObjectStream:
    """One version of one object. Callers: one thread, once.

    schema: of the batches. Bytes come as rows of one binary column, to be joined.
    kind: "table" or "bytes".  rows, bytes: of the whole object.
    Lives: blocks in mapped tiers are pinned from now on, each until its batches are gone; those on disk are read as their
    turn comes.
    Raises: NotFound (later: it was evicted or replaced meanwhile), CorruptionError, ValueError (no such column).
    """

    def __init__(self, store: Store, key: str, columns: Sequence[str] | None = None):
        store._check_open()
        self._store, self._key, self._columns = store, key, columns
        root = self._root = store._find(key)
        find = store._reader.find_mapped
        self._held = [find(key, index, root.version) for index in range(1, root.block_count)]
        self.kind = "bytes" if root.kind in (layout.KIND_BYTES, layout.KIND_BYTES_PIECE) else "table"
        self._table: pa.Table | None = None  # of an object that no block holds a whole row of
        self._whole = self._own_schema()
        if columns is not None:
            absent = [name for name in columns if self._whole.names.count(name) != 1]
            if absent:
                raise ValueError(
                    f"there is no column {absent[0]!r:.60}, or more than one; columns are {self._whole.names!r:.300}"
                )
            fields = [self._whole.field(name) for name in columns]
            self.schema = pa.schema(fields, self._whole.metadata)
        else:
            self.schema = self._whole

    def _own_schema(self) -> pa.Schema:
        root = self._root
        if self.kind == "bytes":
            return pa.schema([pa.field(VALUE, pa.large_binary(), nullable=False)])
        if root.kind == layout.KIND_BATCH:
            return self._store._schemas.parse(root.payload(False).slice(0, root.schema_bytes).to_pybytes())
        if root.kind == layout.KIND_STREAM:
            with pa.ipc.open_stream(root.payload(False)) as reader:
                return reader.schema
        self._table = decode_stream(pa.py_buffer(self._store._assemble(list(self._blocks()), False)))
        return self._table.schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in order."""
        if self._table is not None:
            yield from self._chosen(self._table).to_batches()
            return
        for block in self._blocks():
            if self.kind == "bytes":
                yield from _rows_of(block, self.schema)
                continue
            for batch in self._decode(block):
                chosen = self._chosen(batch)
                if self._store._session.injecting:
                    share = chosen.get_total_buffer_size() / max(1, batch.get_total_buffer_size())
                    self._store._charge([block], share)
                yield chosen

    def _decode(self, block: Found) -> list[pa.RecordBatch]:
        payload = block.payload(False)
        if block.kind == layout.KIND_BATCH:
            return [decode_batch(payload, self._whole, block.schema_bytes)]
        return list(decode_stream(payload).to_batches())

    def _chosen(self, rows: pa.RecordBatch | pa.Table) -> pa.RecordBatch | pa.Table:
        return rows if self._columns is None else rows.select(list(self._columns))

    def _blocks(self) -> Iterator[Found]:
        """The blocks in the order of their rows, the root last; each is let go behind its turn."""
        for index in range(len(self._held)):
            block = self._held[index] or self._store._reader.find(self._key, index + 1, self._root.version)
            self._held[index] = None
            if block is None:
                raise NotFound(f"key {self._key!r:.200} was replaced or evicted while it was read; read it again")
            yield block
        yield self._root


def _rows_of(block: Found, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The bytes of a block as rows, in place."""
    value = block.payload(False).slice(0, block.value_bytes)
    for start in range(0, max(1, value.size), PIECE_BYTES):
        part = value.slice(start, min(PIECE_BYTES, value.size - start))
        ends = pa.array([0, part.size], pa.int64()).buffers()[1]
        column = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, part])
        yield pa.record_batch([column], schema=schema)
