"""The two hash functions of the shuffle: of one 64-bit word, and of a range of bytes.

A word is mixed by two multiplications with a shift between them, which LLVM turns into vector code: after "A fast
64-bit hash" in the manner of the finalizers of MurmurHash3 (Appleby) and SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
A range of bytes is folded by 64 x 64 -> 128 bit products, 16 bytes each, in four independent lanes where it is long:
after wyhash final version 4 (Wang Yi, https://github.com/wangyi-fudan/wyhash, public domain), with four lanes, not three.

Both are part of what is stored (partition numbers and checks are compared between hosts and releases): a change of
either needs a new version of the manifest. tests/shuffle pins their values.
"""

from __future__ import annotations

from tierstore.ringbuf.atomic import multiply_fold, shift_right
from tierstore.ringbuf.jit import helper
from tierstore.ringbuf.plain import get8, get32, get64
from tierstore.ringbuf.xxh3 import signed

K0, K1, K2, K3 = (signed(v) for v in (0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3, 0x589965CC75374CC3))
MULTIPLIER_1, MULTIPLIER_2 = signed(0x9E3779B97F4A7C15), signed(0xD6E8FEB86659FD93)


@helper
def mixed(word, state):
    """The state after a word; its high half depends on every bit of both."""
    value = (word ^ state) * MULTIPLIER_1
    value = (value ^ shift_right(value, 32)) * MULTIPLIER_2
    return value ^ shift_right(value, 32)


@helper
def reduced(value, partitions):
    """The partition of a hash: the high half times the count, over 2**32 (Lemire, ACM TOMACS 2019: no division)."""
    return shift_right(shift_right(value, 32) * partitions, 32)


@helper
def _long_start(address, size, state):
    """Fold whole blocks of 64 bytes, always leaving 1 to 64 bytes; the state after them."""
    lane_1, lane_2, lane_3 = state ^ K1, state ^ K2, state ^ K3
    for block in range((size - 1) >> 6):
        at = 8 * block
        state = multiply_fold(get64(address, at) ^ K0, get64(address, at + 1) ^ state)
        lane_1 = multiply_fold(get64(address, at + 2) ^ K1, get64(address, at + 3) ^ lane_1)
        lane_2 = multiply_fold(get64(address, at + 4) ^ K2, get64(address, at + 5) ^ lane_2)
        lane_3 = multiply_fold(get64(address, at + 6) ^ K3, get64(address, at + 7) ^ lane_3)
    return state ^ lane_1 ^ multiply_fold(lane_2 ^ K1, lane_3 ^ K2)


@helper
def hash_range(address, size, seed):
    """64-bit hash of ``size`` bytes at any alignment; reads none beyond them."""
    state = seed ^ K0
    if size > 16:
        if size > 64:
            state = _long_start(address, size, state)
        at = address + (((size - 1) >> 6) << 6)
        rest = address + size - at
        while rest > 16:
            state = multiply_fold(get64(at, 0) ^ K1, get64(at, 1) ^ state)
            at += 16
            rest -= 16
        first, last = get64(address + size - 16, 0), get64(address + size - 8, 0)
    elif size >= 8:
        first, last = get64(address, 0), get64(address + size - 8, 0)
    elif size >= 4:
        first, last = get32(address, 0), get32(address + size - 4, 0)
    elif size > 0:
        first, last = get8(address, 0) | (get8(address, size >> 1) << 8) | (get8(address, size - 1) << 16), 0
    else:
        first, last = 0, 0
    return multiply_fold(K1 ^ size, multiply_fold(first ^ K1, last ^ state))
