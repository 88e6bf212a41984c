"""Blocks of which only parts are wanted: on disk they are mapped, and just the pages that are touched are read.

Readers of whole blocks go through reading.py, which reads past the page cache and checks the payload's hash. Here nothing is
hashed: the caller has checks of the parts. The pin keeps the segment from being written while it is mapped, and whatever
the page cache held of it before went when it was written (direct writes invalidate what they overwrite).
"""

from __future__ import annotations

import ctypes
from typing import Any

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words
from tierstore.ringbuf.codes import STALE
from tierstore.ringbuf.errors import NotFound
from tierstore.ringbuf.region import Mapping, will_need

from .block import decode_batch, kernels
from .reading import Found, corrupt, header_of
from .record import payload_start
from .store import Store


class Lean:
    """Finds blocks of one store handle without reading them. Any thread."""

    def __init__(self, store: Store):
        self._store, self._session, self._reader = store, store._session, store._reader
        self._mappings: dict[int, Mapping] = {}

    def has(self, key: str) -> bool:
        """Whether an object is there. Cost: a look-up; on disk the first page of its root."""
        return self.root(key) is not None

    def root(self, key: str) -> Found | None:
        """The root of an object, in place in every tier; None if it is not there."""
        self._store._check_open()
        native, x, skip = self._session.native, self._session.x, 0
        while True:
            fields = native.lookup(x, key, 0, 0, skip, 1)
            if fields is None:
                return None
            if fields == STALE:
                self._session.renew()
                continue
            found = Found(self._session, fields) if fields[1] else self._mapped(key, fields[9], fields[0])
            if found is not None:
                return found
            skip += 1

    def _mapped(self, key: str, item: int, pin: Any) -> Found | None:
        """The root in an unmapped arena; None if it is another key's."""
        segment = item >> layout.SEGMENT_SHIFT & layout.SEGMENT_MASK
        number = self._reader.arena_number(segment)
        arena, segment_bytes = self._session.grant.arenas[number], self._session.grant.segment_bytes
        mapping = self._mapping(number)
        base = layout.ARENA_HEADER_BYTES + (segment - arena.first) * segment_bytes
        offset = (item & layout.GRANULE_MASK) * layout.GRANULE
        address = mapping.address + base + offset
        if not kernels().header_is_sound(address):
            corrupt(self._session, item, "a record header with a valid checksum", "another")
            return None
        head = header_of((ctypes.c_char * layout.RECORD_HEADER_BYTES).from_address(address), 0)
        if head.block_index or ctypes.string_at(address + layout.RECORD_HEADER_BYTES, head.key_bytes) != key.encode():
            return None
        if head.codec != layout.CODEC_RAW:
            return self._reader.find(key, 0, 0)
        at = address + payload_start(head.key_bytes)
        fields = ((pin, mapping), 0, at, head.payload_bytes, head.kind, head.block_count, head.schema_bytes)
        return Found(self._session, (*fields, head.value_bytes, head.version, item, head.rows))

    def _mapping(self, number: int) -> Mapping:
        if number not in self._mappings:
            grant = self._session.grant
            size = layout.ARENA_HEADER_BYTES + grant.arenas[number].segment_count * grant.segment_bytes
            self._mappings[number] = Mapping(grant.arena_fds[number], size, writable=False)
        return self._mappings[number]

    def table(self, key: str) -> Parts:
        """A table of which parts are wanted. Raises NotFound, and as Store.get()."""
        root = self._found(key)
        if root.kind != layout.KIND_BATCH or root.block_count > 1:
            table = self._store.get(key)
            return Parts(self._session, table.to_batches(), None)
        payload = root.payload(False)
        schema = self._store._schemas.parse(payload.slice(0, root.schema_bytes).to_pybytes())
        return Parts(self._session, [decode_batch(payload, schema, root.schema_bytes)], root)

    def bytes(self, key: str) -> tuple[pa.Buffer, Parts]:
        """A value of bytes of which parts are wanted. Raises NotFound, and as Store.get_bytes()."""
        root = self._found(key)
        if root.kind != layout.KIND_BYTES:
            return pa.py_buffer(self._store.get_bytes(key)), Parts(self._session, [], None)
        return root.payload(False).slice(0, root.value_bytes), Parts(self._session, [], root)

    def _found(self, key: str) -> Found:
        root = self.root(key)
        if root is None:
            raise NotFound(f"key {key!r:.200} is not in the store")
        return root


class Parts:
    """An object's batches, and how to say which parts of it are read. root: None where it was read whole."""

    def __init__(self, session: Any, batches: list[pa.RecordBatch], root: Found | None):
        self._session, self.batches, self._root = session, batches, root

    def read(self, rows: pa.RecordBatch) -> None:
        """Rows of it will be read: have them come from disk, count them, and take as long as the device that is played."""
        root = self._root
        if root is None or (root.head and not self._session.injecting):
            return
        size = rows.nbytes
        if not root.head:
            for column in rows.columns:
                _come(column)
            self._session.count(words.COUNT_READ + int(self._session.kinds[root.segment]), size)
        if self._session.injecting:
            self._session.charge(root.segment, size)


def _come(column: pa.Array) -> None:
    """Begin to read the values of a column that has one width; those of others come as they are touched."""
    try:
        width = column.type.bit_width
    except ValueError:
        return
    values = column.buffers()[1] if len(column.buffers()) == 2 else None
    if values is not None and len(column):
        first = column.offset * width // 8
        will_need(values.address + first, -(-len(column) * width // 8))
