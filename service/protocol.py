"""Frames between client and daemon over the Unix socket: one table, the same in both directions.

offset  size  field        meaning
     0     4  magic        b"TSF1"
     4     2  version      PROTOCOL_VERSION; a daemon answers any other with ERROR and closes
     6     2  operation    HELLO, RENEW, CALL, BYE from the client; REPLY, ERROR from the daemon
     8     4  request      number chosen by the client, repeated in the answer
    12     4  length       bytes of the body, at most BODY_BYTES_MAX
    16     …  body         UTF-8 JSON

All fields little-endian. HELLO {"pid"} is answered with the grant and, as SCM_RIGHTS on its first byte, the descriptors
control, clients, index, locks, then one to read per arena, then one to write per mapped arena. RENEW is answered with
the new index and its descriptor. CALL {"name", "arguments"} is answered with {"result"}. ERROR {"kind", "message"} names a class of
tierstore.ringbuf.errors. Block data never crosses this socket.
"""

from __future__ import annotations

import array
import json
import socket
import struct
from typing import Any

from tierstore.ringbuf import errors

HEADER = struct.Struct("<4sHHII")
MAGIC = b"TSF1"
PROTOCOL_VERSION = 1
HELLO, RENEW, CALL, BYE, REPLY, ERROR = 1, 2, 3, 4, 16, 17
BODY_BYTES_MAX = 64 << 20
DESCRIPTORS_MAX = 64


class ProtocolError(errors.TierstoreError):
    """What arrived is not a frame of this protocol."""


def encode(operation: int, request: int, body: dict[str, Any]) -> bytes:
    """One frame. Raises ProtocolError if the body is too large."""
    raw = json.dumps(body).encode()
    if len(raw) > BODY_BYTES_MAX:
        raise ProtocolError(
            f"an answer of {len(raw)} bytes is larger than a frame may be ({BODY_BYTES_MAX}); "
            "ask for less, for example with a key prefix"
        )
    return HEADER.pack(MAGIC, PROTOCOL_VERSION, operation, request, len(raw)) + raw


class Decoder:
    """Frames out of a byte stream, however it was cut."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, dict[str, Any]]]:
        """(operation, request, body) of every frame that is complete now. Raises ProtocolError, then the stream is lost."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER.size:
            magic, version, operation, request, length = HEADER.unpack_from(self._buffer)
            if magic != MAGIC:
                raise ProtocolError(
                    f"a frame begins with {bytes(magic)!r}, not {MAGIC!r}: the peer does not speak tierstore's protocol"
                )
            if version != PROTOCOL_VERSION:
                raise ProtocolError(
                    f"the peer speaks protocol version {version}, this is version {PROTOCOL_VERSION}; "
                    "run the same tierstore on both sides"
                )
            if length > BODY_BYTES_MAX:
                raise ProtocolError(f"a frame announces {length} bytes; at most {BODY_BYTES_MAX} are allowed")
            if len(self._buffer) < HEADER.size + length:
                break
            raw = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            frames.append((operation, request, decode_body(raw)))
        return frames


def decode_body(raw: bytes) -> dict[str, Any]:
    """The JSON object of a frame. Raises ProtocolError."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame's body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ProtocolError(f"a frame's body is {type(body).__name__}, not an object")
    return body


def send(connection: socket.socket, frame: bytes, descriptors: list[int] | None = None) -> None:
    """Send a whole frame; descriptors travel with its first byte."""
    if not descriptors:
        connection.sendall(frame)
        return
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    sent = connection.sendmsg([frame], rights)
    connection.sendall(frame[sent:])


def receive(connection: socket.socket, decoder: Decoder) -> tuple[int, int, dict[str, Any], list[int]]:
    """The next frame and the descriptors that came with it; ConnectionError at the end of the stream."""
    descriptors: list[int] = []
    while True:
        room = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
        data, ancillary, _, _ = connection.recvmsg(1 << 20, room)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(payload[: len(payload) // 4 * 4])
                descriptors += numbers.tolist()
        if not data:
            raise ConnectionError("the daemon closed the connection")
        frames = decoder.feed(data)
        if frames:
            return (*frames[0], descriptors)


def error_body(error: Exception) -> dict[str, Any]:
    """An exception as the body of an ERROR frame."""
    body: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, errors.ConfigError):
        body |= {
            "key": error.key,
            "value": error.value if isinstance(error.value, PLAIN) else repr(error.value),
            "allowed": error.allowed,
        }
    return body


PLAIN = (str, int, float, bool, type(None))  # what JSON carries as it is


def raise_error(body: dict[str, Any]) -> None:
    """Raise what an ERROR frame says."""
    kind = str(body.get("kind", ""))
    message = str(body.get("message", "the daemon reported an error without a message"))
    if kind == "ConfigError":
        raise errors.ConfigError(str(body.get("key", "?")), body.get("value"), str(body.get("allowed", message)))
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, errors.TierstoreError) and known is not errors.CorruptionError:
        raise known(message)
    raise errors.TierstoreError(f"{kind}: {message}" if kind else message)
