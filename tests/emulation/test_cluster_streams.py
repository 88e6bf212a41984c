"""Streams of a simulated cluster: bytes in order however they are cut, and every end is told exactly once that it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tierstore.emulation.cluster import (
    Bytes,
    Cancel,
    Close,
    Cluster,
    Connection,
    Crash,
    Ended,
    Event,
    Faults,
    Instruction,
    Mishap,
    Open,
    Opened,
    Partition,
    Started,
    Wake,
    Woke,
    Write,
    scheduled,
)
from tierstore.emulation.cluster import streams as streams_module
from tierstore.emulation.cluster.streams import Streams

WRITES, STEP_S = 40, 0.01
SENT = b"".join(bytes([number]) * (1 + number % 17) for number in range(WRITES))
STREAM = Connection("a", "b", 1)


class Sender:
    """Opens a stream to b, writes one piece of SENT each STEP_S, and closes it."""

    def __init__(self, name: str, durable: dict[Any, Any]):
        self.number = 0
        self.events: list[Event] = []
        self.connection: Connection | None = None

    def handle(self, event: Event) -> Iterator[Instruction]:
        self.events.append(event)
        match event:
            case Started(_, 1):
                yield Open("b")
            case Opened(_, connection):
                self.connection = connection
                yield Wake("next", 0.0)
            case Ended():
                yield Cancel("next")
            case Woke():
                assert self.connection is not None
                if self.number < WRITES:
                    yield Write(self.connection, bytes([self.number]) * (1 + self.number % 17))
                    yield Wake("next", STEP_S)
                else:
                    yield Close(self.connection)
                self.number += 1


class Receiver:
    """Keeps what it is told."""

    def __init__(self, name: str, durable: dict[Any, Any]):
        self.events: list[Event] = []

    def handle(self, event: Event) -> list[Instruction]:
        self.events.append(event)
        return []


def transfer(faults: Faults, seed: int = 1) -> Cluster:
    cluster = Cluster({"a": Sender, "b": Receiver}, faults, seed)
    cluster.run_until_quiet()
    return cluster


def got(cluster: Cluster) -> bytes:
    return b"".join(event.data for event in cluster.process("b").events if isinstance(event, Bytes))


def pieces(cluster: Cluster) -> list[bytes]:
    return [event.data for event in cluster.process("b").events if isinstance(event, Bytes)]


def ends(cluster: Cluster, name: str) -> list[str]:
    return [event.why for event in cluster.process(name).events if isinstance(event, Ended)]


@pytest.mark.parametrize("most", [1, 7, 1000])
def test_bytes_arrive_in_order_however_they_are_cut(most: int) -> None:
    run = transfer(Faults(piece_bytes=(1, most), drop=1.0, duplicate=1.0, reorder=1.0))
    assert got(run) == SENT, "what may happen to messages does not happen to streams"
    assert max(map(len, pieces(run))) <= most and ends(run, "b") == ["closed"] and ends(run, "a") == []


def test_writes_are_cut_and_joined_only_when_asked_for() -> None:
    writes = [bytes([number]) * (1 + number % 17) for number in range(WRITES)]
    assert pieces(transfer(Faults(delay_s=(0.001, 0.001)))) == writes
    ragged = pieces(transfer(Faults(delay_s=(0.0, 0.05), piece_bytes=(1, 11))))
    assert any(len(set(piece)) > 1 for piece in ragged), "a piece of two writes"
    assert any(left[-1] == right[0] for left, right in zip(ragged, ragged[1:])), "a write in two pieces"


def test_nothing_arrives_before_its_time() -> None:
    run = transfer(Faults(delay_s=(0.02, 0.2), piece_bytes=(1, 30)))
    opened_s = next(event.now_s for event in run.process("a").events if isinstance(event, Opened))
    for event in run.process("b").events:
        if isinstance(event, Bytes):
            assert event.now_s >= opened_s + event.data[-1] * STEP_S + 0.02 - 1e-9


def test_a_stream_may_end_in_the_middle_of_a_write() -> None:
    broken = 0
    for seed in range(30):
        run = transfer(Faults(truncate=0.05), seed)
        cut = [fault for fault in run.happened if isinstance(fault, Mishap)]
        assert len(cut) <= 1 and ends(run, "b") == (["reset"] if cut else ["closed"])
        assert ends(run, "a") == (["reset"] if cut else []) or run.process("a").number > WRITES
        assert SENT.startswith(got(run)) and (len(got(run)) < len(SENT)) == bool(cut)
        broken += bool(cut) and got(run)[-1:] == SENT[len(got(run)) : len(got(run)) + 1]
    assert broken > 5, "in the middle, not only between writes"
    assert transfer(Faults(truncate=1.0, until_s=0.0)).happened == ()


@pytest.mark.parametrize(("until_s", "whole"), [(0.15, True), (5.0, False)])
def test_a_partition_delays_or_breaks(until_s: float, whole: bool) -> None:
    run = transfer(Faults(partitions=[Partition(0.1, until_s, {"b"}, {"a"})], patience_s=0.2))
    times_s = [event.now_s for event in run.process("b").events if isinstance(event, Bytes)]
    assert not any(0.1 <= time_s < until_s for time_s in times_s)
    assert (got(run) == SENT) == whole and SENT.startswith(got(run))
    assert ends(run, "b") == (["closed"] if whole else ["timed out"])
    assert ends(run, "a") == ([] if whole else ["timed out"])


def test_a_partition_in_the_other_direction_does_not_hold_bytes_up() -> None:
    run = transfer(Faults(partitions=[Partition(0.1, 5.0, {"b"}, {"a"}, one_way=True)]))
    assert got(run) == SENT


@pytest.mark.parametrize(
    ("faults", "why"),
    [
        (Faults(crashes=[Crash(0.0, "b")]), "refused"),
        (Faults(partitions=[Partition(0.0, 9.0, {"a"}, {"b"})]), "timed out"),
        (Faults(partitions=[Partition(0.0, 9.0, {"b"}, {"a"}, one_way=True)]), "timed out"),
    ],
)
def test_a_stream_that_cannot_be_opened(faults: Faults, why: str) -> None:
    run = transfer(faults)
    assert ends(run, "a") == [why] and not any(isinstance(event, Opened) for event in run.process("a").events)


def test_whoever_crashes_while_opening_a_stream_leaves_nothing() -> None:
    run = transfer(Faults(delay_s=(0.1, 0.1), crashes=[Crash(0.05, "a")]))
    assert [type(event) for event in run.process("b").events] == [Started] and run._streams._wires == {}


def test_a_stream_opens_once_the_partition_heals() -> None:
    run = transfer(Faults(partitions=[Partition(0.0, 0.7, {"a"}, {"b"})]))
    assert got(run) == SENT and run.process("a").events[1].now_s > 0.7


def test_a_crash_cuts_off_what_is_on_the_way() -> None:
    sizes = set()
    for seed in range(20):
        run = transfer(Faults(delay_s=(0.1, 0.1), crashes=[Crash(0.4, "a", 0.41)]), seed)
        assert ends(run, "b") == ["reset"] and SENT.startswith(got(run))
        sizes.add(len(got(run)))
        other = transfer(Faults(crashes=[Crash(0.2, "b", 0.21)]), seed)
        assert ends(other, "a") == ["reset"] and got(other) == b"" and other.process("a").number < WRITES + 1
    assert len(sizes) > 5 and len({SENT[size - 1] for size in sizes}) < len(sizes), "at any byte"


@pytest.mark.parametrize("size", range(7))
def test_a_crash_leaves_the_first_bytes(size: int) -> None:
    """Of those that arrived and are not yet handed over, and of those on the way behind them."""
    way = streams_module._Way("a", "b")
    way.buffer += b"abc"
    way.waiting.extend([(1.0, b"d"), (2.0, b"ef")])
    way.keep(size)
    assert way.size() == size and bytes(way.buffer) + b"".join(data for _, data in way.waiting) == b"abcdef"[:size]


def test_a_stream_that_is_over_takes_no_bytes() -> None:
    """The sender goes on writing until it is told."""
    run = transfer(Faults(delay_s=(0.05, 0.05), truncate=1.0))
    assert str(run.trace).count("which is over") >= 5 and ends(run, "a") == ends(run, "b") == ["reset"]
    assert len(run.happened) == 1 and got(run) == b"", "the first write was cut, and what followed counts for nothing"


# --- any nodes, any faults: what every end sees is one of the legal stories


class Chatter:
    """Opens streams, writes numbered bytes, closes at random (by its own events); checks each stream's story."""

    def __init__(self, name: str, durable: dict[Any, Any], written: dict[Any, bytearray]):
        self.name, self.peer, self.written = name, "b" if name == "a" else "a", written
        self.states: dict[Connection, str] = {}  # "open", "closed" by us, "ended"
        self.read: dict[Connection, bytearray] = {}
        self.count = self.opened = 0

    def handle(self, event: Event) -> Iterator[Instruction]:
        connection = getattr(event, "connection", None)
        match event:
            case Started():
                yield Open(self.peer)
                yield Wake("tick", 0.01)
            case Opened():
                assert connection not in self.states, "opened twice, or after something else"
                self.states[connection], self.read[connection] = "open", bytearray()
            case Bytes():
                assert self.states.get(connection) == "open", f"bytes of a stream that is {self.states.get(connection)}"
                assert event.data
                self.read[connection] += event.data
                sent = self.written[connection, self.peer]
                assert sent.startswith(self.read[connection]), "not what was written"
            case Ended():
                never_opened = connection not in self.states and connection.opener == self.name
                assert never_opened or self.states[connection] == "open", f"ended when {self.states.get(connection)}"
                if event.why == "closed":
                    assert self.read[connection] == self.written[connection, self.peer], "closed, but bytes are missing"
                self.states[connection] = "ended"
            case Woke():
                yield from self.tick(event.now_s)

    def tick(self, now_s: float) -> Iterator[Instruction]:
        self.count += 1
        living = [connection for connection, state in self.states.items() if state == "open"]
        for number, connection in enumerate(living):
            data = bytes((self.count + number + k) % 256 for k in range(self.count % 23))
            self.written.setdefault((connection, self.name), bytearray()).extend(data)
            yield Write(connection, data)
            if (self.count + number) % 9 == 0:
                self.states[connection] = "closed"
                yield Close(connection)
        if self.count % 7 == 0:
            yield Open(self.peer)
        if now_s < 1.0:
            yield Wake("tick", 0.01)


