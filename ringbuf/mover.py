"""Kernels that copy records between segments, for the policy thread of the daemon."""

from __future__ import annotations

from .atomic import load, load16, load32, store, store8, store32, store_fence, store_release
from .codes import LISTED_BYTES
from .jit import helper, kernel
from .layout import (
    R_CLASS,
    R_CODEC,
    R_GENERATION,
    R_HEADER_HASH,
    R_KEY_BYTES,
    R_LENGTH,
    R_PAYLOAD_BYTES,
    R_PAYLOAD_HASH,
    R_PUBLISHED,
    R_STORED_BYTES,
    RECORD_HEADER_BYTES,
    RECORD_START_LIMIT,
)
from .records import checked, header_hash
from .writer import flush_range
from .xxh3 import COPY_STREAM, STRIPE_BYTES, hash_begin, hash_end, hash_stripes


@helper
def claim_copy(target, source, length, generation, staged):
    """Claim room for a copy and bring header and key over; the offset of the payload, 0 if the source is damaged.

    staged: 1 where the copy goes to a file later, and cannot be numbered when it is linked: its publish number comes along.
    """
    store(target + R_GENERATION, checked(generation))
    store(target + R_PUBLISHED, 0)
    store_release(target + R_LENGTH, -length)  # SYNC record.length: pairs with load_acquire in sound_length()
    start = (RECORD_HEADER_BYTES + load16(source + R_KEY_BYTES) + 63) & ~63
    if start > length or header_hash(source) != load(source + R_HEADER_HASH):
        return 0
    for offset in range(16, start, 8):
        if offset != R_PUBLISHED or staged == 1:
            store(target + offset, load(source + offset))
    return start


@helper
def commit_copy(target, start, length, kind, flush):
    """Give a filled copy its class and its header's hash, and commit it."""
    store8(target + R_CLASS, kind)
    store(target + R_HEADER_HASH, header_hash(target))
    # Nobody looks at a copy before it is numbered and linked, so its own stores need no order among themselves.
    store_release(target + R_LENGTH, length)  # SYNC record.length
    if flush == 1:
        flush_range(target, start)
    store_fence()  # all of it, streamed payload too, before the message that asks for the link


@kernel(nogil=True)
def copy_record(target, source, length, generation, kind, flush, staged, state):
    """Copy one committed record to claimed room, checking its payload on the way; 1, or 0 if it is not what was written.

    kind: the class of the copy. flush: 1 where the target's lines must be written back. staged: see claim_copy().
    state: 72 scratch bytes.
    """
    start, payload = claim_copy(target, source, length, generation, staged), load32(source + R_PAYLOAD_BYTES)
    if start == 0 or start + payload > length:
        return 0
    hash_begin(state)
    if payload > 0:
        hash_stripes(target + start, source + start, payload // STRIPE_BYTES, state, COPY_STREAM, 1)
    if hash_end(state) != load(source + R_PAYLOAD_HASH):
        return 0
    commit_copy(target, start, length, kind, flush)
    return 1


@kernel(nogil=True)
def recode_record(target, source, payload, stored_bytes, codec, length, generation, kind, flush, staged, state):
    """Copy a record under another codec: its payload, compressed or not any more, lies at ``payload``.

    stored_bytes: of the payload, which is followed by zeros to whole stripes. The caller has checked the old payload's hash.
    1, or 0 if the header is not what was written. The other arguments are those of copy_record().
    """
    start = claim_copy(target, source, length, generation, staged)
    if start == 0:
        return 0
    padded = (stored_bytes + STRIPE_BYTES - 1) & ~(STRIPE_BYTES - 1)
    hash_begin(state)
    if padded > 0:
        hash_stripes(target + start, payload, padded // STRIPE_BYTES, state, COPY_STREAM, 1)
    store32(target + R_PAYLOAD_BYTES, padded)
    store(target + R_STORED_BYTES, stored_bytes)
    store8(target + R_CODEC, codec)
    store(target + R_PAYLOAD_HASH, hash_end(state))
    commit_copy(target, start, length, kind, flush)
    return 1


@kernel(nogil=True)
def copy_records(target, offset, room, image, rows, first, total, generation, kind, flush, staged, state):
    """Copy listed records one after the other while they fit; the position of the first that did not.

    target, room: the segment being filled, its size; offset: where to begin. rows: see survey.list_live(); the length of
    a record that is not what was written is set to 0 there, and it takes no room. Behind the rows lies one word: the
    offset reached.
    """
    position = first
    while position < total:
        row = rows + LISTED_BYTES * position
        length = load(row + 24)
        if offset + length > room or offset >= RECORD_START_LIMIT:
            break
        if copy_record(target + offset, image + load(row + 16), length, generation, kind, flush, staged, state) == 1:
            offset += length
        else:
            store(row + 24, 0)
            store(target + offset + R_LENGTH, 0)
        position += 1
    store(rows + LISTED_BYTES * total, offset)
    return position
