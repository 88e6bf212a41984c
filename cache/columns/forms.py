"""The form in which columns are kept: the same values as pyarrow reads, in less room and with less work for engines.

    decimal128 up to 9 digits      decimal32
    decimal128 up to 18 digits     decimal64
    text with few distinct values  dictionary of text, with 16-bit codes
    other text and binary          offsets and bytes (Arrow computes on them, not on views; engines take both alike)
    all else                       as it is

``widen`` undoes it: it makes the type that pyarrow's own reader would have given.

Polars and DataFusion compute on 128-bit decimals and on text views only. For them a chunk that is read again is also kept in
a second form, WIDE, of just these types, so that they are made once and not by every scan.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

FORM = "1"  # part of every key: a change of the rules above makes new keys
WIDE = "w1"
CODES = pa.dictionary(pa.int16(), pa.string())
CODES_MAX = 1 << 15
OFFSETS_MAX = (1 << 31) - 1
# Pieces of a wide chunk repeat the words that they refer to; with more than this of them it is not kept.
WORDS_BYTES_MAX = 1 << 20
# A dictionary is kept where it is this many times shorter than the column.
DICTIONARY_SHARE = 8


def is_text(kind: pa.DataType) -> bool:
    """Whether values are text in any of Arrow's layouts but a dictionary."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """The type a column of a type is kept in, unless it becomes a dictionary."""
    if pa.types.is_decimal128(kind):
        if kind.precision <= 9:
            return pa.decimal32(kind.precision, kind.scale)
        if kind.precision <= 18:
            return pa.decimal64(kind.precision, kind.scale)
    if is_text(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def wide_type(kind: pa.DataType) -> pa.DataType:
    """The type in which a column of a type is given to engines that want it wide."""
    return pa.string_view() if is_text(kind) else kind if pa.types.is_decimal(kind) else stored_type(kind)


def form_of(kind: pa.DataType, form: str) -> str:
    """The form in which a column of a file is looked for where a form is asked for: without a difference there is no second."""
    return FORM if form == WIDE and not is_text(kind) and stored_type(kind) == wide_type(kind) else form


def wide(array: pa.Array) -> pa.Array | None:
    """An array of the stored form as a piece of a wide chunk, with text of its own; None if that would take too much room."""
    if pa.types.is_decimal(array.type):
        return widen(array, pa.decimal128(array.type.precision, array.type.scale))
    if array.type == CODES:
        return views(array) if array.dictionary.nbytes <= WORDS_BYTES_MAX else None
    return pa.concat_arrays([array, array[:0]]).cast(pa.string_view())  # a slice would keep the text of the whole


def narrow(column: pa.ChunkedArray) -> list[pa.Array]:
    """A column in the stored form: one array, or several where 32-bit offsets do not reach."""
    if pa.types.is_dictionary(column.type) and is_text(column.type.value_type):
        array = _whole(column.unify_dictionaries())
        size = len(array.dictionary)
        if size <= CODES_MAX and size * DICTIONARY_SHARE <= len(array):
            codes, words = array.indices.cast(pa.int16()), array.dictionary.cast(pa.string())
            return [pa.DictionaryArray.from_arrays(codes, words)]
        column = column.cast(column.type.value_type)
    kind = stored_type(column.type)
    if kind != column.type and pa.types.is_decimal128(column.type):
        return [_short(_whole(column), kind)]
    return [_whole(part if kind == part.type else part.cast(kind)) for part in _within_reach(column)]


def _short(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A decimal of 128 bits in 64 or 32, five times as fast as Arrow's cast; by that where a value does not fit."""
    validity, values = array.buffers()
    wide = np.frombuffer(values, "<i8")[2 * array.offset : 2 * (array.offset + len(array))]
    low, high = wide[::2], wide[1::2]
    if array.offset or not np.array_equal(high, low >> 63):
        return array.cast(kind)
    short = low.astype("<i4") if kind.bit_width == 32 else np.ascontiguousarray(low)
    if kind.bit_width == 32 and not np.array_equal(short, low):
        return array.cast(kind)
    return pa.Array.from_buffers(kind, len(array), [validity, pa.py_buffer(short)], array.null_count)


def _within_reach(column: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    """A column in parts of at most OFFSETS_MAX bytes."""
    if column.nbytes <= OFFSETS_MAX or len(column) <= 1:
        return [column]
    half = len(column) // 2
    return _within_reach(column.slice(0, half)) + _within_reach(column.slice(half))


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])


def widen(array: Any, kind: pa.DataType) -> Any:
    """An array (or chunked array) in the type that pyarrow's reader gives. Cost: a copy where the type differs."""
    if array.type == kind:
        return array
    if array.type == CODES and pa.types.is_string_view(kind) and isinstance(array, pa.Array):
        return views(array)
    if pa.types.is_dictionary(array.type) and not pa.types.is_dictionary(kind):
        array = array.cast(array.type.value_type)
    elif pa.types.is_dictionary(kind) and not pa.types.is_dictionary(array.type):
        array = array.cast(kind.value_type).dictionary_encode()
    elif pa.types.is_decimal128(kind) and _is_short_of(array, kind):
        return _long(array, kind)
    return array if array.type == kind else array.cast(kind)


def _is_short_of(array: Any, kind: pa.DataType) -> bool:
    """Whether an array's decimals are those of a type, in fewer bits, and its bitmap of nulls can be used as it is."""
    own = array.type
    if not (pa.types.is_decimal64(own) or pa.types.is_decimal32(own)) or isinstance(array, pa.ChunkedArray):
        return False
    return own.scale == kind.scale and own.precision <= kind.precision and not (array.offset and array.null_count)


def _long(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A decimal of 64 or 32 bits in 128. Cost: a tenth of Arrow's cast."""
    size = array.type.bit_width // 8
    validity, values = array.buffers()
    words = np.empty((len(array), 2), "<i8")
    words[:, 0] = np.frombuffer(values, f"<i{size}", len(array), array.offset * size) if len(array) else 0
    np.right_shift(words[:, 0], 63, out=words[:, 1])
    return pa.Array.from_buffers(
        kind, len(array), [validity if array.null_count else None, pa.py_buffer(words)], array.null_count
    )


def views(array: pa.DictionaryArray) -> pa.Array:
    """A dictionary of text as views, 16 bytes a value; the text itself is not repeated."""
    values = array.dictionary.cast(pa.string_view())
    # Arrow does not take from views; but they are 16 bytes each, and what they refer to can stay where it is.
    plain = pa.Array.from_buffers(pa.binary(16), len(values), values.buffers()[:2], offset=values.offset)
    taken = plain.take(array.indices)
    return pa.Array.from_buffers(
        pa.string_view(), len(taken), [*taken.buffers(), *values.buffers()[2:]], offset=taken.offset
    )


def coded(array: pa.Array) -> list[pa.Array]:
    """Text as dictionaries of 16-bit codes, in pieces short enough for any text."""
    pieces = [array.slice(start, CODES_MAX).cast(pa.string()) for start in range(0, max(1, len(array)), CODES_MAX)]
    return [piece.dictionary_encode().cast(CODES) for piece in pieces]
