"""Merging sorted inputs equals sorting everything, stably, for every type that has an order."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from tierstore.shuffle.merge import merge_sorted
from tierstore.shuffle.ordering import sort_rows

ORDERED = (
    *("int64", "uint64", "float32", "bool", "decimal128", "decimal256", "date32", "timestamp", "string"),
    *("string_view", "large_binary", "fixed5", "fixed16", "null", "uuid"),
)


def inputs_of(
    values: ModuleType, kinds: list[str], sizes: list[int], descending: list[bool], nulls_first: bool = False
) -> list[pa.Table]:
    """Sorted tables: a column a key, and where each row comes from."""
    tables = []
    for number, rows in enumerate(sizes):
        keys = [values.make(kind, rows, number, 0.2 if number != 1 else 0.0) for kind in kinds]
        table = pa.table(
            {**{f"k{i}": key for i, key in enumerate(keys)}, "from": pa.array([number] * rows, pa.int32())}
        )
        order = sort_rows(keys, descending, nulls_first)
        columns = [_taken(column.combine_chunks(), order) for column in table.columns]
        tables.append(pa.table([*columns, pa.array(np.arange(rows))], names=[*table.column_names, "row"]))
    return tables


def _taken(array: pa.Array, order: np.ndarray) -> pa.Array:
    if array.type == pa.string_view():
        return array.cast(pa.string()).take(pa.array(order)).cast(array.type)
    return array.take(pa.array(order))


def expected(tables: list[pa.Table], keys: int, descending: list[bool], nulls_first: bool = False) -> list[dict]:
    """All rows, sorted stably in the order of the inputs."""
    rows = [row for table in tables for row in table.to_pylist()]
    arrays = [pa.concat_arrays([c for table in tables for c in table.column(i).chunks]) for i in range(keys)]
    return [rows[i] for i in sort_rows(arrays, descending, nulls_first)]


def batches(table: pa.Table, seed: int) -> list[pa.RecordBatch]:
    """The table in batches of random sizes, some of them empty."""
    r, at, found = random.Random(seed), 0, []
    (whole,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    while at < table.num_rows:
        found.append(whole.slice(at, r.choice([0, 1, 2, 7, 30])))
        at += found[-1].num_rows
    return found


def by(descending: list[bool]) -> list[tuple[str, str]]:
    return [(f"k{i}", "descending" if down else "ascending") for i, down in enumerate(descending)]


@pytest.mark.parametrize("name", ORDERED)
def test_every_type(name: str, values: ModuleType) -> None:
    for descending, nulls_first in ((False, False), (True, False), (False, True)):
        check([name], [descending], nulls_first, values)
        check(["int8", name], [descending, not descending], nulls_first, values)


def check(kinds: list[str], directions: list[bool], nulls_first: bool, values: ModuleType) -> None:
    """Inputs with keys of these kinds come out sorted."""
    tables = inputs_of(values, kinds, [60, 1, 0, 35, 80], directions, nulls_first)
    readers = [batches(table, seed) for seed, table in enumerate(tables)]
    found = list(merge_sorted(readers, by(directions), 50, nulls_first))
    assert [batch.num_rows for batch in found] == [50, 50, 50, 26]
    rows = [row for batch in found for row in batch.to_pylist()]
    assert repr(rows) == repr(expected(tables, len(kinds), directions, nulls_first))
    for batch in found:
        batch.validate(full=True)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 100])
def test_any_number_of_inputs(count: int, values: ModuleType) -> None:
    tables = inputs_of(values, ["int8"], [(7 * i) % 23 for i in range(count)], [False])
    for size in (1, 3, 10_000):
        readers = [iter(batches(table, seed)) for seed, table in enumerate(tables)]
        found = [row for batch in merge_sorted(readers, by([False]), size) for row in batch.to_pylist()]
        assert found == expected(tables, 1, [False])


def test_nothing_to_merge() -> None:
    empty = pa.record_batch({"k0": pa.array([], pa.int64())})
    assert list(merge_sorted([], by([False]))) == []
    assert list(merge_sorted([[], [empty], [empty, empty]], by([False]))) == []


def test_columns_that_are_no_keys_may_have_any_type(kind: str, values: ModuleType) -> None:
    tables = [pa.table({"k0": range(number, 90, 3), "v": values.make(kind, 30, number)}) for number in range(3)]
    readers = [table.to_batches() for table in tables]
    found = [row for batch in merge_sorted(readers, by([False]), 40) for row in batch.to_pylist()]
    rows = [row for table in tables for row in table.to_pylist()]
    assert repr(found) == repr(sorted(rows, key=lambda row: row["k0"]))


def test_dictionaries_that_differ_are_compared_by_value() -> None:
    left, right = (pa.array(words).dictionary_encode() for words in (["a", "c", "d"], ["b", "c", "e"]))
    readers = [[pa.record_batch({"k0": array})] for array in (left, right)]
    (found,) = merge_sorted(readers, by([False]))
    assert found["k0"].to_pylist() == ["a", "b", "c", "c", "d", "e"]


def test_it_holds_few_batches() -> None:
    alive: set[int] = set()
    most = 0

    def reader(number: int) -> Iterator[pa.RecordBatch]:
        nonlocal most
        for part in range(50):
            keys = np.arange(part * 100, (part + 1) * 100) * 4 + number
            name = 50 * number + part
            memory = keys.copy()
            weakref.finalize(memory, alive.discard, name)
            alive.add(name)
            gc.collect()
            most = max(most, len(alive))
            yield pa.record_batch({"k0": pa.array(memory)})
            del memory

    total = 0
    for batch in merge_sorted([reader(number) for number in range(4)], by([False]), 100):
        assert batch["k0"].to_pylist() == list(range(total, total + batch.num_rows))
        total += batch.num_rows
        del batch
    assert total == 20_000 and most <= 3 * 4


@pytest.mark.parametrize(
    ("readers", "by_", "error", "text"),
    [
        ([[{"k0": [1, 3, 2]}]], by([False]), ValueError, "input 0 is not sorted by k0"),
        ([[{"k0": [1]}], [{"k0": [5]}, {"k0": [4]}]], by([False]), ValueError, "input 1 is not sorted"),
        ([[{"k0": [1, 2]}]], by([True]), ValueError, "not sorted"),
        ([[{"k0": [None, 2]}]], by([False]), ValueError, "not sorted"),
        ([[{"k0": [1]}], [{"k1": [1]}]], by([False]), ValueError, "input 1 has another schema"),
        ([[{"a": [1]}]], by([False]), KeyError, "not one column"),
        ([[{"k0": [[1]]}]], by([False]), TypeError, "column 'k0' is of type list"),
        ([], [], ValueError, "nothing to merge by"),
        ([], [("a", "up")], ValueError, "'ascending' or 'descending'"),
    ],
)
def test_bad_input_is_refused(readers: list, by_: list, error: type[Exception], text: str) -> None:
    made = [[pa.RecordBatch.from_pydict(batch) for batch in reader] for reader in readers]
    with pytest.raises(error, match=text):
        list(merge_sorted(made, by_))
    with pytest.raises(ValueError, match="batches of 0 rows"):
        merge_sorted([], by([False]), 0)
