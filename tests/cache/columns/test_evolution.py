"""Files whose schemas differ, and columns that are in their paths: as pyarrow reads them, given one schema."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")


def check(store: Store, folder: Path, keep: pds.Expression | None = None, schema: pa.Schema | None = None) -> pa.Table:
    """Cold, and from the cache; pyarrow gets our schema, for its own is that of the first file."""
    dataset = store.dataset(folder)
    schema = schema or dataset.schema
    theirs = pds.dataset(folder, schema=schema, partitioning=pds.partitioning(flavor="hive"), format="parquet")
    expected = theirs.to_table(filter=keep)
    for _ in range(2):
        table = dataset.to_table(filter=keep)
        assert table.schema.equals(schema)
        assert table.equals(expected)
        for name in schema.names:
            assert dataset.to_table([name], filter=keep).equals(expected.select([name]))
    assert dataset.stats()["misses"] <= dataset.stats()["chunks"]
    return table


def write(folder: Path, *tables: pa.Table) -> Path:
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=50)
    return folder


def test_columns_added_dropped_and_reordered(store: Store, tmp_path: Path) -> None:
    numbers, texts = pa.array(range(120)), pa.array([f"text {i % 3}" for i in range(120)])
    folder = write(
        tmp_path,
        pa.table({"a": numbers, "b": texts}),
        pa.table({"b": texts, "c": numbers, "a": numbers}),
        pa.table({"c": numbers, "d": pa.array([[1]] * 120)}),
    )
    table = check(store, folder)
    assert table.column_names == ["a", "b", "c", "d"]
    assert [table[name].null_count for name in "abcd"] == [120, 120, 120, 240]
    for keep in (
        pds.field("a") > 100,
        pds.field("c").is_null(),
        ~(pds.field("b") == "text 1"),
        pds.field("d").is_valid(),
    ):
        check(store, folder, keep)


@pytest.mark.parametrize(
    ("narrow", "wide", "values"),
    [
        (pa.int8(), pa.int64(), [-128, 127]),
        (pa.int32(), pa.int64(), [-(2**31), 2**31 - 1]),
        (pa.uint16(), pa.int32(), [0, 65535]),
        (pa.float32(), pa.float64(), [1.5, -0.0]),
        (pa.int32(), pa.float64(), [1, -7]),
        (pa.decimal128(5, 2), pa.decimal128(9, 2), [Decimal("999.99")]),
        (pa.decimal128(9, 2), pa.decimal128(18, 4), [Decimal("999.99")]),
        (pa.decimal128(18, 2), pa.decimal128(30, 2), [Decimal("999.99")]),
        (pa.decimal128(30, 2), pa.decimal256(50, 2), [Decimal("999.99")]),
        (pa.timestamp("ms"), pa.timestamp("us"), [0, 1]),
        (pa.string(), pa.large_string(), ["a", "b"]),
        (pa.binary(), pa.large_binary(), [b"a", b"b"]),
        (pa.null(), pa.string(), [None]),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), [[1, 2], []]),
    ],
    ids=str,
)
@pytest.mark.parametrize("first", ["narrow", "wide"])
def test_widened(
    first: str, narrow: pa.DataType, wide: pa.DataType, values: list, store: Store, tmp_path: Path
) -> None:
    some = [*values, None] * 40
    tables = [pa.table({"row": range(len(some)), "v": pa.array(some, kind)}) for kind in (narrow, wide)]
    folder = write(tmp_path, *(tables if first == "narrow" else tables[::-1]))
    table = check(store, folder)
    assert table.schema.field("v").type == wide
    check(store, folder, pds.field("row").isin([0, 1, 77]))
    check(store, folder, pds.field("v").is_valid())


def test_texts_in_several_forms(store: Store, tmp_path: Path) -> None:
    few = pa.array([f"text {i % 3}" for i in range(120)])
    many = pa.array([f"another text {i}" for i in range(120)])
    folder = write(tmp_path, pa.table({"s": few}), pa.table({"s": many}), pa.table({"s": pa.nulls(120, pa.string())}))
    pq.write_table(pa.table({"s": many}), folder / "3.parquet", use_dictionary=False)
    check(store, folder)
    check(store, folder, pds.field("s") == "text 1")


def test_types_that_have_nothing_in_common(store: Store, tmp_path: Path) -> None:
    write(tmp_path, pa.table({"a": [1]}), pa.table({"a": ["x"]}))
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError), match="a"):
        store.dataset(tmp_path)


def partitioned(folder: Path, *places: str, **columns: list) -> Path:
    for number, place in enumerate(places):
        (folder / place).mkdir(parents=True)
        pq.write_table(pa.table({"v": [number] * 10, **columns}), folder / place / "f.parquet")
    return folder


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "20", "-3"], pa.int32()),
        (["1", str(2**31)], pa.int64()),
        (["1", str(2**63)], pa.string()),
        (["007", "8"], pa.string()),
        (["a", "b c", "1"], pa.string()),
        (["a%2Fb", "ß"], pa.string()),
        (["1", "__HIVE_DEFAULT_PARTITION__"], pa.int32()),
        (["__HIVE_DEFAULT_PARTITION__"], pa.string()),
        (["1.5", "+1"], pa.string()),
        ([""], pa.string()),
    ],
    ids=str,
)
def test_partitions(values: list[str], kind: pa.DataType, store: Store, tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "t", *(f"p={value}" for value in values))
    dataset = store.dataset(folder)
    assert dataset.schema.equals(pa.schema([("v", pa.int64()), ("p", kind)]))
    table = dataset.to_table()
    by_place = dict(zip(table["v"].to_pylist(), table["p"].to_pylist(), strict=True))
    words = {"a%2Fb": "a/b", "__HIVE_DEFAULT_PARTITION__": None}
    expected = {n: words.get(text, text) for n, text in enumerate(values)}
    assert {n: None if value is None else str(value) for n, value in by_place.items()} == expected
    for number, value in by_place.items():
        keep = pds.field("p").is_null() if value is None else pds.field("p") == value
        assert dataset.to_table(["v"], keep)["v"].to_pylist() == [number] * 10
    if len(values) > 1:
        assert dataset.stats()["pruned"] == len(values) * (len(values) - 1)


def test_partitions_of_several_levels(store: Store, tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "t", "year=2023/month=1", "year=2023/month=12", "year=2024/month=1", "plain")
    table = check(store, folder)
    assert table.column_names == ["v", "year", "month"]
    check(store, folder, (pds.field("year") == 2023) & (pds.field("month") > 3))
    check(store, folder, pds.field("year").is_null())
    assert store.dataset(folder).to_table(["month", "v"]).column_names == ["month", "v"]


def test_a_column_in_the_path_and_in_the_file(store: Store, tmp_path: Path) -> None:
    """The path wins, also where the file's statistics say otherwise."""
    folder = partitioned(tmp_path / "t", "p=1", "p=2", p=[7] * 10)
    dataset = store.dataset(folder)
    for _ in range(2):
        assert dataset.to_table()["p"].to_pylist() == [1] * 10 + [2] * 10
        assert dataset.to_table(["v"], pds.field("p") == 2)["v"].to_pylist() == [1] * 10
        assert dataset.to_table(["v"], pds.field("p") == 7).num_rows == 0


def test_one_file_with_and_without_its_path(store: Store, tmp_path: Path) -> None:
    """What is known of a file from one dataset's path must not prune it in another's."""
    folder = partitioned(tmp_path / "t", "p=1", p=[7] * 10)
    whole, alone = store.dataset(folder), store.dataset(folder / "p=1" / "f.parquet")
    for _ in range(2):
        assert whole.to_table(filter=pds.field("p") == 1).num_rows == 10
        assert alone.to_table(filter=pds.field("p") == 7)["p"].to_pylist() == [7] * 10
        assert alone.to_table(filter=pds.field("p") == 1).num_rows == 0


def test_a_new_partition_changes_the_type(store: Store, tmp_path: Path) -> None:
    folder = partitioned(tmp_path / "t", "p=1")
    dataset = store.dataset(folder)
    assert dataset.to_table()["p"].to_pylist() == [1] * 10
    (folder / "p=x").mkdir()
    pq.write_table(pa.table({"v": [5]}), folder / "p=x" / "f.parquet")
    assert dataset.to_table()["p"].to_pylist() == ["1"] * 10 + ["x"]
    assert dataset.to_table(["v"], pds.field("p") == "1").num_rows == 10
