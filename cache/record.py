"""One block about to be appended, and the request by which the writer kernels put it into its segment."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words

from .block import Payload

# The words of a request from Q_TARGET to Q_FLUSH, in order.
_REQUEST = struct.Struct("<24Q")
_TRAP = struct.Struct("<Q")
assert _REQUEST.size == words.Q_FLUSH + 8

_K2, _K3, _MASK = 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 2**64 - 1


class Block:
    """A block of an object; ``count``, ``object_bytes`` and ``object_rows`` are set in its root."""

    __slots__ = (
        "count",
        "expiry_ms",
        "index",
        "key",
        "key_at",
        "object_bytes",
        "object_rows",
        "payload",
        "place",
        "version",
    )

    def __init__(
        self, key: bytes, key_at: int, version: int, key_hash: int, expiry_ms: int, index: int, payload: Payload
    ):
        self.key, self.key_at, self.version, self.expiry_ms = key, key_at, version, expiry_ms
        self.index, self.place, self.payload = index, place_of(key_hash, index), payload
        self.count, self.object_bytes, self.object_rows = 0, 0, 0

    def request(self, target: int, length: int, generation: int, pool: int, kind: int, flush: bool, trap: int) -> Any:
        """What the kernels ``append`` and ``commit_placed`` take."""
        payload, memory = self.payload, ctypes.create_string_buffer(words.REQUEST_BYTES)
        _REQUEST.pack_into(
            memory,
            0,
            target,
            length,
            generation,
            self.place,
            self.version,
            self.key_at,
            len(self.key),
            payload.kind,
            layout.CODEC_RAW,
            self.index,
            self.count,
            self.expiry_ms,
            payload.value_bytes,
            payload.rows,
            pool,
            kind,
            payload.schema_bytes,
            self.object_bytes,
            self.object_rows,
            payload.value_bytes,
            payload.padded_bytes,
            ctypes.addressof(payload.pieces),
            payload.piece_count,
            flush,
        )
        _TRAP.pack_into(memory, words.Q_TRAP, trap)
        return memory


def payload_start(key_bytes: int) -> int:
    """Where in a record its payload begins."""
    return (layout.RECORD_HEADER_BYTES + key_bytes + 63) & ~63


def record_bytes(key_bytes: int, payload_bytes: int) -> int:
    """Length of a record in a segment."""
    return (payload_start(key_bytes) + payload_bytes + layout.GRANULE - 1) & ~(layout.GRANULE - 1)


def place_of(key_hash: int, index: int) -> int:
    """records.place_of() for the few places that need it in Python."""
    if index == 0:
        return key_hash
    product = (key_hash ^ (index * _K3 & _MASK)) * _K2
    return (product >> 64) ^ (product & _MASK)
