"""Order: keys as words that compare like the values, the range of bounds a row lies in, and merging.

A key becomes one or more *parts*. A part of words is i8[rows], compared as signed numbers; a part of bytes is i8[rows + 1]
offsets and data, compared byte by byte, a prefix before what it begins. Parts are compared in turn.
"""

from __future__ import annotations

from tierstore.ringbuf.atomic import shift_right
from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.plain import (
    double_bits,
    get8,
    get32,
    get64,
    get_double,
    put16,
    put32,
    put64,
)

SIGN = -(1 << 63)
LARGEST = (1 << 63) - 1
CHUNK = 512  # rows bisected together: their positions stay in the cache
WORDS, BYTES, BYTES_DESCENDING, NULLS_LAST, NULLS_FIRST = 0, 1, 2, 3, 4


@kernel(nogil=True)
def order_doubles(values, rows, descending, words):
    """values: f8[rows]. Both zeros are one word; every NaN is the last word, in descending order too."""
    for row in range(rows):
        value = get_double(values, row)
        bits = double_bits(value + 0.0)
        word = bits ^ (shift_right(bits >> 63, 1))
        if descending > 0:
            word = ~word
        put64(words, row, word if value == value else LARGEST)
    return 0


@helper
def _swapped(value):
    """The bytes of a word in the opposite order."""
    value = ((value & 0x00FF00FF00FF00FF) << 8) | (shift_right(value, 8) & 0x00FF00FF00FF00FF)
    value = ((value & 0x0000FFFF0000FFFF) << 16) | (shift_right(value, 16) & 0x0000FFFF0000FFFF)
    return (value << 32) | shift_right(value, 32)


@helper
def _prefix(address, size):
    """The first 8 bytes as a word that compares like them; zeros where there are fewer."""
    if size >= 8:
        return _swapped(get64(address, 0)) ^ SIGN
    value = 0
    for at in range(size):
        value |= get8(address, at) << (56 - 8 * at)
    return value ^ SIGN


@kernel(nogil=True)
def order_records(data, width, first, rows, words):
    """Bytes ``first`` to first + 8 of records of ``width`` bytes."""
    for row in range(rows):
        put64(words, row, _prefix(data + row * width + first, width - first))
    return 0


@kernel(nogil=True)
def order_prefixes(offsets, data, rows, words):
    """The first 8 bytes of values with offsets."""
    for row in range(rows):
        start = get64(offsets, row)
        put64(words, row, _prefix(data + start, get64(offsets, row + 1) - start))
    return 0


@helper
def _compare_bytes(left, left_size, right, right_size):
    """Negative, 0 or positive."""
    both = min(left_size, right_size)
    at = 0
    while at + 8 <= both:
        a, b = get64(left + at, 0), get64(right + at, 0)
        if a != b:
            return -1 if _swapped(a) ^ SIGN < _swapped(b) ^ SIGN else 1
        at += 8
    while at < both:
        a, b = get8(left, at), get8(right, at)
        if a != b:
            return a - b
        at += 1
    return left_size - right_size


@helper
def _compare_rows(left_offsets, left_data, left, right_offsets, right_data, right):
    left_start, right_start = get64(left_offsets, left), get64(right_offsets, right)
    left_size, right_size = get64(left_offsets, left + 1) - left_start, get64(right_offsets, right + 1) - right_start
    return _compare_bytes(left_data + left_start, left_size, right_data + right_start, right_size)


# --- ranges: lows and highs are u4[rows], the bounds that may still equal the row lie from low to high ------------------


