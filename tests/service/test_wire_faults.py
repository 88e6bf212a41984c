"""Time-outs, cut connections, slow and lost peers, floods, and the end of a listener."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tierstore.ringbuf.errors import CorruptionError, Full, NotFound, PeerLost, TierstoreError
from tierstore.service.protocol import ProtocolError
from tierstore.service.wire import frames
from tierstore.service.wire.client import Peer
from tierstore.service.wire.frames import AUTH, CALL, DATA, END, ERROR, REPLY
from tierstore.service.wire.server import Listener, ListenerConfig
from tierstore.service.wire.stream import Stream

MIB = 1 << 20
GREETING = frames.encode(AUTH, 0, {})
WELCOME = frames.encode(REPLY, 0, {"result": {}})


def data(request: int, payload: bytes, **head: Any) -> bytes:
    return frames.encode_data(request, head, len(payload), frames.checksum([memoryview(payload)])) + payload


class Scripted:
    """A daemon that sends what it was given, whatever it is asked, and then closes or falls silent."""

    def __init__(self, *said: bytes, silent: bool = False):
        self.accepted = 0
        self._said, self._silent = said, silent
        self._server = socket.create_server(("127.0.0.1", 0))
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._server.close()

    def peer(self, timeout_s: float = 5.0) -> Peer:
        return Peer(f"127.0.0.1:{self._server.getsockname()[1]}", timeout_s=timeout_s)

    def _serve(self) -> None:
        while not self._end.is_set():
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self.accepted += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                for said in self._said:
                    connection.recv(1 << 16)
                    connection.sendall(said)
                if self._silent:
                    self._end.wait(20)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def wait_for(condition: Any, seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def keep(head: dict[str, Any], size: int) -> memoryview:
    return memoryview(bytearray(size))


# --- cut connections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_caller_that_is_cut_at_each_byte(reset: bool, net: Any) -> None:
    listener = net.listen()
    others = net.peer(listener)
    said = (
        GREETING
        + frames.encode(CALL, 1, {"name": "take", "stream": True})
        + data(1, b"0123456789", a=1)
        + frames.encode(END, 1, {})
    )
    for cut in range(len(said) + 1):
        raw = socket.create_connection((listener.address.host, listener.address.port), 5)
        raw.sendall(said[:cut])
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.close()
        if cut % 20 == 0:
            assert others.call("echo", cut=cut) == {"cut": cut}
    wait_for(lambda: listener.stats()["connections"] == 1 and listener.stats()["strangers"] == 0)
    assert others.call("echo") == {}


@pytest.mark.slow
def test_a_daemon_that_is_cut_at_each_byte() -> None:
    said = data(1, b"0123456789", a=1) + frames.encode(REPLY, 1, {"result": "done"})
    for cut in range(len(WELCOME)):
        with (
            Scripted(WELCOME[:cut]) as daemon,
            pytest.raises(PeerLost, match="127.0.0.1:[0-9]+ is lost.*tierstore serve"),
        ):
            daemon.peer().call("x")
    for cut in range(len(said)):
        with Scripted(WELCOME, said[:cut]) as daemon:
            with pytest.raises(PeerLost, match="127.0.0.1:[0-9]+ is lost"):
                daemon.peer().fetch("x", {}, keep)
            assert daemon.accepted == 1, "a new connection was no stale one: nothing may be asked twice"
    with Scripted(WELCOME, said) as daemon:
        peer = daemon.peer()
        assert peer.fetch("x", {}, keep) == "done"
        peer.close()


def test_a_kept_connection_that_the_daemon_has_closed(both: Any) -> None:
    listener = both.listen(idle_s=0.05)
    peer = both.peer(listener)
    for number in range(3):
        assert peer.call("echo", number=number) == {"number": number}
        wait_for(lambda: listener.stats()["connections"] == 0)
    assert peer.push("take", {}, [({}, [b"abc"])])["sizes"] == [3]
    assert listener.stats()["accepted"] == 4 and listener.stats()["calls"] == 4


def test_a_daemon_that_was_restarted(both: Any) -> None:
    first = both.listen()
    peer = both.peer(first, connections_max=4)
    threads = [threading.Thread(target=peer.call, args=("echo",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first.stop()
    with pytest.raises(PeerLost, match="nobody listens"):
        peer.call("echo")
    second = Listener(ListenerConfig("127.0.0.1", first.address.port, first.config.security), first.handlers).start()
    try:
        assert peer.call("echo", a=1) == {"a": 1}
    finally:
        peer.close()
        second.stop()


@pytest.mark.parametrize("half", [1, 20])
def test_a_call_is_made_twice_only_if_nothing_was_answered(half: int) -> None:
    reply = frames.encode(REPLY, 1, {"result": 1})
    second = frames.encode(REPLY, 2, {"result": 2})
    with Scripted(WELCOME, reply, second[:half]) as daemon:
        peer = daemon.peer()
        assert peer.call("x") == 1
        with pytest.raises(PeerLost):
            peer.call("x")
        assert daemon.accepted == 1
    with Scripted(WELCOME, reply, b"") as daemon:  # takes the second call, and closes without a word
        peer = daemon.peer()
        assert peer.call("x") == 1
        with pytest.raises(ProtocolError, match="answers request 1 where 3 was asked"):
            peer.call("x")
        assert daemon.accepted == 2


def test_an_item_that_was_taken_is_not_sent_twice() -> None:
    taken = []

    def items() -> Iterator[Any]:
        for number in range(1000):
            taken.append(number)
            yield {}, [bytes(100_000)]

    with Scripted(WELCOME, frames.encode(REPLY, 1, {"result": 1}), b"", b"", b"") as daemon:
        peer = daemon.peer()
        assert peer.call("x") == 1
        with pytest.raises(PeerLost):
            peer.push("x", {}, items())
        assert daemon.accepted == 1 and taken == list(range(len(taken)))


# --- time-outs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [[], [WELCOME], [WELCOME, frames.encode(REPLY, 1, {"result": 1})[:20]], [WELCOME, data(1, bytes(100))[:60]]]
)
def test_a_daemon_that_says_nothing_more(said: list[bytes]) -> None:
    with Scripted(*said, silent=True) as daemon:
        peer, began = daemon.peer(0.2), time.monotonic()
        with pytest.raises(PeerLost, match="127.0.0.1:[0-9]+ sent nothing for 0.2 s.*log"):
            peer.fetch("x", {}, keep)
        assert 0.15 < time.monotonic() - began < 2 and daemon.accepted == 1


def test_a_tls_daemon_that_says_nothing(certificates: Any) -> None:
    with Scripted(silent=True) as daemon:
        address = daemon.peer().address
        with pytest.raises(PeerLost, match="did not finish the TLS handshake in time"):
            Peer(address, certificates.caller(), 0.2).call("x")


def closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side closes within a time, whatever it says before."""
    connection.settimeout(seconds)
    with contextlib.suppress(ConnectionResetError):
        try:
            while connection.recv(1 << 16):
                pass
        except TimeoutError:
            return False
    return True


