"""A dataset as a LazyFrame of Polars: limits, predicates, projections, and whose memory the columns are."""

from __future__ import annotations

import datetime
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tierstore
from tierstore.cache.store import Store

pl = pytest.importorskip("polars")

GROUPS = 8  # row groups of the file

pytestmark = pytest.mark.usefixtures("trusting")


@pytest.fixture(autouse=True)
def _abandoned() -> Iterator[None]:
    """Polars' streaming engine keeps a source that it abandoned, and with it the store's memory, until its next query."""
    yield
    pl.LazyFrame({"a": [1]}).collect(engine="streaming")


QUERIES: dict[str, Callable[[Any], Any]] = {
    "all": lambda t: t,
    "head": lambda t: t.head(7),
    "head of none": lambda t: t.head(0),
    "head over row groups": lambda t: t.head(1203).select("n", "text"),
    "tail": lambda t: t.tail(5),
    "slice": lambda t: t.slice(995, 10),
    "head, then filter": lambda t: t.head(600).filter(pl.col("n") > 550),
    "head, then a filter that excludes the first row groups": lambda t: t.head(10).filter(pl.col("n") > 2000),
    "filter, then head": lambda t: t.filter(pl.col("n") > 550).head(3),
    "head, filter, head": lambda t: t.head(1000).filter(pl.col("word") == "red").head(4),
    "no row passes": lambda t: t.filter(pl.col("n") > 99_999),
    "no row group is left, one column": lambda t: t.filter(pl.col("n") < 0).select("text"),
    "predicate on another column": lambda t: t.filter(pl.col("mixed") == 77).select("n"),
    "predicate on text": lambda t: t.filter(pl.col("word").str.starts_with("gr") & (pl.col("n") <= 4)),
    "mirrored": lambda t: t.filter(pl.lit(3990) <= pl.col("n")),
    "between": lambda t: t.filter(pl.col("n").is_between(498, 502, closed="right")),
    "null word": lambda t: t.filter(pl.col("word").is_null() & (pl.col("n") < 5)),
    "is in": lambda t: t.filter(pl.col("n").is_in([5, 501, 3999, 12345])),
    "or": lambda t: t.filter((pl.col("n") < 2) | (pl.col("n") > 3997)),
    "count": lambda t: t.select(pl.len()),
    "count some": lambda t: t.filter(pl.col("n") >= 3500).select(pl.len()),
    "projection": lambda t: t.select("word", "n").head(3),
    "reordered": lambda t: t.select("price", "mixed", "n"),
    "no column": lambda t: t.select([]),
    "computed": lambda t: t.select((pl.col("price") * 2).sum(), pl.col("x").mean()),
    "group": lambda t: t.group_by("word").agg(pl.col("n").sum(), pl.len()).sort("word"),
    "join": lambda t: t.join(t.select("n", pl.col("word").alias("other")), left_on="mixed", right_on="n").sort("n"),
    "sort": lambda t: t.sort("mixed", "n", descending=True).head(5),
    "text": lambda t: t.select(pl.col("text").str.to_uppercase(), pl.col("word").str.len_bytes()).tail(3),
    "concat": lambda t: pl.concat([t.head(3), t.tail(2)]),
    "unique": lambda t: t.select(pl.col("word").unique().sort()),
    "categories": lambda t: t.select(pl.col("word").cast(pl.Categorical)).head(4),
}


