"""The daemon's decisions about connections, without sockets, clock or threads: ``handle(event) -> instructions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tierstore.shuffle.names import CALLS as SHUFFLE_CALLS

from . import protocol
from .protocol import BYE, CALL, HELLO, RENEW

# Served at once; everything else may take long and goes to a worker.
QUICK = frozenset({"stats"})
CALLS = frozenset(
    {
        "keys",
        "info",
        "stats",
        "verify",
        "pin",
        "unpin",
        "flush",
        "tables",
        "count_table",
        "column_rules",
        *SHUFFLE_CALLS,
    }
)
PENDING_MAX = 64


@dataclass(frozen=True)
class Connected:
    """A peer connected; uid and pid as the kernel reports them."""

    connection: int
    uid: int
    pid: int


@dataclass(frozen=True)
class Arrived:
    """One frame came in."""

    connection: int
    operation: int
    request: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Lost:
    """A connection ended."""

    connection: int


@dataclass(frozen=True)
class Finished:
    """A worker finished a call."""

    connection: int
    request: int
    result: Any
    error: Exception | None


@dataclass(frozen=True)
class Admit:
    """Give the peer a slot and answer with the grant."""

    connection: int
    request: int
    pid: int


@dataclass(frozen=True)
class Renew:
    """Answer with the current index."""

    connection: int
    request: int


@dataclass(frozen=True)
class Run:
    """Carry out a call, at once or in a worker."""

    connection: int
    request: int
    name: str
    arguments: dict[str, Any]
    quick: bool


@dataclass(frozen=True)
class Answer:
    """Send a frame."""

    connection: int
    operation: int
    request: int
    body: dict[str, Any]


@dataclass(frozen=True)
class Hang:
    """Close a connection."""

    connection: int


@dataclass(frozen=True)
class Reap:
    """Look for clients that are gone."""


Event = Connected | Arrived | Lost | Finished
Instruction = Admit | Renew | Run | Answer | Hang | Reap


class Node:
    """Who is connected, and what they may ask."""

    def __init__(self, uid: int):
        self._uid = uid
        self._peers: dict[int, Connected] = {}
        self._pending: dict[int, int] = {}

    def handle(self, event: Event) -> list[Instruction]:
        """What to do about one event."""
        match event:
            case Connected():
                return self._connected(event)
            case Arrived():
                return self._arrived(event)
            case Lost():
                self._peers.pop(event.connection, None)
                self._pending.pop(event.connection, None)
                return [Reap()]
            case Finished():
                return self._finished(event)

    def _connected(self, event: Connected) -> list[Instruction]:
        if event.uid not in (self._uid, 0):
            refusal = PermissionError(f"user {event.uid} may not use the store of user {self._uid}")
            return [self._error(event.connection, 0, refusal), Hang(event.connection)]
        self._peers[event.connection] = event
        self._pending[event.connection] = 0
        return []

    def _arrived(self, event: Arrived) -> list[Instruction]:
        peer = self._peers.get(event.connection)
        if peer is None:
            return [Hang(event.connection)]
        if event.operation == HELLO:
            return [Admit(event.connection, event.request, peer.pid)]
        if event.operation == RENEW:
            return [Renew(event.connection, event.request)]
        if event.operation == BYE:
            self._peers.pop(event.connection, None)
            self._pending.pop(event.connection, None)
            return [Hang(event.connection), Reap()]
        name, arguments = event.body.get("name"), event.body.get("arguments", {})
        if event.operation != CALL or not isinstance(name, str) or name not in CALLS or not isinstance(arguments, dict):
            unknown = protocol.ProtocolError(
                f"operation {event.operation} {name!r} is not known; calls are {sorted(CALLS)}"
            )
            return [self._error(event.connection, event.request, unknown)]
        if self._pending[event.connection] >= PENDING_MAX:
            busy = protocol.ProtocolError(f"{PENDING_MAX} calls of this connection are under way; wait for one")
            return [self._error(event.connection, event.request, busy)]
        self._pending[event.connection] += 1
        return [Run(event.connection, event.request, name, arguments, name in QUICK)]

    def _finished(self, event: Finished) -> list[Instruction]:
        if event.connection not in self._peers:
            return []
        self._pending[event.connection] -= 1
        if event.error is not None:
            return [self._error(event.connection, event.request, event.error)]
        return [Answer(event.connection, protocol.REPLY, event.request, {"result": event.result})]

    @staticmethod
    def _error(connection: int, request: int, error: Exception) -> Answer:
        return Answer(connection, protocol.ERROR, request, protocol.error_body(error))
