"""Several threads of one handle that wait for segments, and what frees one meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.cache import placing
from tierstore.cache.store import Store
from tierstore.ringbuf import layout

LARGE = bytes(900_000)  # one to a segment


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A store in which KEEP values fill all segments; puts wait for four seconds."""
    with tierstore.open(dram="8MiB", segment="1MiB") as store:
        monkeypatch.setattr(store._session, "lease_wait_s", 0.5)
        number = 0
        with pytest.raises(tierstore.Full):
            while True:
                store.put_bytes(f"full/{number}", LARGE, keep=True)
                number += 1
        store._session.lease_wait_s = 4.0
        yield store
        assert store.verify(payloads=True)["ok"]


def waiting(store: Store, before: int) -> bool:
    """Whether somebody asked for a segment in vain since then."""
    return store._session.counters()["waits"] > before


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("put", ["value", "values", "table"])
def test_another_thread_frees_what_a_put_waits_for(full: Store, put: str) -> None:
    puts: dict[str, Callable[[], object]] = {
        "value": lambda: full.put_bytes("new", LARGE, keep=True),
        "values": lambda: full.put_many([("new", bytes(200_000)), ("newer", LARGE[:800_000])], keep=True),
        "table": lambda: full.put("new", pa.table({"x": np.arange(100_000)}), keep=True),
    }
    before = full._session.counters()["waits"]
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(puts[put])
        until(lambda: waiting(full, before))
        began = time.monotonic()
        for number in range(3):
            full.delete(f"full/{number}")
        took = time.monotonic() - began
        done.result()
    assert took < 2 and "new" in full


def test_two_threads_that_wait_take_one_segment(full: Store) -> None:
    before = full._session.counters()["waits"]
    go = threading.Barrier(6)

    def put(number: int) -> None:
        go.wait()
        full.put_bytes(f"small/{number}", bytes(100), keep=True)

    with ThreadPoolExecutor(6) as threads:
        # What was left of the open segment is too small: all of them need a new one.
        for lease in list(full._session.leases.values()):
            full._appender.retire(lease)
        done = [threads.submit(put, number) for number in range(6)]
        until(lambda: waiting(full, before))
        for number in range(3):
            full.delete(f"full/{number}")
        for each in done:
            each.result()
    leased = full.stats()["tiers"]["dram"]["segments"]["leased"]
    assert len(full._session.leases) == 1 and leased == 1
    assert len({full._find(f"small/{number}").segment for number in range(6)}) == 1


def test_puts_and_deletes_of_many_threads_at_the_edge(full: Store) -> None:
    for number in range(4):
        full.delete(f"full/{number}")

    def work(name: int) -> None:
        for number in range(15):
            value = np.random.default_rng([name, number]).bytes(60_000 + 7_000 * name)
            full.put_many([(f"{name}/a", value), (f"{name}/b", value[:100])], keep=True)
            full.put_bytes(f"{name}/c", value * 5, keep=True)
            assert bytes(full.get_bytes(f"{name}/a")) == value and bytes(full.get_bytes(f"{name}/c")) == value * 5
            for key in "abc":
                full.delete(f"{name}/{key}")

    full._session.lease_wait_s = 20.0
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert full.keys("0/") == []


def test_patience_is_of_one_thread(full: Store) -> None:
    """While one waits no longer than it likes, and fails, another goes on waiting."""
    with ThreadPoolExecutor(1) as threads:
        before = full._session.counters()["waits"]
        done = threads.submit(full.put_bytes, "new", LARGE, keep=True)
        until(lambda: waiting(full, before))
        began = time.monotonic()
        with full._session.patience(0.1), full._session.patience(0.05), pytest.raises(tierstore.Full, match="0.05 s"):
            full.put_bytes("other", LARGE, keep=True)
        assert time.monotonic() - began < 2 and not done.done()
        full.delete("full/0")
        full.delete("full/1")
        done.result()
    assert full._session.lease_wait().__dict__["_wait_s"] == 4.0


def put_placed(store: Store, key: str, group: str) -> int:
    return placing.put_placed(store, key, layout.KIND_BYTES, 0, 64, 0, lambda at: None, pool="default", group=group)


def test_a_group_that_ended_holds_no_segment(store: Store) -> None:
    for number in range(5):
        put_placed(store, f"group {number}", f"g{number}")
    store.put_bytes("other", b"x", keep=True)
    assert len(store._session.leases) == 6
    for number in range(5):
        placing.end_group(store, f"g{number}")
        placing.end_group(store, f"g{number}")
        placing.end_group(store, "never seen")
    assert [lease.group for lease in store._session.leases.values()] == [""]
    assert store.stats()["tiers"]["dram"]["segments"]["leased"] == 1
    assert all(f"group {number}" in store for number in range(5))
    put_placed(store, "late", "g0")
    assert "late" in store and len(store._session.leases) == 2


def test_a_group_that_ends_during_a_put(store: Store) -> None:
    """The segment is given back when the object in it is done."""
    data = pa.record_batch({"x": np.arange(1000)})
    writer = placing._writer(store, "key", "default", "g", data.schema)
    writer.write_batch(data)
    writer.write_batch(data)  # the first one is in a segment now
    lease = next(lease for lease in store._session.leases.values() if lease.group == "g")
    placing.end_group(store, "g")
    assert lease not in store._session.leases.values()
    assert store.stats()["tiers"]["dram"]["segments"]["leased"] == 1
    writer.close_batches()
    placing.end_group(store, "g")
    assert store.stats()["tiers"]["dram"]["segments"]["leased"] == 0 and store.get("key").num_rows == 2000
