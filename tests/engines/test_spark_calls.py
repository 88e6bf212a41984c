"""What an agent does for its JVM, asked in this process: attempts that others fill, partitions that others map."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tierstore.emulation.procs import Daemon
from tierstore.engines import spark_agent_calls, spark_agent_wire
from tierstore.engines.spark_agent_beats import PATIENCE_S, Beats
from tierstore.engines.spark_agent_calls import Calls, Shared
from tierstore.ringbuf.errors import Expired, LostMaps, NotFound, TierstoreError
from tierstore.shuffle.checks import partition_checks
from tierstore.shuffle.receipt import Receipt
from tierstore.shuffle.slices import byte_batch

pytestmark = pytest.mark.slow
APP, PARTITIONS = "spark-1", 3
TERMS = {"partitions": PARTITIONS, "lease_s": 60.0, "quota": 0, "pool": "default"}


class Jvm:
    """One connection of a JVM to an agent of a store."""

    def __init__(self, store: Any):
        self.store, self.shared = store, Shared(store)
        self.calls = Calls(self.shared)

    def ask(self, op: str, body: bytes = b"", **arguments: Any) -> dict[str, Any]:
        head, parts = self.calls.handle({"op": op, **arguments}, bytearray(body))
        return {**head, "body": b"".join(bytes(memoryview(part)) for part in parts)}

    def open(self, shuffle: int = 0) -> None:
        self.ask("shuffle", app=APP, shuffle=shuffle, **TERMS)

    def file(self, arena: int) -> Path:
        return Path(f"/proc/self/fd/{self.store._session.grant.write_fds[arena]}")

    def fill(self, place: dict[str, Any], data: bytes) -> None:
        """Write as a JVM does: through the arena's file."""
        with open(self.file(place["arena"]), "r+b") as file:
            start = place["offset"] // mmap.PAGESIZE * mmap.PAGESIZE
            with mmap.mmap(file.fileno(), place["offset"] - start + len(data), offset=start) as memory:
                memory[place["offset"] - start :] = data

    def see(self, arena: int, offset: int, size: int) -> bytes:
        with open(f"/proc/self/fd/{self.store._session.grant.arena_fds[arena]}", "rb") as file:
            return os.pread(file.fileno(), size, offset)

    def write(self, map_index: int, runs: list[list[bytes]], shuffle: int = 0) -> dict[str, Any]:
        self.open(shuffle)
        most = self.ask("attempt", app=APP, shuffle=shuffle, map=map_index, attempt=f"{map_index}0")["most"]
        for parts in runs:
            data = b"".join(parts)
            if len(data) > most:
                self.ask("run_put", told(parts) + data)
            else:
                self.fill(self.ask("run", size=len(data)), data)
                self.ask("run_seal", told(parts))
        return dict(self.ask("commit", records=7)["receipt"])

    def read(self, receipts: list[dict[str, Any]], first: int, last: int) -> tuple[dict[int, bytes], int]:
        """The bytes of each attempt, run behind run, and how many pieces were sent and not mapped."""
        self.open(receipts[0]["shuffle"])
        named = [
            [r["map_index"], r["attempt"], f"{r['manifest_hash']:x}", r["store_id"], r["incarnation"], r["node"], []]
            for r in receipts
        ]
        self.ask("read", app=APP, shuffle=receipts[0]["shuffle"], first=first, last=last, receipts=named)
        found: dict[int, bytes] = {}
        sent = 0
        while (answer := self.ask("next"))["pieces"]:
            body = answer["body"]
            for number, arena, offset, starts in answer["pieces"]:
                data = body[: starts[-1]] if arena < 0 else self.see(arena, offset, starts[-1])
                body, sent = (body[starts[-1] :], sent + 1) if arena < 0 else (body, sent)
                found[number] = found.get(number, b"") + data
        self.ask("read_end")
        return found, sent


def told(parts: list[bytes]) -> bytes:
    """Where partitions begin, and their checks, as a JVM tells them."""
    starts = np.cumsum([0, *map(len, parts)])
    checks = partition_checks(byte_batch(pa.py_buffer(b"".join(parts))), starts)
    return starts.astype(">u4").tobytes() + checks.astype(">u8").tobytes()


def noise(seed: int, size: int) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.fixture
def jvm(node: Daemon) -> Iterator[Jvm]:
    with node.connect() as store:
        made = Jvm(store)
        yield made
        made.calls.close()
    vars(made).clear()  # pytest keeps it, and it would keep the store's memory mapped


def test_attempts_are_ordinary_ones(jvm: Jvm, node: Daemon) -> None:
    runs = [[noise(1, 1000), b"", noise(2, 70_000)], [b"", noise(3, 10), noise(4, 5)]]
    receipt = jvm.write(0, runs)
    with node.connect() as store:
        shuffle = store.shuffle(APP, 0, PARTITIONS)
        tables = dict(shuffle.read_partitions(receipts=[Receipt.from_dict(receipt)]))
    read = {partition: bytes(table.column(0).to_pylist()) for partition, table in tables.items()}
    del tables
    assert read == {number: runs[0][number] + runs[1][number] for number in range(PARTITIONS)}
    assert receipt["rows"] == 7 and receipt["bytes"] == sum(map(len, runs[0] + runs[1]))


