"""DataFusion over columns in memory: which queries get them, what else a context's tables are, and that nothing is stale."""

from __future__ import annotations

import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.store import Store

datafusion = pytest.importorskip("datafusion")

GROUPS = 8  # row groups of the file

pytestmark = pytest.mark.usefixtures("trusting")


def rows(context: Any, query: str) -> list[tuple[Any, ...]]:
    table = context.sql(query).to_arrow_table()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def plan(context: Any, query: str) -> str:
    return str(context.sql(query).execution_plan().display_indent())


def both(store: Store, path: str | Path) -> tuple[Dataset, Any]:
    """A context with a dataset, and the same file as DataFusion reads it."""
    dataset, context = store.dataset(path, prefetch=False), datafusion.SessionContext()
    context.register_parquet("plain", str(path))
    dataset.to_datafusion(context, "ours")
    return dataset, context


def test_columns_that_were_read_are_in_memory_for_the_next_query(store: Store, path: str) -> None:
    dataset, context = both(store, path)
    query = "select word, sum(n) from {} where price > 3 group by word order by word"
    for scan in ("DatasetExec", "DataSourceExec"):
        assert scan in plan(context, query.format("ours"))
        assert rows(context, query.format("ours")) == rows(context, query.format("plain"))
    assert "filled" not in plan(context, query.format("ours"))
    assert dataset.stats()["misses"] == 3 * GROUPS


def test_types_are_those_of_its_own_reader(store: Store, path: str) -> None:
    _, context = both(store, path)
    for _ in range(3):
        found, expected = (context.sql(f"select * from {name}").to_arrow_table() for name in ("ours", "plain"))
        assert found.schema.types == expected.schema.types and found.num_rows == expected.num_rows


def test_another_column_is_filled_when_it_is_asked(store: Store, path: str) -> None:
    queries = [
        "select n, text from {} where n between 495 and 505 order by n",
        "select sum(mixed) from {} where text like '%7'",
        "select a.n, b.mixed, b.x from {} a join {} b on a.n = b.mixed where a.n % 50 = 3 order by 1, 2, 3",
        "select word, x from {} order by mixed desc, n limit 7",
        "select count(*), max(price) from {} where word is null",
    ]
    for query in queries:
        dataset, context = both(store, path)
        dataset.evict()
        for _ in range(2):
            context.sql("select sum(n) from ours").collect()
        assert "filled" in plan(context, query.format("ours", "ours"))
        before = dataset.stats()["misses"]
        for _ in range(2):
            assert rows(context, query.format("ours", "ours")) == rows(context, query.format("plain", "plain")), query
        names = [name for name in dataset.schema.names if name != "n" and name in query]
        assert before < dataset.stats()["misses"] <= before + len(names) * GROUPS


def test_every_type_filled_and_in_memory(store: Store, tmp_path: Path, cases: ModuleType) -> None:
    columns = {name: array for name, array in cases.every_type().items() if not pa.types.is_null(array.type)}
    table = pa.table({"id": range(len(next(iter(columns.values())))), **columns})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    for name in columns:
        dataset, context = store.dataset(tmp_path / "t.parquet"), datafusion.SessionContext()
        dataset.to_datafusion(context, "t")
        expected = dataset.to_table(["id", name]).to_pylist()
        for query in ("id", f'id, "{name}"', f'id, "{name}"'):
            found = context.sql(f"select {query} from t order by id").to_arrow_table()
        assert repr(found.to_pylist()) == repr(expected), name


