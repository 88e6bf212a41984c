"""Broken conversations by seed: a listener answers or closes, and serves others; a peer raises or returns.

Neither hangs or grows. TEST_SEED=n repeats a run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tierstore.ringbuf.errors import TierstoreError
from tierstore.service.wire import frames
from tierstore.service.wire.client import Peer
from tierstore.service.wire.frames import AUTH, CALL, DATA, END, ERROR, HEADER, REPLY

SEED = int(os.environ.get("TEST_SEED", "1"))
CASES = [2000, pytest.param(100_000, marks=pytest.mark.soak)]
MIB = 1 << 20
HANG_S = 10.0
OPERATIONS = [AUTH, CALL, DATA, END, REPLY, ERROR, 0, 77]
JSON = [
    b"{}",
    b"[]",
    b"null",
    b'{"name":"echo"}',
    b'{"name":1}',
    b'{"result":1}',
    b'{"kind":[1],"message":{}}',
    b"{",
    b"\xff",
    b"[" * 3000,
    b"1e999",
    b'{"a":NaN}',
]  # noqa: E501


def data(request: int, payload: bytes, check: int | None = None, head: dict[str, Any] | None = None) -> bytes:
    found = frames.checksum([memoryview(payload)]) if check is None else check
    return frames.encode_data(request, head or {}, len(payload), found) + payload


class Maker:
    """Conversations, whole and broken, from one source of chance."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)

    def caller(self) -> list[bytes]:
        """Frames as a caller may send them."""
        chance = self.chance
        said = [frames.encode(AUTH, 0, {"token": chance.choice([None, "x" * 20, 5])})]
        for request in range(1, chance.randint(1, 4)):
            name = chance.choice(["echo", "take", "give", "fail", "nothing"])
            body: dict[str, Any] = {"name": name, "arguments": {"size": chance.choice([0, 10, 70_000]), "kind": "Full"}}
            streams = name == "take" or chance.random() < 0.2
            said.append(frames.encode(CALL, request, body | ({"stream": True} if streams else {})))
            if streams:
                said += [
                    data(request, self.noise(3000), head={"refuse": chance.random() < 0.1})
                    for _ in range(chance.randint(0, 3))
                ]
                said.append(frames.encode(END, request, {}))
        return said

    def daemon(self) -> list[bytes]:
        """Frames as a daemon may answer the first call."""
        said = [data(1, self.noise(3000)) for _ in range(self.chance.randint(0, 3))]
        last = (REPLY, {"result": 1}) if self.chance.random() < 0.7 else (ERROR, {"kind": "Full", "message": "m"})
        return [frames.encode(REPLY, 0, {"result": {}}), *said, frames.encode(last[0], 1, last[1])]

    def noise(self, most: int) -> bytes:
        return self.chance.randbytes(self.chance.randint(0, most))

    def broken(self, said: list[bytes]) -> bytes:
        """The same, damaged in up to three ways."""
        said = [*said]
        for _ in range(self.chance.randint(0, 3)):
            if not said:
                break
            at = self.chance.randrange(len(said))
            said[at] = self.damaged(said[at])
            if self.chance.random() < 0.1:
                said.insert(at, said[self.chance.randrange(len(said))])
            if self.chance.random() < 0.1:
                del said[at]
        return b"".join(said)

    def damaged(self, frame: bytes) -> bytes:
        chance, raw = self.chance, bytearray(frame)
        match chance.randrange(8):
            case 0:  # flipped bits
                for _ in range(chance.randint(1, 8)):
                    if raw:
                        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            case 1:  # cut
                del raw[chance.randrange(len(raw) + 1) :]
            case 2:  # something put in
                at = chance.randrange(len(raw) + 1)
                raw[at:at] = self.noise(100)
            case 3:  # another length
                if len(raw) >= HEADER.size:
                    struct.pack_into(
                        "<I", raw, 12, chance.choice([0, 1, 7, 8, len(raw), 4096, 1 << 24, 1 << 30, 2**32 - 1])
                    )
            case 4:  # another operation or version
                if len(raw) >= HEADER.size:
                    struct.pack_into("<H", raw, chance.choice([4, 6]), chance.choice(OPERATIONS))
            case 5:  # another body
                body = chance.choice(JSON)
                raw = bytearray(
                    HEADER.pack(b"TSF1", 1, chance.choice(OPERATIONS), chance.choice([0, 1, 9]), len(body)) + body
                )
            case 6:  # another prefix of DATA
                sizes = [0, 1, 8, 100, 1 << 20, 1 << 21, 2**32 - 1]
                body = struct.pack("<II", chance.choice(sizes), chance.choice([0, 1])) + self.noise(64)
                raw = bytearray(HEADER.pack(b"TSF1", 1, DATA, 1, len(body)) + body)
            case _:  # noise
                raw = bytearray(self.noise(200))
        return bytes(raw)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def converse(address: Any, said: bytes, hang_up: bool) -> None:
    """Say it, and read until the other side closes, which it must."""
    with socket.create_connection((address.host, address.port), HANG_S) as raw:
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            raw.sendall(said)
            if hang_up:
                half_close(raw)
            while raw.recv(1 << 16):
                assert time.monotonic() - began < HANG_S, "it goes on for ever"


