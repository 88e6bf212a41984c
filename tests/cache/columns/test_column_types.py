"""Every type that Parquet holds comes back as pyarrow's own reader gives it: when it is read, and from the cache."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest

from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")
ROWS = 300
LONG = "longer than the twelve bytes that a view holds in place, "


def some(values: list, kind: pa.DataType) -> pa.Array:
    """ROWS values of a type, every seventh null."""
    return pa.array([None if i % 7 == 3 else values[i % len(values)] for i in range(ROWS)], kind)


def numbers() -> Iterator[tuple[str, pa.Array]]:
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64()):
        yield str(kind), some([-(2 ** (kind.bit_width - 1)), -1, 0, 2 ** (kind.bit_width - 1) - 1], kind)
    for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        yield str(kind), some([0, 1, 2**kind.bit_width - 1], kind)
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        values = np.array([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan] * (ROWS // 6), kind.to_pandas_dtype())
        yield str(kind), pa.array(values, kind, mask=np.arange(ROWS) % 7 == 3)
    yield "bool", some([True, False, False], pa.bool_())
    yield "null", pa.nulls(ROWS)


def decimals() -> Iterator[tuple[str, pa.Array]]:
    for precision in range(1, 39):
        top = 10**precision - 1
        scale = precision // 2
        values = [Decimal(f"{top}e-{scale}"), Decimal(f"-{top}e-{scale}"), Decimal(0)]
        yield f"decimal128-{precision}", some(values, pa.decimal128(precision, scale))
    for kind in (pa.decimal32(9, 2), pa.decimal64(18, 3), pa.decimal256(38, 2), pa.decimal256(76, 2)):
        yield str(kind), some([Decimal("1.25"), Decimal("-99999.99"), Decimal(0)], kind)
    yield "negative scale", some([Decimal(1200), Decimal(-100)], pa.decimal128(10, 2)).cast(pa.decimal128(12, 4))


def times() -> Iterator[tuple[str, pa.Array]]:
    moment, day = datetime.datetime(2024, 2, 29, 23, 59, 59), datetime.date(1969, 2, 28)
    yield "date32", some([day], pa.date32())
    yield "date64", some([day], pa.date64())
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        yield str(kind), some([datetime.time(23, 59, 59), datetime.time(0)], kind)
    for unit in ("s", "ms", "us", "ns"):
        yield f"timestamp {unit}", some([moment], pa.timestamp(unit))
        yield f"zoned {unit}", some([moment], pa.timestamp(unit, "Europe/Vienna"))
        yield f"duration {unit}", some([datetime.timedelta(days=-1), datetime.timedelta(seconds=5)], pa.duration(unit))


def texts() -> Iterator[tuple[str, pa.Array]]:
    few, many = ["", "a", "ß → 𝄞", LONG * 3], [f"{LONG}{i}" for i in range(ROWS)]
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield f"few {kind}", some(few, kind)
        yield f"many {kind}", some(many, kind)
        yield f"no {kind}", pa.nulls(ROWS, kind)
        yield f"empty {kind}", pa.array([""] * ROWS, kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield f"{kind}", some([b"", b"\0", b"\xff" * 13, b"x" * 300], kind)
    yield "fixed", some([b"12345", b"\0\0\0\0\0"], pa.binary(5))


def encoded() -> Iterator[tuple[str, pa.Array]]:
    yield "codes", some(["red", "green", "blue"], pa.string()).dictionary_encode()
    yield "many codes", some([f"{LONG}{i}" for i in range(ROWS)], pa.string()).dictionary_encode()
    yield "ordered", pa.DictionaryArray.from_arrays(some([1, 0], pa.int8()), pa.array(["low", "high"]), ordered=True)
    yield "wide codes", pa.DictionaryArray.from_arrays(some([1, 0], pa.int64()), pa.array(["low", "high"]))
    yield (
        "large codes",
        pa.DictionaryArray.from_arrays(some([1, 0], pa.int8()), pa.array(["a", "b"], pa.large_string())),
    )
    yield "bytes as codes", some([b"red", b"\xff"], pa.binary()).dictionary_encode()
    yield "numbers as codes", some([1.5, 2.5], pa.float64()).dictionary_encode()
    yield "no codes", pa.DictionaryArray.from_arrays(pa.nulls(ROWS, pa.int32()), pa.array([], pa.string()))


def nested() -> Iterator[tuple[str, pa.Array]]:
    point = pa.struct([pa.field("x", pa.int32()), pa.field("y", pa.list_(pa.string()))])
    points = [{"x": 1, "y": ["a", None]}, {"x": None, "y": []}, {"x": 3, "y": None}]
    for kind in (pa.list_(pa.int16()), pa.large_list(pa.int16()), pa.list_(pa.decimal128(5, 2))):
        yield f"{kind}", some([[], [1], [1, None, 3]], kind)
    yield "fixed list", some([[1, 2, None], [4, 5, 6]], pa.list_(pa.int64(), 3))
    yield "struct", some(points, point)
    yield "list of struct", some([points, [], [None]], pa.list_(point))
    yield "map", some([[("a", 1), ("b", None)], []], pa.map_(pa.string(), pa.int32()))
    yield "map of lists", some([[("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int8())))
    yield "codes in struct", pa.StructArray.from_arrays([some(["a", "b"], pa.string()).dictionary_encode()], ["v"])


GROUPS = {group.__name__: group for group in (numbers, decimals, times, texts, encoded, nested)}


def check(table: pa.Table, expected: pa.Table) -> None:
    table.validate(full=True)
    assert table.schema.equals(expected.schema), f"{table.schema}\nagainst\n{expected.schema}"
    for name in expected.column_names:
        one, other = table[name].combine_chunks(), expected[name].combine_chunks()
        assert one.cast(other.type).to_pylist().__repr__() == other.to_pylist().__repr__(), name  # NaN and -0.0 too


@pytest.mark.parametrize("coded", [True, False], ids=["dictionary", "plain"])
@pytest.mark.parametrize("group", GROUPS)
def test_every_type(group: str, coded: bool, store: Store, tmp_path: Path) -> None:
    table = pa.table(dict(GROUPS[group]()))
    path = tmp_path / "f.parquet"
    pq.write_table(table, path, row_group_size=128, use_dictionary=coded)
    expected = pq.read_table(path).replace_schema_metadata()
    dataset = store.dataset(path)
    assert dataset.schema.equals(expected.schema)
    check(dataset.to_table(), expected)
    chunks = 3 * table.num_columns
    first = dataset.stats()
    assert (first["misses"], first["hits"], first["cached_chunks"]) == (chunks, 0, chunks), first
    check(dataset.to_table(), expected)
    second = dataset.stats()
    assert (second["misses"], second["hits"]) == (chunks, chunks), second


@pytest.mark.parametrize("group", GROUPS)
def test_a_handful_of_rows_of_every_type_are_filtered(group: str, store: Store, tmp_path: Path) -> None:
    table = pa.table({"row": range(ROWS)} | dict(GROUPS[group]()))
    views = [i for i, field in enumerate(table.schema) if "view" in str(field.type)]  # pyarrow does not filter these
    for i in reversed(views):
        table = table.remove_column(i)
    path = tmp_path / "f.parquet"
    pq.write_table(table, path, row_group_size=128)
    keep = pds.field("row").isin([0, 3, 127, 128, 299])
    expected = pds.dataset(path).to_table(filter=keep).replace_schema_metadata()
    for _ in range(2):
        check(store.dataset(path).to_table(filter=keep), expected)


def test_nested_views(store: Store, tmp_path: Path) -> None:
    """Apart from the others, as pyarrow cannot write them in several row groups."""
    table = pa.table({
        "struct": some([{"v": LONG}, {"v": None}], pa.struct([("v", pa.string_view())])),
        "list": some([[LONG, "a"], []], pa.list_(pa.string_view())),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "f.parquet")
    for _ in range(2):
        check(store.dataset(tmp_path / "f.parquet").to_table(), table)


@pytest.mark.parametrize("rows", [[], [0], [0, 0], [5, 0, 5]], ids=str)
def test_empty_files_and_row_groups(rows: list[int], store: Store, tmp_path: Path) -> None:
    schema = pa.schema([("i", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.string())), ("d", pa.decimal128(5))])
    path = tmp_path / "f.parquet"
    with pq.ParquetWriter(path, schema) as writer:
        for count in rows:
            row = {"i": count, "s": str(count), "l": ["x"], "d": Decimal(count)}
            writer.write_table(pa.Table.from_pylist([row] * count, schema))
    expected = pq.read_table(path).replace_schema_metadata()
    dataset = store.dataset(path)
    for _ in range(2):
        assert dataset.to_table().equals(expected)
        assert dataset.to_table(filter=pds.field("i") >= 0).equals(expected)
    assert dataset.count_rows() == sum(rows)


NAMES = [
    "a.b",
    "a",
    "a/b",
    "100%",
    "q?r#s",
    "naïve ✓",
    " ",
    "A",
    "a.b.c",
    "~",
    "columns/",
    "'\"",
    "new\nline",
    "x" * 5000,
]


def test_odd_column_names(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "odd ?#%25 name=x.parquet"
    table = pa.table({name: [i, i + 100] for i, name in enumerate(NAMES)})
    table = table.append_column("s", pa.array([{"a.b": 1, "b": "x"}, None]))
    pq.write_table(table, path)
    dataset = store.dataset(path)
    for _ in range(2):
        assert dataset.to_table().equals(table)
        for name in NAMES:
            assert dataset.to_table([name]).equals(table.select([name])), name
    assert dataset.stats()["misses"] == len(NAMES) + 1
    assert dataset.evict(["a"]) == 1


def test_a_struct_and_a_column_whose_paths_are_alike(store: Store, tmp_path: Path) -> None:
    """Both leaves are called a.b in the footer."""
    path = tmp_path / "f.parquet"
    table = pa.table({"a": [{"b": "one"}, {"b": "two"}] * 500, "a.b": ["x", "y"] * 500})
    pq.write_table(table, path)
    dataset = store.dataset(path)
    for columns in (["a"], ["a.b"], ["a", "a.b"], ["a.b", "a"]) * 2:
        assert dataset.to_table(columns).equals(table.select(columns))


def test_columns_of_one_name_are_refused_as_pyarrow_refuses_them(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(pa.ArrowInvalid):
        pds.dataset(path).to_table()
    with pytest.raises(pa.ArrowInvalid, match="a file has several columns of one name: a"):
        store.dataset(path)


def test_columns_that_are_not_there(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    dataset = store.dataset(path)
    with pytest.raises(ValueError, match=r"columns = 'b' cannot be used: this dataset has a"):
        dataset.scan(["a", "b"])
    assert dataset.to_table([]).num_rows == 1
    assert dataset.to_table(["a"], pds.field("a") > 1).num_rows == 0
