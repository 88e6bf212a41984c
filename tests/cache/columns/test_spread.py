"""How far row groups are spread over a column's range: what says whether statistics are worth asking."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore import Store

ROWS = 1000
DAYS = [datetime.date(2024, 1, 1) + datetime.timedelta(days=k) for k in range(ROWS)]


def write(path: Path, sorted_: bool, part: int = 0) -> None:
    order = range(ROWS) if sorted_ else [(k * 373) % ROWS for k in range(ROWS)]
    table = pa.table(
        {
            "k": [part * ROWS + k for k in order],
            "day": [DAYS[k] for k in order],
            "text": [f"{k:04}" for k in order],
            "same": [7] * ROWS,
            "none": pa.nulls(ROWS, pa.int64()),
        }
    )
    pq.write_table(table, path, row_group_size=100)


@pytest.mark.parametrize(("sorted_", "low", "high"), [(True, 0.0, 0.11), (False, 0.9, 1.0)])
def test_sorted_and_scattered_columns(sorted_: bool, low: float, high: float, store: Store, tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", sorted_)
    snapshot = store.dataset(tmp_path / "t.parquet").snapshot()
    assert low <= snapshot.spread("k") <= high and low <= snapshot.spread("day") <= high
    # Text has no distance, one value no range, and nulls no bounds: statistics are asked.
    assert [snapshot.spread(name) for name in ("text", "same", "none", "absent")] == [0.0] * 4


def test_over_all_files_together(store: Store, tmp_path: Path) -> None:
    """Each file alone is scattered, but the files lie beside each other."""
    for part in range(10):
        write(tmp_path / f"{part}.parquet", False, part)
    snapshot = store.dataset(tmp_path).snapshot()
    assert snapshot.spread("k") <= 0.11 and snapshot.spread("day") >= 0.9
