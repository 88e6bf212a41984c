"""Leases, drops, deaths and mistakes in an order that would lose rows, keep rubbish, or give away what is somebody's."""

from __future__ import annotations

import time
from typing import Any

import pytest

import tierstore
from tests.shuffle.rows import PARTITIONS, expected, keys_left, read_all, rows_of, write
from tierstore.emulation.procs import Daemon
from tierstore.ringbuf.errors import Closed, Conflict, Expired, Full, PeerLost, Refused
from tierstore.service.store import Store
from tierstore.shuffle.registry import Registry


def registry_of(store: Store) -> Registry:
    """The registry of an embedded store that has had a shuffle."""
    control: Any = store._control
    found = control.requests.table["shuffle_open"].__self__
    assert isinstance(found, Registry)
    return found


def test_durable_output_is_there_after_memory_was_lost(tier_options: dict[str, str]) -> None:
    with tierstore.open(**tier_options) as store:
        shuffle = store.shuffle("app", 0, PARTITIONS, secret="right")
        with shuffle.writer(0, durable=True) as writer:
            writer.write(rows_of(0), by=["k"])
        with shuffle.writer(1) as other:
            other.write(rows_of(1), by=["k"])
    with tierstore.open(**tier_options) as store:
        with pytest.raises(Refused):
            store.shuffle("app", 0, PARTITIONS, secret="wrong")
        shuffle = store.shuffle("app", 0, PARTITIONS, secret="right")
        assert read_all(shuffle, [writer.receipt]).equals(expected([0]))
        with pytest.raises(tierstore.LostMaps) as lost:
            shuffle.read(receipts=[writer.receipt, other.receipt])
        assert lost.value.maps == [1]


def test_a_lease_does_not_end_during_a_commit(tiered: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shuffle = tiered.shuffle("app", 0, PARTITIONS, lease_s=1.0, renew=False)
    registry = registry_of(tiered)
    flush = registry._committer._requests.flush
    monkeypatch.setattr(registry._committer._requests, "flush", lambda key: (time.sleep(1.0), flush(key)))
    with shuffle.writer(0, durable=True) as writer:
        writer.write(rows_of(0), by=["k"])
    assert read_all(shuffle, [writer.receipt]).equals(expected([0]))


def test_a_process_that_stood_still_does_not_expire_anybody(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS, lease_s=5.0, renew=False)
    book = registry_of(store).book
    before = book.apps["app"].until
    book.forgive(60.0)
    assert book.apps["app"].until == before + 60.0
    assert shuffle.call("shuffle_list")[0]["app"] == "app"


def test_a_writer_that_lost_rows_cannot_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.shuffle.writer.WAIT_S", 0.1)
    with store.shuffle("app", 0, PARTITIONS, quota="600KiB") as shuffle:
        held = write(shuffle, 0, 9_000)
        writer = shuffle.writer(1)
        writer.write(rows_of(1, 9_000), by=["k"])
        with pytest.raises(Full, match="quota"):
            writer.flush()
        with pytest.raises(Closed, match="lost rows"):
            writer.close()
        writer.abort()
        assert read_all(shuffle, [held]).num_rows == 9_000


def test_two_writers_of_one_attempt(store: Store) -> None:
    """The first that commits counts; the other cannot change it, and leaves nothing."""
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        first, second = shuffle.writer(0, "x"), shuffle.writer(0, "x")
        first.write(rows_of(0), by=["k"])
        second.write(rows_of(1), by=["k"])
        first.flush()
        second.flush()
        first.close()
        with pytest.raises(Conflict):
            second.close()
        assert read_all(shuffle, [first.receipt]).equals(expected([0]))
        shuffle.end_app()
        assert keys_left(store) == []


def test_a_run_published_after_the_drop_is_swept(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    writer = shuffle.writer(0)
    writer.write(rows_of(0), by=["k"])
    begin, swept = writer._begin, registry_of(store)

    def late(size: int) -> str:
        key = begin(size)
        swept.drop("app", 0)
        return key

    writer._begin = late  # type: ignore[method-assign]
    writer.flush()
    assert [key for key in keys_left(store) if key.count("/") == 5]
    swept.sweep()
    assert keys_left(store) == ["shuffle/app"]
    with pytest.raises(Expired):
        writer.close()


def test_a_drop_that_comes_late_spares_what_was_opened_since(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    registry = registry_of(store)
    receipt = write(shuffle, 0)
    assert registry.drop("app", 0, everywhere=False, age_s=5.0) == 0
    assert registry.end("app", everywhere=False, age_s=5.0) == 0
    assert read_all(shuffle, [receipt]).equals(expected([0]))
    assert registry.drop("app", 0, everywhere=False) == 1


def test_what_cannot_be_read_at_start_is_left_out(lasting: Daemon) -> None:
    with lasting.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS)
        receipt = write(shuffle, 0)
        for key in ("shuffle/a/7", "shuffle/b", "shuffle/app/0/9/x"):
            store.put_bytes(key, b"junk", keep=True)
        store.put("shuffle/c/1", rows_of(0, 3), keep=True)
        lasting.kill()
        lasting.start()
        assert read_all(shuffle, [receipt]).equals(expected([0]))
        assert [entry["app"] for entry in shuffle.call("shuffle_list")] == ["app"]


def test_lost_terms_are_nobodys_secret(lasting: Daemon) -> None:
    with lasting.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS, secret="right")
        receipt = write(shuffle, 0)
        store.delete("shuffle/app")
        store.delete("shuffle/app/0")
        lasting.kill()
        lasting.start()
        found = shuffle.call("shuffle_list")[0]
        assert (found["app"], found["shuffles"][0]["partitions"]) == ("app", PARTITIONS)
        again = store.shuffle("app", 0, PARTITIONS, secret="another")
        assert read_all(again, [receipt]).equals(expected([0]))


def test_numbers_that_would_keep_the_daemon_busy(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    name = {"app": "app", "shuffle": 0, "map_index": 0, "attempt": "x"}
    for bad in ({"sequence": 1 << 40}, {"nonce": "../../x"}, {"nonce": ""}):
        with pytest.raises(ValueError):
            shuffle.call("shuffle_reserve", **{**name, "sequence": 0, "size": 1, "nonce": "0" * 16, **bad})
    with pytest.raises(ValueError, match="partitions"):
        store.shuffle("other", 0, 1 << 22)


def test_a_node_is_no_copy_of_itself(tmp_path: Any) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    network = ["--listen", f"127.0.0.1:{port}", "--node", f"localhost:{port}", "--replicas", "2"]
    daemon = Daemon(tmp_path, "--dram", "32MiB", "--ephemeral", *network)
    try:
        daemon.start()
        with daemon.connect() as store:
            shuffle = store.shuffle("app", 0, PARTITIONS)
            with pytest.raises(PeerLost, match="1 of 2 replicas.*under another name"):
                write(shuffle, 0)
            assert not any(key.count("/") > 3 for key in store.keys("shuffle/"))
    finally:
        daemon.end()
