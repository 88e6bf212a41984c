"""Kernels over one record and one bucket: hashing, checking, walking. Shared by readers, writers and the daemon."""

from __future__ import annotations

from numba import types

from .atomic import load, load8, load16, load32, load_acquire, multiply_fold, shift_right, store
from .jit import helper, kernel
from .layout import (
    BUCKET_BYTES,
    CHECKED_BITS,
    GRANULE,
    GRANULE_MASK,
    ITEM_COUNT,
    PROBE_MAX,
    R_BLOCK_INDEX,
    R_EXPIRY,
    R_GENERATION,
    R_HEADER_HASH,
    R_KEY_BYTES,
    R_KEY_HASH,
    R_LENGTH,
    R_VERSION,
    RECORD_HEADER_BYTES,
    SEGMENT_SHIFT,
    TAG_SHIFT,
)
from .steps import STEP_LIMIT
from .xxh3 import signed

K1, K2, K3 = signed(0xA0761D6478BD642F), signed(0xE7037ED1A0B428DB), signed(0x8EBC6AF09C88C6E3)

system_call = types.ExternalFunction("syscall", types.int64(*[types.int64] * 7))
SYS_GETPID, SYS_KILL = 39, 62
clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@helper
def hash_bytes(address, size, seed):
    """64-bit hash of a short byte string by folded multiplication (after wyhash); not the payload's XXH3."""
    value = seed ^ (size * K1)
    done = 0
    while done + 8 <= size:
        value = multiply_fold(value ^ load(address + done), K2)
        done += 8
    tail = 0
    while done < size:
        tail = (tail << 8) | load8(address + done)
        done += 1
    return multiply_fold(value ^ tail ^ K3, K1)


@kernel()
def hash_key(address, size):
    """The hash of a key, which is also the place of its root block."""
    return hash_bytes(address, size, 0)


@helper
def place_of(key_hash, block_index):
    """Where in the index block ``block_index`` of a key belongs; the root's place is the key's hash."""
    return key_hash if block_index == 0 else multiply_fold(key_hash ^ (block_index * K3), K2)


@helper
def header_hash(head):
    """Over all of a record's header that a move keeps (not length, generation, publish sequence), and the key."""
    value = K3
    for offset in range(R_KEY_HASH, R_HEADER_HASH, 8):
        value = multiply_fold(value ^ load(head + offset), K2)
    for offset in range(R_EXPIRY, RECORD_HEADER_BYTES, 8):
        value = multiply_fold(value ^ load(head + offset), K2)
    return hash_bytes(head + RECORD_HEADER_BYTES, load16(head + R_KEY_BYTES), value)


@helper
def same_bytes(left, right, size):
    """1 if both ranges hold the same bytes."""
    done = 0
    while done + 8 <= size:
        if load(left + done) != load(right + done):
            return 0
        done += 8
    while done < size:
        if load8(left + done) != load8(right + done):
            return 0
        done += 1
    return 1


@helper
def record_is(head, key, size, place, block_index, version):
    """1 if this is block ``block_index`` of the key, of that version (0: of any)."""
    if load(head + R_KEY_HASH) != place or load16(head + R_KEY_BYTES) != size:
        return 0
    if load32(head + R_BLOCK_INDEX) != block_index or (version != 0 and load(head + R_VERSION) != version):
        return 0
    return same_bytes(head + RECORD_HEADER_BYTES, key, size)


@helper
def checked(value):
    """A value of up to 48 bits with check bits: no single flipped bit leaves a valid word."""
    fold = value ^ shift_right(value, 15) ^ shift_right(value, 30) ^ shift_right(value, 45)
    return value | (fold & 0x7FFF) << CHECKED_BITS


@helper
def unchecked(word):
    """The value of a word with check bits, -1 if it is not what was written (or DEAD)."""
    value = word & ((1 << CHECKED_BITS) - 1)
    return value if checked(value) == word else -1


@helper
def sound_length(head, generation, room):
    """The length of a committed or claimed record that fits the room, 0 where no record of this generation begins."""
    length = load_acquire(head + R_LENGTH)  # SYNC record.length: pairs with store_release in commit()
    if length < 0:
        length = -length
    if length < RECORD_HEADER_BYTES or length > room or length & (GRANULE - 1) != 0:
        return 0
    if load(head + R_GENERATION) != checked(generation):
        return 0
    return length


@helper
def item_of(place, segment, offset):
    """The index item for a record at this location."""
    return (shift_right(place, TAG_SHIFT) << TAG_SHIFT) | (segment << SEGMENT_SHIFT) | (offset // GRANULE)


@helper
def item_offset(item):
    """The byte offset in its segment that an item names."""
    return (item & GRANULE_MASK) * GRANULE


@helper
def find_exact(index, mask, place, item):
    """The address of exactly this item, 0 if the index does not hold it.

    Caller:   anyone. Wait-free: at most PROBE_MAX buckets. A racing removal gives either answer.
    """
    for probe in range(PROBE_MAX):
        bucket = index + ((place + probe) & mask) * BUCKET_BYTES
        for slot in range(1, ITEM_COUNT + 1):
            if load_acquire(bucket + 8 * slot) == item:  # SYNC index.item: pairs with store_release in insert()
                return bucket + 8 * slot
        if load(bucket) == 0:
            break
    return 0


@helper
def step(trap, number):
    """A named step was reached: kill or stop the process if the trap (two private words) is set for it. For tests."""
    if load(trap) & (STEP_LIMIT - 1) == number:
        left = load(trap + 8) - 1
        store(trap + 8, left)
        if left == 0:
            system_call(SYS_KILL, system_call(SYS_GETPID, 0, 0, 0, 0, 0, 0), load(trap) // STEP_LIMIT, 0, 0, 0, 0)


@helper
def now_ns(scratch):
    """Nanoseconds of the monotonic clock; scratch: 16 bytes."""
    clock_gettime(1, scratch)
    return load(scratch) * 1000000000 + load(scratch + 8)


@helper
def now_ms(scratch):
    """Unix time in milliseconds; scratch: 16 bytes."""
    clock_gettime(0, scratch)
    return load(scratch) * 1000 + load(scratch + 8) // 1000000
