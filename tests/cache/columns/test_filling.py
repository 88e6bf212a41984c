"""What is missing is read once, and no fault of the cache fails a scan or makes it wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache.columns import filling
from tierstore.cache.store import Store

ROWS, GROUP = 4000, 250
TABLE = pa.table({"a": range(ROWS), "b": [f"text {i}" for i in range(ROWS)], "c": [i / 7 for i in range(ROWS)]})
CHUNKS = TABLE.num_columns * ROWS // GROUP


@pytest.fixture
def path(tmp_path: Path, trusting: None) -> Path:
    pq.write_table(TABLE, tmp_path / "f.parquet", row_group_size=GROUP)
    return tmp_path / "f.parquet"


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run in so many threads, all at once; their results."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        barrier.wait()
        try:
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_fill_each_chunk_once(store: Store, path: Path) -> None:
    dataset = store.dataset(path)
    assert all(table.equals(TABLE) for table in together(8, lambda _: dataset.to_table()))
    stats = dataset.stats()
    assert (stats["misses"], stats["hits"], stats["admitted"]) == (CHUNKS, 7 * CHUNKS, CHUNKS)


def test_handles_of_one_store_fill_each_chunk_once(store: Store, path: Path) -> None:
    """Each with columns and filters of its own."""
    datasets = [store.dataset(path) for _ in range(6)]
    asked = [
        (None, None),
        (["a"], None),
        (["b", "a"], pds.field("c") > 5),
        (["c"], None),
        ([], pds.field("a") > 5),
        (["a"], None),
    ]
    results = together(6, lambda i: datasets[i].to_table(*asked[i]))
    for (columns, keep), table in zip(asked, results, strict=True):
        assert table.equals(pds.dataset(TABLE).to_table(columns, filter=keep))
    assert sum(dataset.stats()["misses"] for dataset in datasets) == CHUNKS


def test_what_is_read_once_is_not_kept(store: Store, path: Path) -> None:
    dataset = store.dataset(path, hint="once")
    for _ in range(2):
        assert dataset.to_table().equals(TABLE)
    stats = dataset.stats()
    assert (stats["cached_chunks"], stats["misses"], stats["admitted"], stats["refused"]) == (0, 2 * CHUNKS, 0, 0)
    store.dataset(path).preload()
    assert dataset.to_table().equals(TABLE), "what others kept is used"
    assert dataset.stats()["hits"] == CHUNKS


def test_a_store_full_of_what_must_be_kept(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store._session.lease_wait_s = 0.1
    with pytest.raises(tierstore.Full):
        for number in range(100):
            store.put_bytes(f"kept {number}", bytes(1_000_000), keep=True)
    dataset = store.dataset(path)
    for _ in range(2):
        assert dataset.to_table().equals(TABLE)
        assert dataset.to_table(["a"], pds.field("c") > 500).num_rows == (TABLE["c"].to_numpy() > 500).sum()
    stats = dataset.stats()
    assert stats["cached_chunks"] == stats["admitted"] == 0
    assert stats["refused"] == stats["misses"] > 2 * CHUNKS
    for number in range(10):
        store.delete(f"kept {number}")
    monkeypatch.setattr(filling, "FULL_S", 0.0)
    dataset._filler._full_until.clear()
    for _ in range(2):
        assert dataset.to_table().equals(TABLE)
    assert dataset.stats()["cached_chunks"] == CHUNKS


def test_a_full_store_is_asked_once_in_a_while(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs a wait for room."""
    asked = []

    def write(*_: object) -> None:
        asked.append(1)
        raise tierstore.Full("no room")

    dataset = store.dataset(path)
    monkeypatch.setattr(dataset._filler.chunks, "write", write)
    for _ in range(3):
        assert dataset.to_table().equals(TABLE)
    assert len(asked) <= 2  # by the threads that fill
    assert dataset.stats()["refused"] == 3 * CHUNKS


@pytest.mark.parametrize(
    "error",
    [
        tierstore.Full("x"),
        tierstore.PeerLost("x"),
        tierstore.Closed("x"),
        tierstore.InvalidKey("x"),
        pa.ArrowInvalid("x"),
    ],
)
def test_no_error_of_the_cache_fails_a_scan(
    error: Exception, store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise error

    dataset = store.dataset(path)
    monkeypatch.setattr(dataset._filler.chunks, "write", write)
    assert dataset.to_table().equals(TABLE)
    assert dataset.stats()["refused"] == CHUNKS


@pytest.mark.slow
def test_a_working_set_larger_than_the_store(tmp_path: Path, trusting: None) -> None:
    """Results hold what they refer to, so the store is full of what is being read."""
    rows = 1_000_000
    table = pa.table({name: range(i, rows + i) for i, name in enumerate("abcd")})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=50_000)
    with tierstore.open(dram="16MiB", segment="1MiB") as store:
        dataset = store.dataset(tmp_path / "f.parquet")
        for _ in range(3):
            assert dataset.to_table(["a"]).equals(table.select(["a"]))
            assert sum(batch.num_rows for batch in dataset.scan()) == rows
        assert store.verify(payloads=True)["ok"]


@pytest.mark.slow
def test_columns_in_every_tier(tiered: Store, tmp_path: Path, trusting: None) -> None:
    """40 MB through 8 MiB of memory, 16 of pmem and 32 of disk."""
    rows = 1_000_000
    table = pa.table({name: range(i, rows + i) for i, name in enumerate("abcde")})
    pq.write_table(table, tmp_path / "f.parquet", row_group_size=50_000)
    dataset = tiered.dataset(tmp_path / "f.parquet")
    for _ in range(3):
        for name in table.column_names:
            assert dataset.to_table([name]).equals(table.select([name]))
    assert dataset.stats()["hits"] > 0
    tiers = {tier for key in tiered.keys("columns/") for tier in tiered.info(key)["tiers"]}
    assert tiers == {"dram", "pmem", "disk"}


def test_a_scan_that_is_given_up(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.columns.scanning.GROUP_ROWS", 1)
    dataset = store.dataset(path)
    for _ in range(5):
        reader = dataset.scan()
        reader.read_next_batch()
        del reader
    assert dataset.to_table().equals(TABLE)


def test_a_closed_store(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.cache.columns.scanning.GROUP_ROWS", 1)
    store = tierstore.open(dram="16MiB", segment="1MiB")
    dataset = store.dataset(path)
    dataset.preload(["a"])
    table, reader = dataset.to_table(["a"]), dataset.scan(["b"])
    reader.read_next_batch()
    store.close()
    assert table.equals(TABLE.select(["a"]))
    for ask in (reader.read_all, dataset.to_table, lambda: dataset.to_table(["a"]), dataset.preload):
        with pytest.raises(tierstore.Closed):
            ask()


def test_values_that_were_damaged_are_read_again(store: Store, path: Path) -> None:
    """What is found under a chunk's key and is no column is taken for a miss."""
    dataset = store.dataset(path)
    dataset.preload()
    for number, key in enumerate(store.keys("columns/")[:3]):
        if number == 0:
            store.put_bytes(key, b"not a column")
        else:
            store.delete(key)
    assert dataset.to_table().equals(TABLE)
    assert dataset.stats()["misses"] == CHUNKS + 3
