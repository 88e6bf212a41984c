"""Calls and payloads between a Peer and a Listener, plain and TLS."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np
import pytest

from tierstore.ringbuf import errors
from tierstore.service.protocol import ProtocolError

MIB = 1 << 20


class Memory:
    """A sink that keeps what came."""

    def __init__(self) -> None:
        self.heads: list[dict[str, Any]] = []
        self.payloads: list[bytearray] = []

    def __call__(self, head: dict[str, Any], size: int) -> memoryview:
        self.heads.append(head)
        self.payloads.append(bytearray(size))
        return memoryview(self.payloads[-1])


def test_calls(both: Any) -> None:
    peer = both.peer(both.listen())
    for value in (
        {},
        {"a": [1, 2.5, None, "é\u2028", True]},
        {"name": "of an argument", "self": 1},
        {"x": "y" * 200_000},
    ):
        assert peer.call("echo", **value) == value
    assert both.listen().stats()["connections"] == 0


def test_one_connection_is_used_again(both: Any) -> None:
    listener = both.listen()
    peer = both.peer(listener)
    for number in range(20):
        assert peer.call("echo", number=number) == {"number": number}
    stats = listener.stats()
    assert (stats["accepted"], stats["connections"], stats["calls"], stats["refused"]) == (1, 1, 20, 0)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 16383, 16384, 16385, 100_000, 3 * MIB + 5])
@pytest.mark.parametrize("pieces", [1, 3, 1500])
def test_fetch(both: Any, size: int, pieces: int) -> None:
    memory, arrived = Memory(), []
    result = both.peer(both.listen()).fetch(
        "give", {"count": 3, "size": size, "pieces": pieces}, memory, arrived.append
    )
    assert result == "given" and memory.heads == arrived == [{"number": number} for number in range(3)]
    assert memory.payloads == [bytes([number]) * size for number in range(3)]


def test_push(both: Any) -> None:
    peer = both.peer(both.listen())
    payloads = [
        [],
        [b""],
        [b"abc"],
        [b"abc", bytes(17)],
        [np.arange(100, dtype="<i8")],
        [os.urandom(5 * MIB), b"x"],
        [b"z"] * 3000,
    ]
    found = peer.push("take", {}, (({"number": number}, parts) for number, parts in enumerate(payloads)))
    joined = [b"".join(memoryview(part).cast("B") for part in parts) for parts in payloads]
    assert found["sizes"] == [len(payload) for payload in joined]
    assert found["heads"] == [{"number": number} for number in range(len(payloads))]
    assert found["sampled"] == sum(sum(payload[:: max(1, len(payload) // 1000)]) for payload in joined)
    assert peer.push("take", {}, []) == {"sizes": [], "sampled": 0, "heads": []}


def test_payloads_go_straight_into_aligned_memory(both: Any) -> None:
    """The address that the sink names is where recv_into writes: memory around it stays as it was."""
    size, count = 8 * MIB, 4
    room = np.zeros(count * (size + 128) + 64, "u1")
    base = -room.ctypes.data % 64
    offsets = [base + number * (size + 128) for number in range(count)]
    assert all((room.ctypes.data + offset) % 64 == 0 for offset in offsets)

    def sink(head: dict[str, Any], payload_bytes: int) -> memoryview:
        assert payload_bytes == size
        return memoryview(room)[offsets[head["number"]] : offsets[head["number"]] + size]

    both.peer(both.listen()).fetch("give", {"count": count, "size": size}, sink)
    for number, offset in enumerate(offsets):
        assert (room[offset : offset + size] == number).all()
        assert not room[offset + size : offset + size + 64].any()


def test_data_both_ways_in_one_call(both: Any) -> None:
    def turn(call: Any) -> int:
        kept = Memory()
        with pytest.raises(ProtocolError, match="before it has received"):
            call.send({}, [b"too soon"])
        while call.receive(kept) is not None:
            pass
        for head, payload in zip(kept.heads, kept.payloads):
            call.send(head, [payload[::-1]])
        return len(kept.payloads)

    memory = Memory()
    items = [({"n": number}, [bytes([number, 0, 1]), bytes(number)]) for number in range(5)]
    assert both.peer(both.listen(handlers={"turn": turn})).push("turn", {}, items, memory) == 5
    assert memory.payloads == [(bytes([number, 0, 1]) + bytes(number))[::-1] for number in range(5)]


@pytest.mark.parametrize(
    ("kind", "raised"),
    [(name, getattr(errors, name)) for name in ("Full", "NotFound", "PeerLost", "InvalidKey")]
    + [("config", errors.ConfigError)],
)
def test_errors_of_handlers(both: Any, kind: str, raised: type[Exception]) -> None:
    listener = both.listen()
    peer = both.peer(listener)
    for _ in range(2):
        with pytest.raises(raised, match="in its own words|one of a, b"):
            peer.call("fail", kind=kind)
    assert peer.call("echo", a=1) == {"a": 1} and listener.stats()["accepted"] == 1


@pytest.mark.parametrize("kind", ["secret", "unsendable"])
def test_faults_of_the_daemon_tell_the_caller_nothing(both: Any, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    peer = both.peer(both.listen())
    with pytest.raises(errors.TierstoreError, match="InternalError: the daemon failed") as caught:
        peer.call("fail", kind=kind)
    told = str(caught.value)
    assert "/nowhere" not in told and "Traceback" not in told and "object" not in told
    number = told.rpartition(" ")[2]
    assert f"fault {number}" in caplog.text and ("/nowhere/secret/path" in caplog.text) == (kind == "secret")
    assert peer.call("echo") == {}


def test_a_call_that_is_not_known_and_arguments_that_are_wrong(net: Any) -> None:
    peer = net.peer(net.listen())
    with pytest.raises(ProtocolError, match="'delete_all'; calls are .*'echo'"):
        peer.call("delete_all")
    for arguments, message in (({"size": "5"}, "size is str, not int"), ({"size": True}, "size is bool, not int")):
        with pytest.raises(ProtocolError, match=message):
            peer.fetch("give", arguments, Memory())
    with pytest.raises(ProtocolError, match="needs the argument 'kind'"):
        peer.call("fail")


def test_an_error_after_some_data_leaves_the_connection_usable(both: Any) -> None:
    listener = both.listen()
    peer, memory = both.peer(listener), Memory()
    with pytest.raises(errors.NotFound, match="map 7"):
        peer.fetch("give", {"count": 9, "size": 100_000, "fail_after": 2}, memory)
    assert len(memory.payloads) == 3
    assert peer.call("echo", a=1) == {"a": 1} and listener.stats()["accepted"] == 1


@pytest.mark.parametrize("how", ["refuse", "enough", "unknown"])
def test_a_daemon_that_wants_no_more_of_a_push(both: Any, how: str) -> None:
    """It answers early; the caller stops sending, and the connection stays in step."""
    listener = both.listen()
    peer, taken = both.peer(listener), []

    def items() -> Any:
        for number in range(2000):
            taken.append(number)
            yield ({how: True} if number == 2 else {}), [bytes(100_000)]
            if number > 2:
                time.sleep(0.001)

    if how == "enough":
        assert peer.push("take", {}, items()) == {"sizes": [100_000] * 3, "early": True}
    else:
        with pytest.raises(errors.Full if how == "refuse" else ProtocolError):
            peer.push("take" if how == "refuse" else "nothing", {}, items())
    assert len(taken) < 2000, "it went on sending what nobody wanted"
    assert peer.call("echo", a=1) == {"a": 1} and listener.stats()["accepted"] == 1


def test_a_push_whose_source_fails_is_not_taken_for_complete(both: Any) -> None:
    listener = both.listen()

    def items() -> Any:
        yield {}, [bytes(1000)]
        raise KeyError("the source broke")

    with pytest.raises(KeyError, match="the source broke"):
        both.peer(listener).push("take", {}, items())
    wait_for(lambda: both.log == ["lost"] and listener.stats()["connections"] == 0)


@pytest.mark.parametrize("what", ["raises", "read-only", "too small", "too large"])
def test_a_sink_that_fails(both: Any, what: str) -> None:
    def sink(head: dict[str, Any], size: int) -> memoryview:
        if what == "raises":
            raise MemoryError("no room here")
        if what == "read-only":
            return memoryview(bytes(size))
        return memoryview(bytearray(size - 1 if what == "too small" else size + 1))

    peer = both.peer(both.listen())
    with pytest.raises(MemoryError if what == "raises" else TypeError, match="no room|a sink must return"):
        peer.fetch("give", {"count": 3, "size": 1000}, sink)
    assert peer.call("echo", a=1) == {"a": 1}


def test_a_payload_that_changed_on_the_way_is_noticed(net: Any) -> None:
    peer = net.peer(net.listen())
    with pytest.raises(errors.CorruptionError, match="a payload from 127.0.0.1") as caught:
        peer.fetch("give", {"count": 1, "size": 1000, "check": 12345}, Memory())
    assert caught.value.expected == "check 0x3039"
    memory = Memory()
    peer.fetch("give", {"count": 1, "size": 1000, "check": 0}, memory)
    assert memory.payloads == [bytes(1000)]


def test_many_connections_at_once(both: Any) -> None:
    listener, failures = both.listen(connections_max=64), []
    peers = [both.peer(listener, connections_max=4) for _ in range(4)]

    def work(number: int) -> None:
        try:
            for turn in range(10):
                peer, memory = peers[number % 4], Memory()
                assert peer.call("echo", number=number, turn=turn) == {"number": number, "turn": turn}
                assert peer.fetch("give", {"count": 3, "size": 50_000 + number}, memory) == "given"
                assert memory.payloads == [bytes([i]) * (50_000 + number) for i in range(3)]
                assert peer.push("take", {}, [({}, [bytes(number)])] * 3)["sizes"] == [number] * 3
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    stats = listener.stats()
    assert stats["calls"] == 24 * 10 * 3 and stats["failed_calls"] == 0 and stats["connections"] <= 16


def test_connections_of_a_peer_are_bounded(net: Any) -> None:
    listener = net.listen()
    peer = net.peer(listener, connections_max=2)
    waiting = [threading.Thread(target=peer.call, args=("wait",)) for _ in range(2)]
    for thread in waiting:
        thread.start()
    wait_for(lambda: net.log == ["waiting"] * 2)
    peer.timeout_s = 0.2
    with pytest.raises(errors.Full, match="all 2 connections to 127.0.0.1:[0-9]+ were in use for 0.2 s"):
        peer.call("echo")
    net.gate.set()
    for thread in waiting:
        thread.join()
    peer.timeout_s = 20
    assert peer.call("echo") == {} and listener.stats()["accepted"] == 2


def test_a_forked_child_makes_connections_of_its_own(net: Any) -> None:
    listener = net.listen()
    peer = net.peer(listener)
    peer.call("echo")
    child = os.fork()
    if not child:
        try:
            os._exit(0 if peer.call("echo", who="child") == {"who": "child"} else 1)
        except BaseException:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert peer.call("echo", who="parent") == {"who": "parent"} and listener.stats()["accepted"] == 2


def wait_for(condition: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