@kernel(nogil=True)
def bisect(words, rows, bounds, count, highs):
    """highs: how many of the sorted bounds are not greater than each word; branch-free, many rows at a time.

    Source: the loop of Khuong and Morin, "Array layouts for comparison-based searching", 2017 (branch-free binary search).
    """
    first = 0
    while first < rows:
        taken = min(CHUNK, rows - first)
        mine, out = words + 8 * first, highs + 4 * first
        for row in range(taken):
            put32(out, row, 0)
        left = count
        while left > 1:
            half = left >> 1
            for row in range(taken):
                base = get32(out, row)
                put32(out, row, base + (half if get64(bounds, base + half - 1) <= get64(mine, row) else 0))
            left -= half
        if left == 1:
            for row in range(taken):
                base = get32(out, row)
                put32(out, row, base + (1 if get64(bounds, base) <= get64(mine, row) else 0))
        first += taken
    return 0


@kernel(nogil=True)
def bisect_lows(words, rows, bounds, run_starts, lows, highs):
    """lows after bisect(). run_starts: u4[bounds], where the bounds equal to each begin."""
    for row in range(rows):
        high = get32(highs, row)
        low = high
        if high > 0 and get64(bounds, high - 1) == get64(words, row):
            low = get32(run_starts, high - 1)
        put32(lows, row, low)
    return 0


@kernel(nogil=True)
def refine_words(words, rows, bounds, lows, highs):
    """Narrow the ranges by one more part, by which the bounds in each range are sorted."""
    for row in range(rows):
        low, high = get32(lows, row), get32(highs, row)
        if low == high:
            continue
        word = get64(words, row)
        at, end = low, high
        while at < end:
            middle = (at + end) >> 1
            if get64(bounds, middle) <= word:
                at = middle + 1
            else:
                end = middle
        upper = at
        at, end = low, upper
        while at < end:
            middle = (at + end) >> 1
            if get64(bounds, middle) < word:
                at = middle + 1
            else:
                end = middle
        put32(lows, row, at)
        put32(highs, row, upper)
    return 0


@kernel(nogil=True)
def refine_bytes(offsets, data, rows, bound_offsets, bound_data, lows, highs, descending):
    """Narrow the ranges by a part of bytes."""
    sign = -1 if descending > 0 else 1
    for row in range(rows):
        low, high = get32(lows, row), get32(highs, row)
        if low == high:
            continue
        at, end = low, high
        while at < end:
            middle = (at + end) >> 1
            if sign * _compare_rows(bound_offsets, bound_data, middle, offsets, data, row) <= 0:
                at = middle + 1
            else:
                end = middle
        upper = at
        at, end = low, upper
        while at < end:
            middle = (at + end) >> 1
            if sign * _compare_rows(bound_offsets, bound_data, middle, offsets, data, row) < 0:
                at = middle + 1
            else:
                end = middle
        put32(lows, row, at)
        put32(highs, row, upper)
    return 0


@kernel(nogil=True)
def narrow(numbers, rows, target):
    """u2 of u4."""
    for row in range(rows):
        put16(target, row, get32(numbers, row))
    return 0


# --- merging ------------------------------------------------------------------------------------------------------------

# A merge is described by three arrays of i8. kinds[part]: what a part is; NULLS_LAST and NULLS_FIRST are words too, which
# tell whether the next part is null (1 for null with the first, 0 with the second). inputs[2 * (input * parts + part)]:
# the address of the words or offsets, then of the data. rows[2 * input]: the next row, then the end.
#
# Each input has a head: a word of its next row that never contradicts the order; equal heads say nothing.


@helper
def _compare(kinds, parts, inputs, left, left_row, right, right_row):
    for part in range(parts):
        a, b = 2 * (left * parts + part), 2 * (right * parts + part)
        kind = get64(kinds, part)
        if kind != BYTES and kind != BYTES_DESCENDING:
            first, second = get64(get64(inputs, a), left_row), get64(get64(inputs, b), right_row)
            if first != second:
                return -1 if first < second else 1
            continue
        found = _compare_rows(
            get64(inputs, a), get64(inputs, a + 1), left_row, get64(inputs, b), get64(inputs, b + 1), right_row
        )
        if found != 0:
            return -found if kind == BYTES_DESCENDING else found
    return 0


