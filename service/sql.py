"""SQL over Parquet through the column cache, for the command line: DuckDB runs it, a quoted path is a table."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa

from tierstore.cache.store import Store
from tierstore.ringbuf.errors import ConfigError

_ENDINGS = (".parquet", ".parq", ".pq")


class Answer:
    """A query's result, and what came from where.

    tables: one row each (see Dataset.stats); tiers: payload bytes by tier; seconds: the query alone.
    """

    def __init__(self, table: pa.Table, tables: list[dict[str, Any]], tiers: dict[str, int], seconds: float):
        self.table, self.tables, self.tiers, self.seconds = table, tables, tiers, seconds

    def explained(self) -> dict[str, Any]:
        """As one value."""
        return {"seconds": self.seconds, "bytes_read": self.tiers, "tables": self.tables}


def query(store: Store, statement: str, threads: int | None = None) -> Answer:
    """Run one statement. Raises DuckDB's errors as ValueError, and those of Store.dataset()."""
    try:
        import duckdb
    except ImportError:
        raise ConfigError("sql", statement[:40], "DuckDB runs it: pip install 'tierstore[duckdb]'") from None
    with duckdb.connect() as connection:
        if threads:
            connection.execute(f"set threads = {int(threads)}")
        try:
            names = sorted(name for name in connection.get_table_names(statement) if _is_path(name))
            datasets = {name: store.dataset(name) for name in names}
            for name, dataset in datasets.items():
                dataset.to_duckdb(connection, name)
            before, start = _bytes_read(store), time.perf_counter()
            relation = connection.sql(statement)
            result = pa.table({}) if relation is None else relation.to_arrow_table()  # None: not a query
            seconds = time.perf_counter() - start
        except duckdb.Error as error:
            raise ValueError(str(error)) from None
    tiers = {tier: size - before[tier] for tier, size in _bytes_read(store).items()}
    return Answer(result, [dataset.stats() for dataset in datasets.values()], tiers, seconds)


def _is_path(name: str) -> bool:
    return "/" in name or "*" in name or name.lower().endswith(_ENDINGS)


def _bytes_read(store: Store) -> dict[str, int]:
    own = store.stats()["own"]
    return {tier: own[f"{tier}_bytes_read"] for tier in ("dram", "pmem", "disk")}
