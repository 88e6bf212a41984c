"""Messages as frames over streams: the same node says the same, and a decoder that cannot bear cuts is noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tierstore.emulation.cluster import (
    Bytes,
    Cancel,
    Cluster,
    Connection,
    Event,
    Faults,
    Framed,
    Instruction,
    Make,
    Open,
    Opened,
    Plain,
    Received,
    Started,
    Wake,
    Woke,
    Write,
    framed,
    plain,
)
from tierstore.emulation.cluster.nodes import FRAMES_WAITING_MAX
from tierstore.service import protocol

ROUNDS = 20


def counter(node: Plain, event: Event, now_s: float) -> Iterator[Any]:
    """Says a number to the other and to itself, and the next one when it hears it; again after a while without answer."""
    match event:
        case Started() | Woke() if node.name == "a":
            yield "b", {"n": node.memory.setdefault("n", 0), "é": ["", None, 1.5]}
            yield Wake("again", 0.1)
        case Received(_, "b", {"n": n}) if n == node.memory["n"]:
            node.memory["n"] += 1
            yield "a", {"self": n}
            if n < ROUNDS:
                yield "b", {"n": n + 1}
                yield Wake("again", 0.1)
            else:
                yield Cancel("again")
        case Received(_, "a", {"n": n}):
            node.memory.setdefault("heard", []).append(n)
            yield "a", {"n": n}
        case Received(_, "a", body):
            node.memory.setdefault("other", []).append(body)


def count(wrap: Callable[[Make], Make], faults: Faults, seed: int = 1) -> Cluster:
    cluster = Cluster({name: wrap(plain(counter)) for name in ("a", "b")}, faults, seed)
    cluster.run_until_quiet()
    return cluster


def memory(cluster: Cluster, name: str) -> dict[str, Any]:
    process = cluster.process(name)
    return getattr(process, "inner", process).memory


def test_a_node_says_the_same_in_frames() -> None:
    for piece_bytes in ((1, 1), (1, 20), (1 << 16, 1 << 16)):
        plainly, in_frames = count(lambda make: make, Faults()), count(framed, Faults(piece_bytes=piece_bytes))
        for name in ("a", "b"):
            assert memory(plainly, name) == memory(in_frames, name)
        assert memory(in_frames, "b")["heard"] == list(range(ROUNDS + 1))
        assert memory(in_frames, "a")["other"] == [{"self": n} for n in range(ROUNDS + 1)]


def test_frames_get_through_broken_streams() -> None:
    run = count(framed, Faults(truncate=0.2, piece_bytes=(1, 9)))
    heard = memory(run, "b")["heard"]
    assert sorted(set(heard)) == list(range(ROUNDS + 1)) and len(run.happened) > 3
    assert run.process("b")._in.keys() <= {run.process("a")._out.get("b")}, "streams that are over are forgotten"


class Forgetful(protocol.Decoder):
    """Takes for granted that a frame comes in one piece."""

    def feed(self, data: bytes) -> list[tuple[int, int, dict[str, Any]]]:
        frames = super().feed(data)
        self._buffer.clear()
        return frames


def test_a_broken_decoder_is_noticed() -> None:
    def wrap(make: Make) -> Make:
        return lambda name, durable: Framed(make(name, durable), name, Forgetful)

    cut = Cluster({name: wrap(plain(counter)) for name in ("a", "b")}, Faults(piece_bytes=(1, 15)))
    cut.run_until(30.0)
    assert "heard" not in memory(cut, "b"), "no frame is this short"
    assert memory(count(wrap, Faults()), "b")["heard"] == list(range(ROUNDS + 1)), "nothing is cut"


class Rude:
    """Writes what is no frame."""

    def __init__(self, name: str, durable: dict[Any, Any]):
        self.connection: Connection | None = None

    def handle(self, event: Event) -> list[Instruction]:
        match event:
            case Started():
                return [Open("b")]
            case Opened(_, connection):
                return [Write(connection, protocol.encode(1, 1, {"n": 5}) + b"x" * 50)]
            case Bytes() if event.connection.opener == "a":
                raise AssertionError("nobody answers")
        return []


def test_what_is_no_frame_is_noted_and_closed() -> None:
    cluster = Cluster({"a": Rude, "b": framed(plain(counter))}, Faults(piece_bytes=(1, 1)))
    cluster.run_until_quiet()
    assert "does not speak tierstore's protocol" in str(cluster.trace) and "a>b:1 is over: closed" in str(cluster.trace)
    assert memory(cluster, "b")["heard"] == [5], "what came before it counts"


def test_frames_that_wait_for_a_stream_are_bounded() -> None:
    def node(node: Plain, event: Event, now_s: float) -> Iterator[Any]:
        if isinstance(event, Started) and node.name == "a":
            for number in range(FRAMES_WAITING_MAX + 10):
                yield "b", {"number": number}
        if isinstance(event, Received):
            node.memory.setdefault("heard", []).append(event.body["number"])

    cluster = Cluster({name: framed(plain(node)) for name in ("a", "b")})
    cluster.run_until_quiet()
    assert memory(cluster, "b")["heard"] == list(range(10, FRAMES_WAITING_MAX + 10))


@pytest.mark.parametrize("body", [5, ["a"], {"a": {1, 2}}, {"a": (1, 2)}, {1: 2}])
def test_a_body_that_is_no_object_is_an_error(body: Any) -> None:
    cluster = Cluster({"a": framed(plain(lambda node, event, now_s: [("b", body)])), "b": framed(plain(counter))})
    with pytest.raises(TypeError):
        cluster.run_until_quiet()
