"""Every Arrow type comes back as it went in, from every tier, however the input was cut."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from tierstore.cache.store import Store

ROWS = 100
DAY = datetime.date(2024, 2, 29)
METADATA = {"who": "all of it", "empty": "", "bytes": b"\xff\x00"}


def some(values: list, kind: pa.DataType) -> pa.Array:
    """ROWS values of a type, every seventh null."""
    return pa.array([None if i % 7 == 3 else values[i % len(values)] for i in range(ROWS)], kind)


def integers() -> Iterator[pa.Array]:
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64()):
        yield some([-(2 ** (kind.bit_width - 1)), -1, 0, 2 ** (kind.bit_width - 1) - 1], kind)
    for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        yield some([0, 1, 2**kind.bit_width - 1], kind)


def numbers() -> Iterator[pa.Array]:
    yield pa.array([None if i % 7 == 3 else i for i in range(ROWS)], pa.float32()).cast(pa.float16())
    for kind in (pa.float32(), pa.float64()):
        yield some([0.0, -0.0, 1.5, float("inf"), float("-inf"), 1e-38], kind)
    yield some([True, False, False], pa.bool_())
    for kind in (pa.decimal32(7, 2), pa.decimal64(15, 2), pa.decimal128(38, 2), pa.decimal256(76, 2)):
        yield some([Decimal("1.25"), Decimal("-99999.99"), Decimal(0)], kind)


def times() -> Iterator[pa.Array]:
    moment = datetime.datetime(2024, 2, 29, 23, 59, 59)
    yield some([DAY], pa.date32())
    yield some([DAY], pa.date64())
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        yield some([datetime.time(23, 59, 59), datetime.time(0)], kind)
    for unit in ("s", "ms", "us", "ns"):
        yield some([moment], pa.timestamp(unit))
        yield some([moment], pa.timestamp(unit, "Europe/Vienna"))
        yield some([datetime.timedelta(days=-1), datetime.timedelta(seconds=5)], pa.duration(unit))
    yield some([pa.scalar((1, -2, 3), pa.month_day_nano_interval()).as_py()], pa.month_day_nano_interval())


def texts() -> Iterator[pa.Array]:
    long = "longer than the twelve bytes that a view holds in place, "
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield some(["", "a", "ß → 𝄞", long * 3], kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield some([b"", b"\0", b"\xff" * 13, b"x" * 300], kind)
    yield some([b"12345", b"\0\0\0\0\0"], pa.binary(5))
    yield pa.array([b""] * ROWS, pa.binary(0))


def nested() -> Iterator[pa.Array]:
    point = pa.struct([pa.field("x", pa.int32(), metadata={"unit": "m"}), pa.field("y", pa.list_(pa.string()))])
    points = [{"x": 1, "y": ["a", None]}, {"x": None, "y": []}, {"x": 3, "y": None}]
    for kind in (
        pa.list_(pa.int16()),
        pa.large_list(pa.int16()),
        pa.list_view(pa.int16()),
        pa.large_list_view(pa.int16()),
    ):
        yield some([[], [1], [1, None, 3]], kind)
    yield some([[1, 2, None], [4, 5, 6]], pa.list_(pa.int64(), 3))
    yield some(points, point)
    yield some([points, [], [None]], pa.list_(point))
    yield some([[("a", 1), ("b", None)], []], pa.map_(pa.string(), pa.int32()))
    yield some([[("a", [1])]], pa.map_(pa.string(), pa.list_(pa.int8()), keys_sorted=True))
    yield pa.StructArray.from_arrays([pa.nulls(ROWS), some(["v"], pa.string_view())], names=["n", "v"])


def unions() -> Iterator[pa.Array]:
    types = pa.array([i % 2 for i in range(ROWS)], pa.int8())
    children = [some([1, 2], pa.int64()), some(["x", "yy"], pa.string())]
    yield pa.UnionArray.from_sparse(types, children, ["number", "text"])
    offsets = pa.array([i // 2 for i in range(ROWS)], pa.int32())
    yield pa.UnionArray.from_dense(types, offsets, children, ["number", "text"])


def encoded() -> Iterator[pa.Array]:
    words = some(["red", "green", "blue"], pa.string()).dictionary_encode()
    yield words
    yield pa.DictionaryArray.from_arrays(some([1, 0], pa.int8()), pa.array(["low", "high"]), ordered=True)
    yield pa.DictionaryArray.from_arrays(some([1, 0], pa.uint32()), pa.array([1.5, None]))
    yield pa.DictionaryArray.from_arrays(some([1, 0], pa.int64()), pa.array(["low", "high"], pa.string_view()))
    yield pa.ListArray.from_arrays(pa.array(range(ROWS + 1), pa.int32()), words)
    yield pa.StructArray.from_arrays([words, pa.array(range(ROWS))], names=["word", "number"])
    inner = pa.StructArray.from_arrays([words], names=["word"])
    yield pa.DictionaryArray.from_arrays(some([1, 0, 5], pa.int16()), inner)
    for ends in (pa.int16(), pa.int32(), pa.int64()):
        yield pa.RunEndEncodedArray.from_arrays(pa.array([10, 40, ROWS], ends), pa.array(["a", None, "c"]))


def odd() -> Iterator[pa.Array]:
    yield pa.nulls(ROWS)
    yield pa.nulls(ROWS, pa.int64())
    yield pa.nulls(ROWS, pa.list_(pa.struct([("a", pa.string())])))
    yield pa.ExtensionArray.from_storage(pa.uuid(), some([b"0123456789abcdef"], pa.binary(16)))
    yield pa.ExtensionArray.from_storage(pa.json_(), some(['{"a": 1}'], pa.string()))
    yield pa.ExtensionArray.from_storage(pa.bool8(), some([0, 1], pa.int8()))
    yield pa.ExtensionArray.from_storage(pa.opaque(pa.int32(), "geometry", "postgis"), some([7], pa.int32()))
    tensor = pa.fixed_shape_tensor(pa.float32(), [2, 2])
    yield pa.ExtensionArray.from_storage(tensor, some([[1, 2, 3, 4]], pa.list_(pa.float32(), 4)))


ARRAYS = [a for make in (integers, numbers, times, texts, nested, unions, encoded, odd) for a in make()]
ALL = [pytest.param(array, id=f"{i}-{str(array.type)[:40]}") for i, array in enumerate(ARRAYS)]


def cuts(array: pa.Array) -> dict[str, pa.Table]:
    """The same column, cut in every way a user may hand it in."""
    schema = pa.schema([pa.field("c", array.type, metadata={"field": "yes"}), pa.field("n", pa.int8())], METADATA)

    def table(chunks: list[pa.Array]) -> pa.Table:
        return pa.Table.from_batches(
            [pa.record_batch([chunk, pa.array(np.zeros(len(chunk), "i1"))], schema=schema) for chunk in chunks], schema
        )

    whole = table([array])
    return {
        "whole": whole,
        "sliced": whole.slice(3, 50),
        "odd slice": table([array.slice(5, 33)]).slice(1, 31),
        "no rows": whole.slice(7, 0),
        "no chunks": table([]),
        "chunks": table([array.slice(0, 9), array.slice(9, 0), array.slice(9, 91)]),
        "many small chunks": table([array.slice(i, 1) for i in range(ROWS)]),
    }


def same(found: pa.Table, put: pa.Table) -> None:
    """Values, types, and all metadata."""
    found.validate(full=True)
    assert found.schema.equals(put.schema, check_metadata=True), f"{found.schema}\nagainst\n{put.schema}"
    assert found.num_rows == put.num_rows
    assert found.equals(put)


def aligned(table: pa.Table) -> None:
    for column in table.columns:
        for chunk in column.chunks:
            for buffer in chunk.buffers():
                assert buffer is None or buffer.address % 64 == 0 or not buffer.size


@pytest.mark.parametrize("array", ALL)
def test_every_type_comes_back(array: pa.Array, store: Store) -> None:
    for name, table in cuts(array).items():
        store.put(name, table)
        found = store.get(name)
        same(found, table)
        same(store.get(name, verify=True), table)
        if name == "whole":
            aligned(found)


@pytest.mark.parametrize("array", ALL)
def test_every_type_comes_back_from_every_tier(array: pa.Array, tiered: Store) -> None:
    tables = cuts(array)
    for name in ("whole", "sliced", "chunks", "no rows"):
        tiered.put(name, tables[name], keep=True)
    for tier in ("pmem", "disk", "dram"):
        for name in ("whole", "sliced", "chunks", "no rows"):
            tiered.pin(name, tier)
            assert tiered.info(name)["tiers"] == [tier]
            same(tiered.get(name), tables[name])


def test_all_types_in_one_table(store: Store) -> None:
    table = pa.table({f"c{i}": array for i, array in enumerate(ARRAYS)})
    store.put("all", table)
    same(store.get("all"), table)
    same(store.get("all", columns=["c5", "c0"]), table.select(["c5", "c0"]))


def test_no_columns(store: Store) -> None:
    batch = pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([])))
    for name, table in {
        "rows": pa.Table.from_batches([batch, batch]),
        "nothing": pa.table({}),
        "metadata": pa.table({}).replace_schema_metadata(METADATA),
    }.items():
        store.put(name, table)
        found = store.get(name)
        assert found.num_rows == table.num_rows and found.num_columns == 0
        assert found.schema.equals(table.schema, check_metadata=True)


def test_float_bits_are_kept(store: Store) -> None:
    bits = np.array([0x7FF8000000000001, 0xFFF0000000000001, 0x8000000000000000, 1], "u8")
    store.put("nan", pa.table({"f": bits.view("f8")}))
    assert (store.get("nan")["f"].to_numpy().view("u8") == bits).all()


class Celsius(pa.ExtensionType):
    """A user's own type."""

    def __init__(self, place: str = "here") -> None:
        self.place = place
        super().__init__(pa.float64(), "tierstore.test.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return self.place.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> Celsius:
        return cls(serialized.decode())


def test_extension_types_registered_or_not(store: Store) -> None:
    table = pa.table({"t": pa.ExtensionArray.from_storage(Celsius("attic"), some([1.0, 2.5], pa.float64()))})
    pa.register_extension_type(Celsius())
    try:
        store.put("known", table)
        same(store.get("known"), table)
        assert store.get("known").schema.field("t").type.place == "attic"
    finally:
        pa.unregister_extension_type("tierstore.test.celsius")
    store.put("unknown", table)
    found = store.get("unknown")
    field = found.schema.field("t")
    assert field.type == pa.float64() and field.metadata[b"ARROW:extension:name"] == b"tierstore.test.celsius"
    assert field.metadata[b"ARROW:extension:metadata"] == b"attic"
    assert found["t"].to_pylist() == table["t"].chunk(0).storage.to_pylist()


def test_chunks_with_different_dictionaries(store: Store) -> None:
    chunks = [pa.array(words).dictionary_encode() for words in (["a", "b"], ["c", "a", "c"], ["zz"])]
    table = pa.table({"w": pa.chunked_array(chunks)})
    nested_table = pa.Table.from_batches(
        [
            pa.record_batch({"l": pa.ListArray.from_arrays(pa.array([0, len(chunk)], pa.int32()), chunk)})
            for chunk in chunks
        ]
    )
    for name, value in (("flat", table), ("nested", nested_table)):
        store.put(name, value)
        found = store.get(name)
        found.validate(full=True)
        assert found.schema == value.schema and found.to_pylist() == value.to_pylist()


def test_record_batch_and_readers(store: Store) -> None:
    batch = pa.record_batch({"a": [1, 2, 3]}, metadata={"k": "v"})
    store.put("batch", batch)
    same(store.get("batch"), pa.Table.from_batches([batch]))
    store.put("again", store.get("batch"))  # from the store's own memory
    same(store.get("again"), store.get("batch"))
