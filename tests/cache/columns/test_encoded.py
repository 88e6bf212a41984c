"""The encoded form: chunks in the room of the file, decoded by each scan."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tierstore import ConfigError, Store
from tierstore.cache.columns.chunks import PREFIX

ROWS = 3000
TABLE = pa.table(
    {
        "k": pa.array(range(ROWS)),
        "text": pa.array([None if k % 11 == 0 else f"text {k % 9}" for k in range(ROWS)]),
        "long": pa.array([f"{k:08}" * 20 for k in range(ROWS)]),
        "price": pa.array(range(ROWS), pa.int64()).cast(pa.decimal128(20, 0)).cast(pa.decimal128(15, 2)),
        "nested": pa.array([{"a": [k, k + 1], "b.c": {"d": str(k)}} for k in range(ROWS)]),
        "nothing": pa.nulls(ROWS, pa.float64()),
    }
)

pytestmark = pytest.mark.usefixtures("trusting")


@pytest.fixture(params=["snappy", "zstd", "none"])
def path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    pq.write_table(TABLE, tmp_path / "t.parquet", row_group_size=1000, compression=request.param)
    return tmp_path / "t.parquet"


def test_reads_as_decoded_columns_do_and_takes_the_files_room(store: Store, path: Path) -> None:
    dataset = store.dataset(path, form="encoded")
    assert dataset.to_table().equals(TABLE)
    assert (dataset.counters.misses, dataset.counters.hits) == (18, 0)
    assert dataset.to_table().equals(TABLE)
    assert (dataset.counters.misses, dataset.counters.hits) == (18, 18)
    size = sum(store.info(key)["bytes"] for key in store.keys(PREFIX))
    assert size < path.stat().st_size
    assert store.stats()["tiers"]["dram"]["blocks"] == 18


def test_both_forms_beside_each_other(store: Store, path: Path) -> None:
    encoded, decoded = store.dataset(path, form="encoded"), store.dataset(path)
    few = TABLE.slice(0, 5).select(["k", "long"])
    assert encoded.to_table(["k", "long"], pc.field("k") < 5).equals(few)
    assert decoded.to_table(["k", "long"], pc.field("k") < 5).equals(few)
    assert encoded.stats()["cached_chunks"] == decoded.stats()["cached_chunks"] == 2
    assert encoded.evict() == 4


def test_an_engine_over_encoded_columns(store: Store, path: Path) -> None:
    with duckdb.connect() as connection:
        store.dataset(path, form="encoded").to_duckdb(connection, "t")
        for _ in range(2):
            found = connection.execute(
                "select text, count(*), sum(price) from t where k < 100 group by 1 order by 1 limit 1"
            )
            assert found.fetchall() == [("text 0", 10, 495)]


def test_damaged_bytes_are_read_again(store: Store, path: Path) -> None:
    dataset = store.dataset(path, form="encoded")
    assert dataset.to_table(["long"]).num_rows == ROWS
    for key in dataset.cached_keys(["long"]):
        store.put_bytes(key, bytes(len(store.get_bytes(key))))
    assert dataset.to_table(["long"]).equals(TABLE.select(["long"]))


def test_a_form_that_is_none(store: Store, path: Path) -> None:
    with pytest.raises(ConfigError, match="form = 'raw' cannot be used: one of decoded, encoded"):
        store.dataset(path, form="raw")
