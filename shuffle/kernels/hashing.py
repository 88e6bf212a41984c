"""Partition numbers by hash: each key value becomes one 64-bit word, the words of a row are mixed, the sum is reduced.

The word of a value says when values are equal: 5 is the same word as int32 and as int64, "a" the same in every layout of
strings. What the word of each type is, is listed in ..partition.
"""

from __future__ import annotations

from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.plain import double_bits, get64, get_double, get_float, put16, put32, put64

from .bits import bits_at, ones
from .mixing import hash_range, mixed, reduced

SEED = 0x2545F4914F6CDD1D
NAN_WORD = 0x7FF8000000000000


@kernel(nogil=True)
def partition_one(words, rows, partitions, target, wide):
    """Partition numbers of rows with one key. target: u2[rows], or u4[rows] if wide."""
    if wide > 0:
        for row in range(rows):
            put32(target, row, reduced(mixed(get64(words, row), SEED), partitions))
    else:
        for row in range(rows):
            put16(target, row, reduced(mixed(get64(words, row), SEED), partitions))
    return 0


@kernel(nogil=True)
def mix_first(words, rows, states):
    """The states of rows after their first key."""
    for row in range(rows):
        put64(states, row, mixed(get64(words, row), SEED))
    return 0


@kernel(nogil=True)
def mix_next(words, rows, states):
    """The states of rows after one key more."""
    for row in range(rows):
        put64(states, row, mixed(get64(words, row), get64(states, row)))
    return 0


@kernel(nogil=True)
def partition_states(states, rows, partitions, target, wide):
    """Partition numbers of rows with several keys."""
    if wide > 0:
        for row in range(rows):
            put32(target, row, reduced(get64(states, row), partitions))
    else:
        for row in range(rows):
            put16(target, row, reduced(get64(states, row), partitions))
    return 0


@kernel(nogil=True)
def set_null_words(validity, bit_offset, rows, word, words):
    """Give the rows that are null one word. validity: bitmap; bit_offset: the bit of the first row."""
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        bits = bits_at(validity, bit_offset + first, count)
        if bits != ones(count):
            for row in range(first, first + count):
                kept = get64(words, row)
                put64(words, row, kept if (bits >> (row - first)) & 1 else word)
    return 0


@kernel(nogil=True)
def words_of_bits(bits, bit_offset, rows, words):
    """bits: bitmap; bit_offset: the bit of the first row."""
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        group = bits_at(bits, bit_offset + first, count)
        for row in range(count):
            put64(words, first + row, (group >> row) & 1)
    return 0


@helper
def number_word(value):
    """The bits of a float64; one word for both zeros and one for every NaN."""
    return double_bits(value + 0.0) if value == value else NAN_WORD


@kernel(nogil=True)
def words_of_doubles(values, rows, words):
    """values: f8[rows]."""
    for row in range(rows):
        put64(words, row, number_word(get_double(values, row)))
    return 0


@kernel(nogil=True)
def words_of_floats(values, rows, words):
    """values: f4[rows]."""
    for row in range(rows):
        put64(words, row, number_word(get_float(values, row)))
    return 0


@kernel(nogil=True)
def words_of_bytes(offsets, data, rows, words):
    """offsets: i8[rows + 1] into data."""
    for row in range(rows):
        start = get64(offsets, row)
        put64(words, row, hash_range(data + start, get64(offsets, row + 1) - start, SEED))
    return 0


@kernel(nogil=True)
def words_of_records(data, width, rows, words):
    """data: rows records of ``width`` bytes."""
    for row in range(rows):
        put64(words, row, hash_range(data + row * width, width, SEED))
    return 0


@kernel(nogil=True)
def words_of_integers(values, count, rows, words):
    """values: two's complement of ``count`` 64-bit words each, low word first. One that fits a word is that word."""
    for row in range(rows):
        place = row * count
        needed = count
        while needed > 1 and get64(values, place + needed - 1) == get64(values, place + needed - 2) >> 63:
            needed -= 1
        word = get64(values, place)
        for number in range(1, needed):
            word = mixed(get64(values, place + number), word)
        put64(words, row, word)
    return 0