@pytest.mark.parametrize("frame_rows", [100, 1 << 16])
@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("name", QUERIES)
def test_same_frame_as_from_parquet(
    store: Store, path: str, name: str, engine: str, frame_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierstore.engines.polars.FRAME_ROWS", frame_rows)
    query, frame = QUERIES[name], store.dataset(path).to_polars()
    expected = query(pl.scan_parquet(path)).collect(engine=engine)
    for _ in range(3):  # cold, then warm, then in the wide form
        found = query(frame).collect(engine=engine)
        assert found.schema == expected.schema and found.equals(expected)


def test_statistics_exclude_row_groups(store: Store, path: str) -> None:
    day = datetime.datetime(2024, 1, 1)
    cases = [
        (pl.col("n") > 3600, 1),
        ((pl.col("n") >= 500) & (pl.col("n") < 1000) & (pl.col("mixed") != 5), 1),
        (pl.lit(600) > pl.col("n"), 2),
        (pl.col("n").is_between(400, 1400), 3),
        (pl.col("n") == 3, 1),
        (pl.col("text") > "text number 9999", 0),
        (pl.col("n") > 5_000_000_000, 0),
        ((pl.col("n") > 3600) | (pl.col("mixed") == 5), GROUPS),
        (pl.col("n") * 2 > 7900, GROUPS),
    ]
    for predicate, groups in cases:
        dataset = store.dataset(path)
        found = dataset.to_polars().filter(predicate).select("n").collect()
        assert found.equals(pl.scan_parquet(path).filter(predicate).select("n").collect())
        assert dataset.stats()["pruned"] == GROUPS - groups, predicate
    times = str(Path(path).with_name("times.parquet"))
    for zone in (None, "UTC", "Europe/Vienna"):
        kind = pa.timestamp("us", zone)
        moments = pa.array([day + datetime.timedelta(hours=i) for i in range(100)], pa.timestamp("us")).cast(kind)
        pq.write_table(pa.table({"t": moments}), times, row_group_size=25)
        limit = pl.lit(moments[80].as_py()) if zone else pl.lit(day + datetime.timedelta(hours=80))
        dataset = store.dataset(times)
        assert dataset.to_polars().filter(pl.col("t") >= limit).collect().height == 20
        assert zone == "Europe/Vienna" or dataset.stats()["pruned"] == 3


def test_only_the_columns_of_the_query_are_filled(store: Store, path: str) -> None:
    dataset = store.dataset(path)
    frame = dataset.to_polars()
    frame.collect_schema()
    frame.explain()
    assert dataset.stats()["misses"] == 0
    frame.filter(pl.col("mixed") > 5).select("x").collect()
    assert dataset.stats()["misses"] == dataset.stats()["cached_chunks"] == 2 * GROUPS


def test_a_limit_reads_no_more_than_it_needs(store: Store, path: str) -> None:
    dataset = store.dataset(path)
    assert dataset.to_polars().head(501).collect()["n"].to_list() == list(range(501))
    assert dataset.stats()["misses"] == 6 * 2, "two row groups of six columns"
    assert dataset.to_polars().head(500).filter(pl.col("n") > 1000).collect().height == 0


def test_integers_are_not_copied(store: Store, path: str) -> None:
    dataset = store.dataset(path)
    dataset.preload()
    mapped = dataset.to_table(["n", "x"])
    frame = dataset.to_polars().select("n", "x").collect()
    for name in ("n", "x"):
        chunks = frame[name].get_chunks()
        addresses = [chunk.to_arrow().buffers()[1].address for chunk in chunks]
        assert addresses == [chunk.buffers()[1].address for chunk in mapped[name].chunks], name


def test_a_frame_outlives_the_store(path: str) -> None:
    expected = pl.read_parquet(path)
    with tierstore.open(dram="32MiB", segment="1MiB") as store:
        lazy = store.dataset(path).to_polars()
        lazy.collect()
        frame = lazy.collect()
    gc.collect()
    assert frame.equals(expected)
    with pytest.raises(tierstore.Closed):
        lazy.collect()


def test_a_file_that_is_replaced(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), path)
    frame = store.dataset(path).to_polars()
    assert frame.collect().rows() == [(1, "x"), (2, "y")]
    pq.write_table(pa.table({"a": [3], "b": ["z"]}), path)
    assert frame.collect().rows() == [(3, "z")]


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.filterwarnings("ignore::polars.exceptions.PolarsInefficientMapWarning")
def test_predicates_that_call_python(store: Store, path: str, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are called by the threads of a query that Python waits for."""
    monkeypatch.setattr("tierstore.engines.polars.FRAME_ROWS", 100)
    even = pl.col("n").map_elements(lambda n: n % 2 == 0, return_dtype=pl.Boolean)
    broken = pl.col("n").map_elements(lambda n: 1 // (n - 7) == 0, return_dtype=pl.Boolean)
    frame = store.dataset(path).to_polars()
    for _ in range(2):
        assert frame.filter(even).select(pl.len()).collect(engine=engine).item() == 2000
        with pytest.raises(Exception, match="division|modulo"):
            frame.filter(broken).collect(engine=engine)


def test_a_column_that_does_not_exist(store: Store, path: str) -> None:
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        store.dataset(path).to_polars().select("nope").collect()
