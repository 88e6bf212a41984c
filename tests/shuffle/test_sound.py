"""Damage in what points somewhere is found before anything follows it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tests.shuffle.nodes import several
from tests.shuffle.rows import PARTITIONS, rows_of, run_of, write
from tierstore.ringbuf.errors import CorruptionError, LostMaps
from tierstore.service.store import Store
from tierstore.shuffle.sound import check_sound, pointing


def change(store: Store, address: int, mask: int) -> None:
    """Flip bits of a byte in the store's memory."""
    for segment, start in enumerate(store._session.addresses.tolist()):
        if start <= address < start + store._session.grant.segment_bytes:
            writable = int(store._session.writable[segment]) + address - start
            ctypes.c_uint8.from_address(writable).value ^= mask
            return
    raise AssertionError("not in the store")


def offsets_at(store: Store, key: str, column: str) -> int:
    """Where the offsets of a column lie."""
    return int(store.get(key)[column].chunk(0).buffers()[1].address)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("row", [0, 2500, 5000])
def test_damaged_offsets_are_found_before_they_are_used(store: Store, verify: bool, row: int) -> None:
    with store.shuffle("app", 0, PARTITIONS) as shuffle:
        receipts = [write(shuffle, number) for number in range(2)]
        at = offsets_at(store, run_of(store, receipts[1]), "w") + 4 * row + 3
        change(store, at, 0x70)
        with pytest.raises(LostMaps, match="expected (offsets within their|buffers of the length)") as lost:
            shuffle.read(receipts=receipts, verify=verify).read_all()
        change(store, at, 0x70)
        assert lost.value.maps == [1]


NESTED: dict[str, Any] = {
    "strings": pa.array(["a", "bc", None, "def"]),
    "large": pa.array([b"a", b"bc", None, b"def"], pa.large_binary()),
    "lists": pa.array([[1], [2, 3], None, [4, 5, 6]]),
    "maps": pa.array([[("a", 1)], [], None, [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
    "views of lists": pa.array([[1], [2, 3], None, [4, 5, 6]], pa.list_view(pa.int32())),
    "views": pa.array(
        ["a longer text than fits 1", "a longer text than fits 2", "x", "a longer text than fits 3"]
    ).cast(pa.string_view()),
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    "struct": pa.array([{"s": "a"}, {"s": "bcd"}, None, {"s": "e"}]),
    "fixed": pa.array([["a", "b"], ["c", "d"], ["e", "f"], ["g", "h"]], pa.list_(pa.string(), 2)),
    "run ends": pc.run_end_encode(pa.array([1, 1, 2, 2])),
    "union": pa.UnionArray.from_dense(
        pa.array([0, 1, 0, 1], pa.int8()), pa.array([0, 0, 1, 1], pa.int32()), [pa.array([1, 2]), pa.array(["a", "b"])]
    ),
}
# Which buffer points, and where in it a byte is changed.
POINTS = {
    "views of lists": (2, 7),
    "views": (1, 29),
    "struct": (2, 7),
    "fixed": (2, 7),
    "run ends": (1, 3),
    "union": (2, 7),
}


@pytest.mark.parametrize("name", NESTED)
def test_what_points_outside(name: str) -> None:
    array = NESTED[name]
    rows = pa.record_batch([array], ["x"])
    columns = pointing(rows.schema)
    assert columns == [0]
    for start in range(5):
        check_sound(rows.slice(start), columns, "here")
    buffers = array.buffers()
    number, byte = POINTS.get(name, (1, 15 if name == "large" else 7 if name != "dictionary" else 4))
    if name in ("fixed", "run ends"):
        number = next(n for n, buffer in enumerate(buffers) if buffer is not None)
    damaged = bytearray(buffers[number].to_pybytes())
    damaged[byte] ^= 0x60
    kept = buffers[number].address
    before = ctypes.string_at(kept, len(damaged))
    ctypes.memmove(kept, bytes(damaged), len(damaged))
    try:
        with pytest.raises(CorruptionError):
            check_sound(rows, columns, "here")
    finally:
        ctypes.memmove(kept, before, len(damaged))


def test_plain_numbers_cost_nothing() -> None:
    flat = pa.schema(
        [("a", pa.int64()), ("b", pa.bool_()), ("c", pa.decimal128(9)), ("d", pa.null()), ("e", pa.binary(4))]
    )
    assert pointing(flat) == []
    assert pointing(rows_of(0).schema) == [3]
    check_sound(pa.record_batch([pa.array(np.arange(3))], ["a"]), [], "here")


def test_the_daemon_does_not_follow_damaged_offsets() -> None:
    with several(1) as nodes:
        receipts = [nodes.write(0, number) for number in range(3)]
        at = offsets_at(nodes.stores[0], run_of(nodes.stores[0], receipts[1]), "w") + 4 * 2500 + 3
        change(nodes.stores[0], at, 0x70)
        with pytest.raises(LostMaps, match="the output of map 1 is damaged") as lost:
            nodes.mine.read(receipts=receipts, verify=False).read_all()
        change(nodes.stores[0], at, 0x70)
        assert lost.value.maps == [1]