@helper
def _head(kinds, parts, inputs, rows, input_):
    row = get64(rows, 2 * input_)
    if row >= get64(rows, 2 * input_ + 1):
        return LARGEST
    if parts == 0:
        return 0
    kind = get64(kinds, 0)
    place = 2 * input_ * parts
    word = get64(get64(inputs, place), row)
    if kind == WORDS or parts == 1:
        return word
    if kind == NULLS_LAST:
        return LARGEST if word > 0 else get64(get64(inputs, place + 2), row)
    return SIGN if word == 0 else get64(get64(inputs, place + 2), row)


@helper
def _before(kinds, parts, inputs, rows, left, right):
    """Whether input ``left`` gives the next row rather than ``right``: by key, then by number. One at its end never does."""
    left_row, right_row = get64(rows, 2 * left), get64(rows, 2 * right)
    if left_row >= get64(rows, 2 * left + 1):
        return False
    if right_row >= get64(rows, 2 * right + 1):
        return True
    found = _compare(kinds, parts, inputs, left, left_row, right, right_row)
    return left < right if found == 0 else found < 0


@helper
def _climb(tree, node, kinds, parts, inputs, rows, winner, head):
    """Play a winner from a node to the top, where it is stored; the swaps need no branch."""
    while node > 0:
        other, other_head = get64(tree, 2 * node), get64(tree, 2 * node + 1)
        swap = other_head < head
        if other_head == head:
            swap = _before(kinds, parts, inputs, rows, other, winner)
        put64(tree, 2 * node, winner if swap else other)
        put64(tree, 2 * node + 1, head if swap else other_head)
        winner = other if swap else winner
        head = other_head if swap else head
        node >>= 1
    put64(tree, 0, winner)
    put64(tree, 1, head)


@helper
def _play(tree, count, kinds, parts, inputs, rows):
    """Build the tree of losers, pairs (input, head); the winner is at 0."""
    for node in range(count):
        put64(tree, 2 * node, -1)
    for leaf in range(count):
        winner, node = leaf, (leaf + count) >> 1
        head = _head(kinds, parts, inputs, rows, leaf)
        while node > 0:
            other, other_head = get64(tree, 2 * node), get64(tree, 2 * node + 1)
            if other < 0:
                put64(tree, 2 * node, winner)
                put64(tree, 2 * node + 1, head)
                winner = -1
                break
            if other_head < head or (other_head == head and _before(kinds, parts, inputs, rows, other, winner)):
                put64(tree, 2 * node, winner)
                put64(tree, 2 * node + 1, head)
                winner, head = other, other_head
            node >>= 1
        if winner >= 0:
            put64(tree, 0, winner)
            put64(tree, 1, head)


@kernel(nogil=True)
def merge(kinds, parts, inputs, rows, count, tree, taken, limit):
    """Merge sorted inputs until one of them is at its end, or ``limit`` rows are taken.

    At least one input has rows. tree: i8[2 * count], scratch. taken: out, i8[2 * limit], pairs (input, row).
    Returns: the rows taken; -1 - input if that input turns out not to be sorted.
    Source:  tree of losers, Knuth, The Art of Computer Programming, vol. 3, section 5.4.1.
    """
    _play(tree, count, kinds, parts, inputs, rows)
    done = 0
    while done < limit:
        winner, before = get64(tree, 0), get64(tree, 1)
        row = get64(rows, 2 * winner)
        put64(taken, 2 * done, winner)
        put64(taken, 2 * done + 1, row)
        done += 1
        put64(rows, 2 * winner, row + 1)
        if row + 1 >= get64(rows, 2 * winner + 1):
            return done
        head = _head(kinds, parts, inputs, rows, winner)
        if head <= before and _compare(kinds, parts, inputs, winner, row, winner, row + 1) > 0:
            return -1 - winner
        _climb(tree, (winner + count) >> 1, kinds, parts, inputs, rows, winner, head)
    return done
