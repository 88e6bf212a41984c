"""Finding blocks: in place in mapped tiers, or read (and checked) from disk into private memory."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from typing import Any, NamedTuple

import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words
from tierstore.ringbuf.client import Session
from tierstore.ringbuf.codes import STALE
from tierstore.ringbuf.errors import Closed, CorruptionError, InvalidKey, NotFound

from . import codec
from .block import kernels
from .buffers import Buffers, Lent
from .keys import check_key
from .record import record_bytes

_MASK = 2**64 - 1
_PAGE = 4096
# First read of a block on disk: its header, its key, and all of it if it is small.
_FIRST_READ_BYTES = 64 << 10
_COPY_BYTES_MAX = _FIRST_READ_BYTES
_HEADER = struct.Struct("<qQQQQIHBBIIQQQQQHBBIQQQ")
assert _HEADER.size == layout.RECORD_HEADER_BYTES


class _Header(NamedTuple):
    """A record's header, in the order of its fields; layout.R_* says what they are."""

    length: int
    generation: int
    key_hash: int
    version: int
    payload_hash: int
    payload_bytes: int
    key_bytes: int
    kind: int
    codec: int
    block_index: int
    block_count: int
    header_hash: int
    published: int
    expiry: int
    value_bytes: int
    rows: int
    pool: int
    class_: int
    spare: int
    schema_bytes: int
    object_bytes: int
    object_rows: int
    stored_bytes: int


def header_of(memory: Any, start: int) -> _Header:
    """The header of the record that begins there."""
    return _Header._make(_HEADER.unpack_from(memory, start))


class Found:
    """One block that was found, and what holds it: a pin, or private memory."""

    __slots__ = (
        "_address",
        "_session",
        "block_count",
        "head",
        "item",
        "kind",
        "owner",
        "payload_bytes",
        "rows",
        "schema_bytes",
        "value_bytes",
        "version",
    )

    def __init__(self, session: Session, fields: tuple[Any, ...]):
        (
            self.owner,
            self.head,
            self._address,
            self.payload_bytes,
            packed,
            self.block_count,
            self.schema_bytes,
            self.value_bytes,
            self.version,
            self.item,
            self.rows,
        ) = fields
        self.kind = packed & 0xFF
        self._session = session

    @property
    def segment(self) -> int:
        """Where it lies."""
        return int(self.item >> layout.SEGMENT_SHIFT & layout.SEGMENT_MASK)

    def payload(self, verify: bool) -> pa.Buffer:
        """The payload's bytes. If they are to be checked and are not what was written: CorruptionError, NotFound (CACHE)."""
        if verify and self.head and self.payload_bytes:
            state = (ctypes.c_uint64 * 9)()
            found = (
                self._session.native.hash_payload(self._address, self.payload_bytes, ctypes.addressof(state)) & _MASK
            )
            expected = ctypes.c_uint64.from_address(self.head + layout.R_PAYLOAD_HASH).value
            if found != expected:
                corrupt(self._session, self.item, f"payload hash {expected:#x}", f"{found:#x}")
                raise NotFound("the block in memory is not what was written; as it is CACHE, that is a miss")
        if self.payload_bytes == 0:
            return pa.py_buffer(b"")
        return pa.foreign_buffer(self._address, self.payload_bytes, self.owner)


