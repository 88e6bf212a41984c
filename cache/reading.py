"""Finding blocks: in place in mapped tiers, or read (and checked) from disk into private memory."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import time
from typing import Any

import numpy as np
import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words
from tierstore.ringbuf.client import Session
from tierstore.ringbuf.codes import STALE
from tierstore.ringbuf.errors import CorruptionError, InvalidKey, NotFound

from .block import kernels
from .keys import check_key

_MASK = 2**64 - 1
_DIRECT_BYTES = 4096
# First read of a block on disk: its header, its key, and all of it if it is small.
_FIRST_READ_BYTES = 64 << 10
_HEADER = struct.Struct("<qQQQQIHBBIIQQQQQHBBIQQQ")
assert _HEADER.size == layout.RECORD_HEADER_BYTES


class Found:
    """One block that was found, and what holds it: a pin, or private memory."""

    __slots__ = (
        "_address",
        "_session",
        "block_count",
        "codec",
        "expected_hash",
        "head",
        "item",
        "kind",
        "owner",
        "payload_bytes",
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
            _,
        ) = fields
        self.kind, self.codec = packed & 0xFF, packed >> 8
        self._session = session

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
        self._arenas = session.grant.arenas

    def find(self, key: str, index: int, version: int) -> Found | None:
        """Block ``index`` of a key, of that version (0: any); None if it is not there."""
        skip = 0
        while True:
            try:
                fields = self._native.lookup(self._x, key, index, version, skip, 1)
            except (TypeError, UnicodeEncodeError) as error:
                raise InvalidKey(f"key {key!r:.60} is not text that UTF-8 can write: {error}") from None
            if fields is None or fields == STALE:
                return None
            if fields[1]:
                return Found(self.session, fields)
            found = self._from_disk(key, index, version, fields[9], fields[0])
            if found is not None:
                return found
            skip += 1

    def place(self, key: str) -> int:
        """The index place of a key's root, as messages carry it."""
        raw = check_key(key)
        buffer = ctypes.create_string_buffer(raw, len(raw) + 8)
        return int(self._native.hash_key(ctypes.addressof(buffer), len(raw)))

    def _from_disk(self, key: str, index: int, version: int, item: int, pin: Any) -> Found | None:
        """Read a block of an unmapped arena while its segment is pinned; None if it is another key's."""
        segment = item >> layout.SEGMENT_SHIFT & layout.SEGMENT_MASK
        offset = (item & layout.GRANULE_MASK) * layout.GRANULE
        number = next(i for i, a in enumerate(self._arenas) if a.first <= segment < a.first + a.segment_count)
        arena, fd = self._arenas[number], self.session.grant.arena_fds[number]
        base = layout.ARENA_HEADER_BYTES + (segment - arena.first) * self.session.grant.segment_bytes + offset
        end = base - offset + self.session.grant.segment_bytes
        memory, start = read_range(fd, base, min(_FIRST_READ_BYTES, end - base))
        if not kernels().header_is_sound(_address(memory) + start):
            corrupt(self.session, item, "a record header with a valid checksum", "another")
            return None
        fields = _HEADER.unpack_from(memory, start)
        if 0 < fields[13] <= time.time() * 1000:  # its time to live has passed
            return None
        length, found_version, key_bytes, block_index = fields[0], fields[3], fields[6], fields[9]
        raw = key.encode()
        if key_bytes != len(raw) or block_index != index or (version and found_version != version & _MASK):
            return None
        key_at = start + layout.RECORD_HEADER_BYTES
        if bytes(memory[key_at : key_at + key_bytes]) != raw or not 0 < length <= end - base:
            return None
        if length > len(memory) - start:
            memory, start = read_range(fd, base, length)
        payload_at = start + (layout.RECORD_HEADER_BYTES + key_bytes + 63 & ~63)
        if 0 < fields[13] <= int(time.time() * 1000):
            return None
        found = Found(
            self.session,
            (
                memory,
                0,
                _address(memory) + payload_at,
                fields[5],
                fields[7] | fields[8] << 8,
                fields[10],
                fields[19],
                fields[14],
                found_version,
                item,
                fields[15],
            ),
        )
        if not self._whole(found, fields[4]):
            return None
        self.session.count(words.COUNT_HITS, 1)
        self.session.count(words.COUNT_READ + arena.kind, fields[5])
        del pin
        return found

    def _whole(self, found: Found, expected: int) -> bool:
        """What comes from a disk is checked before anyone sees it."""
        state = (ctypes.c_uint64 * 9)()
        actual = self._native.hash_payload(found._address, found.payload_bytes, ctypes.addressof(state)) & _MASK
        if found.payload_bytes and actual != expected:
            corrupt(self.session, found.item, f"payload hash {expected:#x}", f"{actual:#x}")
            return False
        return True


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


def _address(memory: Any) -> int:
    return int(np.frombuffer(memory, "u1").ctypes.data)


def read_range(fd: int, offset: int, size: int) -> tuple[Any, int]:
    """Read a file range into fresh page-aligned memory, whole pages of it, so that O_DIRECT can: (memory, start)."""
    first = offset // _DIRECT_BYTES * _DIRECT_BYTES
    last = -(-(offset + size) // _DIRECT_BYTES) * _DIRECT_BYTES
    memory = mmap.mmap(-1, last - first)
    done = 0
    view = memoryview(memory)
    while done < last - first:
        got = os.preadv(fd, [view[done:]], first + done)
        if got <= 0:
            break
        done += got
    if first + done < offset + size:
        raise CorruptionError(f"descriptor {fd}", first + done, f"{size} bytes at {offset}", "the end of the file")
    return memory, offset - first
