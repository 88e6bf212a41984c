"""Arrow arrays as memory: what lies under a type, and where. Used by the other modules of this package only."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .native import address_of

# dtypes of the fixed-width types whose values are one number.
_SIGNED = {8: "<i1", 16: "<i2", 32: "<i4", 64: "<i8"}
_UNSIGNED = {8: "<u1", 16: "<u2", 32: "<u4", 64: "<u8"}
_FLOATS = {16: "<f2", 32: "<f4", 64: "<f8"}
Words = npt.NDArray[np.uint64]


def storage_type(kind: pa.DataType) -> pa.DataType:
    """The type without extensions around it."""
    while isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind


def storage(array: pa.Array) -> pa.Array:
    """The array without extensions around it."""
    while isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    return array


def holds(kind: pa.DataType, *tests: Any) -> bool:
    """Whether a type, or any type inside it, passes one of the tests."""
    if any(test(kind) for test in tests):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return holds(kind.storage_type, *tests)
    if pa.types.is_dictionary(kind):
        return holds(kind.value_type, *tests)
    if pa.types.is_run_end_encoded(kind):
        return holds(kind.value_type, *tests)
    return any(holds(kind.field(i).type, *tests) for i in range(kind.num_fields))


def is_view(kind: pa.DataType) -> bool:
    """string_view or binary_view."""
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def is_list_view(kind: pa.DataType) -> bool:
    """list_view or large_list_view."""
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def bytes_offset_width(kind: pa.DataType) -> int:
    """Bytes of an offset of a string or binary type; 0 for other types."""
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return 4
    return 8 if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind) else 0


def fixed_width(kind: pa.DataType) -> int:
    """Bytes of a value of a type with one plain buffer of values; -1 for other types (bool is one of them)."""
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind):
        return -1 if pa.types.is_boolean(kind) else int(kind.bit_width) // 8
    return -1


def number_dtype(kind: pa.DataType) -> str:
    """The numpy dtype of a type whose values are integers or floats of at most 64 bits; "" for others."""
    if pa.types.is_floating(kind):
        return _FLOATS[kind.bit_width]
    if pa.types.is_unsigned_integer(kind):
        return _UNSIGNED[kind.bit_width]
    plain = pa.types.is_integer(kind) or pa.types.is_temporal(kind) or pa.types.is_decimal(kind)
    if plain and not pa.types.is_interval(kind) and kind.bit_width <= 64:
        return _SIGNED[kind.bit_width]
    return ""


def address(buffer: pa.Buffer | None) -> int:
    """Where a buffer lies; 0 for one that is absent, which only arrays without values may have."""
    return 0 if buffer is None else int(buffer.address)


def validity(array: pa.Array) -> int:
    """Address of the bitmap, 0 if no row is null."""
    return address(array.buffers()[0]) if array.null_count else 0


def numbers(array: pa.Array, dtype: str) -> npt.NDArray[Any]:
    """The values of a fixed-width array, what lies under nulls included; no copy."""
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.empty(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * np.dtype(dtype).itemsize)


def offsets_of(array: pa.Array, width: int) -> int:
    """Address of the offset of row 0 of an array with offsets of ``width`` bytes."""
    return address(array.buffers()[1]) + int(array.offset) * width


def wide_offsets(array: pa.Array, width: int) -> npt.NDArray[np.int64]:
    """The offsets of all rows as int64, one more than rows."""
    buffer = array.buffers()[1]
    if len(array) == 0 or buffer is None:
        return np.zeros(1, np.int64)
    found = np.frombuffer(buffer, f"<i{width}", len(array) + 1, array.offset * width)
    return np.ascontiguousarray(found, np.int64)


def plain_bytes(array: pa.Array) -> pa.Array:
    """A string or binary array of any layout as one with offsets."""
    if is_view(array.type):
        return array.cast(pa.large_binary() if pa.types.is_binary_view(array.type) else pa.large_string())
    return array


def decoded(array: pa.Array) -> pa.Array:
    """Storage, with run ends and dictionaries resolved (of this array, not of its children)."""
    array = storage(array)
    while True:
        if pa.types.is_run_end_encoded(array.type):
            array = storage(pc.run_end_decode(array))
        elif pa.types.is_dictionary(array.type):
            array = storage(array.dictionary_decode())
        else:
            return array


def words_at(words: npt.NDArray[Any]) -> int:
    """Address of an array that a kernel reads; refuses one with gaps."""
    assert words.flags.c_contiguous
    return address_of(words)


def refuse_key(name: str, kind: pa.DataType) -> TypeError:
    """The error for a column that cannot be a key."""
    return TypeError(
        f"{name} is of type {kind}, which cannot be partitioned by: use columns of plain values or structs of them, "
        "for example a field of it, its length, or a hash or string of it that you compute first"
    )