class Written(dict[Any, bytearray]):
    """Bytes by (connection, writer); nothing written is nothing."""

    def __missing__(self, key: Any) -> bytearray:
        return bytearray()


def chat(seed: int) -> Cluster:
    written = Written()
    base = Faults(truncate=0.02, piece_bytes=(1, 1 + seed % 40), patience_s=0.1, delay_s=(0.0, 0.02))
    faults = scheduled(base, seed, ("a", "b"), 1.0, crashes=3, partitions=3, longest_s=0.15)
    cluster = Cluster({name: partial(Chatter, written=written) for name in ("a", "b")}, faults, seed)
    cluster.run_until_quiet()
    still_open = [
        {connection for connection, state in cluster.process(name).states.items() if state == "open"}
        for name in ("a", "b")
    ]
    assert still_open[0] == still_open[1] == set(cluster._streams._wires), "one end does not know what the other does"
    return cluster


@pytest.mark.slow
def test_every_end_hears_a_legal_story() -> None:
    reasons: set[str] = set()
    for seed in range(40):
        cluster = chat(seed)
        reasons |= {line.what.rpartition(": ")[2] for line in cluster.trace.lines if " is over: " in line.what}
    assert reasons == {"closed", "reset", "refused", "timed out"}


def swapped(self: Any, size: int) -> None:
    self.buffer.reverse()
    self.waiting = type(self.waiting)((arrival_s, data[::-1]) for arrival_s, data in self.waiting)