def half_close(raw: socket.socket) -> None:
    """Say that nothing more comes; the other side may have closed already."""
    try:
        raw.shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES)
def test_a_listener_survives_broken_callers(cases: int, net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"TEST_SEED={SEED}")
    monkeypatch.setattr("tierstore.service.wire.call.DRAIN_S", 0.5)
    maker = Maker(SEED)
    listener = net.listen(auth_s=0.3, silence_s=0.3, idle_s=0.3, failed_delay_s=0.0)
    good = net.peer(listener)
    for _ in range(200):  # what is made once is made now
        converse(listener.address, maker.broken(maker.caller()), True)
    before = rss_bytes()
    for case in range(cases):
        said = maker.broken(maker.caller())
        try:
            converse(listener.address, said, hang_up=case % 100 != 0)
        except (TimeoutError, AssertionError) as error:
            pytest.fail(f"TEST_SEED={SEED} case {case}: {error!r} after {said!r}")
        if case % 50 == 0:
            assert good.call("echo", case=case) == {"case": case}
    assert rss_bytes() - before < 24 * MIB
    deadline = time.monotonic() + 5
    while listener.stats()["strangers"] or listener.stats()["connections"] > 1:
        assert time.monotonic() < deadline, "connections stay"
        time.sleep(0.01)
    assert good.call("echo", a=1) == {"a": 1}
    stats = listener.stats()
    assert stats["refused"] > cases // 10 and stats["calls"] > cases // 10 and stats["failed_calls"] > cases // 100


@contextlib.contextmanager
def liar(said: list[bytes]) -> Iterator[int]:
    """A daemon that says the next thing of a list to each connection; its port."""
    server = socket.create_server(("127.0.0.1", 0), backlog=64)

    def serve() -> None:
        while said:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                connection.sendall(said.pop())
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        said.clear()
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        thread.join()
        server.close()


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES)
def test_a_peer_survives_broken_daemons(cases: int) -> None:
    print(f"TEST_SEED={SEED}")
    maker, outcomes = Maker(SEED), {"returned": 0, "raised": 0}
    said = [maker.broken(maker.daemon()) for _ in range(cases)]
    memory, before = memoryview(bytearray(1 << 20)), rss_bytes()

    def sink(head: dict[str, Any], size: int) -> memoryview:
        if size > len(memory):
            raise TierstoreError("more than was asked for")
        return memory[:size]

    with liar(said) as port:
        while said:
            told, left, began = said[-1], len(said), time.monotonic()
            peer = Peer(f"127.0.0.1:{port}", timeout_s=2)
            try:
                peer.fetch("x", {}, sink)
                outcomes["returned"] += 1
            except TierstoreError:
                outcomes["raised"] += 1
            except Exception as error:
                pytest.fail(f"TEST_SEED={SEED}: {error!r} after {told!r}")
            finally:
                peer.close()
            assert time.monotonic() - began < HANG_S, f"TEST_SEED={SEED}: it hangs after {told!r}"
            while len(said) == left:
                time.sleep(0.0001)
    assert rss_bytes() - before < 24 * MIB and min(outcomes.values()) > cases // 50
