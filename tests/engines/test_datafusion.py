"""A dataset as a table of DataFusion: projections, filters, joins and aggregates, and what it cannot compute on."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tierstore.cache.store import Store
from tierstore.engines.expressions import Call, Field, Literal, tree

datafusion = pytest.importorskip("datafusion")

GROUPS = 8  # row groups of the file

pytestmark = pytest.mark.usefixtures("trusting")

QUERIES = [
    "select * from {0} order by n",
    "select count(*) from {0}",
    "select 1 from {0} where false",
    "select word, n from {0} where n between 499 and 501 order by n",
    "select word, count(*), sum(n), min(text), max(x) from {0} group by word order by word",
    "select min(word), max(word), count(distinct word) from {0}",
    "select sum(price), avg(price), max(price * price), sum(price * (1 - price)) from {0}",
    "select a.n, b.word from {0} a join {0} b on a.n = b.mixed where a.n < 50 order by a.n, b.word",
    "select n from {0} where word is null and mixed > 4000 order by n",
    "select n from {0} where word not in ('red', 'a', 'b', 'c', 'd') order by n limit 3",
    "select n from {0} where word like 'g%' and n < 10 order by n",
    "select upper(word), word || '!', coalesce(word, '-'), substr(text, 6) from {0} where n > 3990 order by n",
    "select distinct word from {0} order by word desc nulls last",
    "select n, lag(word) over (order by n) from {0} order by n desc limit 2",
    "select n, first_value(word) from {0} group by n order by n desc limit 2",
    "select word from {0} where n < 2 union all select 'other' order by 1",
    "select n from {0} where n not in (1, 2, 3, 4, 5) order by n limit 2 offset 1",
    "select count(*) from {0} where x > 400 or word = 'red'",
    "select sum(n) from {0} where x is not null and not (n < 3000)",
]


@pytest.mark.parametrize("query", QUERIES)
def test_same_rows_as_from_parquet(store: Store, path: str, cases: Any, query: str) -> None:
    context = datafusion.SessionContext()
    store.dataset(path).to_datafusion(context, "ours")
    context.register_parquet("plain", path)
    expected = context.sql(query.format("plain")).to_arrow_table()
    for _ in range(2):  # cold, then warm
        found = context.sql(query.format("ours")).to_arrow_table()
        assert found.column_names == expected.column_names or "ours" in str(found.column_names)
        assert cases.canonical(found) == cases.canonical(expected)


def test_statistics_exclude_row_groups(store: Store, path: str) -> None:
    for condition, groups in (
        ("n > 3600", 1),
        ("n = 3 and x > 0", 1),
        ("x > 1000", GROUPS),
        ("n > 3600 or x > 1000", GROUPS),
    ):
        dataset, context = store.dataset(path), datafusion.SessionContext()
        dataset.to_datafusion(context, "t")
        context.sql(f"select n from t where {condition}").collect()
        assert dataset.stats()["pruned"] == GROUPS - groups, condition


def test_only_the_columns_of_the_query_are_filled(store: Store, path: str) -> None:
    dataset, context = store.dataset(path), datafusion.SessionContext()
    dataset.to_datafusion(context, "t")
    assert context.sql("select count(*) from t").to_pydict() == {"count(*)": [4000]}
    assert dataset.stats()["misses"] == 0, "the footers know"
    context.sql("select sum(mixed) from t where x > 5").collect()
    assert dataset.stats()["misses"] == 2 * GROUPS


def test_nan_infinity_and_minus_zero(store: Store, tmp_path: Path) -> None:
    """Against DataFusion over memory: of a Parquet file it drops NaN by statistics."""
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, -5e-324, 1.5, None]
    table = pa.table({"i": range(9), "x": values, "y": pa.array(values, pa.float32())})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    context = datafusion.SessionContext()
    store.dataset(tmp_path / "t.parquet").to_datafusion(context, "ours")
    context.register_record_batches("plain", [table.to_batches()])
    for kind, name in (("Float64", "x"), ("Float32", "y")):
        literals = [f"arrow_cast('{text}', '{kind}')" for text in ("NaN", "inf", "-inf", "0.0", "-0.0", "1.5")]
        conditions = [f"{name} {how} {one}" for how in ("=", "<>", "<", "<=", ">", ">=") for one in literals]
        conditions += [f"not ({one})" for one in conditions] + [f"{name} = {name}", f"{name} is null"]
        for start in range(3):
            some = ", ".join([*literals[start : start + 4], "7", "8", "9"])
            conditions += [f"{name} in ({some})", f"{name} not in ({some})"]
        for condition in conditions:
            rows = [
                sorted(context.sql(f"select i from {of} where {condition}").to_pydict()["i"])
                for of in ("ours", "plain")
            ]
            assert rows[0] == rows[1], condition


def test_sums_of_decimals_do_not_overflow(store: Store, tmp_path: Path) -> None:
    small, large = Decimal("9999999.99"), Decimal("9999999999999.99")
    columns = {"a": pa.array([small] * 3000, pa.decimal128(9, 2)), "b": pa.array([large] * 3000, pa.decimal128(15, 2))}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=1000)
    context = datafusion.SessionContext()
    store.dataset(tmp_path / "t.parquet").to_datafusion(context, "t")
    found = context.sql("select sum(a) as a, sum(b) as b, max(b * b) as c from t").to_pydict()
    assert found == {"a": [small * 3000], "b": [large * 3000], "c": [Decimal("99999999999999800000000000.0001")]}


@pytest.mark.slow
def test_more_words_than_16_bit_codes(store: Store, tmp_path: Path) -> None:
    """Each row group has few enough, all together have not."""
    words = [f"{i // 10:05d}" for i in range(400_000)]
    pq.write_table(pa.table({"k": words, "i": range(400_000)}), tmp_path / "t.parquet", row_group_size=100_000)
    dataset, context = store.dataset(tmp_path / "t.parquet"), datafusion.SessionContext()
    assert pa.types.is_dictionary(dataset.snapshot().stored.field("k").type), "else this tests nothing"
    dataset.to_datafusion(context, "t")
    assert context.sql("select k from t group by k").to_arrow_table().num_rows == 40_000
    assert context.sql("select i, first_value(k) as k from t group by i").to_arrow_table().num_rows == 400_000
    assert context.sql("select k, i from t order by i desc limit 1").to_pydict() == {"k": ["39999"], "i": [399_999]}


def test_a_file_that_is_replaced(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), path)
    context = datafusion.SessionContext()
    store.dataset(path).to_datafusion(context, "t")
    assert context.sql("select sum(a) as s from t").to_pydict() == {"s": [3]}
    pq.write_table(pa.table({"a": [5, 6, 7]}), path)
    assert context.sql("select sum(a) as s from t").to_pydict() == {"s": [18]}


def test_expressions_taken_apart() -> None:
    x = pc.field("x")
    assert tree(x) == Field("x")
    made = tree((x > 2.5) & ~x.is_null() | pc.field("s, with \" 'x").isin(["a", None]))
    assert isinstance(made, Call) and made.function == "or_kleene"
    both, member = made.arguments
    assert both.function == "and_kleene" and both.arguments[0] == Call(
        "greater", [Field("x"), Literal(pa.scalar(2.5))], {}
    )
    assert both.arguments[1].function == "invert" and both.arguments[1].arguments[0].function == "is_null"
    assert member.arguments == [Field("s, with \" 'x")] and member.options["value_set"].as_py() == ["a", None]
    assert tree(pc.scalar(None)).value.as_py() is None
    with pytest.raises(NotImplementedError, match="nested"):
        tree(pc.field("a", "b") == 1)


def test_what_is_not_known_is_refused() -> None:
    from tierstore.engines.datafusion import Filter

    schema = pa.schema([("x", pa.float64()), ("i", pa.int64())])
    for unknown in (pc.sqrt(pc.field("i")) > 2, pc.field("x") + 1 > 2, pc.field("x").is_null(nan_is_null=True)):
        with pytest.raises(NotImplementedError, match="not known here"):
            Filter(unknown, schema)


def test_lists_are_compared_by_datafusion_or_not_at_all(store: Store, tmp_path: Path) -> None:
    pq.write_table(pa.table({"v": [1, 2, 3], "l": [[1], [], None]}), tmp_path / "t.parquet")
    context = datafusion.SessionContext()
    store.dataset(tmp_path / "t.parquet").to_datafusion(context, "t")
    with pytest.raises(Exception, match="'l' cannot be compared here; 'is .not. distinct from'"):
        context.sql("select v from t where l = [1]").collect()
    assert context.sql("select v from t where l is not distinct from [1]").to_pydict() == {"v": [1]}
    assert context.sql("select v from t where l = [1]").to_pydict() == {"v": [1]}, "in memory"
