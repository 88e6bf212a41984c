"""What queries keep reading is filled ahead, as long as that evicts nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tierstore import Store
from tierstore.cache.columns import prefetch

ROWS = 4000


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)
    monkeypatch.setattr(prefetch, "EVERY_S", 0.0)
    pq.write_table(
        pa.table({"k": range(ROWS), "a": range(ROWS), "b": range(ROWS)}), tmp_path / "t.parquet", row_group_size=500
    )
    return tmp_path / "t.parquet"


def _read_some(dataset: object, times: int) -> None:
    for _ in range(times):
        assert dataset.to_table(["a"], pc.field("k") < 500).num_rows == 500


def _wait_for(dataset: object, count: int) -> None:
    deadline = time.monotonic() + 20
    while dataset.counters.prefetched < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert dataset.counters.prefetched == count


def test_the_rest_of_columns_that_are_read_again_and_again(store: Store, path: Path) -> None:
    dataset = store.dataset(path)
    _read_some(dataset, prefetch.OFTEN + 1)
    _wait_for(dataset, 2 * 7)  # the seven row groups that the filter leaves out, of the two columns it reads
    assert dataset.stats()["cached_chunks"] == 16


def test_not_of_columns_that_are_read_now_and_then(store: Store, path: Path) -> None:
    dataset = store.dataset(path)
    _read_some(dataset, prefetch.OFTEN - 1)
    dataset._prefetcher.run()
    assert dataset.counters.prefetched == 0


def test_not_where_there_is_no_room_or_nobody_wants_it(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({"hint": "once"}, {"prefetch": False}):
        dataset = store.dataset(path, **options)
        _read_some(dataset, prefetch.OFTEN + 2)
        assert dataset.counters.prefetched == 0
    monkeypatch.setattr(prefetch, "FREE_SHARE", 1.1)
    dataset = store.dataset(path)
    _read_some(dataset, prefetch.OFTEN)
    dataset._prefetcher.run()
    assert dataset.counters.prefetched == 0
