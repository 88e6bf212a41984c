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
from .physical import (
    Words,
    address,
    bytes_offset_width,
    decoded,
    is_view,
    number_dtype,
    numbers,
    plain_bytes,
    storage,
    validity,
    wide_offsets,
    words_at,
)

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
    states = np.empty(rows, np.uint64)
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


def refuse_key(name: str, kind: pa.DataType) -> TypeError:
    """The error for a column that cannot be a key."""
    return TypeError(
        f"{name} is of type {kind}, which cannot be partitioned by: use columns of plain values or structs of them, "
        "for example a field of it, its length, or a hash or string of it that you compute first"
    )


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
        words[:] = key.cast(pa.uint8()).fill_null(0).to_numpy(zero_copy_only=False)
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
