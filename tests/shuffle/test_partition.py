"""Partition numbers by hash against a twin in plain Python, for every type."""

from __future__ import annotations

import datetime
import struct
from decimal import Decimal
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tierstore.shuffle.partition import hash_partitions

MASK = (1 << 64) - 1
K0, K1, K2, K3 = 0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3
SEED, NULL = 0x2545F4914F6CDD1D, 0x9FB21C651E98DF25
REFUSED = {
    *("list", "large_list", "list_view", "list_of_views", "fixed_list", "map", "list_of_dictionaries", "struct"),
    *("sparse_union", "dense_union"),
}


# --- the twin -----------------------------------------------------------------------------------------------------------


def fold(left: int, right: int) -> int:
    product = (left & MASK) * (right & MASK)
    return (product >> 64) ^ (product & MASK)


def mixed(word: int, state: int) -> int:
    value = ((word ^ state) & MASK) * 0x9E3779B97F4A7C15 & MASK
    value = (value ^ (value >> 32)) * 0xD6E8FEB86659FD93 & MASK
    return value ^ (value >> 32)


def u64(data: bytes, at: int) -> int:
    return int(struct.unpack_from("<Q", data, at)[0])


def hash_bytes(data: bytes, seed: int) -> int:
    size, state = len(data), seed ^ K0
    if size > 16:
        at = 0
        if size > 64:
            lanes = [state, state ^ K1, state ^ K2, state ^ K3]
            while size - at > 64:
                for number, key in enumerate((K0, K1, K2, K3)):
                    lanes[number] = fold(
                        u64(data, at + 16 * number) ^ key, u64(data, at + 16 * number + 8) ^ lanes[number]
                    )
                at += 64
            state = lanes[0] ^ lanes[1] ^ fold(lanes[2] ^ K1, lanes[3] ^ K2)
        while size - at > 16:
            state = fold(u64(data, at) ^ K1, u64(data, at + 8) ^ state)
            at += 16
        first, last = u64(data, size - 16), u64(data, size - 8)
    elif size >= 8:
        first, last = u64(data, 0), u64(data, size - 8)
    elif size >= 4:
        first, last = (int.from_bytes(part, "little") for part in (data[:4], data[-4:]))
    else:
        first, last = (data[0] | data[size >> 1] << 8 | data[-1] << 16 if data else 0), 0
    return fold(K1 ^ size, fold(first ^ K1, last ^ state))


def integer_word(value: int) -> int:
    count = 1
    while not -(1 << (64 * count - 1)) <= value < 1 << (64 * count - 1):
        count += 1
    words = [value >> (64 * number) & MASK for number in range(count)]
    word = words[0]
    for high in words[1:]:
        word = mixed(high, word)
    return word


def words_of(value: Any, kind: pa.DataType) -> list[int]:
    """The words of one Python value of a type."""
    if isinstance(kind, pa.BaseExtensionType):
        return words_of(value.bytes if value is not None else None, kind.storage_type)
    if pa.types.is_struct(kind):
        fields = [kind.field(number) for number in range(kind.num_fields)]
        inner = [(None if value is None else value[field.name], field.type) for field in fields]
        return [word for pair in inner for word in words_of(*pair)]
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return words_of(value, kind.value_type)
    if value is None:
        return [NULL]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return [int(value) & MASK]
    if pa.types.is_floating(kind):
        number = float(value)
        return [0x7FF8000000000000 if number != number else u64(struct.pack("<d", number + 0.0), 0)]
    if pa.types.is_decimal(kind):
        return [integer_word(int(Decimal(value).scaleb(kind.scale)))]
    if pa.types.is_temporal(kind):
        if pa.types.is_interval(kind):
            return [hash_bytes(struct.pack("<iiq", *value), SEED)]
        plain = pa.array([value], kind).cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        return [plain[0].as_py() & MASK]
    return [hash_bytes(value.encode() if isinstance(value, str) else value, SEED)]


def naive(keys: list[pa.Array], partitions: int) -> list[int]:
    found = []
    for row in zip(*(key.to_pylist() for key in keys), strict=True):
        state = SEED
        for value, key in zip(row, keys, strict=True):
            for word in words_of(value, key.type):
                state = mixed(word, state)
        found.append((state >> 32) * partitions >> 32)
    return found


# --- tests --------------------------------------------------------------------------------------------------------------


def test_every_type_is_as_documented(kind: str, values: ModuleType) -> None:
    for nulls in (0.0, 0.2):
        key = values.make(kind, 300, 1, nulls)
        if kind in REFUSED:
            with pytest.raises(TypeError, match="key 0.* is of type .*: use columns of plain values"):
                hash_partitions([key], 7)
            continue
        with_it = [values.make("int32", 300, 2), key, values.make("string", 300, 3)]
        assert hash_partitions([key], 1000).tolist() == naive([key], 1000)
        assert hash_partitions(with_it, 1000).tolist() == naive(with_it, 1000)
        assert hash_partitions([key.slice(7, 100)], 1000).tolist() == naive([key], 1000)[7:107]
        assert len(hash_partitions([key.slice(0, 0)], 9)) == 0


