"""The caller's side of the network: a Peer is one daemon, and the connections that are kept to it.

A connection carries one call at a time and is kept for the next one. At most ``connections_max`` are open; who needs one more waits
for it. A kept connection may have been closed by the daemon meanwhile: then the call is made once more on a new one, provided that
nothing of an answer had arrived and none of the caller's own data was taken. So a call may be carried out twice when a
daemon dies at the wrong moment; handlers are such that this does not matter.

Errors, each with what to do: PeerLost (refused, gone, silent for ``timeout_s``), ConfigError (token, certificates, TLS on one side
only; names the setting), ProtocolError (something else listens there, or another version), and what the daemon answers.
"""

from __future__ import annotations

import ipaddress
import itertools
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tierstore.ringbuf.errors import Closed, ConfigError, Full, PeerLost

from .. import protocol
from .address import Address, parse_address
from .frames import AUTH, CALL, DATA, END, ERROR, REPLY, Frame, ProtocolError
from .security import Security
from .settings import check_pairs
from .stream import Sink, Stream, tune
from .trouble import tls_trouble

CONNECTIONS_MAX = 8
CONNECT_S = 10.0
KEPT_S = 60.0  # well below the daemon's idle_s
LATE_S = 1.0  # for the reason of a daemon that stopped listening to us
Item = tuple[dict[str, Any], Sequence[Any]]  # head and buffers of one DATA
Arrived = Callable[[dict[str, Any]], None]