def test_partitions_are_mapped_and_large_ones_sent(jvm: Jvm) -> None:
    large = noise(5, 3 << 20)  # segments have 1 MiB
    receipts = [jvm.write(0, [[b"abc", b"de", b""]]), jvm.write(1, [[noise(1, 9), large, b""], [b"", b"x", b"y"]])]
    assert jvm.read(receipts, 1, 3) == ({0: b"de", 1: large + b"xy"}, 1)
    assert jvm.read(receipts[:1], 0, 1) == ({0: b"abc"}, 0)
    assert jvm.read(receipts[:1], 2, 3) == ({}, 0)


def test_many_pieces_come_in_several_answers(jvm: Jvm, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = [jvm.write(number, [[b"a", b"b" * number, b"c"]]) for number in range(5)]
    expected = {number: b"a" + b"b" * number + b"c" for number in range(5)}
    for limit, value in (("PIECES_MAX", 2), ("PIECES_BYTES", 7), ("STARTS_MAX", 8)):
        with monkeypatch.context() as patch:
            patch.setattr(spark_agent_calls, limit, value)
            assert jvm.read(receipts, 0, 3) == (expected, 0)


def test_a_connection_that_ends_drops_what_was_not_committed(jvm: Jvm) -> None:
    jvm.open()
    jvm.ask("attempt", app=APP, shuffle=0, map=0, attempt="a")
    jvm.fill(jvm.ask("run", size=9), b"123456789")
    jvm.ask("run_seal", told([b"123", b"456", b"789"]))
    jvm.ask("run", size=100)
    jvm.ask("begin", key="half", size=50)
    assert [key for key in jvm.store.keys("shuffle/") if "/a/" in key]
    jvm.calls.close()
    assert [key for key in jvm.store.keys() if "/a/" in key or key == "half"] == []
    assert jvm.store.verify(payloads=True)["ok"]


def test_what_is_told_must_fit(jvm: Jvm) -> None:
    jvm.open()
    jvm.ask("attempt", app=APP, shuffle=0, map=0, attempt="a")
    for parts, remedy in [([b"123", b"456"], "32 are needed|40 are needed"), ([b"12", b"", b"34"], "from 0 to 9")]:
        jvm.ask("run", size=9)
        with pytest.raises(ValueError, match=remedy):
            jvm.ask("run_seal", told(parts))
        jvm.ask("abort")
        jvm.ask("attempt", app=APP, shuffle=0, map=0, attempt="a")
    for request in ({"op": "nonsense"}, {"op": "run"}, {"op": "run", "size": 1, "more": 2}, {"op": "seal", "id": 99}):
        with pytest.raises(ValueError, match="nonsense|missing|more|not begun"):
            jvm.calls.handle(request, bytearray())
    with pytest.raises(NotFound):
        Jvm(jvm.store).ask("attempt", app="another", shuffle=0, map=0, attempt="a")


def test_damage_is_found_before_the_jvm_sees_it(jvm: Jvm) -> None:
    receipt = jvm.write(0, [[b"a" * 500, b"b" * 500, b"c" * 500]])
    jvm.open()
    run = next(key for key in jvm.store.keys("shuffle/") if key.count("/") == 5)
    place = jvm.ask("pin", key=run)
    jvm.fill({**place, "offset": place["offset"] + 600}, b"?")
    assert jvm.read([receipt], 0, 1) == ({0: b"a" * 500}, 0)
    with pytest.raises(LostMaps) as caught:
        jvm.read([receipt], 1, 3)
    assert caught.value.maps == [0]
    jvm.fill({**place, "offset": place["offset"] + 600}, b"b")


def test_a_shuffle_that_was_dropped_is_opened_again(jvm: Jvm) -> None:
    receipt = jvm.write(0, [[b"a", b"b", b"c"]])
    jvm.store._control.call("shuffle_end", app=APP)
    with pytest.raises(Expired):
        jvm.read([receipt], 0, 3)
    jvm.calls.expired()  # as the agent does
    again = jvm.write(0, [[b"d", b"", b"e"]])
    assert jvm.read([again], 0, 3) == ({0: b"de"}, 0)
    jvm.ask("drop", app=APP, shuffle=0)
    jvm.ask("drop", app=APP, shuffle=0)
    jvm.ask("end", app=APP)
    jvm.ask("end", app=APP)
    assert jvm.store.keys("shuffle/") == []


def test_plain_objects(jvm: Jvm) -> None:
    data = noise(6, 5000)
    begun = jvm.ask("begin", key="df/1", size=len(data), group="df")
    jvm.fill(begun, data)
    assert "df/1" not in jvm.store
    jvm.ask("seal", id=begun["id"])
    assert bytes(jvm.store.get_bytes("df/1")) == data
    pinned = jvm.ask("pin", key="df/1")
    assert jvm.see(pinned["arena"], pinned["offset"], pinned["size"]) == data
    large = noise(7, 2 << 20)
    jvm.ask("put", large, key="df/2")
    sent = jvm.ask("pin", key="df/2")
    assert (sent["arena"], sent["body"]) == (-1, large)
    with pytest.raises(ValueError, match="in one piece"):
        jvm.ask("begin", key="df/3", size=2 << 20)
    assert jvm.ask("keys", prefix="df/")["keys"] == ["df/1", "df/2"]
    assert jvm.ask("delete", key="df/1")["found"] and not jvm.ask("delete", key="df/1")["found"]
    jvm.ask("release", id=pinned["id"])
    cancelled = jvm.ask("begin", key="df/4", size=10)
    jvm.ask("cancel", id=cancelled["id"])
    assert jvm.ask("keys", prefix="df/")["keys"] == ["df/2"]


@pytest.mark.parametrize("lz4", [False, True])
def test_runs_that_moved_to_disk(tmp_path: Path, lz4: bool) -> None:
    """Mapped from there; sent, where they are compressed."""
    (tmp_path / "disk").mkdir()
    options = ("--disk-lz4",) if lz4 else ()
    node = Daemon(tmp_path, "--dram", "6MiB", "--disk", f"{tmp_path / 'disk'}:64MiB", "--ephemeral", *options)
    try:
        node.start()
        with node.connect() as store:
            jvm = Jvm(store)
            parts = {number: [b"%d" % number * 300_000, b"", noise(number, 200_000)] for number in range(16)}
            receipts = [jvm.write(number, [parts[number]]) for number in range(16)]
            found, sent = jvm.read(receipts, 0, 3)
            assert found == {number: b"".join(parts[number]) for number in range(16)}
            assert (sent > 0) == lz4 and store.stats()["tiers"]["disk"]["live_bytes"] > 0
            jvm.calls.close()
            vars(jvm).clear()
    finally:
        node.end()


def test_partitions_of_another_node_are_sent_and_a_copy_is_found(tmp_path: Path) -> None:
    ports = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    names = [f"127.0.0.1:{port.getsockname()[1]}" for port in ports]
    for port in ports:
        port.close()
    nodes = []
    for name in names:
        (tmp_path / name).mkdir()
        others = [part for other in names if other != name for part in ("--node", other)]
        nodes.append(
            Daemon(tmp_path / name, "--dram", "32MiB", "--ephemeral", "--listen", name, "--replicas", "2", *others)
        )
    try:
        for node in nodes:
            node.start()
        with nodes[0].connect() as here:
            runs = [[noise(1, 500_000), noise(2, 300_000), b""]]
            receipt = Jvm(here).write(0, runs)
        [replica] = receipt["replicas"]
        third = next(number for number in (1, 2) if names[number] != replica)
        with nodes[third].connect() as store:
            reader = Jvm(store)
            assert reader.read([receipt], 0, 3) == ({0: b"".join(runs[0])}, 1)
            nodes[0].kill()
            named = dict(receipt)
            assert reader.read([named], 1, 2)[0] == {0: runs[0][1]}
            nodes[names.index(replica)].kill()
            with pytest.raises(TierstoreError):
                reader.read([receipt], 0, 3)
    finally:
        for node in nodes:
            node.end()


def frames(connection: socket.socket) -> list[dict[str, Any]]:
    """What has arrived."""
    found = []
    connection.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while (frame := spark_agent_wire.receive(connection)) is not None:
            found.append(frame[0])
    connection.setblocking(True)
    return found


def test_an_agent_tells_those_who_wait_until_it_has_been_too_long() -> None:
    here, there = socket.socketpair()
    with here, there:
        beats, began = Beats(), time.monotonic()
        beats.beat(began)
        with beats.during(here, "keys"):
            beats.beat(began)
            beats.beat(began + PATIENCE_S - 1)
            assert frames(there) == [{"working": True}] * 2
            beats.beat(began + PATIENCE_S + 1)
        with beats.during(here, "next"):  # waits for other nodes
            beats.beat(began + PATIENCE_S + 1)
        beats.beat(began)  # nobody waits any more
        spark_agent_wire.send(here, {"keys": []}, [b"body"])
        assert frames(there) == [{"working": True}, {"keys": []}]


def test_beats_that_nobody_reads_stop_no_other() -> None:
    (here, there), (other, reader) = socket.socketpair(), socket.socketpair()
    with here, there, other, reader:
        beats = Beats()
        here.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                here.send(bytes(4096))
        here.setblocking(True)
        with beats.during(here, "next"), beats.during(other, "next"):
            beats.beat(time.monotonic())
        assert frames(reader) == [{"working": True}]
