"""One connection: frames in and out, blocking, with a time-out on every read and write.

Payloads are not copied here: they are sent from the buffers they are in (sendmsg; under TLS, which has no gathering, small
pieces are joined into one record and large ones written as they are), and received into the memory that a sink names.

Waiting. ``silence_s`` is the longest time without one byte of progress inside a frame. A whole frame has that time and a
second for each RATE_MIN bytes, so that nobody holds a connection by sending a byte now and then. How long the first byte
of a frame may take is the caller's to say.

One thread at a time: a TLS connection cannot be read and written at once. Only abort() may come from another thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

import xxhash

from tierstore.ringbuf.errors import CorruptionError, PeerLost

from . import frames
from .frames import DATA, END, HEADER, PREFIX, Frame, ProtocolError

Sink = Callable[[dict[str, Any], int], memoryview]

SILENCE_S = 30.0
RATE_MIN = 1 << 20  # bytes a second
VIEWS_MAX = 1024  # of one sendmsg (IOV_MAX)
RECORD_BYTES = 16 << 10  # the largest TLS record
WRITE_BYTES = 1 << 20  # of one TLS write: OpenSSL finishes a write as a whole, and the time-out is for all of it
HASH_BYTES = 512 << 10  # hashed at once, while they are in the cache
GROWTH_MIN = 64 << 10


class Stream:
    """A connected socket, plain or TLS, that speaks frames. Who makes it closes it.

    peer: "host:port" of the other side, for messages. broken: nothing more can be sent or received in step.
    silent: it was a time-out that broke it. aborted: set by abort(), for who waits for something else than the connection.
    """

    def __init__(self, connection: socket.socket, peer: str, silence_s: float = SILENCE_S):
        self.peer = peer
        self.tls = isinstance(connection, ssl.SSLSocket)
        self.silence_s = silence_s
        self.broken = self.silent = False
        self.aborted = threading.Event()
        self.bytes_in = self.bytes_out = 0
        if not self.tls:
            connection.settimeout(None)
        self._connection = connection
        self._waits = self._send_waits = -1.0
        self._header = bytearray(HEADER.size)
        self._header_have = 0  # bytes of the next header that were there when answered() looked
        self._unread = 0  # bytes of a payload that no sink took
        self._closing = threading.Lock()

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, operation: int, request: int, body: dict[str, Any]) -> None:
        """Send a frame that carries JSON. Raises PeerLost, ProtocolError (too large; nothing was sent)."""
        self.send_encoded(frames.encode(operation, request, body))

    def send_encoded(self, frame: bytes) -> None:
        """Send a frame that is encoded already. Raises PeerLost."""
        self._write([memoryview(frame)])

    def send_data(self, head: dict[str, Any], parts: Iterable[Any], request: int = 0, check: int | None = None) -> None:
        """Send buffers, one after the other, as one payload; returns once the kernel has them.

        parts: contiguous buffers of any kind. check: the payload's, if known (see frames.py; a block's hash will do above 240
        bytes); default: computed, except under TLS; 0: not checked.
        """
        views = [view for view in map(_bytes_of, parts) if len(view)]
        if check is None:
            check = 0 if self.tls else frames.checksum(views)
        prefix = frames.encode_data(request, head, sum(map(len, views)), check)
        self._write([memoryview(prefix), *views])

    def _write(self, views: Sequence[memoryview]) -> None:
        size = sum(map(len, views))
        deadline = time.monotonic() + self.silence_s + size / RATE_MIN
        self._wait_up_to(self.silence_s, sending=True)
        try:
            if self.tls:
                self._write_records(views, deadline)
            else:
                self._gather(views, deadline)
        except OSError as error:
            self._lost(error, "took nothing")
        self.bytes_out += size

    def _gather(self, views: Sequence[memoryview], deadline: float) -> None:
        """Send views without joining them."""
        first, offset = 0, 0  # the first view that is not sent, and how much of it is
        while first < len(views):
            some = list(views[first : first + VIEWS_MAX])
            some[0] = some[0][offset:]
            sent = offset + self._connection.sendmsg(some)
            while first < len(views) and sent >= len(views[first]):
                sent -= len(views[first])
                first += 1
            offset = sent
            _in_time(deadline)

    def _write_records(self, views: Sequence[memoryview], deadline: float) -> None:
        """Write views: what is smaller than a record joined, also with the beginning of what follows; the rest as it is."""
        joined = bytearray()
        for view in views:
            begin = 0
            if joined or len(view) < RECORD_BYTES:
                begin = min(len(view), RECORD_BYTES - len(joined))
                joined += view[:begin]
            if len(joined) == RECORD_BYTES:
                self._connection.sendall(joined)
                joined = bytearray()
            if len(view) - begin < RECORD_BYTES:
                joined += view[begin:]
                continue
            for start in range(begin, len(view), WRITE_BYTES):
                self._connection.sendall(view[start : start + WRITE_BYTES])
                _in_time(deadline)
        if joined:
            self._connection.sendall(joined)

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self, expected: Collection[int], sink: Sink | None = None, wait_s: float | None = None) -> Frame:
        """The next frame, which must be of an expected operation.

        sink(head, payload_bytes) -> writable memory of just that size, for the payload of DATA. If it raises, the payload is
        passed over and the connection stays in step.
        wait_s: for the first byte; default as for the others.
        Raises: PeerLost; ProtocolError, then the connection is of no further use; CorruptionError if a payload is not
        what was sent (its memory is filled, the connection stays in step).
        """
        if self._unread:
            self._pass_over(self._unread, time.monotonic() + self.silence_s + self._unread / RATE_MIN)
            self._unread = 0
        self._receive_header(self.silence_s if wait_s is None else wait_s)
        try:
            operation, request, length = frames.decode_header(self._header, expected)
            deadline = time.monotonic() + self.silence_s + length / RATE_MIN
            if operation != DATA:
                return Frame(operation, request, frames.decode_body(bytes(self._read(length, deadline))))
            assert sink is not None, "who expects DATA has a sink"
            prefix = self._read(PREFIX.size, deadline) if length >= PREFIX.size else bytes(PREFIX.size)
            head_bytes, padding, check = frames.decode_prefix(prefix, length)
            raw = self._read(head_bytes + padding, deadline)
            head = frames.decode_body(bytes(raw[:head_bytes]))
        except ProtocolError as error:
            self.broken = True
            raise ProtocolError(f"{self.peer}: {error}") from None
        self._unread = length - PREFIX.size - len(raw)
        view = _writable(sink(head, self._unread), self._unread)
        self._unread = 0
        self._receive_payload(view, check, deadline)
        return Frame(operation, request, head)

    def _receive_header(self, wait_s: float) -> None:
        view = memoryview(self._header)
        deadline = time.monotonic() + wait_s + self.silence_s
        if not self._header_have:
            self._wait_up_to(wait_s)
            self._header_have = self._take(view)
        self._fill(view[self._header_have :], deadline)
        self._header_have = 0

    def _receive_payload(self, view: memoryview, check: int, deadline: float) -> None:
        """Fill memory from the connection, hashing what has just arrived."""
        hasher, hashed, have = xxhash.xxh3_64() if check else None, 0, 0
        self._wait_up_to(self.silence_s)
        while have < len(view):
            have += self._take(view[have:])
            if hasher is not None and (have - hashed >= HASH_BYTES or have == len(view)):
                hasher.update(view[hashed:have])
                hashed = have
            self._still_in_time(deadline)
        found = frames.finished(hasher) if hasher is not None else 0
        if found != check:
            remedy = "ask for it again; if it happens again, something between the two nodes changes bytes"
            raise CorruptionError(f"a payload from {self.peer}", 0, f"check {check:#x}", f"{found:#x}", remedy)

    def _read(self, size: int, deadline: float) -> bytearray:
        """So many bytes; memory is taken as they arrive, not as they are announced."""
        found = bytearray()
        while len(found) < size:
            piece = bytearray(min(size - len(found), max(len(found), GROWTH_MIN)))
            self._fill(memoryview(piece), deadline)
            found += piece
        return found

    def _pass_over(self, size: int, deadline: float) -> None:
        scratch = memoryview(bytearray(min(size, 256 << 10)))
        while size:
            piece = scratch[: min(size, len(scratch))]
            self._fill(piece, deadline)
            size -= len(piece)

    def _fill(self, view: memoryview, deadline: float) -> None:
        self._wait_up_to(self.silence_s)
        have = 0
        while have < len(view):
            have += self._take(view[have:])
            self._still_in_time(deadline)

    def _take(self, view: memoryview) -> int:
        """What is there, at least one byte."""
        try:
            count = self._connection.recv_into(view)
        except OSError as error:
            self._lost(error, "sent nothing")
        if not count:
            self._lost(ConnectionError("it closed the connection"), "")
        self.bytes_in += count
        return count

    def drain(self, bytes_max: int, seconds: float) -> None:
        """Pass over the other side's DATA up to its END. Raises PeerLost if that would take more than so much."""
        deadline = time.monotonic() + seconds
        wanted = frozenset({DATA, END})
        while True:
            self._pass_over(self._unread, deadline)
            self._unread = 0
            self._receive_header(max(0.001, deadline - time.monotonic()))
            try:
                operation, _, length = frames.decode_header(self._header, wanted)
            except ProtocolError:
                self.broken = True
                raise
            bytes_max -= length
            if bytes_max < 0:
                self._lost(ConnectionError("it went on sending after its call had ended"), "")
            self._unread = length
            if operation == END:
                self._pass_over(length, deadline)
                self._unread = 0
                return

    def answered(self) -> bool:
        """Whether the next frame has begun to arrive; does not wait. Raises PeerLost if the other side is gone."""
        if self._header_have:
            return True
        try:
            if self.tls:
                self._wait_up_to(0.0)
                self._header_have = self._connection.recv_into(self._header)
            else:
                self._header_have = self._connection.recv_into(self._header, 0, socket.MSG_DONTWAIT)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as error:
            self._lost(error, "sent nothing")
        if not self._header_have:
            self._lost(ConnectionError("it closed the connection"), "")
        self.bytes_in += self._header_have
        return True

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _wait_up_to(self, seconds: float, sending: bool = False) -> None:
        """Set the time-out of what follows; each change is a system call.

        A plain socket stays blocking and the kernel keeps the time: the interpreter's own time-outs would ask poll() before every
        read and write.
        """
        if seconds == (self._send_waits if sending and not self.tls else self._waits):
            return
        try:
            if self.tls:
                self._connection.settimeout(seconds)
                self._waits = seconds
                return
            value = struct.pack("@ll", int(seconds), max(1, int(seconds % 1 * 1e6)))
            self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO if sending else socket.SO_RCVTIMEO, value)
        except OSError as error:
            self._lost(error, "")
        if sending:
            self._send_waits = seconds
        else:
            self._waits = seconds

    def _still_in_time(self, deadline: float) -> None:
        try:
            _in_time(deadline)
        except TimeoutError as error:
            self._lost(error, "was too slow")

    def _lost(self, error: OSError, silent: str) -> NoReturn:
        self.broken = True
        if isinstance(error, TimeoutError | BlockingIOError):
            self.silent = True
            seconds = self._waits if silent == "sent nothing" and self._waits > 0 else self.silence_s
            raise PeerLost(
                f"{self.peer} {silent} for {seconds:g} s; it is overloaded, stopped or cut off: look at its log "
                "and at the network, or allow more time"
            ) from error
        what = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror or error
        raise PeerLost(
            f"the connection to {self.peer} is lost ({what}); if its daemon was stopped, start it with `tierstore serve`"
        ) from error

    def secure(self, connection: ssl.SSLSocket, handshake_s: float) -> None:
        """Go on under TLS: the same connection, wrapped, before its handshake. Raises OSError as the handshake does."""
        with self._closing:
            self._connection, self.tls, self._waits = connection, True, handshake_s
            if self.aborted.is_set() or self.broken:
                raise ConnectionAbortedError("the connection was ended meanwhile")
        connection.settimeout(handshake_s)
        connection.do_handshake()

    def abort(self) -> None:
        """End what another thread waits for on this connection, now and later."""
        with self._closing, contextlib.suppress(OSError):
            self.aborted.set()
            # Not the TLS socket's own shutdown(): that would take the TLS state away under the other thread.
            socket.socket.shutdown(self._connection, socket.SHUT_RDWR)

    def farewell(self, seconds: float = 1.0, bytes_max: int = 1 << 20) -> None:
        """Close so that the last frame arrives: a connection closed with bytes unread is reset, and takes the frame with it."""
        deadline = time.monotonic() + seconds
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._connection, socket.SHUT_WR)
            while bytes_max > 0 and (left := deadline - time.monotonic()) > 0:
                self._connection.settimeout(left)
                data = socket.socket.recv(self._connection, min(bytes_max, 1 << 16))
                if not data:
                    break
                bytes_max -= len(data)
        self.close()

    def close(self) -> None:
        """Close the connection; again does nothing."""
        with self._closing:
            self.broken = True
            self._connection.close()


def _in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError("too slow")


def _bytes_of(part: Any) -> memoryview:
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _writable(view: Any, size: int) -> memoryview:
    """What a sink returned, as bytes. Raises TypeError unless it is memory of just that size."""
    found = memoryview(view)
    if found.readonly or not found.c_contiguous or found.nbytes != size:
        raise TypeError(
            f"a sink must return {size} bytes of writable contiguous memory, not {found.nbytes}"
            + (" read-only" if found.readonly else "")
        )
    return found.cast("B") if size else memoryview(bytearray())


def tune(connection: socket.socket) -> None:
    """Options of every connection. The kernel's own buffer sizes are kept: fixed ones were slower (docs/DECISIONS.md)."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