def test_values_do_not_change_between_releases() -> None:
    integers, texts = pa.array([0, 1, -1, None, 1 << 40]), pa.array(["", "a", "tierstore", "x" * 100, None])
    assert hash_partitions([integers], 1 << 16).tolist() == GOLDEN_INTEGERS
    assert hash_partitions([texts], 1 << 16).tolist() == GOLDEN_TEXTS
    assert hash_partitions([integers, texts], 1 << 20).tolist() == GOLDEN_BOTH


def test_equal_values_of_different_types_meet() -> None:
    numbers = [0, 5, 100, None]
    of = {
        kind: hash_partitions([pa.array(numbers, kind)], 999).tolist() for kind in [pa.int8(), pa.uint16(), pa.int64()]
    }
    assert len({tuple(found) for found in of.values()}) == 1
    texts = ["", "a", "more than twelve bytes", None]
    kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary_view()]
    assert len({tuple(hash_partitions([pa.array(texts, kind)], 999)) for kind in kinds}) == 1
    coded = hash_partitions([pa.array(texts).dictionary_encode()], 999)
    assert coded.tolist() == hash_partitions([pa.array(texts)], 999).tolist()
    money = [Decimal("1.25"), Decimal("-3.00"), None]
    kinds = [pa.decimal32(5, 2), pa.decimal64(9, 2), pa.decimal128(20, 2), pa.decimal256(50, 2)]
    assert len({tuple(hash_partitions([pa.array(money, kind)], 999)) for kind in kinds}) == 1
    floats = [0.0, 1.5, float("nan"), None]
    kinds = [pa.float16(), pa.float32(), pa.float64()]
    assert len({tuple(hash_partitions([pa.array(floats, pa.float32()).cast(kind)], 999)) for kind in kinds}) == 1
    same = pa.array([0.0, -0.0]), pa.array(np.array([0x7FF8000000000001, 0xFFF8000000000000], "u8").view("f8"))
    assert all(len(set(hash_partitions([pair], 60_000))) == 1 for pair in same)


def test_wide_numbers_and_the_order_of_keys() -> None:
    left, right = pa.array(range(1000)), pa.array(range(1000, 2000))
    wide = hash_partitions([left], 100_000)
    assert wide.dtype == np.uint32 and wide.tolist() == naive([left], 100_000)
    assert hash_partitions([left], 65_536).dtype == np.uint16
    both = hash_partitions([left, right], 70_000), hash_partitions([right, left], 70_000)
    assert both[0].tolist() == naive([left, right], 70_000) and both[0].tolist() != both[1].tolist()
    assert set(hash_partitions([left], 1)) == {0}


def test_rows_are_spread_evenly() -> None:
    rows, partitions = 200_000, 200
    for key in (np.arange(rows), np.arange(rows) << 32, np.arange(rows) * 1000, np.arange(rows).astype("f8")):
        counts = np.bincount(hash_partitions([pa.array(key)], partitions), minlength=partitions)
        chi_square = ((counts - rows / partitions) ** 2 / (rows / partitions)).sum()
        assert chi_square < 300, f"{chi_square} with 199 degrees of freedom"


def test_a_dictionary_of_dates_hashes_like_the_dates() -> None:
    days = pa.array([datetime.date(2024, 2, 29), None, datetime.date(1969, 1, 1)])
    assert hash_partitions([days.dictionary_encode()], 999).tolist() == hash_partitions([days], 999).tolist()


def test_keys_without_any_bits() -> None:
    nothing = pa.array([{}, None, {}], pa.struct([]))
    assert hash_partitions([nothing], 5).tolist() == [0, 0, 0]
    assert hash_partitions([pa.array([b"", b""], pa.binary(0))], 1000).tolist() == naive([pa.array([b"", b""])], 1000)


@pytest.mark.parametrize(
    ("keys", "partitions", "error", "text"),
    [
        ([], 4, ValueError, "no key columns"),
        ([pa.array([1]), pa.array([1, 2])], 4, ValueError, "different lengths"),
        ([pa.chunked_array([[1]])], 4, TypeError, "chunk by chunk"),
        ([pa.array([1])], 0, ValueError, "0 partitions"),
        ([pa.array([1])], 1 << 25, ValueError, "give 1 to"),
        ([pa.array([{"a": [1]}])], 4, TypeError, "field 'a'"),
    ],
)
def test_bad_input_is_refused(keys: list, partitions: int, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        hash_partitions(keys, partitions)


GOLDEN_INTEGERS = [30775, 236, 38093, 60370, 41028]
GOLDEN_TEXTS = [13374, 40864, 9930, 55068, 60370]
GOLDEN_BOTH = [18014, 349716, 648776, 161638, 447421]
