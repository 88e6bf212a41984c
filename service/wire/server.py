"""The daemon's side of the network: Listener takes connections and runs handlers, one thread for each connection.

Limits. At most ``connections_max`` authenticated connections, each with one call at a time, and ``strangers_max`` that have
not said their token yet; these have ``auth_s`` in all, may send one frame of 4 KiB, and when there are more the oldest makes
room, so that whoever opens connections and says nothing does not lock others out. Who fails to authenticate is logged, with at
most LOG_LINES lines a minute, and waits ``failed_delay_s`` for the answer.

Faults. A handler's TierstoreError goes to the caller as ERROR, in its own words. Anything else is a fault of the daemon:
it is logged with its traceback under a number, and the caller gets the number. A frame that breaks the protocol is answered
with ERROR, request 0, and the connection is closed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tierstore.ringbuf.errors import ConfigError, Full, PeerLost, TierstoreError

from .. import protocol
from . import frames, settings
from .address import Address, peer_name
from .call import Call
from .frames import AUTH, CALL, ERROR, MAGIC, REPLY, ProtocolError
from .security import Security
from .stream import SILENCE_S, Stream, tune

log = logging.getLogger("tierstore")

BACKLOG = 512
LOG_LINES = 20  # a minute, of failed authentications
ROOM_S = 1.0
STOP_S = 10.0
Handler = Callable[[Call], Any]


@dataclass(frozen=True)
class ListenerConfig:
    """Where to listen, and the limits. port 0: the kernel chooses.

    auth_s: for TLS and the token together. idle_s: between the frames of a peer; silence_s: within one (see stream.py).
    """

    host: str
    port: int
    security: Security = Security()
    connections_max: int = 256
    strangers_max: int = 32
    auth_s: float = 5.0
    idle_s: float = 300.0
    silence_s: float = SILENCE_S
    failed_delay_s: float = 1.0


class Listener:
    """Listens from the moment it is made; serves from start() to stop().

    handlers: by the name of the call; may be added to until start(). A handler is given a Call, and what it returns is the
    result, as JSON. Handlers of different connections run at once.
    Raises: ConfigError if the address cannot be listened on, or not with this security.
    """

    def __init__(self, config: ListenerConfig, handlers: Mapping[str, Handler]):
        self.config, self.handlers = config, handlers
        asked = Address(config.host, config.port)
        self._check_exposure(str(asked), config.host)
        self._context = config.security.server_context()
        self._socket = bound(asked)
        host, port = self._socket.getsockname()[:2]
        self.address = Address(host, port)
        try:  # a name may stand for anything
            self._check_exposure(str(asked), host)
        except ConfigError:
            self._socket.close()
            raise
        self._lock = threading.Condition()  # notified when a thread ends
        self._strangers: dict[int, Stream] = {}  # by number, the oldest first
        self._peers: dict[int, Stream] = {}
        self._threads: dict[int, threading.Thread] = {}
        self._numbers = 0
        self._stopping = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="tierstore-accept", daemon=True)
        self._complaints = Complaints(LOG_LINES)
        self._counters = dict.fromkeys(("accepted", "refused", "calls", "failed_calls", "bytes_in", "bytes_out"), 0)

    def _check_exposure(self, listen: str, host: str) -> None:
        security = self.config.security
        settings.check_pairs(security)
        settings.check_exposure(security, security.token is not None, listen, host)

    def start(self) -> Listener:
        """Begin to serve."""
        self._accepting.start()
        return self

    def stop(self) -> None:
        """End all connections, and wait for their threads; again does nothing."""
        self._stopping.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        if self._accepting.ident is not None:
            self._accepting.join()
        self._socket.close()
        with self._lock:
            streams, threads = [*self._strangers.values(), *self._peers.values()], list(self._threads.values())
        for stream in streams:
            stream.abort()
        deadline = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        left = [thread.name for thread in threads if thread.is_alive()]
        if left:
            log.warning("%d calls from other nodes did not end within %g s: %s", len(left), STOP_S, ", ".join(left))

    def stats(self) -> dict[str, Any]:
        """Address, connections and counters since the start."""
        with self._lock:
            open_now = [*self._strangers.values(), *self._peers.values()]
            return {
                "address": str(self.address),
                "tls": self._context is not None,
                "token": self.config.security.token is not None,
                "client_auth": self.config.security.tls_client_auth,
                "connections": len(self._peers),
                "strangers": len(self._strangers),
                **self._counters,
                "bytes_in": self._counters["bytes_in"] + sum(stream.bytes_in for stream in open_now),
                "bytes_out": self._counters["bytes_out"] + sum(stream.bytes_out for stream in open_now),
            }

    # --- connections --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                self._complaints.say("a connection could not be accepted: %s; raise the limit of open files", error)
                self._stopping.wait(0.05)
                continue
            self._begin(connection)

    def _begin(self, connection: socket.socket) -> None:
        """Give a new connection a thread; the oldest stranger makes room for it."""
        stream = Stream(connection, peer_name(connection), self.config.auth_s)
        with self._lock:
            full = len(self._strangers) >= self.config.strangers_max
            oldest = self._strangers.pop(next(iter(self._strangers))) if full else None
        if oldest is not None:
            oldest.abort()
        with self._lock:
            most = (
                self.config.connections_max + 2 * self.config.strangers_max
            )  # those who make room need a moment for it
            room = self._lock.wait_for(lambda: len(self._threads) < most or self._stopping.is_set(), ROOM_S)
            self._counters["accepted" if room else "refused"] += 1
            if room:
                self._numbers += 1
                number = self._numbers
                self._strangers[number] = stream
                thread = threading.Thread(
                    target=self._run, args=(number, connection, stream), name=f"tierstore-peer-{number}", daemon=True
                )
                self._threads[number] = thread
        if not room:
            stream.close()
            return
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had
            self._complaints.say("a connection could not be served: %s", error)
            self._forget(number, stream)

    def _run(self, number: int, connection: socket.socket, stream: Stream) -> None:
        """The life of one connection."""
        try:
            with contextlib.suppress(PeerLost):
                if self._admit(number, connection, stream):
                    stream.silence_s = self.config.silence_s
                    while not self._stopping.is_set() and self._serve(stream):
                        pass
        except Exception:
            log.exception("the connection of %s ended by a fault", stream.peer)
        finally:
            self._forget(number, stream)

    def _forget(self, number: int, stream: Stream) -> None:
        stream.close()
        with self._lock:
            self._strangers.pop(number, None)
            self._peers.pop(number, None)
            self._threads.pop(number, None)
            self._lock.notify_all()
            self._counters["bytes_in"] += stream.bytes_in
            self._counters["bytes_out"] += stream.bytes_out

    # --- authentication -----------------------------------------------------------------------------------------------

    def _admit(self, number: int, connection: socket.socket, stream: Stream) -> bool:
        """TLS and the token: whether a peer may call."""
        deadline = time.monotonic() + self.config.auth_s
        tune(connection)
        if self._context is not None and not self._secure(self._context, connection, stream, deadline):
            return False
        try:
            frame = stream.receive((AUTH,), wait_s=max(0.001, deadline - time.monotonic()))
        except ProtocolError as error:
            self._complaints.say("failed to authenticate: %s", error)
            return self._refuse(stream, 0, protocol.error_body(error))
        if not self.config.security.accepts(frame.body.get("token")):
            self._complaints.say("%s failed to authenticate: its token is not the daemon's", stream.peer)
            stream.aborted.wait(self.config.failed_delay_s)
            refusal = {"kind": "PermissionError", "message": "the token is missing or not the daemon's (token_file)"}
            return self._refuse(stream, frame.request, refusal)
        with self._lock:
            made_room = self._strangers.pop(number, None) is None
            full = len(self._peers) >= self.config.connections_max
            if not made_room and not full:
                self._peers[number] = stream
        if made_room or full:
            busy = Full(f"the daemon serves {self.config.connections_max} connections at most; try again later")
            return self._refuse(stream, frame.request, protocol.error_body(busy))
        stream.send(REPLY, frame.request, {"result": {"protocol": protocol.PROTOCOL_VERSION}})
        return True

    def _secure(self, context: ssl.SSLContext, connection: socket.socket, stream: Stream, deadline: float) -> bool:
        """Go on under TLS; whether that worked."""
        try:
            if _begins_with(connection, MAGIC, deadline):
                self._complaints.say("%s does not speak TLS", stream.peer)
                allowed = "the PEM file of the daemon's authority: its port speaks TLS"
                return self._refuse(stream, 0, protocol.error_body(ConfigError("tls_ca", None, allowed)))
            secured = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            stream.secure(secured, max(0.001, deadline - time.monotonic()))
        except OSError as error:
            self._complaints.say("%s failed in the TLS handshake: %s", stream.peer, error)
            with self._lock:
                self._counters["refused"] += 1
            stream.farewell()  # OpenSSL has sent the reason
            return False
        return True

    def _refuse(self, stream: Stream, request: int, body: dict[str, Any]) -> bool:
        """Answer with an ERROR, and close."""
        with self._lock:
            self._counters["refused"] += 1
        with contextlib.suppress(PeerLost):
            stream.send(ERROR, request, body)
        stream.farewell()
        return False

    # --- calls --------------------------------------------------------------------------------------------------------

    def _serve(self, stream: Stream) -> bool:
        """One call; whether there may be another. Raises PeerLost."""
        try:
            frame = stream.receive((CALL,), wait_s=self.config.idle_s)
            call = Call(stream, frame.request, frame.body, self._stopping, self.config.idle_s)
            answer, failed = self._handle(call, stream)
            with self._lock:
                self._counters["calls"] += 1
                self._counters["failed_calls"] += failed
            call.finish(answer)
        except ProtocolError as error:  # out of step: no more calls
            log.info("%s", error)
            return self._refuse(stream, 0, protocol.error_body(error))
        return True

    def _handle(self, call: Call, stream: Stream) -> tuple[bytes, bool]:
        """The frame that a call is answered with, and whether it is an ERROR."""
        try:
            handler = self.handlers.get(call.name)
            if handler is None:
                raise ProtocolError(f"there is no call {call.name[:100]!r}; calls are {sorted(self.handlers)}")
            answer = frames.encode(REPLY, call.request, {"result": handler(call)})
        except Exception as error:
            if stream.broken:  # there is nobody to tell, or no way to
                log.info("%s: %s ended: %s", call.peer, call.name, error)
                raise error if isinstance(error, ProtocolError) else PeerLost(str(error)) from None
            body = error_body(error, f"{call.name} of {call.peer}")
            return frames.encode(ERROR, call.request, body), True
        if stream.broken:
            raise PeerLost(f"{call.peer} is gone")
        return answer, False


class Complaints:
    """Log lines about strangers, so many a minute; what was left out is counted in the next."""

    def __init__(self, lines_max: int):
        self._lines_max = lines_max
        self._lock = threading.Lock()
        self._minute, self._lines, self._left_out = 0.0, 0, 0

    def say(self, text: str, *arguments: object) -> None:
        """Log a warning, or count it."""
        with self._lock:
            now = time.monotonic()
            if now - self._minute >= 60:
                self._minute, self._lines = now, 0
            if self._lines >= self._lines_max:
                self._left_out += 1
                return
            self._lines += 1
            left_out, self._left_out = self._left_out, 0
        log.warning(text + (f" ({left_out} more were not logged)" if left_out else ""), *arguments)


def error_body(error: Exception, where: str) -> dict[str, Any]:
    """An exception of a handler as the body of ERROR. A fault is logged, and the caller gets no more than its number."""
    if isinstance(error, TierstoreError):
        body = protocol.error_body(error)
    else:
        number = os.urandom(4).hex()
        log.error("fault %s in the call %s", number, where, exc_info=error)
        body = {"kind": "InternalError", "message": f"the daemon failed in this call; its log says why, under {number}"}
    return {key: value[: frames.ERROR_TEXT_MAX] if isinstance(value, str) else value for key, value in body.items()}


def bound(address: Address, key: str = "listen") -> socket.socket:
    """A socket that listens at an address. Raises ConfigError for that setting."""
    try:
        family, kind, number, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, number)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(where)
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
    except OSError as error:
        allowed = f"an address of this machine with a free port ({error.strerror or error})"
        raise ConfigError(key, str(address), allowed) from None
    return made


def _begins_with(connection: socket.socket, magic: bytes, deadline: float) -> bool:
    """Whether the first bytes are these; waits for the first byte, and a moment for the others."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError("it said nothing")
        seen = connection.recv(len(magic), socket.MSG_PEEK)
        if len(seen) == len(magic) or not seen or not magic.startswith(seen):
            return seen == magic
        time.sleep(0.01)


__all__ = ["Call", "Handler", "Listener", "ListenerConfig"]