@pytest.mark.parametrize("said", [b"", b"T", GREETING[:-1], b"\x16\x03\x01"])
def test_strangers_have_little_time(said: bytes, both: Any) -> None:
    raw = both.raw(both.listen(auth_s=0.2))
    raw.sendall(said)
    assert closed_within(raw, 3)


@pytest.mark.slow
def test_a_stranger_who_sends_a_byte_now_and_then(both: Any) -> None:
    raw, began = both.raw(both.listen(auth_s=0.3)), time.monotonic()
    with contextlib.suppress(OSError):
        for byte in GREETING * 3:
            raw.sendall(bytes([byte]))
            time.sleep(0.05)
    assert time.monotonic() - began < 2, "it was listened to for long"


@pytest.mark.parametrize("part", [frames.encode(CALL, 1, {"name": "echo"})[:-1], data(1, bytes(1000))[:500]])
def test_a_caller_who_stops_in_the_middle_of_a_frame(part: bytes, net: Any) -> None:
    listener = net.listen(silence_s=0.2, idle_s=30)
    hand = net.stream(listener)
    if part[6] == DATA:
        hand.send(CALL, 1, {"name": "take", "stream": True})
    hand._connection.sendall(part)
    assert closed_within(hand._connection, 3)
    assert net.peer(listener).call("echo", a=1) == {"a": 1}


@pytest.mark.slow
def test_a_frame_that_comes_too_slowly(net: Any) -> None:
    """Never silent for long, and yet it does not get through."""
    hand, began = net.stream(net.listen(silence_s=0.3)), time.monotonic()
    with contextlib.suppress(OSError):
        for byte in frames.encode(CALL, 1, {"name": "echo", "arguments": {"a": "x" * 1000}}):
            hand._connection.sendall(bytes([byte]))
            time.sleep(0.02)
    assert time.monotonic() - began < 3


def test_an_idle_connection_is_closed_without_a_word(net: Any, caplog: pytest.LogCaptureFixture) -> None:
    listener = net.listen(idle_s=0.1)
    hand = net.stream(listener)
    assert closed_within(hand._connection, 3) and listener.stats()["refused"] == 0 and not caplog.records


