"""LZ4 for blocks on disk: what a record becomes when it moves there, and back.

Memory tiers hold decoded blocks only. A payload is compressed whole, as one raw LZ4 block; how long it is decoded follows
from the record's value bytes, so nothing is stored for it.
Source of the format: the LZ4 block format description, lz4 project.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import CorruptionError

from .record import record_bytes

# Below this the header and the granule eat what compression saves.
COMPRESS_BYTES_MIN = 4096
# A payload is kept as it is unless it becomes smaller than this share.
WORTH_SHARE = 0.9
_LZ4 = pa.Codec("lz4_raw")
_MASK = 2**64 - 1


@dataclass
class Recoded:
    """A payload under another codec, followed by zeros to whole stripes; ``memory`` keeps it alive."""

    memory: Any
    address: int
    stored_bytes: int
    codec: int
    record_bytes: int


def raw_payload_bytes(value_bytes: int) -> int:
    """Length of a decoded payload: value bytes padded to whole cache lines."""
    return (value_bytes + 63) & ~63


def raw_record_bytes(head: int) -> int:
    """Length of the record at an address once its payload is decoded."""
    key_bytes, value_bytes = _field(head, layout.R_KEY_BYTES, 2), _field(head, layout.R_VALUE_BYTES, 8)
    return record_bytes(key_bytes, raw_payload_bytes(value_bytes))


def recoded(native: Any, head: int, state: int, compress: bool) -> Recoded | None:
    """The payload of the record at an address, compressed or decoded; None where it is best copied as it is.

    A damaged record gives None: copying it finds the damage. Cost: one pass of the hash and one of LZ4.
    """
    payload_bytes, key_bytes = _field(head, layout.R_PAYLOAD_BYTES, 4), _field(head, layout.R_KEY_BYTES, 2)
    start = head + ((layout.RECORD_HEADER_BYTES + key_bytes + 63) & ~63)
    packed = _field(head, layout.R_CODEC, 1) == layout.CODEC_LZ4
    if packed == compress or payload_bytes < (1 if packed else COMPRESS_BYTES_MIN):
        return None
    if native.hash_payload(start, payload_bytes, state) & _MASK != _field(head, layout.R_PAYLOAD_HASH, 8):
        return None
    if packed:
        stored, size = _field(head, layout.R_STORED_BYTES, 8), _field(head, layout.R_VALUE_BYTES, 8)
        decoded = decode(start, stored, raw_payload_bytes(size))
        return Recoded(decoded, decoded.address, size, layout.CODEC_RAW, raw_record_bytes(head))
    source = (ctypes.c_char * payload_bytes).from_address(start)
    small = lz4.block.compress(source, store_size=False)
    if len(small) > WORTH_SHARE * payload_bytes:
        return None
    memory = np.frombuffer(small.ljust(raw_payload_bytes(len(small)), b"\0"), "u1")
    length = record_bytes(key_bytes, len(memory))
    return Recoded(memory, int(memory.ctypes.data), len(small), layout.CODEC_LZ4, length)


def decode(address: int, stored_bytes: int, raw_bytes: int) -> pa.Buffer:
    """A compressed payload decoded, in memory of its own. Raises CorruptionError if it is no LZ4 block of that length."""
    try:
        return _LZ4.decompress(pa.foreign_buffer(address, stored_bytes), decompressed_size=raw_bytes)
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptionError("a compressed block", 0, f"an LZ4 block of {raw_bytes} bytes", str(error)) from None


def _field(head: int, offset: int, size: int) -> int:
    return int.from_bytes(ctypes.string_at(head + offset, size), "little")