def test_a_plan_over_files_that_changed_reads_them_anew(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path)
    dataset, context = store.dataset(path), datafusion.SessionContext()
    dataset.to_datafusion(context, "t")
    context.sql("select a, b from t").collect()
    kept = context.sql("select sum(a) as s, max(b) as m from t")
    assert "DataSourceExec" in str(kept.execution_plan())
    assert kept.to_pydict() == {"s": [3], "m": ["y"]}
    pq.write_table(pa.table({"a": [5, 6, 7], "b": ["p", "q", "r"]}), path)
    assert kept.to_pydict() == {"s": [18], "m": ["r"]}
    for _ in range(2):
        assert context.sql("select sum(a) as s, max(b) as m from t").to_pydict() == {"s": [18], "m": ["r"]}
    path.unlink()
    for query in (kept, None):
        with pytest.raises(Exception, match=r"t\.parquet"):
            (query or context.sql("select sum(a) from t")).collect()


def test_a_file_that_changes_while_a_query_is_planned(store: Store, tmp_path: Path) -> None:
    from tierstore.engines.datafusion_catalog import Switch

    answers = iter([True, False, False, True])
    switch = Switch(lambda: next(answers))
    for first, second, asked in ((True, False, True), (True, False, False), (False, True, False)):
        assert switch._decide(first) == switch._decide(second) == asked
    found: list[bool] = []
    switch._decide(True)
    other = threading.Thread(target=lambda: found.append(Switch(lambda: False)._decide(False)))
    other.start()
    other.join()
    assert found == [False] and switch._decide(False)


def test_the_tables_of_a_context(store: Store, path: str) -> None:
    context = datafusion.SessionContext(datafusion.SessionConfig().with_information_schema())
    context.register_parquet("before", path)
    dataset = store.dataset(path)
    dataset.to_datafusion(context, "ours")
    dataset.to_datafusion(context, '"Other One"')
    context.register_parquet("after", path)
    context.sql("create table made as select n from ours where n < 3").collect()
    names = {"before", "after", "ours", "made", "Other One"}
    assert context.catalog().schema().names() == names
    for _ in range(2):
        for name in names - {"made"}:
            assert rows(context, f'select max(n) from "{name}"') == [(3999,)]
        assert rows(context, "select count(*) from ours join made using (n)") == [(3,)]
    shown = {row[0] for row in rows(context, "select table_name from information_schema.tables")}
    assert names <= shown | {"views"}
    with pytest.raises(Exception, match="exists"):
        dataset.to_datafusion(context, "ours")
    context.sql("drop table made").collect()
    context.deregister_table("ours")
    context.deregister_table("nothing")
    assert not context.table_exist("ours") and context.table_exist("before")
    with pytest.raises(Exception, match="ours"):
        context.sql("select * from ours")
    store.dataset(path).to_datafusion(context, "ours")
    assert rows(context, "select count(*) from ours where n < 2") == [(2,)]


def test_contexts_with_other_schemas(store: Store, path: str) -> None:
    config = datafusion.SessionConfig().with_default_catalog_and_schema("mine", "own")
    context = datafusion.SessionContext(config.with_create_default_catalog_and_schema(enabled=True))
    dataset = store.dataset(path)
    dataset.to_datafusion(context, "t")
    for _ in range(2):
        assert rows(context, "select max(n) from t") == [(3999,)]
    assert "DatasetExec" in plan(context, "select max(n) from t")


def test_without_room_for_the_wide_form(store: Store, path: str) -> None:
    """What is not to be kept is scanned by each query."""
    store.dataset(path).preload()
    for options in ({"hint": "once"}, {"form": "encoded"}):
        dataset, context = store.dataset(path, **options), datafusion.SessionContext()
        dataset.to_datafusion(context, "t")
        for _ in range(2):
            assert rows(context, "select max(price), count(word) from t where n < 100") is not None
        assert "DatasetExec" in plan(context, "select max(price) from t")


def test_queries_at_once(store: Store, path: str) -> None:
    _, context = both(store, path)
    expected = rows(context, "select word, sum(n), max(text) from plain group by word order by word")
    found: list[bool] = []

    def query() -> None:
        for _ in range(5):
            found.append(
                rows(context, "select word, sum(n), max(text) from ours group by word order by word") == expected
            )

    threads = [threading.Thread(target=query) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 30
