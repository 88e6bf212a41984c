"""What is counted of shuffles, and told: by the daemon, and by readers when they are done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.shuffle.rows import PARTITIONS, read_all, run_of, write
from tests.shuffle.test_shuffle_nodes import Cluster
from tierstore.emulation.procs import Daemon
from tierstore.ringbuf.errors import ConfigError, Conflict, Full, LostMaps
from tierstore.service.cli import main
from tierstore.service.store import Store


def counts(store: Store) -> dict[str, int]:
    """Those that are not 0."""
    return {name: count for name, count in store.stats()["shuffle"].items() if count}


def test_a_store_without_shuffles_counts_none(store: Store) -> None:
    assert "shuffle" not in store.stats()


def test_what_the_life_of_attempts_counts(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    receipts = [write(shuffle, number) for number in range(3)]
    bytes_ = sum(receipt.bytes for receipt in receipts)
    assert counts(store) == {"attempts_committed": 3, "bytes_committed": bytes_}
    writer = shuffle.writer(7)
    writer.write_bytes(0, b"given up")
    writer.flush()
    writer.abort()
    with pytest.raises(Conflict):
        write(shuffle, 0, count=10, attempt=receipts[0].attempt)
    found = counts(store)
    assert found["attempts_aborted"] == 1 and found["attempts_committed"] == 3
    read_all(shuffle, receipts)
    shuffle.drop()
    found = counts(store)
    assert found["bytes_read_here"] >= 0.9 * bytes_ and "bytes_read_elsewhere" not in found
    assert found["attempts_dropped"] == 3 and "maps_lost" not in found


def test_lost_maps_and_sources_that_failed_are_counted(store: Store) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    receipts = [write(shuffle, number) for number in range(2)]
    reader = shuffle.read(receipts=receipts)
    store.delete(run_of(store, receipts[1]))
    with pytest.raises(LostMaps):
        reader.read_all()
    shuffle.close()
    found = counts(store)
    assert found["sources_failed"] == 1 and found["maps_lost"] == 1


def test_a_wait_for_a_quota_is_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.shuffle.writer.WAIT_S", 0.05)
    shuffle = store.shuffle("app", 0, PARTITIONS, quota=100_000)
    with shuffle.writer(0) as writer:
        writer.write_bytes(0, bytes(60_000))
    with pytest.raises(Full), shuffle.writer(1) as writer:
        writer.write_bytes(0, bytes(60_000))
    assert counts(store)["quota_waits"] > 1


@pytest.mark.parametrize("wrong", [{"attempts_committed": 1}, {"other": 1}, {"maps_lost": -1}, {"maps_lost": "1"}])
def test_readers_tell_nothing_else(store: Store, wrong: Any) -> None:
    shuffle = store.shuffle("app", 0, PARTITIONS)
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        shuffle.call("shuffle_count", counts=wrong)
    assert counts(store) == {}


@pytest.mark.slow
def test_copies_and_what_was_read_elsewhere(tmp_path: Path) -> None:
    """They are counted on both nodes, and take the room of their pool."""
    (tmp_path / "pools.toml").write_text('[pools]\netl = "16MiB"\n')
    cluster = Cluster(tmp_path, 2, "--replicas", "2", "--config", str(tmp_path / "pools.toml"))
    try:
        cluster.start()
        here, there = cluster.nodes
        with here.connect() as store, there.connect() as other:
            shuffle = store.shuffle("app", 0, PARTITIONS, pool="etl")
            receipt = write(shuffle, 0)
            assert [held.info(run_of(held, receipt))["pool"] for held in (store, other)] == ["etl", "etl"]
            assert counts(store)["copies_given"] == 1 and counts(other)["copies_taken"] == 1
            store.delete(run_of(store, receipt))
            assert read_all(shuffle, [receipt]).num_rows == 5000
            shuffle.close()
            assert counts(store)["bytes_read_elsewhere"] >= receipt.bytes * 0.9
            assert counts(other)["served_bytes"] >= receipt.bytes * 0.9
        shown = CliRunner().invoke(main, ["status", "--socket", here.socket])
        assert shown.exit_code == 0 and "copies given" in shown.output and "bytes read elsewhere" in shown.output
    finally:
        cluster.end()


def test_a_daemon_that_is_away_does_not_hold_a_reader_up(lasting: Daemon) -> None:
    with lasting.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS, renew=False)
        receipt = write(shuffle, 0)
        lasting.kill()
        assert read_all(shuffle, [receipt]).num_rows == 5000
        shuffle.close()
        lasting.start()
        with store.shuffle("app", 0, PARTITIONS, renew=False) as again:
            assert read_all(again, [receipt]).num_rows == 5000