# --- slow and lost peers --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_slow_reader_holds_the_sender_back(both: Any) -> None:
    """What was sent is in the mapped memory and the kernel's buffers, and nowhere else."""
    memory, sent = memoryview(bytearray(4 * MIB)), []

    def pour(call: Any) -> int:
        for number in range(100):
            call.send({"number": number}, [memory])
            sent.append(number)
        return len(sent)

    listener = both.listen(handlers={"pour": pour})
    target = memoryview(bytearray(4 * MIB))
    state = {"held": 0, "grown": 0, "before": rss_bytes()}

    def sink(head: dict[str, Any], size: int) -> memoryview:
        if head["number"] == 3:
            time.sleep(0.5)
            state["held"], state["grown"] = len(sent), rss_bytes() - state["before"]
        return target

    assert both.peer(listener).fetch("pour", {}, sink) == 100
    assert state["held"] < 20, "the sender went on"
    assert state["grown"] < 24 * MIB


@pytest.mark.slow
def test_a_slow_handler_holds_the_caller_back(both: Any) -> None:
    taken, seen = [], []

    def sip(call: Any) -> int:
        while call.receive(keep) is not None:
            if not seen:
                time.sleep(0.5)
                seen.append(len(taken))
        return len(taken)

    def items() -> Iterator[Any]:
        for number in range(60):
            taken.append(number)
            yield {}, [memory]

    memory = bytes(4 * MIB)
    assert both.peer(both.listen(handlers={"sip": sip})).push("sip", {}, items()) == 60
    assert seen[0] < 20


@pytest.mark.slow
def test_a_reader_who_never_reads(both: Any) -> None:
    listener = both.listen(silence_s=0.3)
    peer = both.peer(listener, timeout_s=20)
    stuck = threading.Event()

    def sink(head: dict[str, Any], size: int) -> memoryview:
        wait_for(lambda: listener.stats()["connections"] == 0, 10)
        stuck.set()
        return memoryview(bytearray(size))

    with pytest.raises(PeerLost):
        peer.fetch("give", {"count": 8, "size": 16 * MIB}, sink)
    assert stuck.is_set(), "the daemon waits for ever"


@pytest.mark.parametrize("name", ["look", "give"])
def test_a_caller_who_goes_away_ends_its_call(name: str, both: Any) -> None:
    listener = both.listen(handlers=both.handlers() | {"give": _give_for_ever(both.log)})
    peer = both.peer(listener)

    def leave(head: dict[str, Any], size: int) -> memoryview:
        raise KeyboardInterrupt

    if name == "give":
        with pytest.raises(KeyboardInterrupt):
            peer.fetch("give", {}, leave)
    else:
        peer.timeout_s = 0.2
        with pytest.raises(PeerLost, match="sent nothing"):
            peer.call("look")
    wait_for(lambda: both.log[-1:] == ["gone"] and listener.stats()["connections"] == 0)


def _give_for_ever(log: list[str]) -> Any:
    def give(call: Any) -> None:
        try:
            while True:
                call.send({}, [bytes(100_000)])
        except PeerLost:
            log.append("gone")
            raise

    return give


def test_a_handler_that_ignores_a_lost_caller(net: Any) -> None:
    """It cannot answer into a connection that is out of step."""

    def stubborn(call: Any) -> str:
        with contextlib.suppress(TierstoreError):
            call.receive(keep)
        return "all is well"

    listener = net.listen(handlers={"stubborn": stubborn})
    hand = net.stream(listener)
    hand.send(CALL, 1, {"name": "stubborn", "stream": True})
    hand.send(CALL, 2, {"name": "stubborn"})  # where only DATA may come
    with pytest.raises(PeerLost):
        while True:
            assert hand.receive((REPLY, ERROR)).operation == ERROR


# --- frames that break the rules ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_breaks_the_protocol_is_said_and_the_connection_closed(net: Any) -> None:
    header = frames.HEADER.pack
    listener = net.listen()
    for bad, message in (
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "it speaks HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), "it speaks TLS; set tls_cert"),
        (header(b"TSF1", 2, CALL, 1, 0), "protocol version 2"),
        (header(b"TSF1", 1, 77, 1, 0), "operation 77 came where only CALL may come"),
        (header(b"TSF1", 1, AUTH, 1, 0), "operation AUTH came"),
        (header(b"TSF1", 1, DATA, 1, 0), "operation DATA came"),
        (header(b"TSF1", 1, CALL, 1, 0xFFFFFFFF), "announces 4294967295 bytes; at most 16777216"),
        (header(b"TSF1", 1, CALL, 1, 3) + b"{x}", "not JSON"),
        (header(b"TSF1", 1, CALL, 1, 3) + b"[1]", "not an object"),
        (header(b"TSF1", 1, CALL, 1, 200_000) + b"[" * 200_000, "not JSON"),
    ):
        hand = net.stream(listener)
        hand._connection.sendall(bad)
        answer = hand.receive((ERROR,))
        assert answer.request == 0 and answer.body["kind"] == "ProtocolError" and message in answer.body["message"], (
            answer
        )
        assert closed_within(hand._connection, 3)


