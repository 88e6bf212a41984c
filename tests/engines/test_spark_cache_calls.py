"""What an agent does for cached data of Spark, asked in this process: batches put, mapped, lost, dropped."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tierstore.emulation.procs import Daemon
from tierstore.engines.spark_agent_cache import ABSENT
from tierstore.engines.spark_agent_calls import Calls, Shared
from tierstore.ringbuf.errors import CorruptionError, Expired, Full, NotFound

pytestmark = pytest.mark.slow
APP, CACHE = "spark-1", (1 << 30) + 1
NONCE = "0123456789abcdef"
BLOCK = 1 << 20


class Jvm:
    """A connection of a JVM that keeps one cache."""

    def __init__(self, store: Any, quota: int = 0):
        self.store, self.calls = store, Calls(Shared(store))
        self.begin(CACHE, quota)

    def begin(self, cache: int, quota: int = 0) -> None:
        self.ask("shuffle", app=APP, shuffle=cache, partitions=1, lease_s=60.0, quota=quota, pool="default")

    def ask(self, op: str, body: bytes = b"", **arguments: Any) -> tuple[dict[str, Any], bytes]:
        head, parts = self.calls.handle({"op": op, **arguments}, bytearray(body))
        return head, b"".join(bytes(memoryview(part)) for part in parts)

    def put(self, sequence: int, data: bytes, partition: int = 0, cache: int = CACHE) -> tuple[str, str]:
        """A block, filled as a JVM does; its key and hash."""
        place, _ = self.ask("block", **name(partition) | {"shuffle": cache}, sequence=sequence, size=len(data))
        with open(f"/proc/self/fd/{self.store._session.grant.write_fds[place['arena']]}", "r+b") as file:
            start = place["offset"] // mmap.PAGESIZE * mmap.PAGESIZE
            with mmap.mmap(file.fileno(), place["offset"] - start + len(data), offset=start) as memory:
                memory[place["offset"] - start :] = data
        return place["key"], self.ask("seal", id=place["id"])[0]["hash"]

    def map(self, blocks: list[tuple[str, str]], release: tuple[int, ...] = ()) -> tuple[list[list[int]], bytes]:
        keys, hashes = [key for key, _ in blocks], [hashed for _, hashed in blocks]
        head, body = self.ask("map", keys=keys, hashes=hashes, release=list(release))
        return head["blocks"], body

    def see(self, place: list[int]) -> bytes:
        with open(f"/proc/self/fd/{self.store._session.grant.arena_fds[place[1]]}", "rb") as file:
            return os.pread(file.fileno(), place[3], place[2])


def name(partition: int) -> dict[str, Any]:
    return {"app": APP, "shuffle": CACHE, "map": partition, "attempt": "t7", "nonce": NONCE}


def noise(number: int, size: int = BLOCK) -> bytes:
    return np.random.default_rng(number).bytes(size)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, "--dram", "16MiB", "--disk", f"{tmp_path / 'disk'}:64MiB")
    made.start()
    yield made
    made.end()


def test_blocks_are_mapped_and_go_with_their_cache(daemon: Daemon) -> None:
    with daemon.connect() as store:
        jvm = Jvm(store)
        blocks = [jvm.put(number, noise(number, 1000 * (number + 1))) for number in range(3)]
        places, body = jvm.map([*blocks, ("shuffle/nobody", "0")])
        assert body == b"" and places[3][1] == ABSENT
        assert [jvm.see(place) for place in places[:3]] == [noise(number, 1000 * (number + 1)) for number in range(3)]
        assert len(jvm.calls._pins) == 3
        jvm.map([], tuple(place[0] for place in places[:2]))
        assert list(jvm.calls._pins) == [places[2][0]]
        [app] = store._control.call("shuffle_list")
        assert app["used_bytes"] == 6000 and app["shuffles"][0]["open_attempts"] == 1
        jvm.ask("uncache", app=APP, shuffle=CACHE)
        assert store.keys("shuffle/spark-1/") == []
        assert jvm.see(places[2]) == noise(2, 3000)  # as long as it is pinned
        with pytest.raises((Expired, NotFound)):
            jvm.put(9, b"too late")
        jvm.calls.close()
        assert jvm.calls._pins == {}


def test_a_block_of_any_size_is_sent(daemon: Daemon) -> None:
    with daemon.connect() as store:
        jvm, data = Jvm(store), noise(1, 9 * BLOCK + 5)
        small = jvm.put(0, b"small")
        made, _ = jvm.ask("block_put", data, **name(0), sequence=1)
        large = (made["key"], made["hash"])
        places, body = jvm.map([large, large, small])
        assert places == [[0, -1, 0, len(data)]] and body == data  # the rest is asked for again
        places, body = jvm.map([small, large])
        assert jvm.see(places[0]) == b"small" and places[1][1] == -1 and body == data


def test_a_lost_block_takes_its_attempt_along(daemon: Daemon) -> None:
    with daemon.connect() as store:
        jvm = Jvm(store)
        blocks = [jvm.put(number, noise(number)) for number in range(3)]
        other = jvm.put(0, b"of another partition", partition=1)
        store.delete(blocks[1][0])
        assert [place[1] == ABSENT for place in jvm.map(blocks)[0]] == [False, True, False]
        jvm.ask("forget", key=blocks[1][0])
        jvm.ask("forget", key=blocks[1][0])
        assert [key for key in store.keys("shuffle/") if key.count("/") == 5] == [other[0]]


def test_what_exceeds_the_quota_is_refused(daemon: Daemon) -> None:
    with daemon.connect() as store:
        jvm = Jvm(store, quota=3 * BLOCK)
        for number in range(3):
            jvm.put(number, noise(number))
        with pytest.raises(Full, match="quota of application 'spark-1'"):
            jvm.put(3, noise(3))


def test_a_block_that_is_damaged_on_disk_is_not_handed_out(daemon: Daemon) -> None:
    with daemon.connect() as store:
        jvm = Jvm(store)
        blocks = [jvm.put(number, noise(number)) for number in range(40)]  # more than memory has room for
        places = [jvm.map([block])[0][0] for block in blocks]
        assert all(jvm.see(place) == noise(number) for number, place in enumerate(places))
        arenas = store._session.grant.arenas
        number = next(number for number, place in enumerate(places) if not arenas[place[1]].mapped)
        _, arena, offset, _ = places[number]
        with open(arenas[arena].path, "r+b") as file:
            file.seek(offset + 77_777)
            file.write(b"damaged")
        with pytest.raises(CorruptionError, match="payload hash"):
            jvm.map([blocks[number]])


def test_the_last_of_the_store_is_left_to_others(tmp_path: Path) -> None:
    made = Daemon(tmp_path, "--dram", "32MiB", "--ephemeral")
    try:
        with made.start().connect() as store:
            jvm, number = Jvm(store), 0
            store.put("may go", pa.table({"a": np.arange(1_000_000)}))  # eight segments that count as room
            with pytest.raises(Full, match="16th of the store"):
                for number in range(64):
                    jvm.put(number, noise(number, 900_000))
            assert 24 <= number <= 32
            with pytest.raises(Full, match="16th of the store"):
                jvm.ask("block_put", noise(2), **name(0), sequence=99)
            store.put_bytes("a run of a shuffle", noise(1, 900_000), keep=True)
            jvm.ask("uncache", app=APP, shuffle=CACHE)
            jvm.begin(CACHE)
            jvm.put(0, noise(3, 900_000))
    finally:
        made.end()


def test_more_small_caches_than_the_store_has_segments(tmp_path: Path) -> None:
    """Each begins a segment of its own; those that are idle are taken back, and what they hold is moved together."""
    made = Daemon(tmp_path, "--dram", "32MiB", "--ephemeral")
    try:
        with made.start().connect() as store:
            jvm, count = Jvm(store), 2 * store.stats()["tiers"]["dram"]["segments"]["free"]
            blocks = {}
            for number in range(count):
                jvm.begin(CACHE + number)
                blocks[jvm.put(0, noise(number, 5000), cache=CACHE + number)[0]] = noise(number, 5000)
            assert len(blocks) == count and all(bytes(store.get_bytes(key)) == data for key, data in blocks.items())
    finally:
        made.end()