class Peer:
    """A daemon at an address. Any thread may use it; after a fork the child makes connections of its own.

    timeout_s: the longest wait for each frame of an answer, and for connecting at most CONNECT_S of it.
    """

    def __init__(
        self,
        address: Address | str,
        security: Security = Security(),  # noqa: B008 (frozen)
        timeout_s: float = 30.0,
        connections_max: int = CONNECTIONS_MAX,
    ):
        self.address = parse_address(address, "nodes") if isinstance(address, str) else address
        self.security, self.timeout_s, self.connections_max = security, timeout_s, connections_max
        check_pairs(security)
        self._context = security.client_context()
        self._requests = itertools.count()
        self._closed = False
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._room = threading.BoundedSemaphore(self.connections_max)
        self._kept: list[tuple[float, Stream]] = []  # since when

    def call(self, name: str, /, **arguments: Any) -> Any:
        """A call without data. Raises what the daemon answers, and the errors above."""
        return self._exchange(_Exchange(name, arguments, self.timeout_s))

    def fetch(self, name: str, arguments: dict[str, Any], sink: Sink, arrived: Arrived | None = None) -> Any:
        """A call answered with data: sink(head, payload_bytes) returns the memory for each payload; the result comes last.

        arrived(head): called when the memory of a payload is filled and checked.
        Raises also: CorruptionError (a payload is not what was sent), and what sink and arrived raise.
        """
        return self._exchange(_Exchange(name, arguments, self.timeout_s, None, sink, arrived))

    def push(
        self,
        name: str,
        arguments: dict[str, Any],
        items: Iterable[Item],
        sink: Sink | None = None,
        arrived: Arrived | None = None,
    ) -> Any:
        """A call with data: each item is a head and the buffers of one payload, which are sent without being joined.

        sink, arrived: as for fetch, if the call is answered with data too, after the last item.
        Raises also: what the iterable raises; the daemon then knows that the stream is not complete.
        """
        return self._exchange(_Exchange(name, arguments, self.timeout_s, items, sink, arrived))

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is kept; connections in use are closed as their calls end."""
        self._closed = True
        self._drop_kept()

    # --- connections --------------------------------------------------------------------------------------------------

    def _exchange(self, exchange: _Exchange) -> Any:
        if self._closed:
            raise Closed(f"the connections to {self.address} were closed")
        if self._pid != os.getpid():  # a forked child must not talk in its parent's connections
            self._reset()
        room = self._room
        if not room.acquire(timeout=self.timeout_s):
            raise Full(
                f"all {self.connections_max} connections to {self.address} were in use for {self.timeout_s:g} s; "
                "call from fewer threads at once"
            )
        try:
            stream = self._take_kept()
            if stream is not None:
                before = stream.bytes_in
                try:
                    return self._run(stream, exchange)
                except PeerLost:
                    if exchange.begun or stream.silent or stream.bytes_in != before:
                        raise
                    self._drop_kept()  # the others are of the same age
            return self._run(self._connect(), exchange)
        finally:
            room.release()

    def _run(self, stream: Stream, exchange: _Exchange) -> Any:
        try:
            return exchange.run(stream, next(self._requests) % 0xFFFFFFFF + 1)
        finally:
            if exchange.in_step and not stream.broken and not self._closed:
                with self._lock:
                    self._kept.append((time.monotonic(), stream))
            else:
                stream.close()

    def _take_kept(self) -> Stream | None:
        """The connection that was used last, if it still stands."""
        while True:
            with self._lock:
                if not self._kept:
                    return None
                since, stream = self._kept.pop()
            try:
                if time.monotonic() - since < KEPT_S and not stream.answered():
                    return stream
            except PeerLost:
                pass
            stream.close()

    def _drop_kept(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, []
        for _, stream in kept:
            stream.close()

    def _connect(self) -> Stream:
        """A new connection that has authenticated itself."""
        wait_s = min(CONNECT_S, self.timeout_s)
        try:
            connection = socket.create_connection((self.address.host, self.address.port), wait_s)
        except OSError as error:
            raise PeerLost(self._why_not(error, wait_s)) from error
        stream = Stream(connection, str(self.address), self.timeout_s)
        try:
            tune(connection)
            if self._context is not None:
                name = self.address.name or self.address.host
                secured = self._context.wrap_socket(connection, server_hostname=name, do_handshake_on_connect=False)
                stream.secure(secured, wait_s)
            elif self.security.token is not None and not _to_loopback(connection):
                allowed = f"a PEM file: without TLS the token would go to {self.address} in clear text"
                raise ConfigError("tls_ca", None, allowed)
            self._authenticate(stream, wait_s)
        except OSError as error:
            stream.close()
            raise tls_trouble(error, self.address, self.security) from error
        except BaseException:
            stream.close()
            raise
        return stream

    def _authenticate(self, stream: Stream, wait_s: float) -> None:
        body = {} if self.security.token is None else {"token": self.security.token}
        try:
            try:
                stream.send(AUTH, 0, body)
            except PeerLost:
                if stream.silent:
                    raise
                wait_s = LATE_S  # it hung up, perhaps with a reason
            answer = stream.receive((REPLY, ERROR), wait_s=wait_s)
        except PeerLost as lost:
            # Under TLS 1.3 the daemon looks at our certificate when for us the handshake is over.
            if isinstance(lost.__cause__, ssl.SSLError):
                raise tls_trouble(lost.__cause__, self.address, self.security) from lost
            raise
        if answer.operation == REPLY:
            return
        message = str(answer.body.get("message"))
        if answer.body.get("kind") == "PermissionError":
            allowed = f"a file with the token of the daemon at {self.address}, which refused this one: {message}"
            raise ConfigError("token_file", self.security.token_file, allowed)
        _raise(answer, f" (the daemon at {self.address})")

    def _why_not(self, error: OSError, wait_s: float) -> str:
        if isinstance(error, socket.gaierror):
            return f"{self.address} is not known ({error.strerror}); correct the name in nodes, or its entry in the DNS"
        if isinstance(error, ConnectionRefusedError):
            return (
                f"nobody listens at {self.address}; start a daemon there with `tierstore serve --listen {self.address}`"
            )
        if isinstance(error, TimeoutError):
            return f"{self.address} did not answer within {wait_s:g} s; is the machine up, and no firewall between?"
        return f"{self.address} cannot be reached ({error.strerror or error}); look at the network and at nodes"


@dataclass
class _Exchange:
    """One call on the way.

    begun: it cannot be done again: an answer arrived, or an item was taken. in_step: the connection can carry
    another call.
    """

    name: str
    arguments: dict[str, Any]
    timeout_s: float
    items: Iterable[Item] | None = None
    sink: Sink | None = None
    arrived: Arrived | None = None
    begun: bool = False
    in_step: bool = False

    def run(self, stream: Stream, request: int) -> Any:
        body: dict[str, Any] = {"name": self.name, "arguments": self.arguments}
        if self.items is not None:
            body["stream"] = True
        stream.send(CALL, request, body)
        if self.items is not None:
            self._send_items(stream, request, self.items)
        expected = (REPLY, ERROR) if self.sink is None else (REPLY, ERROR, DATA)
        while True:
            answer = stream.receive(expected, self.sink, self.timeout_s)
            self.begun = True
            if answer.request != request and not (answer.operation == ERROR and answer.request == 0):
                raise ProtocolError(f"{stream.peer} answers request {answer.request} where {request} was asked")
            if answer.operation == DATA:
                if self.arrived is not None:
                    self.arrived(answer.body)
                continue
            self.in_step = answer.request == request
            if answer.operation == ERROR:
                _raise(answer)
            return answer.body.get("result")

    def _send_items(self, stream: Stream, request: int, items: Iterable[Item]) -> None:
        """Send items and END, or END as soon as the daemon has answered: it wants no more."""
        try:
            if not stream.answered():
                for head, parts in items:
                    self.begun = True
                    stream.send_data(head, parts, request)
                    if stream.answered():
                        break
            stream.send(END, request, {})
        except PeerLost:
            if not _reason_waits(stream):
                raise


def _reason_waits(stream: Stream) -> bool:
    """Whether a daemon that stopped reading has left an answer."""
    deadline = time.monotonic() + LATE_S
    while time.monotonic() < deadline and not stream.silent:
        try:
            if stream.answered():
                return True
        except PeerLost:
            return False
        time.sleep(0.01)
    return False


def _raise(answer: Frame, where: str = "") -> None:
    """Raise what an ERROR says. A ProtocolError is one here too."""
    body = answer.body | {key: f"{answer.body[key]}{where}" for key in ("message", "allowed") if key in answer.body}
    if body.get("kind") == "ProtocolError":
        raise ProtocolError(str(body.get("message")))
    protocol.raise_error(body)


def _to_loopback(connection: socket.socket) -> bool:
    try:
        return ipaddress.ip_address(connection.getpeername()[0].partition("%")[0]).is_loopback
    except OSError as error:
        raise PeerLost(f"the connection is gone ({error.strerror})") from None


__all__ = ["Item", "Peer"]
