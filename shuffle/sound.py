"""Whether rows can be touched at all: offsets, indices and views that point into their buffers.

Arrow trusts these numbers, and so do the kernels here; one flipped bit in them makes a reader follow an address that is not
its own. So rows whose bytes were not hashed are looked at before anything else uses them. Only what points somewhere is
looked at, and only in the rows of the slice: columns of plain numbers cost nothing, those of strings one pass over offsets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tierstore.ringbuf.errors import CorruptionError, TierstoreError

from .physical import (
    bytes_offset_width,
    fixed_width,
    is_list_view,
    is_view,
    number_dtype,
    numbers,
    storage,
    storage_type,
)


def pointing(schema: pa.Schema) -> list[int]:
    """The columns of a schema in which something points somewhere."""
    return [number for number, field in enumerate(schema) if not _is_flat(field.type)]


def check_sound(rows: pa.RecordBatch, columns: Sequence[int], where: str) -> None:
    """Raise CorruptionError, with ``where``, if rows cannot be touched. columns: what pointing() says of their schema."""
    for number in columns:
        try:
            _check(rows.column(number))
        except TierstoreError:
            raise
        except (pa.ArrowException, ValueError, IndexError, OverflowError) as error:
            found = f"{type(error).__name__} in column {number} ({str(error):.100})"
            raise CorruptionError(where, 0, "offsets within their buffers", found) from None


def check_layout(batch: pa.RecordBatch, schema: pa.Schema, where: str) -> None:
    """Raise CorruptionError if a whole batch is of another schema, or buffers are too short. Cost: some 1 us a column."""
    try:
        batch.validate()
    except (pa.ArrowException, ValueError) as error:
        raise CorruptionError(where, 0, "buffers of the length of their columns", f"{str(error):.100}") from None
    if not batch.schema.equals(schema):
        raise CorruptionError(where, 0, "the schema of its attempt", "another")


def _is_flat(kind: pa.DataType) -> bool:
    kind = storage_type(kind)
    return fixed_width(kind) >= 0 or pa.types.is_boolean(kind) or pa.types.is_null(kind)


def _check(array: pa.Array) -> None:
    array = storage(array)
    kind, count = array.type, len(array)
    if count == 0 or _is_flat(kind):
        return
    if pa.types.is_dictionary(kind):
        _check_indices(array)
    elif is_view(kind):
        array.view(pa.binary_view()).validate(full=True)  # text as bytes: whether it is UTF-8 matters to nobody here
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            _check(array.field(number))
    elif pa.types.is_fixed_size_list(kind):
        size = kind.list_size
        _check(_within(array.values, array.offset * size, (array.offset + count) * size))
    elif is_list_view(kind):
        width = "<i8" if pa.types.is_large_list_view(kind) else "<i4"
        begins = _numbers(array.buffers()[1], width, array.offset, count)
        ends = begins + _numbers(array.buffers()[2], width, array.offset, count)
        if (ends < begins).any():
            raise ValueError("a list with fewer than no entries")
        _check(_within(array.values, int(begins.min()), int(ends.max())))
    elif pa.types.is_map(kind):
        first, last = _ends(array, 4)
        for child in (array.keys, array.items):
            _check(_within(child, first, last))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first, last = _ends(array, 8 if pa.types.is_large_list(kind) else 4)
        _check(_within(array.values, first, last))
    elif bytes_offset_width(kind):
        first, last = _ends(array, bytes_offset_width(kind))
        data = array.buffers()[2]
        if last > (0 if data is None else data.size):
            raise ValueError("values behind the end of their buffer")
    else:  # unions, run ends, and what may come
        array.validate(full=True)


def _numbers(buffer: pa.Buffer | None, dtype: str, first: int, count: int) -> np.ndarray:
    if buffer is None:
        raise ValueError("a buffer is missing")
    return np.frombuffer(buffer, dtype, count, first * np.dtype(dtype).itemsize).astype("i8", copy=False)


def _ends(array: pa.Array, width: int) -> tuple[int, int]:
    """The first and the last of a slice's offsets, which must rise."""
    buffer = array.buffers()[1]
    if buffer is None:
        raise ValueError("offsets are missing")
    offsets = np.frombuffer(buffer, f"<i{width}", len(array) + 1, array.offset * width)
    if offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any():
        raise ValueError("offsets that fall")
    return int(offsets[0]), int(offsets[-1])


def _within(values: pa.Array, first: int, last: int) -> pa.Array:
    if not 0 <= first <= last <= len(values):
        raise ValueError("entries behind the end of their values")
    return values.slice(first, last - first)


def _check_indices(array: pa.Array) -> None:
    indices, entries = array.indices, array.dictionary
    chosen = numbers(indices, number_dtype(indices.type))
    if indices.null_count:
        chosen = chosen[np.asarray(indices.is_valid())]
    if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < len(entries)):
        raise ValueError("indices behind the end of their dictionary")
    _check(entries)
