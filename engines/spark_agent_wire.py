"""Frames between a JVM and its agent: a head of JSON, and bytes.

    offset  bytes  field, big-endian
         0      4  bytes of the head, at most 64 MiB
         4      4  bytes of the body, at most 2 GiB less one
         8      .  head: an object in UTF-8
         .      .  body

One answer to each request, on the connection it came by; before it any number of frames {"working": true}, see
spark_agent_beats.py. An answer's head has "error" (the name of a class of tierstore.ringbuf.errors, or "ValueError") and
"message" where the request failed. docs/SPARK.md lists the requests.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Sequence
from typing import Any

PREFIX = struct.Struct(">II")
HEAD_MAX, BODY_MAX = 64 << 20, (1 << 31) - 1


def receive(connection: socket.socket) -> tuple[dict[str, Any], bytearray] | None:
    """The next frame; None at the end. Raises ValueError for what is no frame, OSError."""
    prefix = _exactly(connection, PREFIX.size)
    if prefix is None:
        return None
    head_bytes, body_bytes = PREFIX.unpack(prefix)
    if head_bytes > HEAD_MAX or body_bytes > BODY_MAX:
        raise ValueError(f"a frame of {head_bytes} and {body_bytes} bytes")
    raw, body = _exactly(connection, head_bytes), _exactly(connection, body_bytes)
    if raw is None or body is None:
        return None
    head = json.loads(raw.decode())
    if not isinstance(head, dict):
        raise ValueError("a head that is no object")
    return head, body


def send(connection: socket.socket, head: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Send a frame whose body is these buffers, one behind the other."""
    views = [memoryview(part).cast("B") for part in parts]
    connection.sendall(framed(head, sum(map(len, views))))
    for view in views:
        connection.sendall(view)


def framed(head: dict[str, Any], body_bytes: int = 0) -> bytes:
    """A frame up to its body."""
    raw = json.dumps(head).encode()
    return PREFIX.pack(len(raw), body_bytes) + raw


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    """So many bytes; None where the connection ends before."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = connection.recv_into(view[done:])
        if got == 0:
            return None
        done += got
    return data