def eager(original: Callable[..., Any]) -> Callable[..., None]:
    def accept(self: Any, wire: Any) -> None:
        original(self, wire)
        wire.ways[wire.connection.acceptor].last_s = 0.0

    return accept


def told_again(original: Callable[..., Any]) -> Callable[..., None]:
    def end(self: Any, wire: Any, name: str, why: str) -> None:
        original(self, wire, name, why)
        self._hand(name, Ended(self._agenda.now_s, wire.connection, why))

    return end


def unordered(self: Any, source: str, connection: Connection, data: bytes) -> None:
    wire = self._wires.get(connection)
    if wire is not None and wire.ways[source].waiting:
        wire.ways[source].waiting.rotate()
    WRITE(self, source, connection, data)


WRITE = Streams.write
SIMULATOR_FLAWS: dict[str, tuple[Any, str, Any]] = {
    "turns bytes round in a crash": (streams_module._Way, "keep", swapped),
    "hands bytes over before the stream is open": (Streams, "_accept", eager(Streams._accept)),
    "tells the end twice": (Streams, "_end", told_again(Streams._end)),
    "forgets the order of writes": (Streams, "write", unordered),
}


@pytest.mark.parametrize("flaw", SIMULATOR_FLAWS)
def test_a_broken_simulator_is_noticed(flaw: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*SIMULATOR_FLAWS[flaw])
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(40):
            chat(seed)
