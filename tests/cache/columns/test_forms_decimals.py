"""Decimals in fewer bits and back, against Arrow's own casts."""

from __future__ import annotations

import decimal
import random

import pyarrow as pa
import pytest

from tierstore.cache.columns.forms import narrow, stored_type, widen


@pytest.mark.parametrize("precision", [1, 5, 9, 10, 15, 18])
@pytest.mark.parametrize("with_nulls", [False, True])
def test_decimals_there_and_back(precision: int, with_nulls: bool) -> None:
    generator, kind = random.Random(precision), pa.decimal128(precision, precision // 2)
    limit = 10**precision - 1
    numbers = [-limit, limit, 0, -1, 1, *(generator.randint(-limit, limit) for _ in range(300))]
    values = [decimal.Decimal(number).scaleb(-(precision // 2)) for number in numbers]
    wide = pa.array([None if with_nulls and i % 3 == 0 else value for i, value in enumerate(values)], kind)
    (short,) = narrow(pa.chunked_array([wide]))
    assert short.type == stored_type(kind) != kind
    assert short.equals(wide.cast(short.type))
    for piece, expected in ((short, wide), (short.slice(7), wide.slice(7)), (short[:0], wide[:0])):
        assert widen(piece, kind).equals(expected)
    larger = pa.decimal128(precision + 5, precision // 2 + 2)
    assert widen(short, larger).equals(wide.cast(larger))


def test_values_outside_their_type_are_left_to_arrow() -> None:
    """A file may hold more digits than it declares: what it holds must not be cut."""
    huge = pa.array([decimal.Decimal(2**70)], pa.decimal128(38, 0))
    lying = pa.Array.from_buffers(pa.decimal128(18, 0), 1, huge.buffers())
    with pytest.raises(pa.ArrowInvalid):
        narrow(pa.chunked_array([lying]))