class Reader:
    """Finds blocks for one session."""

    def __init__(self, session: Session):
        self.session = session
        self._native, self._x = session.native, session.x
        self._arenas, self.buffers = session.grant.arenas, Buffers()

    def find(self, key: str, index: int, version: int) -> Found | None:
        """Block ``index`` of a key, of that version (0: any); None if it is not there."""
        skip = 0
        while True:
            try:
                fields = self._native.lookup(self._x, key, index, version, skip, 1)
            except (TypeError, UnicodeEncodeError) as error:
                raise InvalidKey(f"key {key!r:.60} is not text that UTF-8 can write: {error}") from None
            if fields is None:
                return None
            if fields == STALE:
                self._renew()
                continue
            if fields[1]:
                return Found(self.session, fields)
            found = self._from_disk(key, index, version, fields[9], fields[0])
            if found is not None:
                return found
            skip += 1

    def find_mapped(self, key: str, index: int, version: int) -> Found | None:
        """Block ``index`` of a key, of that version, if it lies in a mapped tier; None for one on disk too."""
        fields = self._native.lookup(self._x, key, index, version, 0, 1)
        return Found(self.session, fields) if isinstance(fields, tuple) and fields[1] else None

    def _renew(self) -> None:
        """A new daemon runs: look again in its index."""
        if self.session.closed:
            raise Closed("this store was closed; open or connect again")
        self.session.renew()

    def place(self, key: str) -> int:
        """The index place of a key's root, as messages carry it."""
        raw = check_key(key)
        buffer = ctypes.create_string_buffer(raw, len(raw) + 8)
        return int(self._native.hash_key(ctypes.addressof(buffer), len(raw)))

    def arena_number(self, segment: int) -> int:
        """Which arena a segment is of."""
        return next(i for i, a in enumerate(self._arenas) if a.first <= segment < a.first + a.segment_count)

    def _from_disk(self, key: str, index: int, version: int, item: int, pin: Any) -> Found | None:
        """Read a block of an unmapped arena while its segment is pinned; None if it is another key's."""
        segment = item >> layout.SEGMENT_SHIFT & layout.SEGMENT_MASK
        offset = (item & layout.GRANULE_MASK) * layout.GRANULE
        number = self.arena_number(segment)
        arena, fd = self._arenas[number], self.session.grant.arena_fds[number]
        segment_bytes = self.session.grant.segment_bytes
        base = layout.ARENA_HEADER_BYTES + (segment - arena.first) * segment_bytes
        lent, start = self.buffers.take(_FIRST_READ_BYTES), offset % _PAGE
        first, end = base + offset - start, base + segment_bytes
        got = read_pages(fd, first, memoryview(lent.memory)[: min(_FIRST_READ_BYTES, end - first)])
        if got < start + layout.RECORD_HEADER_BYTES or not kernels().header_is_sound(lent.address + start):
            corrupt(self.session, item, "a record header with a valid checksum", "another")
            return None
        head, key_at = header_of(lent.memory, start), start + layout.RECORD_HEADER_BYTES
        if head.block_index != index or (version and head.version != version & _MASK):
            return None
        if lent.memory[key_at : key_at + head.key_bytes] != key.encode():
            return None
        if head.length != record_bytes(head.key_bytes, head.payload_bytes) or head.length > end - first - start:
            corrupt(
                self.session, item, f"a record of {head.payload_bytes} payload bytes", f"one of {head.length} bytes"
            )
            return None
        if 0 < head.expiry <= time.time() * 1000:  # its time to live has passed
            return None
        if start + head.length > got:
            whole = self.buffers.take(start + head.length)
            ctypes.memmove(whole.address, lent.address, got)
            rest = memoryview(whole.memory)[got : -(-(start + head.length) // _PAGE) * _PAGE]
            if got % _PAGE or read_pages(fd, first + got, rest) < start + head.length - got:
                corrupt(self.session, item, f"a record of {head.length} bytes", "the end of the file")
                return None
            lent = whole
        payload_at = lent.address + start + (layout.RECORD_HEADER_BYTES + head.key_bytes + 63 & ~63)
        found = self._checked(item, head, lent, payload_at)
        if found is not None:
            if self.session.injecting:
                self.session.charge(segment, head.length)
            self.session.count(words.COUNT_HITS, 1)
            self.session.count(words.COUNT_READ + arena.kind, head.payload_bytes)
        del pin
        return found

    def _checked(self, item: int, head: _Header, lent: Lent, payload_at: int) -> Found | None:
        """The block that was read, decoded, after its hash was checked; None if it is damaged CACHE."""
        state = (ctypes.c_uint64 * 9)()
        actual = self._native.hash_payload(payload_at, head.payload_bytes, ctypes.addressof(state)) & _MASK
        if head.payload_bytes and actual != head.payload_hash:
            corrupt(self.session, item, f"payload hash {head.payload_hash:#x}", f"{actual:#x}")
            return None
        owner: Any = lent
        size = head.payload_bytes
        if head.codec == layout.CODEC_LZ4:
            size = codec.raw_payload_bytes(head.value_bytes)
            owner = codec.decode(payload_at, head.stored_bytes, size)
            payload_at = owner.address
        elif size <= _COPY_BYTES_MAX:  # small values must not hold a whole read buffer
            owner = pa.allocate_buffer(size)
            ctypes.memmove(owner.address, payload_at, size)
            payload_at = owner.address
        fields = (owner, 0, payload_at, size, head.kind, head.block_count, head.schema_bytes, head.value_bytes)
        return Found(self.session, (*fields, head.version, item, head.rows))


def corrupt(session: Session, item: int, expected: str, found: str) -> None:
    """A block is not what was written: count it; return if it is CACHE (a miss), else raise CorruptionError.

    The class is the segment's: all blocks of one segment have the same, and the header may be what is damaged.
    """
    session.count(words.COUNT_CORRUPT, 1)
    segment = item >> layout.SEGMENT_SHIFT & layout.SEGMENT_MASK
    entry = session.control.address + layout.CONTROL_HEADER_BYTES + segment * layout.SEGMENT_ENTRY_BYTES
    if not ctypes.c_uint64.from_address(entry + layout.S_CLASS).value & layout.CLASS_KEEP:
        return
    arena = next(a for a in session.grant.arenas if a.first <= segment < a.first + a.segment_count)
    base = layout.ARENA_HEADER_BYTES + (segment - arena.first) * session.grant.segment_bytes
    raise CorruptionError(arena.path, base + (item & layout.GRANULE_MASK) * layout.GRANULE, expected, found)


def read_pages(fd: int, offset: int, view: memoryview) -> int:
    """Read into page-aligned memory from a page-aligned offset; bytes read, fewer at the end of the file."""
    done = 0
    while done < len(view):
        got = os.preadv(fd, [view[done:]], offset + done)
        if got <= 0:
            break
        done += got
    return done
