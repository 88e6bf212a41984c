"""What a handler is given: one call of a peer, its arguments and its streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .frames import DATA, END, ProtocolError
from .stream import Sink, Stream

T = TypeVar("T")
STREAMED = frozenset({DATA, END})
DRAIN_BYTES_MAX = 64 << 20
DRAIN_S = 10.0


class Call:
    """One call. Valid until its handler returns; used by the handler's thread alone.

    name, arguments: as the caller sent them; look at nothing in them without checking it: argument() does.
    peer: "host:port". stopping: set when the daemon stops; a handler that takes long looks at it.
    """

    def __init__(self, stream: Stream, request: int, body: dict[str, Any], stopping: threading.Event, wait_s: float):
        name, arguments = body.get("name"), body.get("arguments", {})
        self.streams = body.get("stream") is True  # whether DATA and END follow
        self.request = request
        self._stream, self._wait_s = stream, wait_s
        if not isinstance(name, str) or not isinstance(arguments, dict):
            name, arguments = "", {}
        self.name: str = name
        self.arguments: dict[str, Any] = arguments
        self.peer = stream.peer
        self.stopping = stopping

    def argument(self, name: str, kind: Callable[..., T], default: Any = ...) -> T:
        """An argument of a type (int is not bool here). Raises ProtocolError if it is missing or of another type."""
        value = self.arguments.get(name, default)
        if value is ...:
            raise ProtocolError(f"{self.name} needs the argument {name!r}")
        if value is not default and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):  # type: ignore[arg-type]
            raise ProtocolError(f"{self.name}: {name} is {type(value).__name__}, not {getattr(kind, '__name__', kind)}")
        return value  # type: ignore[no-any-return]

    def receive(self, sink: Sink) -> dict[str, Any] | None:
        """The caller's next DATA: its head, once sink(head, payload_bytes)'s memory is filled; None at the caller's end.

        payload_bytes is the caller's claim, up to 1 GiB: a sink raises Full rather than take what it has no room for.
        Raises: PeerLost (the caller is gone: let it pass), CorruptionError (the memory holds something else), and what the sink
        raises; the call can go on after the last two.
        """
        if not self.streams:
            return None
        frame = self._stream.receive(STREAMED, sink, self._wait_s)
        if frame.operation == END:
            self.streams = False
            return None
        return frame.body

    def send(self, head: dict[str, Any], parts: Iterable[Any], check: int | None = None) -> None:
        """Send DATA to the caller: buffers as one payload; returns once the kernel has them, and no sooner.

        Raises: PeerLost (the caller is gone, or does not read: let it pass), ProtocolError (larger than DATA may be, or the
        caller's own stream has not ended: it does not listen yet).
        """
        if self.streams:
            raise ProtocolError(f"{self.name} answers with data before it has received the caller's to the end")
        self._stream.send_data(head, parts, self.request, check)

    def check(self) -> None:
        """Raise PeerLost if the caller is gone; for handlers that work long without sending."""
        self._stream.answered()

    def finish(self, answer: bytes) -> None:
        """Send the answer's frame, and pass over what the caller still sends. For the Listener."""
        self._stream.send_encoded(answer)
        if self.streams:
            self._stream.drain(DRAIN_BYTES_MAX, DRAIN_S)
            self.streams = False
