"""Ranges and sorting against a comparison in plain Python, for every type that has an order."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.shuffle.ordering import sort_rows
from tierstore.shuffle.partition import range_partitions, sample_bounds

REFUSED = {
    *("list", "large_list", "list_view", "list_of_views", "fixed_list", "map", "list_of_dictionaries", "struct"),
    *("sparse_union", "dense_union", "interval"),
}


# --- the twin -----------------------------------------------------------------------------------------------------------


def compare_values(left: Any, right: Any, descending: bool, nulls_first: bool) -> int:
    """Negative, 0, positive."""
    if isinstance(left, dict) or isinstance(right, dict):
        names = list(left or right)
        pairs = [((left or {}).get(name), (right or {}).get(name)) for name in names]
        return next((c for pair in pairs if (c := compare_values(*pair, descending, nulls_first))), 0)
    if left is None or right is None:
        return ((left is not None) - (right is not None)) * (1 if nulls_first else -1)
    if left != left or right != right:
        return int(left != left) - int(right != right)
    left, right = (
        value.encode() if isinstance(value, str) else getattr(value, "bytes", value) for value in (left, right)
    )
    return ((left > right) - (left < right)) * (-1 if descending else 1)


def comparison(descending: list[bool], nulls_first: bool) -> Callable[[Any, Any], int]:
    def compare(left: tuple, right: tuple) -> int:
        found = (compare_values(a, b, d, nulls_first) for a, b, d in zip(left, right, descending, strict=True))
        return next((c for c in found if c), 0)

    return compare


def rows_of(keys: list[pa.Array]) -> list[tuple]:
    return list(zip(*(key.to_pylist() for key in keys), strict=True))


def check(keys: list[pa.Array], partitions: int, descending: list[bool], nulls_first: bool) -> None:
    compare, rows = comparison(descending, nulls_first), rows_of(keys)
    order = sort_rows(keys, descending, nulls_first)
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: functools.cmp_to_key(compare)(rows[i]))
    bounds = sample_bounds(keys, partitions, descending, nulls_first)
    splits = rows_of(bounds)
    assert len(splits) == (partitions - 1 if rows else 0)
    expected = [sum(compare(split, row) <= 0 for split in splits) for row in rows]
    assert range_partitions(keys, bounds, descending, nulls_first).tolist() == expected
    some = [key.slice(5, 20) for key in keys]
    assert range_partitions(some, bounds, descending, nulls_first).tolist() == expected[5:25]


# --- tests --------------------------------------------------------------------------------------------------------------


def test_every_type(kind: str, values: ModuleType) -> None:
    for descending, nulls_first, nulls in ((False, False, 0.0), (True, False, 0.2), (False, True, 0.2)):
        key = values.make(kind, 150, 4, nulls)
        if kind in REFUSED:
            with pytest.raises(TypeError, match="which cannot be partitioned by"):
                range_partitions([key], [key.slice(0, 1)])
            continue
        check([key], 9, [descending], nulls_first)
        check([key], 1, [descending], nulls_first)
        several = [values.make("int8", 150, 1), key, values.make("string", 150, 2)]
        check(several, 20, [True, descending, False], nulls_first)


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.floats(width=32), st.integers(-3, 3)), min_size=1, max_size=60),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.integers(1, 12),
)
@settings(derandomize=True, database=None, deadline=None, max_examples=80)
def test_any_rows(rows: list[tuple], descending: tuple, partitions: int) -> None:
    columns = list(zip(*rows, strict=True))
    keys = [pa.array(columns[0], pa.binary()), pa.array(columns[1], pa.float32()), pa.array(columns[2], pa.int8())]
    for order in itertools.permutations(range(3)):
        check([keys[i] for i in order], partitions, [descending[i] for i in order], False)


def test_the_order_is_that_of_pyarrow(values: ModuleType) -> None:
    for kind in ("int64", "float64", "string", "decimal128", "timestamp", "fixed16", "bool"):
        key = values.make(kind, 300, 6)
        for direction in ("ascending", "descending"):
            expected = pc.sort_indices(pa.table({"a": key}), sort_keys=[("a", direction)])
            found = sort_rows([key], [direction == "descending"])
            assert repr(key.take(pa.array(found)).to_pylist()) == repr(key.take(expected).to_pylist())


def test_layouts_may_differ_between_keys_and_bounds() -> None:
    texts = ["b", "a", None, "abcdefghi", "abcdefgh", "abcdefgh\0"]
    bounds = pa.array(["abcdefgh", "b"])
    expected = [2, 0, 2, 1, 1, 1]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        key = pa.array(texts).dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else pa.array(texts, kind)
        assert range_partitions([key], [bounds]).tolist() == expected
        assert (
            range_partitions(
                [pa.array(texts)], [bounds.cast(kind)] if not pa.types.is_dictionary(kind) else [bounds]
            ).tolist()
            == expected
        )


def test_a_value_that_fills_partitions() -> None:
    key = pa.array([1] * 900 + list(range(2, 102)))
    bounds = sample_bounds([key], 10)
    counts = np.bincount(range_partitions([key], bounds), minlength=10)
    assert bounds[0].to_pylist() == [1] * 8 + [2]
    assert counts.tolist() == [0] * 8 + [900, 100]


def test_many_bounds() -> None:
    r = random.Random(1)
    key = pa.array([r.randrange(-(1 << 62), 1 << 62) for _ in range(5000)])
    split = pa.array(sorted(r.randrange(-(1 << 62), 1 << 62) for _ in range(70_000)))
    found = range_partitions([key], [split])
    assert found.dtype == np.uint32
    assert found.tolist() == np.searchsorted(split.to_numpy(), key.to_numpy(), side="right").tolist()
    assert range_partitions([key], [split.slice(0, 0)]).tolist() == [0] * 5000
    assert range_partitions([key.slice(0, 0)], [split]).tolist() == []


def test_sampled_bounds_cut_evenly() -> None:
    r = np.random.default_rng(2)
    key = pa.array(r.normal(size=100_000))
    bounds = sample_bounds([key.slice(0, 10_000)], 50)
    counts = np.bincount(range_partitions([key], bounds), minlength=50)
    assert counts.min() > 1000 and counts.max() < 3200


@pytest.mark.parametrize(
    ("keys", "bounds", "descending", "error", "text"),
    [
        ([pa.array([1])], [pa.array([2, 1])], None, ValueError, "not in the order"),
        ([pa.array([1])], [pa.array([1, 2])], [True], ValueError, "not in the order"),
        ([pa.array(["a"])], [pa.array(["abcdefghj", "abcdefghi"])], None, ValueError, "not in the order"),
        ([pa.array([1]), pa.array([1])], [pa.array([1, 1]), pa.array([2, 1])], None, ValueError, "not in the order"),
        (
            [pa.array([1])],
            [pa.array([1], pa.int32())],
            None,
            TypeError,
            "bounds of types int32 for keys of types int64",
        ),
        ([pa.array([1])], [pa.array([1]), pa.array([1])], None, TypeError, "bounds of types"),
        ([pa.array([1])], [pa.array([1])], [True, False], ValueError, "2 directions for 1 keys"),
        ([], [], None, ValueError, "no key columns"),
    ],
)
def test_bad_input_is_refused(keys: list, bounds: list, descending: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        range_partitions(keys, bounds, descending)
