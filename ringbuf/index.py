"""The mutator's accessors to tables and records, and the index: find, insert and remove items.

Callers: the mutator thread (core.py), and the starting daemon before that thread runs (survey.py).
"""

from __future__ import annotations

from numba import types

from .atomic import (
    load,
    load8,
    prefetch,
    shift_right,
    store,
    store_release,
)
from .core_state import (
    D_ADDRESSES,
    D_ARENAS,
    D_CONTROL,
    D_EVENT_FD,
    D_EVENT_TAIL,
    D_EVENTS,
    D_FILES,
    D_GHOST,
    D_GHOST_MASK,
    D_HEADER_BYTES,
    D_INDEX,
    D_MASK,
    D_PAGE,
    D_SCRATCH,
    D_SEGMENT_BYTES,
    D_TABLE,
    EVENT_COUNT,
)
from .counters import daemon_index
from .jit import helper
from .layout import (
    A_FIRST,
    BUCKET_BYTES,
    C_ARENAS,
    C_COUNTERS,
    C_INDEX_ITEMS,
    ITEM_COUNT,
    OWNER_MASK,
    OWNER_SHIFT,
    PROBE_MAX,
    R_KEY_HASH,
    R_LENGTH,
    RECORD_HEADER_BYTES,
    SEGMENT_ENTRY_BYTES,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    STATE_SHIFT,
    TAG_SHIFT,
)
from .records import (
    item_offset,
    record_is,
)

read_file = types.ExternalFunction("pread", types.int64(types.int32, types.int64, types.int64, types.int64))
write_file = types.ExternalFunction("pwrite", types.int64(types.int32, types.int64, types.int64, types.int64))
write_descriptor = types.ExternalFunction("write", types.int64(types.int32, types.int64, types.int64))

COUNT_FREED = daemon_index("freed")

AHEAD = 8
HEAD_READ_BYTES = 8192  # header and the longest key


@helper
def tally(d, counter, amount):
    """Add to a daemon counter; only this thread writes them."""
    address = load(d + D_CONTROL) + C_COUNTERS + 8 * counter
    store(address, load(address) + amount)


@helper
def entry_of(d, segment):
    """The line of a segment in the segment table."""
    return load(d + D_TABLE) + segment * SEGMENT_ENTRY_BYTES


@helper
def word_of(state, owner, generation):
    """A segment word."""
    return (state << STATE_SHIFT) | (owner << OWNER_SHIFT) | generation


@helper
def state_of(word):
    """The state in a segment word."""
    return shift_right(word, STATE_SHIFT)


@helper
def owner_of(word):
    """The owner slot in a segment word."""
    return (word >> OWNER_SHIFT) & OWNER_MASK


@helper
def arena_of(d, segment):
    """The arena a segment lies in."""
    return load8(load(d + D_ARENAS) + segment)


@helper
def file_offset(d, segment, offset):
    """Where a segment's byte lies in its arena's file."""
    first = load(load(d + D_CONTROL) + C_ARENAS + 64 * arena_of(d, segment) + A_FIRST)
    return load(d + D_HEADER_BYTES) + (segment - first) * load(d + D_SEGMENT_BYTES) + offset


@helper
def file_of(d, segment):
    """The descriptor to read and write a segment's arena with."""
    return load(load(d + D_FILES) + 8 * arena_of(d, segment))


@helper
def head_at(d, segment, offset):
    """A record's header as an address: in the mapping, or read into the scratch; 0 if it cannot be read."""
    start = load(load(d + D_ADDRESSES) + 8 * segment)
    if start != 0:
        return start + offset
    scratch = load(d + D_SCRATCH)
    size = min(HEAD_READ_BYTES, load(d + D_SEGMENT_BYTES) - offset)
    got = read_file(file_of(d, segment), scratch, size, file_offset(d, segment, offset))
    return scratch if got >= RECORD_HEADER_BYTES else 0


