"""Runs written in place equal what pyarrow makes of the same rows, and what the store's own encoder would have written."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tierstore.cache.block import cut, decode_batch, encoder_of
from tierstore.cache.store import Store
from tierstore.shuffle.checks import partition_checks
from tierstore.shuffle.run import Order, RunPlan


def filled(plan: RunPlan) -> pa.Buffer:
    """The payload, written into memory that is full of other bytes; none around it may change."""
    memory = np.full(plan.payload_bytes + 192, 0xEE, np.uint8)
    begin = -memory.ctypes.data % 64 + 64
    plan.fill(memory.ctypes.data + begin)
    assert (memory[:begin] == 0xEE).all() and (memory[begin + plan.payload_bytes :] == 0xEE).all()
    return pa.py_buffer(memory)[begin : begin + plan.payload_bytes]


def taken(batches: list[pa.RecordBatch], ids: list[np.ndarray]) -> list[dict]:
    """The rows in the order they must have, by plain Python."""
    rows = [row for batch in batches for row in batch.to_pylist()]
    order = sorted(range(len(rows)), key=np.concatenate(ids).tolist().__getitem__)
    return [rows[i] for i in order]


def check(batches: list[pa.RecordBatch], ids: list[np.ndarray], partitions: int, in_place: bool = True) -> RunPlan:
    """A plan is right in every respect."""
    schema = batches[0].schema
    plan = RunPlan(schema, batches, ids, partitions)
    counts = np.bincount(np.concatenate(ids), minlength=partitions)
    assert plan.starts.tolist() == [0, *np.cumsum(counts)] and plan.rows == counts.sum()
    batch = plan.batch()
    batch.validate(full=True)
    assert batch.schema.equals(schema, check_metadata=True)
    assert repr(batch.to_pylist()) == repr(taken(batches, ids))  # by text: NaN equals itself there
    checks = partition_checks(batch, plan.starts)
    assert plan.in_place == in_place
    if in_place:
        payload = filled(plan)
        found = decode_batch(payload, schema, plan.schema_bytes)
        found.validate(full=True)
        assert repr(found.to_pylist()) == repr(batch.to_pylist())
        assert (partition_checks(found, plan.starts) == checks).all()
        # Arrow keeps what lies under nulls; so the encoder is given the batch that was read back, not another one.
        expected = encoder_of(schema).encode(found, root=True)
        assert (plan.payload_bytes, plan.schema_bytes) == (expected.padded_bytes, expected.schema_bytes)
        assert plan.value_bytes == expected.value_bytes
        assert payload.to_pybytes() == bytes(cut(expected))
    return plan


def numbers(rows: int, partitions: int, seed: int = 0) -> np.ndarray:
    return (
        np.random.default_rng(seed).integers(0, partitions, rows).astype(np.uint16 if partitions < 5000 else np.uint32)
    )


def batches_of(values: ModuleType, kind: str, sizes: list[int], nulls: list[float]) -> list[pa.RecordBatch]:
    """Batches with a column of a kind between two others."""
    made = []
    for seed, (rows, share) in enumerate(zip(sizes, nulls, strict=True)):
        key = pa.array(np.arange(rows + 3) + 1000 * seed).slice(3)
        columns = [key, values.make(kind, rows, seed, share), values.make("string", rows, seed)]
        made.append(pa.RecordBatch.from_arrays(columns, names=["key", "value", "text"]))
    return made


def test_every_type(kind: str, values: ModuleType) -> None:
    for nulls in ([0.2, 0.2, 0.2], [0.0, 0.5, 0.0], [0.0, 0.0, 0.0]):
        batches = batches_of(values, kind, [130, 1, 77], nulls)
        ids = [numbers(batch.num_rows, 11, seed) for seed, batch in enumerate(batches)]
        check(batches, ids, 11, in_place=kind in values.IN_PLACE)


def test_all_types_together(values: ModuleType) -> None:
    batches = []
    for seed, rows in enumerate([300, 0, 41]):
        columns = {name: values.make(name, rows, seed) for name in values.IN_PLACE}
        batches.append(pa.RecordBatch.from_pydict(columns))
    check(batches, [numbers(batch.num_rows, 50, 9) for batch in batches], 50)


def test_a_schema_with_metadata_and_extensions(values: ModuleType) -> None:
    fields = [
        pa.field("u", pa.uuid(), nullable=False, metadata={"a": "b"}),
        pa.field("t", pa.fixed_shape_tensor(pa.int32(), [2])),
        pa.field("l", pa.list_(pa.uuid())),
    ]
    uuids = values.make("uuid", 40, 1, 0.0)
    tensors = pa.ExtensionArray.from_storage(
        fields[1].type, pa.array([[i, i + 1] for i in range(40)], pa.list_(pa.int32(), 2))
    )
    lists = pa.ListArray.from_arrays(list(range(41)), uuids)
    batch = pa.RecordBatch.from_arrays([uuids, tensors, lists], schema=pa.schema(fields, metadata={"who": "all"}))
    check([batch, batch.slice(5, 9)], [numbers(40, 5), numbers(9, 5)], 5)


@pytest.mark.parametrize("partitions", [1, 200, 10_000, 70_000])
def test_partition_counts(partitions: int, values: ModuleType) -> None:
    batches = batches_of(values, "float64", [3000, 500], [0.0, 0.1])
    check(batches, [numbers(batch.num_rows, partitions) for batch in batches], partitions)


@pytest.mark.parametrize("chosen", [0, 3, 6])
def test_all_rows_in_one_partition(chosen: int, values: ModuleType) -> None:
    (batch,) = batches_of(values, "bool", [2000], [0.1])
    plan = check([batch], [np.full(2000, chosen, np.uint16)], 7)
    assert plan.batch().equals(batch)  # the order inside a partition is kept


def test_more_rows_than_are_requested_ahead(values: ModuleType) -> None:
    rows = 5000
    for width, dtype in ((1, "i1"), (2, "i2"), (4, "i4"), (8, "i8")):
        column = pa.array(np.arange(rows).astype(dtype))
        batch = pa.RecordBatch.from_arrays(
            [column, pa.array([bytes([i % 251]) * 7 for i in range(rows)], pa.binary(7))], names="ab"
        )
        assert column.type.bit_width == 8 * width
        check([batch], [numbers(rows, 300)], 300)
    column = values.make("decimal128", rows, 1)
    wide = values.make("decimal256", rows, 1)
    check([pa.RecordBatch.from_arrays([column, wide], names="ab")], [numbers(rows, 300)], 300)


def test_views_hold_only_their_own_bytes(values: ModuleType) -> None:
    long = pa.array(["x" * 1000] * 1000, pa.string_view())
    for column in (long, pa.array([[text] for text in long.to_pylist()], pa.list_(pa.string_view()))):
        batch = pa.RecordBatch.from_arrays([column], names=["v"]).slice(500, 10)
        plan = check([batch], [numbers(10, 3)], 3, in_place=False)
        assert plan.batch().get_total_buffer_size() < 15_000


VIEW = pa.string_view()


@pytest.mark.parametrize(
    ("rare", "rows"),
    [
        (pa.large_list_view(pa.int8()), [[1], None, [], [2, None]]),
        (pa.struct([("v", VIEW), ("n", pa.int64())]), [{"v": "x" * 30, "n": 1}, None, {"v": None, "n": 2}]),
        (pa.map_(VIEW, pa.list_(VIEW)), [[("k", ["x" * 30, None])], None, []]),
        (pa.list_(VIEW, 2), [["a", "b" * 40], None]),
        (pa.large_list(pa.binary_view()), [[b"a", None], None, []]),
        (pa.list_view(VIEW), [["a", "b" * 40], None, []]),
        (pa.struct([("d", pa.dictionary(pa.int8(), pa.string()))]), [{"d": "a"}, None, {"d": "b"}]),
        (pa.struct([]), [{}, None]),
        (pa.binary(0), [b"", None]),
        (pa.run_end_encoded(pa.int16(), pa.string()), ["a", "a", None]),
    ],
    ids=str,
)
def test_rare_types(rare: pa.DataType, rows: list) -> None:
    made = [pa.RecordBatch.from_arrays([pa.array(rows * count, rare)], names=["a"]) for count in (3, 5)]
    ids = [numbers(batch.num_rows, 4, seed) for seed, batch in enumerate(made)]
    check(made, ids, 4, in_place=rare in (pa.struct([]), pa.binary(0)))


def test_dictionaries_of_batches_are_unified() -> None:
    batches = [
        pa.RecordBatch.from_pydict({"d": pa.array(words).dictionary_encode()})
        for words in (["a", "b"], ["c", "b", None])
    ]
    plan = check(batches, [np.array([1, 0], "u2"), np.array([1, 0, 1], "u2")], 2, in_place=False)
    assert plan.batch()["d"].to_pylist() == ["b", "b", "a", "c", None]
    codes = pa.array(range(100), pa.int8())
    full = [pa.DictionaryArray.from_arrays(codes, pa.array([f"{name}{i}" for i in range(100)])) for name in "xy"]
    plan = RunPlan(
        pa.schema({"d": full[0].type}), [pa.RecordBatch.from_arrays([d], ["d"]) for d in full], [numbers(100, 2)] * 2, 2
    )
    with pytest.raises(ValueError, match="column 'd' cannot be stored in one run"):
        plan.batch()


def test_no_rows(values: ModuleType) -> None:
    for kind in ("int64", "string_view", "dictionary", "dense_union", "uuid", "run_ends"):
        batch = pa.RecordBatch.from_arrays([values.make(kind, 0, 1)], names=["a"])
        plan = RunPlan(batch.schema, [batch, batch], [numbers(0, 4)] * 2, 4)
        assert plan.rows == 0 and not plan.in_place and plan.payload_bytes == 0 and plan.starts.tolist() == [0] * 5
        assert plan.batch().num_rows == 0 and plan.batch().schema.equals(batch.schema)
        with pytest.raises(ValueError, match="store what batch\\(\\) returns"):
            plan.fill(0)
    assert RunPlan(batch.schema, [], [], 2).rows == 0


def test_a_stored_run_is_an_object(store: Store) -> None:
    """The batch of a run, put in the ordinary way, is what a run filled in place is read as."""
    batch = pa.RecordBatch.from_pydict({"a": np.arange(1000), "b": [f"{i}" for i in range(1000)]})
    plan = RunPlan(batch.schema, [batch], [numbers(1000, 9)], 9)
    store.put("run", plan.batch())
    direct = decode_batch(filled(plan), plan.schema, plan.schema_bytes)
    assert store.get("run").to_batches()[0].equals(direct)


def test_the_order_is_stable() -> None:
    ids = [numbers(1000, 13, 1), numbers(50, 13, 2)]
    order = Order(ids, 13)
    assert order.sources().tolist() == np.argsort(np.concatenate(ids), kind="stable").tolist()
    assert order.starts.dtype == np.uint32 and order.starts[-1] == order.rows == 1050


BATCH = pa.RecordBatch.from_pydict({"a": [1, 2, 3]})


@pytest.mark.parametrize(
    ("batches", "ids", "partitions", "error", "text"),
    [
        ([BATCH], [], 2, ValueError, "1 batches and 0 arrays"),
        ([BATCH], [np.zeros(2, "u2")], 2, ValueError, "2 partition numbers for a batch of 3 rows"),
        ([BATCH], [np.zeros(3, "i8")], 2, TypeError, "uint16 or uint32"),
        ([BATCH], [np.array([0, 2, 0], "u2")], 2, ValueError, "partition number 2 of 2 partitions"),
        ([BATCH], [np.array([0, 2, 0], "u4")], 0, ValueError, "0 partitions"),
        ([BATCH.rename_columns(["b"])], [np.zeros(3, "u2")], 2, TypeError, "another schema"),
    ],
)
def test_bad_input_is_refused(batches: list, ids: Any, partitions: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        RunPlan(BATCH.schema, batches, ids, partitions)


def test_a_schema_without_columns_is_refused() -> None:
    with pytest.raises(ValueError, match="without columns"):
        RunPlan(pa.schema([]), [], [], 2)
