"""The order of rows by key columns: ascending or descending, nulls last or first, floats with NaN behind all numbers.

Every key is turned into parts that compare like its values (kernels/order.py): integers, dates, times and decimals by
value, -0.0 equal to 0.0, every NaN equal and after all numbers (in a descending key too, as pyarrow sorts), strings and
binary values byte by byte, dictionaries and run ends by the values they stand for, a struct as its fields in order (of a
null struct, all null). Several keys compare one after the other. Lists, maps, unions and intervals have no order here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .native import address_of, kernels
from .physical import (
    address,
    bytes_offset_width,
    decoded,
    is_view,
    number_dtype,
    numbers,
    plain_bytes,
    refuse_key,
    storage_type,
    validity,
    wide_offsets,
)

Signed = npt.NDArray[np.int64]
WORDS, BYTES, BYTES_DESCENDING, NULLS_LAST, NULLS_FIRST = 0, 1, 2, 3, 4
_SIGN = np.int64(-(1 << 63))


@dataclass(frozen=True)
class Part:
    """words: the words (NULLS_LAST: 1 for null; NULLS_FIRST: 0 for null), or for bytes the offsets. data: the address of
    the bytes. alive: what keeps it."""

    kind: int
    words: Signed
    data: int = 0
    alive: object = None

    @property
    def is_bytes(self) -> bool:
        """Whether it is a part of bytes."""
        return self.kind in (BYTES, BYTES_DESCENDING)

    @property
    def at(self) -> int:
        """Address of the words or offsets."""
        return address_of(self.words)


def leaves(keys: Sequence[pa.Array], names: Sequence[str]) -> list[tuple[pa.Array, str, int]]:
    """The plain columns the keys are made of: array, name for messages, number of the key."""
    found: list[tuple[pa.Array, str, int]] = []
    for number, (key, name) in enumerate(zip(keys, names, strict=True)):
        found += [(*leaf, number) for leaf in _leaves(key, name)]
    return found


def _leaves(key: pa.Array, name: str) -> Iterator[tuple[pa.Array, str]]:
    key = decoded(key)
    if pa.types.is_struct(key.type):
        for position, field in enumerate(key.flatten()):
            yield from _leaves(field, f"{name}, field {key.type.field(position).name!r},")
    else:
        yield key, name


def parts_of(leaf: pa.Array, name: str, descending: bool, nulls_first: bool, nullable: bool) -> list[Part]:
    """The parts of one plain column; the same kinds for every array of a type. nullable: with a part that tells nulls."""
    found = [] if pa.types.is_null(leaf.type) else list(_parts(leaf, name, descending))
    if leaf.null_count and not pa.types.is_null(leaf.type):
        for number, part in enumerate(found):
            if part.kind == WORDS:
                words = part.words.copy()
                kernels().set_null_words(validity(leaf), leaf.offset, len(leaf), 0, address_of(words))
                found[number] = replace(part, words=words)
    if nullable:
        valid = np.asarray(leaf.is_valid())
        words = (valid if nulls_first else ~valid).astype(np.int64)
        found.insert(0, Part(NULLS_FIRST if nulls_first else NULLS_LAST, words))
    return found


def _parts(leaf: pa.Array, name: str, descending: bool) -> Iterator[Part]:
    kind, rows = leaf.type, len(leaf)
    dtype = number_dtype(kind)
    if bytes_offset_width(kind) or is_view(kind):
        yield from _byte_parts(leaf, descending)
    elif dtype and dtype[1] == "f":
        words, values = np.empty(rows, np.int64), numbers(leaf, dtype).astype(np.float64)
        kernels().order_doubles(address_of(values), rows, int(descending), address_of(words))
        yield Part(WORDS, words)
    else:
        for words in _integer_parts(leaf, dtype, name):
            yield Part(WORDS, ~words if descending else words)


def _integer_parts(leaf: pa.Array, dtype: str, name: str) -> Iterator[Signed]:
    """Words that need no more than a complement to be reversed."""
    kind, rows = leaf.type, len(leaf)
    if dtype == "<u8":
        yield numbers(leaf, "<i8") ^ _SIGN
    elif dtype:
        yield numbers(leaf, dtype).astype(np.int64, copy=False)
    elif pa.types.is_boolean(kind):
        yield np.asarray(leaf.fill_null(False)).astype(np.int64)
    elif pa.types.is_decimal(kind):
        count = kind.byte_width // 8
        buffer = leaf.buffers()[1]
        words = (
            np.frombuffer(buffer, "<i8", rows * count, leaf.offset * kind.byte_width) if rows else np.empty(0, "<i8")
        )
        for number in reversed(range(count)):
            word = np.ascontiguousarray(words[number::count])
            yield word if number == count - 1 else word ^ _SIGN
    elif pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        for first in range(0, width, 8):
            words = np.empty(rows, np.int64)
            data = address(leaf.buffers()[1]) + leaf.offset * width
            kernels().order_records(data, width, first, rows, address_of(words))
            yield words
    else:
        raise refuse_key(name, kind)


def _byte_parts(leaf: pa.Array, descending: bool) -> Iterator[Part]:
    """The first 8 bytes as a word, then all bytes."""
    leaf = plain_bytes(leaf)
    if leaf.null_count:
        leaf = leaf.fill_null(pa.scalar(b"", leaf.type) if "binary" in str(leaf.type) else pa.scalar("", leaf.type))
    offsets, data = wide_offsets(leaf, bytes_offset_width(leaf.type)), address(leaf.buffers()[2])
    words = np.empty(len(leaf), np.int64)
    kernels().order_prefixes(address_of(offsets), data, len(leaf), address_of(words))
    yield Part(WORDS, ~words if descending else words)
    yield Part(BYTES_DESCENDING if descending else BYTES, offsets, data, leaf)


def ordered_type(kind: pa.DataType) -> str:
    """What two key columns must have in common to be compared."""
    kind = storage_type(kind)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return ordered_type(kind.value_type)
    if bytes_offset_width(kind) or is_view(kind):
        return "bytes"
    if pa.types.is_struct(kind):
        return f"struct<{','.join(ordered_type(kind.field(i).type) for i in range(kind.num_fields))}>"
    return str(kind)


def directions(descending: Sequence[bool] | None, keys: int) -> Sequence[bool]:
    """The direction of each key."""
    if descending is None:
        return [False] * keys
    if len(descending) != keys:
        raise ValueError(f"{len(descending)} directions for {keys} keys")
    return descending


def sort_rows(
    keys: Sequence[pa.Array], descending: Sequence[bool] | None = None, nulls_first: bool = False
) -> npt.NDArray[np.int64]:
    """The rows in the order of this module, stable: the argument of take() that sorts.

    Cost: for samples and tests; pyarrow's own sort is faster on whole columns (and differs in where it puts NaN only
    when nulls come first).
    """
    along = directions(descending, len(keys))
    columns: list[Signed] = []
    for leaf, name, key in leaves(keys, [f"key {number}" for number in range(len(keys))]):
        for part in parts_of(leaf, name, along[key], nulls_first, leaf.null_count > 0):
            columns.append(ranks(leaf, part) if part.is_bytes else part.words)
    rows = len(keys[0]) if keys else 0
    return np.lexsort(columns[::-1]) if columns else np.arange(rows)


def ranks(leaf: pa.Array, part: Part) -> Signed:
    """A part of bytes as numbers that compare like them, among the rows of this column."""
    plain = plain_bytes(leaf)
    found: Signed = pc.rank(plain.cast(pa.large_binary()), tiebreaker="dense").to_numpy().astype(np.int64)
    return -found if part.kind == BYTES_DESCENDING else found
