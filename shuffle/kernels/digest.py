"""Checks of slices: one 64-bit state a slice, carried from column to column.

Every function takes ``starts``, u8[count + 1], where slice s holds the rows from starts[s] to starts[s + 1], and
``states``, u8[count], the states so far, which it replaces. A state is the seed of the next hash, so order matters.
"""

from __future__ import annotations

from tierstore.ringbuf.atomic import multiply_fold, shift_right
from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.plain import copy_bytes, fill_bytes, get8, get32, get64, put64

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
def _bits(address, first, count):
    """``count`` bits, at most 64, from bit ``first`` on; reads no byte that holds none of them."""
    start = address + (first >> 3)
    shift = first & 7
    bytes_ = (shift + count + 7) >> 3
    value = 0
    if bytes_ >= 8:
        value = shift_right(get64(start, 0), shift)
        if bytes_ > 8:
            value |= get8(start, 8) << (64 - shift)
    else:
        for byte in range(bytes_):
            value |= get8(start, byte) << (8 * byte)
        value = shift_right(value, shift)
    return value if count == 64 else value & ((1 << count) - 1)


@helper
def _hash_bits(bits, first, count, state):
    done = 0
    while done < count:
        taken = min(64, count - done)
        state = multiply_fold(_bits(bits, first + done, taken) ^ K2, state ^ K3)
        done += taken
    return multiply_fold(state ^ K1, count ^ K2)


@helper
def _all_ones(bits, first, count):
    done = 0
    while done < count:
        taken = min(64, count - done)
        value = _bits(bits, first + done, taken)
        if value != (-1 if taken == 64 else (1 << taken) - 1):
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


@kernel(nogil=True)
def mask_fixed(values, width, validity, bit_offset, rows, target):
    """A copy of values with zeros where a row is null."""
    copy_bytes(target, values, rows * width)
    for row in range(rows):
        bit = bit_offset + row
        if (get8(validity, bit >> 3) >> (bit & 7)) & 1 == 0:
            fill_bytes(target + row * width, width, 0)
    return 0


@kernel(nogil=True)
def null_bytes(offsets, wide, validity, bit_offset, rows):
    """How many bytes (or children) lie under nulls."""
    total = 0
    for row in range(rows):
        bit = bit_offset + row
        if (get8(validity, bit >> 3) >> (bit & 7)) & 1 == 0:
            total += _length(offsets, wide, row)
    return total
