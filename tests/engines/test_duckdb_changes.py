"""Files that change between the queries of a DuckDB connection."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore.cache.store import Store

duckdb = pytest.importorskip("duckdb")

pytestmark = pytest.mark.usefixtures("trusting")


@pytest.fixture
def connection() -> Iterator[Any]:
    with duckdb.connect() as made:
        yield made


def replace(table: pa.Table, path: str) -> None:
    pq.write_table(table, path + ".new")
    os.replace(path + ".new", path)


@pytest.mark.parametrize("fallback", [False, True])
def test_new_data_and_new_columns_are_seen(store: Store, tmp_path: Path, connection: Any, fallback: bool) -> None:
    from tierstore.engines.duckdb import _Table

    path = str(tmp_path / "t.parquet")
    replace(pa.table({"a": range(10)}), path)
    dataset = store.dataset(path)
    if fallback:
        connection.register("t", _Table(dataset))
    else:
        dataset.to_duckdb(connection, "t")
    relation = connection.sql("select sum(a) from t")
    assert relation.fetchall() == [(45,)]
    replace(pa.table({"a": range(20)}), path)
    assert connection.sql("select sum(a), count(*) from t").fetchall() == [(190, 20)]
    if fallback:
        # DuckDB takes it for a pyarrow dataset, whose schema never changes: it must be registered anew.
        connection.unregister("t")
        connection.register("t", _Table(dataset))
    replace(pa.table({"b": ["q", None], "a": [1.5, 2.5]}), path)
    if fallback:
        connection.unregister("t")
        connection.register("t", _Table(dataset))
    assert connection.sql("select * from t").fetchall() == [("q", 1.5), (None, 2.5)]
    assert connection.sql("select sum(a) from t where b is null").fetchall() == [(2.5,)]


def test_a_prepared_query_with_an_old_schema_is_refused(store: Store, tmp_path: Path, connection: Any) -> None:
    path = str(tmp_path / "t.parquet")
    replace(pa.table({"a": range(10), "b": range(10)}), path)
    store.dataset(path).to_duckdb(connection, "t")
    connection.execute("prepare query as select a, b from t where a < 3")
    assert connection.execute("execute query").fetchall() == [(0, 0), (1, 1), (2, 2)]
    replace(pa.table({"b": [7], "a": [1]}), path)
    try:  # DuckDB may plan it again, or refuse; columns must not be mistaken for each other
        assert connection.execute("execute query").fetchall() == [(1, 7)]
    except duckdb.Error:
        pass
    assert connection.sql("select a, b from t where a < 3").fetchall() == [(1, 7)]


def test_a_file_that_is_gone(store: Store, tmp_path: Path, connection: Any) -> None:
    path = str(tmp_path / "t.parquet")
    replace(pa.table({"a": range(10)}), path)
    store.dataset(path).to_duckdb(connection, "t")
    assert connection.sql("select count(*) from t").fetchall() == [(10,)]
    os.unlink(path)
    with pytest.raises(duckdb.Error, match="there is no file"):
        connection.sql("select count(*) from t").fetchall()
    replace(pa.table({"a": range(11)}), path)
    assert connection.sql("select count(*) from t").fetchall() == [(11,)]


def test_a_column_that_does_not_exist_and_a_filter_of_the_wrong_type(store: Store, path: str, connection: Any) -> None:
    store.dataset(path).to_duckdb(connection, "ours")
    connection.execute(f"create view plain as from read_parquet('{path}')")
    for query in (
        "select nope from {}",
        "select n from {} where n = 'x'",
        "select n from {} where word > date '2024-01-01'",
    ):
        errors = []
        for table in ("ours", "plain"):
            with pytest.raises(duckdb.Error) as caught:
                connection.sql(query.format(table)).fetchall()
            errors.append(type(caught.value))
        assert errors[0] is errors[1], query
