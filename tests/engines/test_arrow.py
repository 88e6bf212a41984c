"""A dataset as a pyarrow.dataset.Dataset, for whatever takes one."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pytest

from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")

N, WORD = pc.field("n"), pc.field("word")


@pytest.fixture
def both(store: Store, path: str) -> tuple[pds.Dataset, pds.Dataset]:
    """Ours, and pyarrow's own."""
    return store.dataset(path).to_pyarrow(), pds.dataset(path)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"columns": ["word", "n"]},
    {"columns": []},
    {"filter": N > 3900},
    {"columns": ["text"], "filter": (N < 5) | (WORD == "red")},
    {"columns": {"twice": N * 2, "word": WORD}, "filter": N < 1001},
    {"columns": {"only": pc.scalar(1)}},
    {"columns": ["x"], "filter": pc.field("x").is_null() & WORD.isin(["green"])},
    {"columns": ["n"], "filter": N < 0},
    {"columns": ["n"], "batch_size": 100},
    {"columns": ["n"], "use_threads": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_same_as_pyarrows_own(both: tuple[pds.Dataset, pds.Dataset], options: dict[str, Any]) -> None:
    ours, plain = both
    assert ours.to_table(**options) == plain.to_table(**options)
    assert ours.scanner(**options).to_table() == plain.scanner(**options).to_table()
    assert ours.scanner(**options).projected_schema == plain.scanner(**options).projected_schema
    assert ours.head(7, **options) == plain.head(7, **options)
    assert ours.count_rows(filter=options.get("filter")) == plain.count_rows(filter=options.get("filter"))
    batches = list(ours.to_batches(**options))
    assert sum(batch.num_rows for batch in batches) == plain.scanner(**options).count_rows()
    assert all(batch.num_rows <= options.get("batch_size", 1 << 17) for batch in batches)
    if plain.scanner(**options).count_rows() > 3:
        assert ours.take([3, 0, 3], **options) == plain.take([3, 0, 3], **options)


def test_schema_and_fragments(both: tuple[pds.Dataset, pds.Dataset]) -> None:
    ours, plain = both
    assert ours.schema == plain.schema and isinstance(ours, pds.Dataset)
    for condition in (None, N > 3000):
        parts = [part.to_table(columns=["n", "word"]) for part in ours.get_fragments(condition)]
        rows = pa.concat_tables(parts).filter(N > 3000)
        assert rows.combine_chunks() == plain.to_table(["n", "word"], filter=N > 3000).combine_chunks()


def test_errors_are_pyarrows_own(both: tuple[pds.Dataset, pds.Dataset]) -> None:
    ours, plain = both
    for options in ({"filter": pc.field("nope") > 1}, {"filter": N > "x"}, {"filter": WORD + 1 > 2}):
        raised = []
        for dataset in (ours, plain):
            with pytest.raises(pa.ArrowException) as caught:
                dataset.to_table(**options)
            raised.append(type(caught.value))
        assert raised[0] is raised[1], options
    with pytest.raises(ValueError, match="nope"):
        ours.to_table(columns=["nope"])


def test_only_the_columns_that_are_asked_for_are_filled(store: Store, path: str) -> None:
    dataset = store.dataset(path)
    ours = dataset.to_pyarrow()
    ours.to_table(columns={"twice": N * 2}, filter=WORD == "red")
    assert dataset.stats()["misses"] == 2 * 8


def test_a_copy_with_another_schema(both: tuple[pds.Dataset, pds.Dataset]) -> None:
    ours, plain = both
    schema = plain.schema.set(0, pa.field("n", pa.float64()))
    assert ours.replace_schema(schema).to_table() == plain.to_table().cast(schema)


def test_what_pyarrow_can_do_with_a_dataset(both: tuple[pds.Dataset, pds.Dataset], path: str) -> None:
    ours, plain = both
    assert ours.sort_by("mixed").to_table() == plain.sort_by("mixed").to_table()
    some, expected = ours.filter(N > 3990), plain.filter(N > 3990)
    assert some.to_table() == expected.to_table() and some.count_rows() == 9
    assert some.filter(WORD == "red").to_table(["n"], filter=N > 3994) == plain.to_table(
        ["n"], filter=(N > 3994) & (WORD == "red")
    )
    other = pds.dataset(pa.table({"n": [1, 2, 3999], "more": ["a", "b", "c"]}))
    for left, right in ((ours, other), (other, ours), (ours, ours.filter(N > 5))):
        plain_left, plain_right = (plain if one is ours else one for one in (left, right))
        if right is not other and right is not ours:
            plain_right = plain.filter(N > 5)
        found, wanted = (
            one.join(two, "n", join_type="inner", right_suffix="_r").to_table().sort_by("n")
            for one, two in ((left, right), (plain_left, plain_right))
        )
        assert found == wanted and found.num_rows > 2
    assert ours.partition_expression.equals(plain.partition_expression) and ours.files == [path]
    assert pds.Scanner.from_dataset(ours, columns=["n"]).to_table() == plain.to_table(["n"])
    assert pds.UnionDataset(plain.schema, [ours, plain]).count_rows() == 8000
    assert pickle.loads(pickle.dumps(ours)).to_table() == plain.to_table()


def test_duckdb_polars_and_pandas_take_it(both: tuple[pds.Dataset, pds.Dataset]) -> None:
    ours, plain = both
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.register("ours", ours)
        connection.register("plain", plain)
        query = "select count(*), sum(n), max(text) from {} where n > 1000 and word = 'red'"
        assert connection.sql(query.format("ours")).fetchall() == connection.sql(query.format("plain")).fetchall()
    pl = pytest.importorskip("polars")
    frame = pl.scan_pyarrow_dataset(ours).filter(pl.col("n") > 3990).select("word", "n").collect()
    assert frame.equals(pl.scan_pyarrow_dataset(plain).filter(pl.col("n") > 3990).select("word", "n").collect())
    pytest.importorskip("pandas")
    assert ours.to_table().to_pandas().equals(plain.to_table().to_pandas())
