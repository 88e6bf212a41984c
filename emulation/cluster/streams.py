"""Connections between simulated nodes: bytes in order, handed over in pieces of any size, ended in any place.

What is like TCP: order; writes joined and cut; a partition holds bytes up until it heals, or the stream breaks after
``patience_s``; a crash cuts off what was on the way at a random byte. What is not modelled: half-closed streams, bandwidth,
and windows, so writing never blocks; and a stream nobody writes to does not notice a partition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

from .clock import Agenda
from .events import Bytes, Connection, Ended, Event, Opened
from .faults import Mishap
from .network import Network
from .trace import Trace, show

GAP_MAX_S = 0.0001  # between two pieces of what arrived at once

Hand = Callable[[str, Event], None]  # lets a node handle an event


class _Way:
    """One direction of a stream."""

    def __init__(self, source: str, target: str):
        self.source, self.target = source, target
        self.waiting: deque[tuple[float, bytes]] = deque()  # on the way: when it arrives, bytes
        self.buffer = bytearray()  # arrived, not yet handed over
        self.last_s = 0.0  # when the last of it arrives
        self.end: tuple[float, str] | None = None  # nothing follows: when that arrives, why
        self.pieces = 0  # handed over so far
        self.entry = 0  # of the next look at it, in the agenda

    def due_s(self, now_s: float, gap_s: float) -> float | None:
        """When there is something to hand over next; None if nothing is on the way."""
        if self.buffer:
            return now_s + gap_s
        if self.waiting:
            return self.waiting[0][0]
        return None if self.end is None else self.end[0]

    def keep(self, size: int) -> None:
        """Drop all but the first bytes that are not yet handed over."""
        del self.buffer[size:]
        size -= len(self.buffer)
        kept: deque[tuple[float, bytes]] = deque()
        for arrival_s, data in self.waiting:
            kept.append((arrival_s, data[:size]))
            size -= len(kept[-1][1])
        self.waiting = kept

    def size(self) -> int:
        return len(self.buffer) + sum(len(data) for _, data in self.waiting)


class _Wire:
    """One stream. ends: who can still use it."""

    def __init__(self, connection: Connection):
        opener, acceptor, _ = connection
        self.connection = connection
        self.ways = {opener: _Way(opener, acceptor), acceptor: _Way(acceptor, opener)}
        self.ends = [opener]


class Streams:
    """All streams of a cluster. Every end is told once that it is over, unless it closed it or crashed."""

    def __init__(self, agenda: Agenda, network: Network, trace: Trace, hand: Hand, is_up: Callable[[str], bool]):
        self._agenda, self._network, self._trace = agenda, network, trace
        self._hand, self._is_up = hand, is_up
        self._wires: dict[Connection, _Wire] = {}

    def open(self, opener: str, acceptor: str) -> None:
        """Connect; the opener is told Opened, or Ended."""
        connection = Connection(opener, acceptor, self._network.number("stream", opener, acceptor))
        wire = self._wires[connection] = _Wire(connection)
        self._say(opener, acceptor, f"opens {connection}")
        self._agenda.after(self._delay_s(opener, acceptor, "open", connection), partial(self._accept, wire))

    def write(self, source: str, connection: Connection, data: bytes) -> None:
        """Put bytes on the way. On a stream that is over they are lost."""
        wire = self._wires.get(connection)
        if wire is None or source not in wire.ends or wire.ways[source].end is not None:
            self._say(source, "", f"{len(data)} bytes for {connection}, which is over")
            return
        way = wire.ways[source]
        number = self._network.number("bytes", source, way.target, show(data))
        generator = self._network.generator("bytes", source, way.target, show(data), number)
        link = self._network.faults.link(source, way.target)
        delay_s, drawn, share = link.draw_delay_s(generator), generator.random(), generator.random()
        way.last_s = max(self._agenda.now_s + delay_s, way.last_s)
        self._say(source, way.target, f"{len(data)} bytes into {connection}")
        mishap = Mishap("truncate", source, way.target, show(data), number)
        if data and self._network.strikes(mishap, drawn, link.truncate, self._agenda.now_s):
            data = data[: int(share * len(data))]
            way.end = (way.last_s, "reset")
            self._say(source, way.target, f"{connection} breaks after {len(data)} of these bytes")
            self._agenda.at(way.last_s + delay_s, partial(self._end, wire, source, "reset"))
        way.waiting.append((way.last_s, data))
        self._plan(wire, way)

    def close(self, name: str, connection: Connection) -> None:
        """Close one end; the other hears of it after everything that was written."""
        wire = self._wires.get(connection)
        if wire is None or name not in wire.ends:
            return
        self._say(name, connection.peer(name), f"closes {connection}")
        self._leave(wire, name, "closed")

    def crash(self, name: str) -> None:
        """Cut off all streams of a node: the first bytes of what it had written may still arrive."""
        for wire in list(self._wires.values()):
            if name in wire.ends:
                way = wire.ways[name]
                way.keep(self._network.generator("crash", wire.connection, name).randint(0, way.size()))
                self._leave(wire, name, "reset")

    def _leave(self, wire: _Wire, name: str, why: str) -> None:
        """One end is gone; the other is told, if it is there."""
        wire.ends.remove(name)
        self._forget(wire)
        way = wire.ways[name]
        if way.target in wire.ends and way.end is None:
            delay_s = self._delay_s(name, way.target, "close", wire.connection)
            way.last_s = max(self._agenda.now_s + delay_s, way.last_s)
            way.end = (way.last_s, why)
            self._plan(wire, way)

    def _accept(self, wire: _Wire) -> None:
        """The request to connect arrives."""
        opener, acceptor, _ = wire.connection
        if opener not in wire.ends:
            return
        now_s = self._agenda.now_s
        free_s = max(self._network.healed_s(opener, acceptor, now_s), self._network.healed_s(acceptor, opener, now_s))
        if self._held(free_s, partial(self._accept, wire), wire):
            return
        back_s = now_s + self._delay_s(acceptor, opener, "accept", wire.connection)
        if not self._is_up(acceptor):
            self._agenda.at(back_s, partial(self._end, wire, opener, "refused"))
            return
        wire.ends.append(acceptor)
        wire.ways[acceptor].last_s = back_s  # so that no byte comes before Opened
        self._agenda.at(back_s, partial(self._opened, wire, opener))
        self._opened(wire, acceptor)

    def _opened(self, wire: _Wire, name: str) -> None:
        if name in wire.ends:
            self._say(wire.connection.peer(name), name, f"{wire.connection} is open")
            self._hand(name, Opened(self._agenda.now_s, wire.connection))

    def _plan(self, wire: _Wire, way: _Way, gap_s: float = 0.0) -> None:
        """Look at one direction when there will be something to hand over."""
        self._agenda.cancel(way.entry)
        due_s = way.due_s(self._agenda.now_s, gap_s)
        if due_s is not None:
            way.entry = self._agenda.at(max(due_s, self._agenda.now_s), partial(self._pump, wire, way))

    def _pump(self, wire: _Wire, way: _Way) -> None:
        """Hand over the next piece of what has arrived, or the end."""
        now_s = self._agenda.now_s
        if way.target not in wire.ends:
            return
        if self._held(self._network.healed_s(way.source, way.target, now_s), partial(self._pump, wire, way), wire):
            return
        while way.waiting and way.waiting[0][0] <= now_s:
            way.buffer += way.waiting.popleft()[1]
        if way.buffer:
            way.pieces += 1
            generator = self._network.generator("piece", *wire.connection, way.source, way.pieces)
            size = generator.randint(*self._network.faults.link(way.source, way.target).piece_bytes)
            piece = bytes(way.buffer[:size])
            del way.buffer[:size]
            self._say(way.source, way.target, f"{len(piece)} bytes out of {wire.connection}")
            self._plan(wire, way, generator.uniform(0, GAP_MAX_S))
            self._hand(way.target, Bytes(now_s, wire.connection, piece))
        elif not way.waiting and way.end is not None and way.end[0] <= now_s:
            self._end(wire, way.target, way.end[1])
        else:
            self._plan(wire, way)

    def _held(self, free_s: float, again: Callable[[], None], wire: _Wire) -> bool:
        """Whether a partition is in the way; then try again when it has healed, or give the stream up."""
        now_s, patience_s = self._agenda.now_s, self._network.faults.patience_s
        if free_s <= now_s:
            return False
        if free_s - now_s <= patience_s:
            self._agenda.at(free_s, again)
        else:
            self._agenda.after(patience_s, partial(self._break, wire))
        return True

    def _break(self, wire: _Wire) -> None:
        for name in list(wire.ends):
            self._end(wire, name, "timed out")

    def _end(self, wire: _Wire, name: str, why: str) -> None:
        """Tell one end that it is over."""
        if name not in wire.ends:
            return
        wire.ends.remove(name)
        self._forget(wire)
        self._say(wire.connection.peer(name), name, f"{wire.connection} is over: {why}")
        self._hand(name, Ended(self._agenda.now_s, wire.connection, why))

    def _forget(self, wire: _Wire) -> None:
        """Drop a stream that nobody uses any more."""
        if not wire.ends:
            self._wires.pop(wire.connection, None)

    def _delay_s(self, source: str, target: str, *name: object) -> float:
        return self._network.faults.link(source, target).draw_delay_s(self._network.generator(*name))

    def _say(self, source: str, target: str, what: str) -> None:
        self._trace.add(self._agenda.now_s, source, target, what)
