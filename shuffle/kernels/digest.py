"""Checks of slices: one 64-bit state a slice, carried from column to column.

Every function takes ``starts``, u8[count + 1], where slice s holds the rows from starts[s] to starts[s + 1], and
``states``, u8[count], the states so far, which it replaces. A state is the seed of the next hash, so order matters.
"""

from __future__ import annotations

from tierstore.ringbuf.atomic import multiply_fold
from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.plain import copy_bytes, fill_bytes, get8, get16, get32, get64, put8, put16, put32, put64

from .bits import bits_at, ones
from .mixing import K0, K1, K2, K3, hash_range


@kernel()
def hash_text(address, size, seed):
    """The hash of a range of bytes."""
    return hash_range(address, size, seed)


@kernel(nogil=True)
def check_begin(seed, starts, count, states):
    """The first states: the schema's seed and the number of rows."""
    for part in range(count):
        put64(states, part, multiply_fold(seed ^ K0, (get64(starts, part + 1) - get64(starts, part)) ^ K1))
    return 0


@kernel(nogil=True)
def check_fixed(values, width, starts, count, states):
    """Take in values of ``width`` bytes. values: address of row 0."""
    for part in range(count):
        start = get64(starts, part)
        size = (get64(starts, part + 1) - start) * width
        put64(states, part, hash_range(values + start * width, size, get64(states, part)))
    return 0


@helper
def _hash_bits(bits, first, count, state):
    done = 0
    while done < count:
        taken = min(64, count - done)
        state = multiply_fold(bits_at(bits, first + done, taken) ^ K2, state ^ K3)
        done += taken
    return multiply_fold(state ^ K1, count ^ K2)


@helper
def _all_ones(bits, first, count):
    done = 0
    while done < count:
        taken = min(64, count - done)
        if bits_at(bits, first + done, taken) != ones(taken):
            return False
        done += taken
    return True


@kernel(nogil=True)
def check_bits(bits, bit_offset, starts, count, states):
    """Take in bits. bit_offset: the bit of row 0."""
    for part in range(count):
        start = get64(starts, part)
        rows = get64(starts, part + 1) - start
        put64(states, part, _hash_bits(bits, bit_offset + start, rows, get64(states, part)))
    return 0


@kernel(nogil=True)
def check_validity(bits, bit_offset, starts, count, states):
    """Take in validity: a slice without nulls leaves its state as it is, as an absent bitmap does."""
    for part in range(count):
        start = get64(starts, part)
        rows = get64(starts, part + 1) - start
        if not _all_ones(bits, bit_offset + start, rows):
            put64(states, part, _hash_bits(bits, bit_offset + start, rows, get64(states, part) ^ K0))
    return 0


@helper
def _length(offsets, wide, row):
    if wide > 0:
        return get64(offsets, row + 1) - get64(offsets, row)
    return get32(offsets, row + 1) - get32(offsets, row)


@helper
def _hash_lengths(offsets, wide, first, count, state):
    other = state ^ K2
    for four in range(count >> 2):
        row = first + 4 * four
        state = multiply_fold(_length(offsets, wide, row) ^ K1, _length(offsets, wide, row + 1) ^ state)
        other = multiply_fold(_length(offsets, wide, row + 2) ^ K3, _length(offsets, wide, row + 3) ^ other)
    for row in range(first + (count & ~3), first + count):
        state = multiply_fold(_length(offsets, wide, row) ^ K0, state ^ K1)
    return multiply_fold(state ^ K2, other ^ K3)


@kernel(nogil=True)
def check_lengths(offsets, wide, starts, count, states):
    """Take in the lengths of variable-size values. offsets: of row 0; i4, or i8 if wide."""
    for part in range(count):
        start = get64(starts, part)
        rows = get64(starts, part + 1) - start
        if wide > 0:
            put64(states, part, _hash_lengths(offsets, 1, start, rows, get64(states, part)))
        else:
            put64(states, part, _hash_lengths(offsets, 0, start, rows, get64(states, part)))
    return 0


@kernel(nogil=True)
def check_bytes(offsets, wide, data, starts, count, states):
    """Take in the bytes of variable-size values, all of a slice at once."""
    for part in range(count):
        start, end = get64(starts, part), get64(starts, part + 1)
        begin = stop = 0
        if start < end:  # without rows there may be no offsets at all
            begin = get64(offsets, start) if wide > 0 else get32(offsets, start)
            stop = get64(offsets, end) if wide > 0 else get32(offsets, end)
        put64(states, part, hash_range(data + begin, stop - begin, get64(states, part)))
    return 0


@helper
def _mask_wide(values, words, target, bits, count):
    """One group of rows of ``words`` 64-bit words each."""
    for row in range(count):
        keep = -((bits >> row) & 1)
        for word in range(row * words, (row + 1) * words):
            put64(target, word, get64(values, word) & keep)


@helper
def _mask_group(values, width, target, bits, count):
    """One group of rows, at most 64."""
    if width == 8:
        _mask_wide(values, 1, target, bits, count)
    elif width == 4:
        for row in range(count):
            put32(target, row, get32(values, row) & -((bits >> row) & 1))
    elif width == 2:
        for row in range(count):
            put16(target, row, get16(values, row) & -((bits >> row) & 1))
    elif width == 1:
        for row in range(count):
            put8(target, row, get8(values, row) & -((bits >> row) & 1))
    elif width & 7 == 0:
        _mask_wide(values, width >> 3, target, bits, count)
    else:
        copy_bytes(target, values, count * width)
        for row in range(count):
            if (bits >> row) & 1 == 0:
                fill_bytes(target + row * width, width, 0)


@kernel(nogil=True)
def mask_fixed(values, width, validity, bit_offset, rows, target):
    """A copy of values with zeros where a row is null."""
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        bits = bits_at(validity, bit_offset + first, count)
        at, to = values + first * width, target + first * width
        if bits == ones(count):
            copy_bytes(to, at, count * width)
        else:
            _mask_group(at, width, to, bits, count)
    return 0


@kernel(nogil=True)
def mask_bits(values, value_offset, validity, bit_offset, rows, target):
    """Bits with zeros where a row is null, from bit 0 of target on; target has whole words."""
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        kept = bits_at(values, value_offset + first, count) & bits_at(validity, bit_offset + first, count)
        put64(target, first >> 6, kept)
    return 0


@kernel(nogil=True)
def null_bytes(offsets, wide, validity, bit_offset, rows):
    """How many bytes (or children) lie under nulls."""
    total = 0
    for first in range(0, rows, 64):
        count = min(64, rows - first)
        bits = bits_at(validity, bit_offset + first, count)
        if bits != ones(count):
            for row in range(count):
                total += (1 - ((bits >> row) & 1)) * _length(offsets, wide, first + row)
    return total
