"""Which partition a row belongs to: by the hash of its key columns, or by where they lie between bounds.

**Hash.** Every value is a 64-bit word; a row's words are mixed in the order of the keys, and the high half of the result,
times the number of partitions, over 2**32, is the partition (kernels/mixing.py has the formulas). The words:

    bool, integers, date, time, timestamp, duration   the value, extended to 64 bits
    decimals                                          the unscaled value; beyond 64 bits its 64-bit words, mixed
    floats                                            the bits of it as a float64; 0.0 for -0.0; one word for every NaN
    strings, binary, fixed-size binary, views         the hash of the bytes
    month_day_nano interval                           the hash of its 16 bytes
    null, and every value of the null type            one constant
    dictionary, run-end encoded                       the word of the value they stand for
    extension                                         the word of the storage
    struct                                            its fields, as several keys (of a null struct, all null)

So equal values of different widths and layouts meet in one partition: int32 5 with int64 5, string "a" with string_view
"a". Nothing depends on the host or on hash randomisation. Lists, maps and unions are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .native import address_of, kernels
from .ordering import BYTES_DESCENDING, Part, directions, leaves, ordered_type, parts_of, ranks, sort_rows
from .physical import (
    Words,
    address,
    bytes_offset_width,
    decoded,
    is_view,
    number_dtype,
    numbers,
    plain_bytes,
    refuse_key,
    storage,
    validity,
    wide_offsets,
    words_at,
)
from .taking import take

PARTITIONS_MAX = 1 << 24
NULL_WORD = 0x9FB21C651E98DF25
_NULL_WORD_SIGNED = NULL_WORD - (1 << 64)


def hash_partitions(keys: Sequence[pa.Array], partitions: int) -> npt.NDArray[Any]:
    """The partition of each row, by the hash of its keys (see the module).

    keys:    key columns of equal length; their order matters. Slices are fine.
    Returns: uint16[rows], or uint32[rows] for more than 65,536 partitions.
    Cost:    per row 0.4 ns for one int64 key without nulls, about 1 ns for other numbers, 3 ns and more for strings.
    Callers: any thread; the interpreter lock is free meanwhile.
    Raises:  TypeError for a type that has no hash; ValueError for bad counts or lengths.
    Source:  multiply-shift after Dietzfelbinger et al., J. Algorithms 1997; range reduction after Lemire, 2019.
    """
    check_partitions(partitions)
    rows = check_keys(keys)
    native, wide = kernels(), int(partitions > 1 << 16)
    found = np.empty(rows, np.uint32 if wide else np.uint16)
    columns = [words for number, key in enumerate(keys) for words in key_words(key, f"key {number}")]
    if len(columns) == 1:
        native.partition_one(words_at(columns[0]), rows, partitions, address_of(found), wide)
        return found
    states = np.zeros(rows, np.uint64)  # a struct without fields gives no words
    for number, words in enumerate(columns):
        mix = native.mix_next if number else native.mix_first
        mix(words_at(words), rows, address_of(states))
    native.partition_states(address_of(states), rows, partitions, address_of(found), wide)
    return found


def check_partitions(partitions: int) -> None:
    """Refuse a count that no shuffle may have."""
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise ValueError(f"{partitions} partitions: give 1 to {PARTITIONS_MAX:,}")


def check_keys(keys: Sequence[pa.Array]) -> int:
    """The number of rows of the key columns."""
    if not keys:
        raise ValueError("no key columns: name at least one, or spread the rows without a key")
    if any(not isinstance(key, pa.Array) for key in keys):
        raise TypeError(
            "keys are pyarrow arrays; give chunked arrays chunk by chunk (combine_chunks() makes one array)"
        )
    lengths = {len(key) for key in keys}
    if len(lengths) > 1:
        raise ValueError(f"key columns of different lengths: {sorted(lengths)}")
    return lengths.pop()


def key_words(key: pa.Array, name: str) -> Iterator[Words]:
    """The word columns of one key: one, or for a struct one for each plain field in it."""
    key = storage(key)
    if pa.types.is_run_end_encoded(key.type):
        yield from key_words(decoded(key), name)
    elif pa.types.is_struct(key.type):
        for position, field in enumerate(key.flatten()):
            yield from key_words(field, f"{name}, field {key.type.field(position).name!r},")
    elif pa.types.is_dictionary(key.type):
        yield from _dictionary_words(key, name)
    elif pa.types.is_null(key.type):
        yield np.full(len(key), NULL_WORD, np.uint64)
    else:
        words = _value_words(key, name)
        if key.null_count:
            words = words if words.flags.owndata and words.flags.writeable else words.copy()
            kernels().set_null_words(validity(key), key.offset, len(key), _NULL_WORD_SIGNED, address_of(words))
        yield words


def _dictionary_words(key: pa.Array, name: str) -> Iterator[Words]:
    """Each dictionary entry is hashed once."""
    indices = key.indices
    chosen = numbers(indices, number_dtype(indices.type))
    for words in key_words(key.dictionary, name):
        with_null = np.append(words, np.uint64(NULL_WORD))
        if indices.null_count:
            chosen = np.where(np.asarray(indices.is_valid()), chosen, len(words))
        yield with_null[chosen]


def _value_words(key: pa.Array, name: str) -> Words:
    """The words of an array of plain values, whatever under nulls."""
    kind, rows = key.type, len(key)
    dtype = number_dtype(kind)
    if dtype and dtype[1] != "f":
        found = numbers(key, dtype)
        return found.view(np.uint64) if found.itemsize == 8 else found.astype(np.int64).view(np.uint64)
    words = np.empty(rows, np.uint64)
    at, native = address_of(words), kernels()
    if dtype:
        values = numbers(key, dtype)
        values = values.astype(np.float32) if values.itemsize == 2 else values
        convert = native.words_of_doubles if values.itemsize == 8 else native.words_of_floats
        convert(address_of(values), rows, at)
    elif pa.types.is_boolean(kind):
        native.words_of_bits(address(key.buffers()[1]), key.offset, rows, at)
    elif pa.types.is_decimal(kind):
        count = kind.byte_width // 8
        native.words_of_integers(address(key.buffers()[1]) + key.offset * kind.byte_width, count, rows, at)
    elif pa.types.is_fixed_size_binary(kind) or pa.types.is_interval(kind):
        width = kind.bit_width // 8
        native.words_of_records(address(key.buffers()[1]) + key.offset * width, width, rows, at)
    elif bytes_offset_width(kind) or is_view(kind):
        key = plain_bytes(key)
        offsets = wide_offsets(key, bytes_offset_width(key.type))
        native.words_of_bytes(address_of(offsets), address(key.buffers()[2]), rows, at)
    else:
        raise refuse_key(name, kind)
    return words


def range_partitions(
    keys: Sequence[pa.Array],
    bounds: Sequence[pa.Array],
    descending: Sequence[bool] | None = None,
    nulls_first: bool = False,
) -> npt.NDArray[Any]:
    """The partition of each row, by where it lies between bounds: the number of bounds that do not come after it.

    keys:       key columns of equal length, most important first. Slices are fine.
    bounds:     a column for each key: the split points, in order (sample_bounds() makes them). n make n + 1 partitions.
    descending: for each key; None: all ascending. nulls_first: in all keys; else nulls come last. The order is that of
                ordering.py: NaN after all numbers, text and binary values byte by byte.
    Returns:    uint16[rows], or uint32[rows] for more than 65,536 partitions.
    Cost:       per row about 5 ns for one number and 200 bounds; for text and several keys some times that.
    Callers:    any thread; the interpreter lock is free most of the time.
    Raises:     TypeError for a type without an order, or bounds of another type; ValueError for bounds that are not in
                order, and for bad counts or lengths.
    """
    rows, count = check_keys(keys), check_keys(bounds)
    check_partitions(count + 1)
    along = directions(descending, len(keys))
    ranges, sorted_so_far = _Ranges(rows, count), np.ones(max(count - 1, 0), bool)
    for (leaf, name, key), (bound, _, _) in _paired_leaves(keys, bounds):
        options = along[key], nulls_first, leaf.null_count > 0 or bound.null_count > 0
        for mine, theirs in zip(parts_of(leaf, name, *options), parts_of(bound, name, *options), strict=True):
            words = ranks(bound, theirs) if theirs.is_bytes else theirs.words
            if (sorted_so_far & (words[:-1] > words[1:])).any():
                raise ValueError("the bounds are not in the order asked for: sort them, with the same directions")
            sorted_so_far &= words[:-1] == words[1:]
            ranges.narrow(mine, theirs)
    return ranges.numbers()


def _paired_leaves(keys: Sequence[pa.Array], bounds: Sequence[pa.Array]) -> list[Any]:
    """The plain columns of keys and bounds side by side."""
    kinds = [[ordered_type(array.type) for array in arrays] for arrays in (keys, bounds)]
    if kinds[0] != kinds[1]:
        raise TypeError(
            f"bounds of types {', '.join(kinds[1])} for keys of types {', '.join(kinds[0])}: cast the bounds"
        )
    names = [f"key {number}" for number in range(len(keys))]
    return list(zip(leaves(keys, names), leaves(bounds, names), strict=True))


class _Ranges:
    """For each row the bounds that equal it so far: from lows to highs."""

    def __init__(self, rows: int, count: int):
        self._rows, self._count, self._started = rows, count, False
        self._lows, self._highs = np.zeros(rows, np.uint32), np.full(rows, count, np.uint32)

    def narrow(self, mine: Part, theirs: Part) -> None:
        """Compare by one part more."""
        native, lows, highs = kernels(), address_of(self._lows), address_of(self._highs)
        if mine.is_bytes:
            descending = int(mine.kind == BYTES_DESCENDING)
            native.refine_bytes(mine.at, mine.data, self._rows, theirs.at, theirs.data, lows, highs, descending)
        elif self._started:
            native.refine_words(mine.at, self._rows, theirs.at, lows, highs)
        else:
            native.bisect(mine.at, self._rows, theirs.at, self._count, highs)
            first = np.searchsorted(theirs.words, theirs.words).astype(np.uint32)
            native.bisect_lows(mine.at, self._rows, theirs.at, address_of(first), lows, highs)
        self._started = True

    def numbers(self) -> npt.NDArray[Any]:
        """The partition numbers."""
        if self._count >= 1 << 16:
            return self._highs
        found = np.empty(self._rows, np.uint16)
        kernels().narrow(address_of(self._highs), self._rows, address_of(found))
        return found


def sample_bounds(
    keys: Sequence[pa.Array], partitions: int, descending: Sequence[bool] | None = None, nulls_first: bool = False
) -> list[pa.Array]:
    """Bounds that cut a sample of rows into parts of equal size: what range_partitions() takes.

    keys:    key columns of the sample; 20 to 100 rows a partition make partitions that differ by a few percent.
    Returns: partitions - 1 rows of each key, in order (fewer only if there are no rows: then none). A value that fills
             several partitions is several bounds; all its rows go behind the last of them.
    Cost:    a sort of the sample.
    Source:  regular sampling, after Shi and Schaeffer, "Parallel sorting by regular sampling", 1992.
    """
    check_partitions(partitions)
    rows = check_keys(keys)
    order = sort_rows(keys, descending, nulls_first)
    chosen = order[np.arange(1, partitions) * rows // partitions] if rows else order[:0]
    return [take([key], key.type, pa.array(chosen)) for key in keys]