@pytest.mark.slow
def test_data_that_breaks_the_protocol(net: Any) -> None:
    listener = net.listen()
    for body, length, message in (
        (b"", 0, "a head of 0"),
        (b"\0" * 7, 7, "a head of 0"),
        (struct.pack("<II", 2**32 - 1, 0), 100, "a head of 4294967295"),
        (struct.pack("<II", 2 << 20, 0), 3 << 20, "a head has at most 1048576"),
        (struct.pack("<II", 8, 0), 15, "a head of 8"),
        (struct.pack("<II", 8, 0), 1 << 31, "at most"),
        (struct.pack("<II", 8, 0) + b"[1,2,3] ", 16, "not an object"),
        (struct.pack("<II", 8, 0) + b"\xff" * 8, 16, "not JSON"),
    ):
        hand = net.stream(listener)
        hand.send(CALL, 1, {"name": "take", "stream": True})
        hand._connection.sendall(frames.HEADER.pack(b"TSF1", 1, DATA, 1, length) + body)
        answer = hand.receive((ERROR,))
        assert answer.body["kind"] == "ProtocolError" and message in answer.body["message"], answer
        assert closed_within(hand._connection, 3)


@pytest.mark.slow
def test_announced_memory_is_not_taken(net: Any) -> None:
    """Sixty connections announce 16 MiB each and send nothing of it."""
    listener, before = net.listen(connections_max=64), rss_bytes()
    hands = [net.stream(listener) for _ in range(60)]
    for hand in hands:
        hand._connection.sendall(frames.HEADER.pack(b"TSF1", 1, CALL, 1, 16 << 20) + b'{"a')
    time.sleep(0.3)
    assert listener.stats()["connections"] == 60 and rss_bytes() - before < 60 * MIB


@pytest.mark.parametrize("body", [{}, {"name": 5}, {"name": None, "arguments": {}}, {"name": "echo", "arguments": [1]}])
def test_calls_without_sense_leave_the_connection_usable(body: dict[str, Any], net: Any) -> None:
    hand = net.stream(net.listen())
    hand.send(CALL, 5, body)
    answer = hand.receive((ERROR,))
    assert answer.request == 5 and "there is no call" in answer.body["message"]
    hand.send(CALL, 6, {"name": "echo", "arguments": {"a": 1}})
    assert hand.receive((REPLY,)).body == {"result": {"a": 1}}


