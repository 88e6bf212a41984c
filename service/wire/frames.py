"""Frames between nodes over TCP: the header of protocol.py, and one kind of frame for raw bytes.

offset  size  field        meaning
     0     4  magic        b"TSF1"
     4     2  version      PROTOCOL_VERSION
     6     2  operation    AUTH, CALL, DATA, END from the caller; REPLY, ERROR, DATA from the daemon
     8     4  request      number chosen by the caller, repeated in each frame of the answer
    12     4  length       bytes of the body, at most what LIMITS says for the operation
    16     …  body         UTF-8 JSON, except for DATA

Body of DATA, whose payload begins at a multiple of 8:

offset  size  field        meaning
     0     4  head_bytes   of the head, at most HEAD_BYTES_MAX
     4     4  check        low 32 bits of the payload's XXH3-64 (1 where they are 0); 0: not checked, as under TLS
     8     …  head         UTF-8 JSON object
     …     …  zeros        up to the next multiple of 8
     …     …  payload      the rest of the body, at most PAYLOAD_BYTES_MAX

All fields little-endian. A connection begins with AUTH {"token"}, answered by REPLY; then any number of calls, one after
the other: CALL {"name", "arguments", "stream"}, if ``stream`` is true the caller's DATA frames and END, then the daemon's DATA
frames, if any, and REPLY {"result"} or ERROR {"kind", "message"}. An ERROR may come before the caller's END; the caller
then sends END at once. docs/PROTOCOL.md has the rules and what a frame that breaks them is answered with.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import xxhash

from ..protocol import BODY_BYTES_MAX, CALL, ERROR, HEADER, MAGIC, PROTOCOL_VERSION, REPLY, ProtocolError, decode_body

AUTH, DATA, END = 5, 18, 19
NAMES = {AUTH: "AUTH", CALL: "CALL", REPLY: "REPLY", ERROR: "ERROR", DATA: "DATA", END: "END"}
PREFIX = struct.Struct("<II")  # head_bytes, check
HEAD_BYTES_MAX = 1 << 20
PAYLOAD_BYTES_MAX = 1 << 30
ERROR_TEXT_MAX = 16 << 10  # characters of an ERROR's message

# What a frame may announce. AUTH is all that a stranger can make the daemon hold.
LIMITS = {
    AUTH: 4 << 10,
    CALL: 16 << 20,
    REPLY: BODY_BYTES_MAX,
    ERROR: 256 << 10,
    DATA: PREFIX.size + HEAD_BYTES_MAX + 8 + PAYLOAD_BYTES_MAX,
    END: 4 << 10,
}
assert max(LIMITS.values()) < 1 << 32, "a length has 32 bits"
assert ERROR_TEXT_MAX * 12 + 4096 < LIMITS[ERROR], "JSON writes a character in up to 12 bytes"


class Frame(NamedTuple):
    """One frame that has arrived whole; of DATA the head, while the payload went where the sink said."""

    operation: int
    request: int
    body: dict[str, Any]


def encode(operation: int, request: int, body: dict[str, Any]) -> bytes:
    """A frame that carries JSON. Raises ProtocolError if it is larger than the operation may be."""
    raw = json.dumps(body).encode()
    if len(raw) > LIMITS[operation]:
        raise ProtocolError(
            f"a {NAMES[operation]} of {len(raw)} bytes is larger than one may be ({LIMITS[operation]}); "
            "ask for less at once, or send it as data"
        )
    return HEADER.pack(MAGIC, PROTOCOL_VERSION, operation, request, len(raw)) + raw


def encode_data(request: int, head: dict[str, Any], payload_bytes: int, check: int) -> bytes:
    """What goes before the payload of a DATA frame. Raises ProtocolError if head or payload are too large."""
    raw = json.dumps(head).encode()
    if len(raw) > HEAD_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"a DATA frame with a head of {len(raw)} and a payload of {payload_bytes} bytes is larger than one may be "
            f"({HEAD_BYTES_MAX} and {PAYLOAD_BYTES_MAX}); send several"
        )
    start = padded(PREFIX.size + len(raw))
    header = HEADER.pack(MAGIC, PROTOCOL_VERSION, DATA, request, start + payload_bytes)
    return header + PREFIX.pack(len(raw), check) + raw.ljust(start - PREFIX.size, b"\0")


def decode_header(raw: bytes | bytearray, expected: Collection[int]) -> tuple[int, int, int]:
    """(operation, request, length) of a header. Raises ProtocolError unless it may come now and announces no more than it may."""
    magic, version, operation, request, length = HEADER.unpack(raw)
    if magic != MAGIC:
        raise ProtocolError(f"a frame begins with {bytes(magic)!r}, not {MAGIC!r}: {spoken(bytes(magic))}")
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the other side speaks protocol version {version}, this is version {PROTOCOL_VERSION}; "
            "run the same tierstore on both sides"
        )
    if operation not in expected:
        allowed = ", ".join(NAMES[number] for number in sorted(expected))
        raise ProtocolError(f"operation {NAMES.get(operation, operation)} came where only {allowed} may come")
    if length > LIMITS[operation]:
        raise ProtocolError(
            f"a {NAMES[operation]} frame announces {length} bytes; at most {LIMITS[operation]} are allowed"
        )
    return operation, request, length


def decode_prefix(raw: bytes | bytearray, length: int) -> tuple[int, int, int]:
    """(head_bytes, padding, check) of a DATA frame's body of so many bytes. Raises ProtocolError."""
    head_bytes, check = PREFIX.unpack(raw)
    start = padded(PREFIX.size + head_bytes)
    if head_bytes > HEAD_BYTES_MAX or start > length or length - start > PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            f"a DATA frame of {length} bytes announces a head of {head_bytes}; a head has at most {HEAD_BYTES_MAX} bytes, "
            f"a payload {PAYLOAD_BYTES_MAX}"
        )
    return head_bytes, start - PREFIX.size - head_bytes, check


def checksum(views: Iterable[memoryview]) -> int:
    """The check of a payload; never 0."""
    hasher = xxhash.xxh3_64()
    for view in views:
        hasher.update(view)
    return finished(hasher)


def finished(hasher: Any) -> int:
    """The check of what a hasher was fed; never 0."""
    return (hasher.intdigest() & 0xFFFFFFFF) or 1


def padded(size: int) -> int:
    """Up to a multiple of 8."""
    return (size + 7) & ~7


def spoken(magic: bytes) -> str:
    """What the other side seems to speak, and what to do."""
    if magic[:2] in (b"\x16\x03", b"\x15\x03"):
        return "it speaks TLS; set tls_cert and tls_key on the daemon and tls_ca on its clients, or none of them"
    if magic in (b"GET ", b"POST", b"PUT ", b"HEAD", b"HTTP", b"OPTI", b"PRI ", b"CONN", b"DELE", b"PATC"):
        return "it speaks HTTP; this is the port of tierstore's own protocol"
    return "it does not speak tierstore's protocol; is it the right port?"


__all__ = [
    "AUTH",
    "CALL",
    "DATA",
    "END",
    "ERROR",
    "HEADER",
    "MAGIC",
    "REPLY",
    "Frame",
    "ProtocolError",
    "checksum",
    "decode_body",
    "decode_header",
    "decode_prefix",
    "encode",
    "encode_data",
    "finished",
    "padded",
    "spoken",
]
