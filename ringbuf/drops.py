"""What the mutator does to records that must make room: withdraw them, and with them their objects.

Callers: the mutator thread (core.py). Each is bounded by its list, or by ``limit`` records, and safe to be repeated.
"""

from __future__ import annotations

from .atomic import load, load16, load32, shift_right, store32
from .core_state import D_ADDRESSES, D_GHOST, D_GHOST_MASK, D_INDEX, D_MASK, D_SEGMENT_BYTES, D_TRAP
from .counters import daemon_index
from .index import AHEAD, entry_of, find_item, head_at, look_ahead, remove, state_of, tally
from .jit import helper
from .layout import (
    DEAD,
    GENERATION_MASK,
    R_BLOCK_COUNT,
    R_BLOCK_INDEX,
    R_KEY_BYTES,
    R_KEY_HASH,
    R_LENGTH,
    R_PUBLISHED,
    R_VERSION,
    RECORD_HEADER_BYTES,
    S_WORD,
    STATE_SEALED,
)
from .operations import bury_object, key_copy, withdraw_block
from .records import find_exact, hash_bytes, item_of, item_offset, place_of, sound_length, step, unchecked
from .segments import bury
from .steps import DROP_WITHDRAWN

COUNT_DROPPED = daemon_index("dropped_blocks")
COUNT_DROPPED_BYTES = daemon_index("dropped_bytes")


@helper
def drop_record(d, segment, offset, place, address):
    """Withdraw one record that an item's address names, and remember its key as a ghost; what it leaves is no object."""
    head = head_at(d, segment, offset)
    length, index, blocks, version, size, key = 0, 0, 1, 0, 0, 0
    if head != 0:
        length, index, blocks = load(head + R_LENGTH), load32(head + R_BLOCK_INDEX), load32(head + R_BLOCK_COUNT)
        version, size = load(head + R_VERSION), load16(head + R_KEY_BYTES)
    if index > 0 or blocks > 1:
        key = key_copy(d, head)
    store32(load(d + D_GHOST) + 4 * (place & load(d + D_GHOST_MASK)), shift_right(place, 32))
    tally(d, COUNT_DROPPED_BYTES, length)
    remove(d, place, address)
    step(d + D_TRAP, DROP_WITHDRAWN)
    bury(d, segment, offset, length, DEAD)
    if index == 0:
        for other in range(1, blocks):
            withdraw_block(d, key, size, place_of(place, other), other, version)
    else:
        drop_object(d, key, size, version)


@helper
def drop_object(d, key, size, version):
    """Withdraw what is left of an object that lost a block: the root, and with it the blocks it names."""
    key_hash = hash_bytes(key, size, 0)
    address = find_item(d, key, size, key_hash, 0, version, -1)
    if address != 0:
        root = load(address)
        remove(d, key_hash, address)
        bury_object(d, root, key, size, key_hash, DEAD)


@helper
def drop_segment(d, segment, records, total):
    """Withdraw listed CACHE records (pairs of place and item) of a segment and remember them as ghosts."""
    dropped = 0
    for position in range(total):
        place, item = load(records + 16 * position), load(records + 16 * position + 8)
        address = find_exact(load(d + D_INDEX), load(d + D_MASK), place, item)
        if address == 0:
            continue
        drop_record(d, segment, item_offset(item), place, address)
        dropped += 1
    tally(d, COUNT_DROPPED, dropped)
    return dropped


@helper
def drop_range(d, segment, offset, limit):
    """Withdraw the live records of a mapped segment from ``offset`` on, at most ``limit``; where to go on, 0 at the end."""
    start, room = load(load(d + D_ADDRESSES) + 8 * segment), load(d + D_SEGMENT_BYTES)
    word = load(entry_of(d, segment) + S_WORD)
    if state_of(word) != STATE_SEALED or start == 0:
        return 0
    seen, dropped = 0, 0
    while offset + RECORD_HEADER_BYTES <= room and seen < limit:
        head = start + offset
        length = sound_length(head, word & GENERATION_MASK, room - offset)
        if length == 0:
            offset = room
            break
        if seen % AHEAD == 0:
            look_ahead(d, head, start + room)
        published = load(head + R_PUBLISHED)
        if load(head + R_LENGTH) > 0 and unchecked(published) > 0:
            place = load(head + R_KEY_HASH)
            address = find_exact(load(d + D_INDEX), load(d + D_MASK), place, item_of(place, segment, offset))
            if address != 0:
                drop_record(d, segment, offset, place, address)
                dropped += 1
        offset += length
        seen += 1
    tally(d, COUNT_DROPPED, dropped)
    return offset if offset + RECORD_HEADER_BYTES <= room else 0