def test_too_large_to_be_sent(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    listener = net.listen(handlers={"much": lambda call: "x" * 3000, "data": lambda call: call.send({}, [bytes(3000)])})
    peer = net.peer(listener)
    monkeypatch.setitem(frames.LIMITS, REPLY, 2000)
    with pytest.raises(ProtocolError, match="a REPLY of 30[0-9]+ bytes is larger.*ask for less"):
        peer.call("much")
    monkeypatch.setattr(frames, "PAYLOAD_BYTES_MAX", 2000)
    with pytest.raises(ProtocolError, match="a payload of 3000 bytes is larger.*send several"):
        peer.fetch("data", {}, keep)
    monkeypatch.setitem(frames.LIMITS, CALL, 100)
    with pytest.raises(ProtocolError, match="a CALL of"):
        peer.call("much", a="x" * 100)
    monkeypatch.undo()
    assert peer.call("much") == "x" * 3000 and listener.stats()["accepted"] <= 2


def test_a_caller_who_goes_on_sending_after_the_answer_is_cut_off(net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.service.wire.call.DRAIN_BYTES_MAX", 1 * MIB)
    listener = net.listen()
    hand = net.stream(listener)
    hand.send(CALL, 1, {"name": "nothing", "stream": True})
    assert hand.receive((ERROR,)).body["kind"] == "ProtocolError"
    with pytest.raises(PeerLost):
        for _ in range(200):
            hand.send_data({}, [bytes(100_000)], 1)
            time.sleep(0.001)
    wait_for(lambda: listener.stats()["connections"] == 0)


# --- crowds ---------------------------------------------------------------------------------------------------------------


def threads_of_listeners() -> int:
    return sum(thread.name.startswith("tierstore-peer") for thread in threading.enumerate())


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_flood_of_strangers_locks_nobody_out(secure: bool, net: Any, certificates: Any) -> None:
    net.tls = secure
    listener = net.listen(connections_max=4, strangers_max=8, auth_s=30)
    known, before = net.peer(listener), rss_bytes()
    known.call("echo")
    flood = []
    for number in range(150):
        flood.append(net.raw(listener))
        if number % 10 == 0:
            assert known.call("echo", number=number) == {"number": number}
            assert threads_of_listeners() <= 4 + 2 * 8
    assert net.peer(listener).call("echo", a=1) == {"a": 1}, "a newcomer is locked out"
    stats = listener.stats()
    assert stats["connections"] == 2 and stats["strangers"] <= 8 and rss_bytes() - before < 32 * MIB
    for raw in flood:
        raw.close()
    wait_for(lambda: listener.stats()["strangers"] == 0 and threads_of_listeners() == 2)


def test_more_connections_than_are_served(both: Any) -> None:
    listener = both.listen(connections_max=3)
    peers = [both.peer(listener) for _ in range(4)]
    for peer in peers[:3]:
        peer.call("echo")
    with pytest.raises(Full, match="serves 3 connections at most.*127.0.0.1"):
        peers[3].call("echo")
    peers[0].close()
    wait_for(lambda: listener.stats()["connections"] == 2)
    assert peers[3].call("echo", a=1) == {"a": 1}


# --- the end --------------------------------------------------------------------------------------------------------------


def test_stop_ends_everything(both: Any) -> None:
    listener, answers = both.listen(idle_s=60, auth_s=60), []

    def ask(name: str) -> None:
        try:
            answers.append(both.peer(listener).call(name))
        except TierstoreError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("look", "wait")]
    for thread in threads:
        thread.start()
    idle = both.peer(listener)
    idle.call("echo")
    strangers = [both.raw(listener) for _ in range(3)]
    wait_for(lambda: sorted(both.log) == ["looking", "waiting"] and listener.stats()["strangers"] == 3)
    threading.Timer(0.2, both.gate.set).start()  # "wait" ends by itself only
    began = time.monotonic()
    listener.stop()
    listener.stop()
    assert time.monotonic() - began < 5 and threads_of_listeners() == 0
    for thread in threads:
        thread.join()
    assert len(answers) == 2 and all(isinstance(answer, PeerLost) for answer in answers)
    assert all(closed_within(raw, 1) for raw in strangers)
    with pytest.raises(PeerLost, match="nobody listens"):
        idle.call("echo")


def test_stop_before_start_and_a_closed_peer(net: Any) -> None:
    listener = Listener(ListenerConfig("127.0.0.1", 0), {})
    listener.stop()
    peer = net.peer(net.listen())
    peer.close()
    with pytest.raises(TierstoreError, match="were closed"):
        peer.call("echo")


def test_a_handler_may_call_another_daemon(net: Any) -> None:
    """What the other one raises is the answer, and both connections stay."""
    far = net.listen()
    onward = net.peer(far)
    near = net.listen(handlers={"onward": lambda call: onward.call("fail", kind=call.argument("kind", str))})
    peer = net.peer(near)
    for kind, raised in (("NotFound", NotFound), ("PeerLost", PeerLost)):
        with pytest.raises(raised, match="in its own words"):
            peer.call("onward", kind=kind)
    assert near.stats()["accepted"] == far.stats()["accepted"] == 1


def test_an_error_with_odd_fields_is_still_an_error() -> None:
    for body in ({"kind": 5}, {"kind": ["a"], "message": {}}, {}, {"kind": "ConfigError", "allowed": 7, "key": []}):
        with Scripted(WELCOME, frames.encode(ERROR, 1, body)) as daemon, daemon.peer() as peer:
            with pytest.raises(TierstoreError):
                peer.call("x")


def test_a_short_check_is_noticed_by_the_stream_itself() -> None:
    """Every single flipped bit of a payload, and the right bytes."""
    left, right = socket.socketpair()
    with left, right:
        ours, theirs = Stream(left, "a", 5), Stream(right, "b", 5)
        for bit in range(0, 64):
            payload = bytearray(range(8))
            check = frames.checksum([memoryview(bytes(payload))])
            payload[bit // 8] ^= 1 << bit % 8
            ours.send_data({}, [payload], check=check)
            with pytest.raises(CorruptionError):
                theirs.receive((DATA,), keep)
        ours.send_data({"last": 1}, [bytes(range(8))])
        assert theirs.receive((DATA,), keep).body == {"last": 1}