@helper
def tell(d, kind, argument):
    """Put an event on the policy thread's ring and wake it. A full ring drops it: the thread also looks by itself."""
    tail = load(d + D_EVENT_TAIL)
    store(load(d + D_EVENTS) + 8 * (tail & (EVENT_COUNT - 1)), (kind << 32) | argument)
    store_release(d + D_EVENT_TAIL, tail + 1)  # SYNC core.events: pairs with load_acquire in load_word()
    page = load(d + D_PAGE)
    store(page + 64, 1)
    write_descriptor(load(d + D_EVENT_FD), page + 64, 8)


@helper
def look_ahead(d, head, end):
    """Begin to load what the next AHEAD records of a segment will need: headers, keys, buckets, ghosts. Changes nothing.

    Each of these is a wait for memory of 100 ns or more where the caches are small; together they are one.
    """
    length = load(head + R_LENGTH)
    for number in range(1, AHEAD):
        prefetch(head + number * length)  # a guess: that all are as long
    for _ in range(AHEAD):
        length = load(head + R_LENGTH)
        if length <= 0 or head + length > end:
            return
        prefetch(head + 64)
        prefetch(head + RECORD_HEADER_BYTES)
        place = load(head + R_KEY_HASH)
        prefetch(load(d + D_INDEX) + (place & load(d + D_MASK)) * BUCKET_BYTES)
        prefetch(load(d + D_GHOST) + 4 * (place & load(d + D_GHOST_MASK)))
        head += length
        if head + RECORD_HEADER_BYTES > end:
            return


# --- index ------------------------------------------------------------------------------------------------------------


@helper
def insert(d, place, item):
    """Put an item in the first free slot of its probe; 1, or 0 where all PROBE_MAX buckets are full.

    Linearizes: at the release store of the item. A bucket's overflow count is raised before, so that no reader stops
    short of it.
    """
    index, mask = load(d + D_INDEX), load(d + D_MASK)
    for probe in range(PROBE_MAX):
        bucket = index + ((place + probe) & mask) * BUCKET_BYTES
        for slot in range(1, ITEM_COUNT + 1):
            if load(bucket + 8 * slot) == 0:
                for passed in range(probe):
                    before = index + ((place + passed) & mask) * BUCKET_BYTES
                    store(before, load(before) + 1)
                store_release(bucket + 8 * slot, item)  # SYNC index.item: pairs with load_acquire in find()
                items = load(d + D_CONTROL) + C_INDEX_ITEMS
                store(items, load(items) + 1)
                return 1
    return 0


@helper
def remove(d, place, address):
    """Take an item out; afterwards lower the overflow counts of the buckets it had passed."""
    index, mask = load(d + D_INDEX), load(d + D_MASK)
    store_release(address, 0)  # SYNC index.item: pairs with load_acquire in find()
    for probe in range(PROBE_MAX):
        bucket = index + ((place + probe) & mask) * BUCKET_BYTES
        if address >= bucket and address < bucket + BUCKET_BYTES:
            break
        store(bucket, load(bucket) - 1)
    items = load(d + D_CONTROL) + C_INDEX_ITEMS
    store(items, load(items) - 1)


@helper
def find_item(d, key, size, place, block_index, version, only_segment):
    """The address of the item of a block (of any version if 0), in one segment if >= 0; 0 if there is none."""
    index, mask = load(d + D_INDEX), load(d + D_MASK)
    tag = shift_right(place, TAG_SHIFT)
    for probe in range(PROBE_MAX):
        bucket = index + ((place + probe) & mask) * BUCKET_BYTES
        for slot in range(1, ITEM_COUNT + 1):
            item = load(bucket + 8 * slot)
            if item == 0 or shift_right(item, TAG_SHIFT) != tag:
                continue
            segment = (item >> SEGMENT_SHIFT) & SEGMENT_MASK
            if only_segment >= 0 and segment != only_segment:
                continue
            head = head_at(d, segment, item_offset(item))
            if head != 0 and record_is(head, key, size, place, block_index, version) == 1:
                return bucket + 8 * slot
        if load(bucket) == 0:
            break
    return 0
