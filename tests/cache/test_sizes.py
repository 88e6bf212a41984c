"""Values of every size: nothing, exactly a segment's room and one byte off, larger than a segment, many segments."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tierstore.cache.record import record_bytes
from tierstore.cache.store import Store
from tierstore.ringbuf import layout

SEGMENT = 1 << 20
ROOM = SEGMENT - layout.SEGMENT_HEADER_BYTES


def exact(key: str) -> int:
    """The largest value whose record fills an empty segment to its last byte."""
    start = record_bytes(len(key), 0)
    head = (layout.RECORD_HEADER_BYTES + len(key) + 63) & ~63
    assert start >= head and record_bytes(len(key), ROOM - head) == ROOM
    return ROOM - head


def noise(size: int) -> bytes:
    return np.random.default_rng(size).integers(0, 256, size, "u1").tobytes()


SIZES = [
    0,
    1,
    63,
    64,
    65,
    4096,
    *(exact("k") + d for d in (-64, -1, 0, 1, 64)),
    SEGMENT,
    3 * SEGMENT + 17,
    10 * SEGMENT,
]
IN_TIERS = [size for size in SIZES if size < 5 * SEGMENT]  # an object must fit in dram when it is put


@pytest.mark.parametrize("size", SIZES)
def test_bytes_of_every_size(size: int, store: Store) -> None:
    value = noise(size)
    store.put_bytes("k", value)
    assert bytes(store.get_bytes("k")) == value
    found = store.info("k")
    assert (found["bytes"], found["kind"]) == (size, "bytes")
    store.put_many({"k": value, "l": value})
    assert [bytes(v) for v in store.get_many(["k", "l"]) if v is not None] == [value, value]


@pytest.mark.parametrize("size", IN_TIERS)
def test_bytes_of_every_size_in_every_tier(size: int, tiered: Store) -> None:
    value = noise(size)
    tiered.put_bytes("k", value, keep=True)
    for tier in ("disk", "pmem", "dram"):
        tiered.pin("k", tier)
        assert tiered.info("k")["tiers"] == [tier]
        assert bytes(tiered.get_bytes("k")) == value


@pytest.mark.parametrize("size", [0, 1, ROOM - 2000, ROOM, 2 * SEGMENT, 10 * SEGMENT])
def test_one_row_of_every_size(size: int, store: Store) -> None:
    table = pa.table({"b": pa.array([noise(size)], pa.large_binary()), "n": [1]})
    store.put("row", table)
    assert store.get("row").equals(table)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.large_string()])
def test_rows_larger_than_a_segment_among_small_ones(kind: pa.DataType, store: Store) -> None:
    table = pa.table({"s": pa.array(["x", "y" * (2 * SEGMENT), "z", "w" * (SEGMENT + 1)], kind), "n": [1, 2, 3, 4]})
    store.put("mixed", table)
    found = store.get("mixed")
    found.validate(full=True)
    assert found.equals(table)
    chunked = pa.concat_tables([pa.table({"s": pa.array(["c" * 200_000], kind), "n": [0]}), table])
    store.put("chunked", chunked)
    assert store.get("chunked").equals(chunked)


@pytest.mark.parametrize("rows", [10, 300_000])
def test_a_dictionary_larger_than_a_segment(rows: int, store: Store) -> None:
    words = pa.array([f"word number {i}" * 3 for i in range(60_000)])
    indices = pa.array(np.arange(rows, dtype="i4") % len(words))
    table = pa.table({"d": pa.DictionaryArray.from_arrays(indices, words), "n": np.arange(rows)})
    assert words.nbytes > SEGMENT
    store.put("dictionary", table)
    found = store.get("dictionary")
    found.validate(full=True)
    assert found.equals(table)


def test_string_views_that_share_a_buffer_larger_than_a_segment(store: Store) -> None:
    table = pa.table(
        {"v": pa.array([f"a string of more than twelve bytes {i:07d}" for i in range(50_000)], pa.string_view())}
    )
    store.put("views", table)
    store.put("few", table.slice(100, 10))
    found, few = store.get("views"), store.get("few")
    found.validate(full=True)
    few.validate(full=True)
    assert found.equals(table) and few.equals(table.slice(100, 10))


@pytest.mark.parametrize("rows", [ROOM // 8 - 64, ROOM // 8, ROOM // 8 + 1, 10 * SEGMENT // 8])
def test_tables_around_a_segment(rows: int, store: Store) -> None:
    table = pa.table({"x": np.arange(rows)}, metadata={"rows": str(rows)})
    store.put("t", table)
    found = store.get("t")
    assert found.equals(table, check_metadata=True)
    assert store.info("t")["rows"] == rows
    assert found["x"].num_chunks <= rows * 8 // ROOM + 2


def test_many_rows_of_nested_data_larger_than_a_segment(tiered: Store) -> None:
    rows = 40_000
    lists = pa.array([[i, None, i * 2] for i in range(rows)], pa.list_(pa.int64()))
    table = pa.table(
        {
            "l": lists,
            "s": pa.array([f"text {i}" for i in range(rows)]),
            "b": pa.array([i % 3 == 0 for i in range(rows)]),
        }
    )
    tiered.put("nested", table.slice(13, rows - 20), keep=True)
    for tier in ("pmem", "disk", "dram"):
        tiered.pin("nested", tier)
        found = tiered.get("nested")
        found.validate(full=True)
        assert found.equals(table.slice(13, rows - 20))


def test_a_wide_table(store: Store) -> None:
    table = pa.table({f"c{i}": np.full(40, i) for i in range(3000)})
    store.put("wide", table)
    assert store.get("wide", columns=["c2999", "c0"]).equals(table.select(["c2999", "c0"]))
    assert store.get("wide").equals(table)
