"""What a simulated node is told and what it may ask for; and what it must offer: ``handle(event) -> instructions``.

Messages are datagrams: values, copied on the way, that may be lost, doubled or overtaken. Streams are connections: bytes in
order, cut anywhere, that may end in the middle. A node uses either or both.

Every event carries ``now_s``, the virtual time. A node must be a function of its events: no clock, no chance, no sets whose
order shows. What becomes of a message depends on its repr(), so that must not hold addresses or the order of a set. Then a
run follows from its seed; check_repeatable() notices where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


class Connection(NamedTuple):
    """A stream's name, the same at both ends. number: how many that pair had before, so it is never used again."""

    opener: str
    acceptor: str
    number: int

    def peer(self, name: str) -> str:
        """Who is at the other end."""
        return self.acceptor if name == self.opener else self.opener

    def __str__(self) -> str:
        return f"{self.opener}>{self.acceptor}:{self.number}"


@dataclass(frozen=True, slots=True)
class Started:
    """The process runs: the first time (starts = 1), or again after a crash."""

    now_s: float
    starts: int


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived."""

    now_s: float
    source: str
    body: Any


@dataclass(frozen=True, slots=True)
class Woke:
    """A timer that this life of the process set has run out."""

    now_s: float
    timer: Hashable


@dataclass(frozen=True, slots=True)
class Persisted:
    """What was to be kept under a key now survives a crash."""

    now_s: float
    key: Hashable


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream can be used; who opened it is in its name."""

    now_s: float
    connection: Connection


@dataclass(frozen=True, slots=True)
class Bytes:
    """The next bytes of a stream, at least one."""

    now_s: float
    connection: Connection
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream is over, or was never opened. why: "closed", "refused", "reset", "timed out"."""

    now_s: float
    connection: Connection
    why: str


Event = Started | Received | Woke | Persisted | Opened | Bytes | Ended


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message. A node may send to itself; no fault of the network touches that."""

    target: str
    body: Any


@dataclass(frozen=True, slots=True)
class Wake:
    """Set a timer; one of the same name is replaced. A crash takes all timers away."""

    timer: Hashable
    after_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a timer; one that is not set is none."""

    timer: Hashable


@dataclass(frozen=True, slots=True)
class Persist:
    """Make a value durable under a key; None removes it. Persisted follows.

    A crash before that may lose it or not, each write by itself: nothing fences one write from the next but waiting.
    """

    key: Hashable
    value: Any


@dataclass(frozen=True, slots=True)
class Note:
    """Put a line into the trace."""

    text: str


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream to another node. Opened follows, or Ended."""

    target: str


@dataclass(frozen=True, slots=True)
class Write:
    """Send bytes over a stream; on one that has ended they are lost without a word, as its Ended is on the way."""

    connection: Connection
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Close the own end. What was written before still arrives; nothing more is heard from this stream."""

    connection: Connection


Instruction = Send | Wake | Cancel | Persist | Note | Open | Write | Close


class SimulatedNode(Protocol):
    """One life of a node's process, from start to crash."""

    def handle(self, event: Event) -> Iterable[Instruction]:
        """What to do about one event."""
        ...


# Starts a process: (name of the node, what it made durable) -> its next life. Everything else of the last one is gone.
Make = Callable[[str, dict[Any, Any]], SimulatedNode]
