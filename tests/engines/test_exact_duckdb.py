"""DuckDB over a dataset answers as DuckDB over the Parquet files: any table, any predicate."""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from tierstore.cache.store import Store

duckdb = pytest.importorskip("duckdb")


def write_literal(cases: ModuleType, name: str, value: Any) -> str:
    if isinstance(value, bytes):
        return "'" + "".join(f"\\x{byte:02x}" for byte in value) + "'::BLOB"
    text = str(value).replace("'", "''")
    return f"'{text}'::{'INTEGER' if name == 'id' else cases.COLUMNS[name][2]}"


@pytest.mark.slow
@pytest.mark.parametrize("plain_class", [False, True], ids=["source", "fallback"])
def test_any_predicate(store: Store, trusting: None, tmp_path: Path, cases: ModuleType, plain_class: bool) -> None:
    """fallback: what a version of DuckDB gets that has no sources of its own kind."""
    from tierstore.engines.duckdb import _Table

    def run(rng: random.Random) -> None:
        paths = cases.write(rng, cases.table(rng), tmp_path / "data")
        dataset = store.dataset(paths)
        with duckdb.connect() as connection:
            connection.execute("set threads = 2; set TimeZone = 'UTC'")
            if plain_class:
                connection.register("ours", _Table(dataset))
            else:
                dataset.to_duckdb(connection, "ours")
            # Not read_parquet() in the query: DuckDB 2.0 finds all rows of a row group null where one is and the others hold
            # the same text, not dictionary-encoded (select count(*) ... where x is null over ['a', 'a', None] is 3).
            connection.execute(f"create table plain as from read_parquet({paths})")

            def query(table: str, columns: str, where: str) -> pa.Table:
                return connection.sql(f"select {columns} from {table} where {where}").to_arrow_table()

            assert query("ours", "*", "false").schema == query("plain", "*", "false").schema
            for _ in range(cases.PREDICATES):
                where = cases.sql(cases.predicate(rng), lambda name, value: write_literal(cases, name, value))
                columns = rng.choice(["*", "id", "count(*)", "text, id"])
                cases.same(partial(query, "ours", columns, where), partial(query, "plain", columns, where), where)
        shutil.rmtree(tmp_path / "data")

    cases.each_seed(run)
