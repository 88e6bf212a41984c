"""Checks depend on what rows mean and on nothing else; any damage changes them."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tierstore.shuffle.checks import partition_checks

ROWS = 230
STARTS = np.array([0, 0, 1, 64, 65, 130, 130, 229, 230], np.uint32)


def one(array: pa.Array) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([array], names=["a"])


def rebuilt(array: pa.Array) -> pa.Array:
    """Equal rows in memory of their own, made from Python values where pyarrow can."""
    kind = array.type
    if pa.types.is_union(kind):
        return array.take(pa.array(range(len(array))))
    if pa.types.is_dictionary(kind):
        return pa.DictionaryArray.from_arrays(*reversed_dictionary(array))
    if pa.types.is_run_end_encoded(kind):
        return pc.run_end_encode(pc.run_end_decode(array), pa.int64())
    if kind == pa.float16():
        return array.cast(pa.float32()).cast(kind)
    if pa.types.is_list(kind) and pa.types.is_dictionary(kind.value_type):
        return pa.concat_arrays([array.slice(0, 7), array.slice(7)])
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, rebuilt(array.storage))
    return pa.array(array.to_pylist(), kind)


def reversed_dictionary(array: pa.DictionaryArray) -> tuple[pa.Array, pa.Array]:
    """The same values by other indices."""
    entries = array.dictionary
    indices = [None if i is None else len(entries) - i for i in array.indices.to_pylist()]
    return pa.array(indices, pa.int32()), pa.array(["not used", *reversed(entries.to_pylist())])


def test_equal_rows_give_equal_checks(kind: str, values: ModuleType) -> None:
    for nulls in (0.0, 0.2):
        check_equal_rows(values.make(kind, ROWS, 3, nulls))


def check_equal_rows(array: pa.Array) -> None:
    checks = partition_checks(one(array), STARTS)
    assert checks.dtype == np.uint64 and len(checks) == len(STARTS) - 1
    assert (partition_checks(one(rebuilt(array)), STARTS) == checks).all()
    together = pa.concat_arrays([array.slice(100), array, array.slice(0, 9)])
    assert (partition_checks(one(together), STARTS + (ROWS - 100)) == checks).all()
    for part in range(len(STARTS) - 1):  # as a reader does: each slice alone
        alone = one(array).slice(int(STARTS[part]), int(STARTS[part + 1] - STARTS[part]))
        assert partition_checks(alone, np.array([0, alone.num_rows]))[0] == checks[part]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, one(array).schema) as writer:
        writer.write_batch(one(array))
    (received,) = pa.ipc.open_stream(sink.getvalue()).read_all().to_batches()
    assert (partition_checks(received, STARTS) == checks).all()


def test_a_swapped_row_or_a_moved_border_is_found(kind: str, values: ModuleType) -> None:
    if kind == "null":
        return
    array = values.make(kind, ROWS, 3)
    rows = [repr(value) for value in array.to_pylist()]
    for first in range(2, ROWS - 1, 9):
        second = next(i for i in range(first + 1, first + ROWS) if rows[i % ROWS] != rows[first]) % ROWS
        order = list(range(ROWS))
        order[first], order[second] = order[second], order[first]
        if pa.types.is_run_end_encoded(array.type):
            other = pc.run_end_encode(pc.run_end_decode(array).take(pa.array(order)))
        else:
            other = pa.concat_arrays([array.slice(i, 1) for i in order])
        differ = partition_checks(one(other), STARTS) != partition_checks(one(array), STARTS)
        expected = {int(np.searchsorted(STARTS, i, side="right")) - 1 for i in (first, second)}
        assert set(np.flatnonzero(differ)) == expected
    moved = STARTS.copy()
    moved[3] += 1
    assert set(np.flatnonzero(partition_checks(one(array), moved) != partition_checks(one(array), STARTS))) == {2, 3}


@pytest.mark.parametrize(
    "name", ["int8", "int64", "float32", "decimal128", "fixed5", "fixed100", "bool", "string", "large_binary"]
)
def test_any_flipped_bit_is_found(name: str, values: ModuleType) -> None:
    array = values.make(name, ROWS, 5, 0.0)
    array = pa.concat_arrays([array, array.slice(0, 1)]).slice(0, ROWS)  # memory of its own, from its begin
    expected = partition_checks(one(array), STARTS)
    buffers = array.buffers()
    used = (ROWS + 7) // 8 * 8 if name == "bool" else buffers[-1].size * 8
    if array.type.num_buffers == 3:
        used = np.frombuffer(buffers[1], "i8" if "large" in name else "i4")[ROWS] * 8
    elif name != "bool":
        used = ROWS * array.type.bit_width
    random = np.random.default_rng(1)
    for bit in sorted({0, 1, 63, *random.integers(0, ROWS if name == "bool" else used, 200)}):
        damaged = np.frombuffer(buffers[-1], np.uint8).copy()
        damaged[bit // 8] ^= 1 << (bit % 8)
        other = pa.Array.from_buffers(array.type, ROWS, [*buffers[:-1], pa.py_buffer(damaged)], 0)
        assert (partition_checks(one(other), STARTS) != expected).sum() == 1, f"bit {bit}"


def test_a_flipped_validity_bit_is_found() -> None:
    array = pa.array([None if i % 9 == 4 else i for i in range(ROWS)])
    expected = partition_checks(one(array), STARTS)
    for row in range(ROWS):
        bits = np.frombuffer(array.buffers()[0], np.uint8).copy()
        bits[row // 8] ^= 1 << (row % 8)
        other = pa.Array.from_buffers(array.type, ROWS, [pa.py_buffer(bits), array.buffers()[1]])
        assert (partition_checks(one(other), STARTS) != expected).sum() == 1


def test_what_lies_under_nulls_does_not_count() -> None:
    valid = np.arange(ROWS) % 5 != 0
    mask = pa.array(valid)
    bitmap = mask.buffers()[1]

    def under_nulls(kind: pa.DataType, values: list) -> pa.Array:
        full = pa.array(values, kind)
        return pa.Array.from_buffers(kind, ROWS, [bitmap, *full.buffers()[1:]])

    for kind, left, right in (
        (pa.int32(), 1, 2),
        (pa.bool_(), True, False),
        (pa.string(), "some", "other text"),
        (pa.large_binary(), b"", b"x" * 70),
        (pa.binary(9), b"123456789", b"         "),
        (pa.decimal128(5), 1, 2),
    ):
        pair = [under_nulls(kind, [left if keep else fill for keep in valid]) for fill in (left, right)]
        assert pair[0].to_pylist() == pair[1].to_pylist() and pair[0].null_count
        assert (partition_checks(one(pair[0]), STARTS) == partition_checks(one(pair[1]), STARTS)).all()


def test_children_under_nulls_do_not_count() -> None:
    valid = np.arange(ROWS) % 5 != 0
    bitmap, offsets = pa.array(valid).buffers()[1], pa.array(np.arange(ROWS + 1, dtype="i4")).buffers()[1]
    for fill in (None, 7):
        child = pa.array([1 if keep else fill for keep in valid], pa.int64())
        pairs = pa.array([1 if keep else fill for keep in valid for _ in range(2)], pa.int64())
        made = [
            pa.Array.from_buffers(pa.list_(pa.int64()), ROWS, [bitmap, offsets], children=[child]),
            pa.Array.from_buffers(pa.list_(pa.int64(), 2), ROWS, [bitmap], children=[pairs]),
            pa.Array.from_buffers(pa.struct([("a", pa.int64())]), ROWS, [bitmap], children=[child]),
        ]
        for array in made:
            again = pa.array(array.to_pylist(), array.type)
            assert (partition_checks(one(array), STARTS) == partition_checks(one(again), STARTS)).all()


def test_layouts_of_one_meaning_agree() -> None:
    texts = ["", "a", None, "more than twelve bytes " * 9]
    lists = [[1, 2], None, [], [None]]
    for values, kinds in (
        (texts, [pa.string(), pa.large_string(), pa.string_view()]),
        ([t and t.encode() for t in texts], [pa.binary(), pa.large_binary(), pa.binary_view()]),
        (lists, [pa.list_(pa.int8()), pa.large_list(pa.int8()), pa.list_view(pa.int8())]),
        ([1, 1, None, 2], [pa.int64(), pa.run_end_encoded(pa.int32(), pa.int64())]),
    ):
        found = {int(partition_checks(one(pa.array(values, kind)), np.array([0, 4]))[0]) for kind in kinds}
        assert len(found) == 1


def test_types_and_order_of_columns_count_and_names_do_not() -> None:
    zeros, starts = pa.array([0, 0]), np.array([0, 2])
    kinds = [pa.int64(), pa.uint64(), pa.float64(), pa.timestamp("us"), pa.timestamp("ns"), pa.duration("s")]
    arrays = [zeros.view(kind) for kind in kinds]
    assert len({int(partition_checks(one(array), starts)[0]) for array in arrays}) == len(kinds)
    left, right = pa.array([1, 2]), pa.array([3, 4])
    forth = pa.RecordBatch.from_arrays([left, right], names=["a", "b"])
    back = pa.RecordBatch.from_arrays([right, left], names=["a", "b"])
    assert partition_checks(forth, starts) != partition_checks(back, starts)
    assert partition_checks(forth, starts) == partition_checks(forth.rename_columns(["x", "y"]), starts)


def test_values_do_not_change_between_releases() -> None:
    batch = pa.RecordBatch.from_pydict(
        {"a": [1, None, 3], "b": ["x", "yy" * 50, ""], "c": [True, False, None], "d": [[1], [], None]}
    )
    assert partition_checks(batch, np.array([0, 0, 2, 3])).tolist() == GOLDEN


@pytest.mark.parametrize("starts", [[0, 4], [0, 2, 1], [-1, 3], [], [0.0, 3.0]])
def test_bad_starts_are_refused(starts: list) -> None:
    with pytest.raises(ValueError, match="starts"):
        partition_checks(one(pa.array([1, 2, 3])), np.array(starts))


GOLDEN = [15789172043528130882, 11640564074635373331, 1156323380218819796]
