"""Bitmaps, 64 rows at a time, from any bit on. Shared by the other kernels."""

from __future__ import annotations

from tierstore.ringbuf.atomic import shift_right
from tierstore.ringbuf.jit import helper
from tierstore.ringbuf.plain import get8, get64

ALL = -1


@helper
def bits_at(address, first, count):
    """``count`` bits, 1 to 64, from bit ``first`` on; zeros above them. Reads no byte that holds none of them."""
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
def ones(count):
    """``count`` bits set, 1 to 64."""
    return ALL if count == 64 else (1 << count) - 1
