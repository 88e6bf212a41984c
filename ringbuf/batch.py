"""Kernels over many records at once, without Python objects: the floor that the store's calls are measured against.

Only benchmarks and tests load them.
"""

from __future__ import annotations

from .atomic import fetch_add32, load, store, store_fence, store_release
from .codes import MAPPED
from .core import waiting_messages
from .jit import kernel
from .layout import M_ARG, P_HEAD, PIN_BYTES, SEGMENT_MASK, SEGMENT_SHIFT
from .messages import message_at, push_message
from .reader import PREFETCH_GROUP, find, prefetch_bucket, prefetch_record
from .records import hash_bytes
from .session import (
    L_BASE,
    L_NEXT,
    Q_KEY_BYTES,
    Q_LENGTH,
    Q_PAYLOAD_BYTES,
    Q_PIECE_COUNT,
    Q_PIECES,
    Q_PLACE,
    Q_TARGET,
    X_FOUND_ITEM,
    X_PLACES,
    X_ROW,
)
from .writer import claim, fill_record, flush_range, record_bytes
from .xxh3 import COPY_STREAM, STRIPE_BYTES, hash_begin, hash_end, hash_stripes


@kernel()
def pin_many(x, keys, key_bytes, total):
    """Look up, pin and unpin ``total`` keys of equal length lying side by side; returns how many were found."""
    found = 0
    for first in range(0, total, PREFETCH_GROUP):
        last = min(total, first + PREFETCH_GROUP)
        for position in range(first, last):
            place = hash_bytes(keys + position * key_bytes, key_bytes, 0)
            store(x + X_PLACES + 8 * (position - first), place)
            prefetch_bucket(x, place)
        for position in range(last - first):
            prefetch_record(x, load(x + X_PLACES + 8 * position))
        for position in range(first, last):
            place = load(x + X_PLACES + 8 * (position - first))
            if find(x, keys + position * key_bytes, key_bytes, place, 0, 0, 0, 1) == MAPPED:
                found += 1
                segment = (load(x + X_FOUND_ITEM) >> SEGMENT_SHIFT) & SEGMENT_MASK
                fetch_add32(load(x + X_ROW) + segment * PIN_BYTES, -1)
    return found


@kernel()
def append_ring(lease, room, payload, payload_bytes, total, generation, q):
    """Append ``total`` equal records and return how many fitted; the benchmark of the bare append."""
    done = 0
    length = record_bytes(8, payload_bytes)
    pieces = load(q + Q_PIECES)
    store(pieces, payload)
    store(pieces + 8, payload_bytes)
    store(q + Q_PIECE_COUNT, 1)
    store(q + Q_PAYLOAD_BYTES, payload_bytes)
    store(q + Q_KEY_BYTES, 8)
    store(q + Q_LENGTH, length)
    while done < total and load(lease + L_NEXT) + length <= room:
        head = load(lease + L_BASE) + load(lease + L_NEXT)
        claim(head, length, generation)
        store(q + Q_TARGET, head)
        store(q + Q_PLACE, done)
        fill_record(q)
        store(lease + L_NEXT, load(lease + L_NEXT) + length)
        done += 1
    return done


@kernel(nogil=True)
def copy_hash(target, source, size, state):
    """Copy a payload with non-temporal stores and return its hash; addresses and size are multiples of 64."""
    hash_begin(state)
    hash_stripes(target, source, size // STRIPE_BYTES, state, COPY_STREAM, 1)
    return hash_end(state)


@kernel()
def flush(address, size):
    """Write the lines of a range back."""
    flush_range(address, size)
    return 0


@kernel()
def drain_stores():
    """Wait for what was flushed and streamed."""
    store_fence()
    return 0


@kernel()
def ring_push(slot, value):
    """Push one message with an argument, without waiting for its result; 1, or 0 where the ring is full."""
    return 1 if push_message(slot, 0, 0, 0, 0, value) >= 0 else 0


@kernel()
def ring_pop(slot):
    """Take one message off the ring as the mutator does; its argument, -1 where there is none."""
    if waiting_messages(slot) == 0:
        return -1
    head = load(slot + P_HEAD)
    value = load(message_at(slot, head) + M_ARG)
    store_release(slot + P_HEAD, head + 1)  # SYNC slot.head: pairs with load_acquire in push_message()
    return value
