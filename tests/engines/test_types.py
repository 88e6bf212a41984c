"""Every type that Parquet files hold, through every engine: the rows, and the types where engines can be told them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")

# pyarrow itself reads what was written as date64 (which Parquet has not) as date32; Polars does not.
NOT_FOR_POLARS = {"date64[ms]"}
# What DuckDB calls them over Arrow; of Parquet files it makes lists, and microseconds. The values are the same.
NAMED_BY_DUCKDB = {"fixed_size_list<item: int64>[2]", "timestamp[s]", "timestamp[ms]"}


def outcome(open_frame: Callable[[Any], Any], of: Any) -> Any:
    """A frame of Polars, or the class of the error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about extension types
            return open_frame(of).collect()
    except Exception as error:
        return type(error)


@pytest.mark.slow
def test_every_type(store: Store, tmp_path: Path, cases: ModuleType) -> None:
    """Twice: cold, and warm."""
    duckdb, pl = pytest.importorskip("duckdb"), pytest.importorskip("polars")
    datafusion = pytest.importorskip("datafusion")
    for number, (name, array) in enumerate(cases.every_type().items()):
        path = str(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table({"v": array, "id": range(len(array))}), path, row_group_size=100)
        dataset, context = store.dataset(path), datafusion.SessionContext()
        with duckdb.connect() as connection:
            connection.execute("set TimeZone = 'UTC'")
            dataset.to_duckdb(connection, "ours")
            dataset.to_datafusion(context, "ours")
            context.register_parquet("plain", path)
            frames = ((dataset.__class__.to_polars, dataset), (pl.scan_parquet, path))
            for _ in range(2):
                found, expected = dataset.to_pyarrow().to_table(), pds.dataset(path).to_table()
                assert found.schema == expected.schema, name
                assert cases.canonical(found) == cases.canonical(expected), name
                for query in ("select * from {}", "select v from {} where v is not null and id < 150"):
                    duck = [
                        connection.sql(query.format(t)).to_arrow_table() for t in ("ours", f"read_parquet('{path}')")
                    ]
                    assert duck[0].schema.types == duck[1].schema.types or name in NAMED_BY_DUCKDB, name
                    assert cases.canonical(duck[0]) == cases.canonical(duck[1]), name
                    fusion = [context.sql(query.format(table)).to_arrow_table() for table in ("ours", "plain")]
                    assert cases.canonical(fusion[0]) == cases.canonical(fusion[1]), name
                if name not in NOT_FOR_POLARS:
                    found, expected = (outcome(open_frame, of) for open_frame, of in frames)
                    if isinstance(expected, type):
                        assert found is expected, name
                    else:
                        assert found.schema == expected.schema == dataset.to_polars().collect_schema(), name
                        assert cases.canonical(found.to_arrow()) == cases.canonical(expected.to_arrow()), name
