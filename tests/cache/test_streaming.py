"""Objects read block by block: one version, whole, or an error that says which."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import tierstore
from tierstore.cache.store import Store
from tierstore.cache.streaming import PIECE_BYTES, ObjectStream
from tierstore.ringbuf.errors import NotFound

ROWS = 200_000  # several segments, but less than tier dram
TABLE = pa.table({"n": range(ROWS), "m": pa.array(range(ROWS), pa.int32())})


def read(stream: ObjectStream) -> pa.Table:
    return pa.Table.from_batches(list(stream.batches()), stream.schema)


def test_rows_are_those_of_get(tiered: Store) -> None:
    tiered.put("k", TABLE, keep=True)
    for tier in ("dram", "pmem", "disk"):
        tiered.pin("k", tier)
        assert read(ObjectStream(tiered, "k")).equals(TABLE)
        stream = ObjectStream(tiered, "k", ["m"])
        assert stream.schema == TABLE.select(["m"]).schema and read(stream).equals(TABLE.select(["m"]))
    with pytest.raises(ValueError, match="no column 'x'.*'n', 'm'"):
        ObjectStream(tiered, "k", ["x"])


def test_mapped_blocks_are_not_copied(store: Store) -> None:
    store.put("k", TABLE)
    ours = [batch.column(0).buffers()[1].address for batch in ObjectStream(store, "k").batches()]
    assert ours == [chunk.buffers()[1].address for chunk in store.get("k")["n"].chunks]


def test_a_version_that_is_replaced_is_read_to_its_end(store: Store) -> None:
    store.put("k", TABLE)
    stream = ObjectStream(store, "k")
    batches = stream.batches()
    first = next(batches)
    for _ in range(3):
        store.put("k", TABLE.slice(0, 5))
    assert pa.Table.from_batches([first, *batches]).equals(TABLE)


def test_a_version_that_goes_from_disk_is_told(tiered: Store) -> None:
    tiered.put("k", TABLE, keep=True)
    tiered.pin("k", "disk")
    batches = ObjectStream(tiered, "k").batches()
    next(batches)
    tiered.delete("k")
    with pytest.raises(NotFound, match="while it was read"):
        list(batches)


def test_absent(store: Store) -> None:
    with pytest.raises(NotFound):
        ObjectStream(store, "k")


@pytest.mark.parametrize("size", [0, 1, 100, PIECE_BYTES + 1])
def test_bytes(size: int, store: Store) -> None:
    value = (b"0123456789" * (size // 10 + 1))[:size]
    store.put_bytes("k", value)
    stream = ObjectStream(store, "k")
    assert stream.kind == "bytes" and b"".join(read(stream)["value"].to_pylist()) == value


def test_one_row_larger_than_a_segment(store: Store) -> None:
    table = pa.table({"w": ["x" * (3 << 20), "y"]})
    store.put("k", table)
    assert read(ObjectStream(store, "k")).equals(table)


def test_dictionaries(store: Store) -> None:
    parts: list[Any] = [pa.array(values).dictionary_encode() for values in (["a", "b"], ["c", "b"])]
    with store.writer("k", pa.schema({"d": parts[0].type})) as writer:
        for part in parts:
            writer.write(pa.record_batch({"d": part}))
    assert read(ObjectStream(store, "k"))["d"].to_pylist() == ["a", "b", "c", "b"]


def test_a_closed_store() -> None:
    store = tierstore.open(dram="8MiB", segment="1MiB")
    store.close()
    with pytest.raises(tierstore.Closed):
        ObjectStream(store, "k")
