"""Look-up and pin: what a client does on every read. No lock, no message, no retry loop.

A reader finds an index item, counts itself into its own cell of the hazard matrix, and looks at the item again. The
daemon withdraws the items of a segment, fences, and only then sums the segment's column. So either the reader sees that
the item is gone, or the daemon sees the pin: the two cannot miss each other. The same second look compares the epoch,
which a restarted daemon stores before it changes anything, because its index is another file.

The tempting wrong order is to check first and pin then: the daemon may reuse the segment between the two.
"""

from __future__ import annotations

from numba import types

from .atomic import fetch_add32, load, load8, load16, load32, load_acquire, prefetch, shift_right, store, store8
from .codes import MAPPED, MISS, STALE, UNMAPPED
from .cpython import as_int, from_int
from .inject import charge
from .jit import capi, helper
from .layout import (
    ACCESS_MAX,
    ACCESS_SHIFT,
    BUCKET_BYTES,
    C_EPOCH,
    ITEM_COUNT,
    KIND_BYTES,
    PIN_BYTES,
    PROBE_MAX,
    R_BLOCK_COUNT,
    R_CODEC,
    R_EXPIRY,
    R_KEY_BYTES,
    R_KIND,
    R_PAYLOAD_BYTES,
    R_ROWS,
    R_SCHEMA_BYTES,
    R_VALUE_BYTES,
    R_VERSION,
    RECORD_HEADER_BYTES,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    TAG_SHIFT,
)
from .records import hash_bytes, item_offset, now_ms, place_of, record_is, step
from .session import (
    COUNT_HITS,
    COUNT_MISSES,
    COUNT_READ,
    X_ACCESS,
    X_ACCESS_STRIDE,
    X_ADDRESSES,
    X_CLIENTS,
    X_CONTROL,
    X_COUNTERS,
    X_EPOCH,
    X_FOUND_HEAD,
    X_FOUND_ITEM,
    X_INDEX,
    X_INJECT,
    X_KINDS,
    X_MASK,
    X_NONE,
    X_OWNER,
    X_PIN_TYPE,
    X_PLACES,
    X_ROW,
    X_SCRATCH,
    X_TRAP,
)
from .steps import GET_FOUND, GET_PINNED

utf8 = types.ExternalFunction("PyUnicode_AsUTF8AndSize", types.int64(types.int64, types.int64))
allocate = types.ExternalFunction("PyType_GenericAlloc", types.int64(types.int64, types.int64))
deallocate = types.ExternalFunction("PyObject_Free", types.void(types.int64))
take_reference = types.ExternalFunction("Py_IncRef", types.void(types.int64))
drop_reference = types.ExternalFunction("Py_DecRef", types.void(types.int64))
fill_buffer = types.ExternalFunction(
    "PyBuffer_FillInfo", types.int32(types.int64, types.int64, types.int64, types.int64, types.int32, types.int32)
)
new_memoryview = types.ExternalFunction("PyMemoryView_FromObject", types.int64(types.int64))
new_tuple = types.ExternalFunction("PyTuple_New", types.int64(types.int64))
set_tuple = types.ExternalFunction("PyTuple_SetItem", types.int32(types.int64, types.int64, types.int64))
new_list = types.ExternalFunction("PyList_New", types.int64(types.int64))
list_size = types.ExternalFunction("PyList_Size", types.int64(types.int64))
list_item = types.ExternalFunction("PyList_GetItem", types.int64(types.int64, types.int64))
set_list = types.ExternalFunction("PyList_SetItem", types.int32(types.int64, types.int64, types.int64))

# Keys whose look-ups wait for memory at the same time.
PREFETCH_GROUP = 16

# Moves of blocks in one bucket that a single look-up sits through.
MOVES_MAX = 64

# A pin is a Python object: after CPython's own head come five words.
_HEAD = object.__basicsize__
PIN_TYPE, PIN_DATA, PIN_SIZE, PIN_CELL, PIN_OWNER = _HEAD, _HEAD + 8, _HEAD + 16, _HEAD + 24, _HEAD + 32
PIN_OBJECT_BYTES = _HEAD + 40


@helper
def count(x, counter, amount):
    """Add to one of the client's counters; the interpreter lock is held, so a plain sum is exact."""
    address = load(x + X_COUNTERS) + 8 * counter
    store(address, load(address) + amount)


@helper
def touch(x, segment, offset):
    """Note one use of a block; racing writers may lose one, which only makes it look a little colder."""
    address = load(x + X_ACCESS) + segment * load(x + X_ACCESS_STRIDE) + (offset >> ACCESS_SHIFT)
    heat = load8(address)
    if heat < ACCESS_MAX:
        store8(address, heat + 1)


@helper
def find(x, key, size, place, block_index, version, skip, heat):
    """Find and pin one block.

    Returns:    MISS, MAPPED (its header at X_FOUND_HEAD), UNMAPPED (on disk; X_FOUND_ITEM says where, unverified),
                or STALE (a new daemon runs: map its index and call again). The last two words hold only while pinned.
    skip:       how many unmapped candidates were tried already and had another key.
    Caller:     a thread of the client that holds the interpreter lock.
    Progress:   wait-free: at most PROBE_MAX buckets, and MOVES_MAX looks at a bucket whose blocks are being moved.
    Linearizes: at the second load of the item (present) or at the last empty or foreign slot looked at (absent).
    Order:      pin (sequentially consistent), then the second look; the daemon does the reverse.
    Dies:       after the pin: the daemon zeroes the row of a dead client.
    """
    index, mask, row = load(x + X_INDEX), load(x + X_MASK), load(x + X_ROW)
    tag = shift_right(place, TAG_SHIFT)
    for probe in range(PROBE_MAX):
        bucket = index + ((place + probe) & mask) * BUCKET_BYTES
        slot, moves = 1, 0
        while slot <= ITEM_COUNT:
            item = load_acquire(bucket + 8 * slot)  # SYNC index.item: pairs with store_release in insert()
            if item == 0 or shift_right(item, TAG_SHIFT) != tag:
                slot += 1
                continue
            segment = (item >> SEGMENT_SHIFT) & SEGMENT_MASK
            step(x + X_TRAP, GET_FOUND)
            fetch_add32(row + segment * PIN_BYTES, 1)
            step(x + X_TRAP, GET_PINNED)
            if load_acquire(load(x + X_CONTROL) + C_EPOCH) != load(x + X_EPOCH):  # SYNC epoch
                fetch_add32(row + segment * PIN_BYTES, -1)
                return STALE
            if load_acquire(bucket + 8 * slot) == item:  # SYNC index.item
                start = load(load(x + X_ADDRESSES) + segment * 8)
                if start == 0:
                    if skip == 0:
                        if heat != 0:
                            touch(x, segment, item_offset(item))
                        store(x + X_FOUND_ITEM, item)
                        return UNMAPPED
                    skip -= 1
                else:
                    head = start + item_offset(item)
                    if record_is(head, key, size, place, block_index, version) == 1 and fresh(x, head) == 1:
                        if heat != 0:
                            touch(x, segment, item_offset(item))
                        store(x + X_FOUND_HEAD, head)
                        store(x + X_FOUND_ITEM, item)
                        return MAPPED
                slot += 1
            else:
                # The block was moved (its item changed in place) or removed: going on to the next slot would miss a
                # block that was there all the time, so the same slot is looked at again.
                moves += 1
                slot += 1 if moves > MOVES_MAX else 0
            fetch_add32(row + segment * PIN_BYTES, -1)
        if load(bucket) == 0:
            break
    if load_acquire(load(x + X_CONTROL) + C_EPOCH) != load(x + X_EPOCH):  # SYNC epoch
        return STALE
    return MISS


@helper
def prefetch_bucket(x, place):
    """Begin to load the first bucket of a place."""
    prefetch(load(x + X_INDEX) + (place & load(x + X_MASK)) * BUCKET_BYTES)


@helper
def prefetch_record(x, place):
    """Begin to load header, key and heat of the record that the first bucket of a place names; wrong guesses only cost time."""
    bucket, tag = load(x + X_INDEX) + (place & load(x + X_MASK)) * BUCKET_BYTES, shift_right(place, TAG_SHIFT)
    for slot in range(1, ITEM_COUNT + 1):
        item = load(bucket + 8 * slot)
        if item != 0 and shift_right(item, TAG_SHIFT) == tag:
            segment = (item >> SEGMENT_SHIFT) & SEGMENT_MASK
            start, offset = load(load(x + X_ADDRESSES) + segment * 8), item_offset(item)
            if start != 0:
                prefetch(start + offset)
                prefetch(start + offset + 64)
                prefetch(start + offset + RECORD_HEADER_BYTES)
                prefetch(load(x + X_ACCESS) + segment * load(x + X_ACCESS_STRIDE) + (offset >> ACCESS_SHIFT))
            return


@helper
def fresh(x, head):
    """1 unless the record's time to live has passed."""
    expiry = load(head + R_EXPIRY)
    return 1 if expiry == 0 or now_ms(x + X_SCRATCH) < expiry else 0


@helper
def payload_of(head):
    """The payload follows header and key, on a cache line."""
    return head + ((RECORD_HEADER_BYTES + load16(head + R_KEY_BYTES) + 63) & ~63)


@helper
def new_pin(x, data, size):
    """A Python object that keeps the segment of the last find() pinned while it lives; 0 on memory error."""
    pin = allocate(load(x + X_PIN_TYPE), 0)
    if pin == 0:
        return 0
    segment = (load(x + X_FOUND_ITEM) >> SEGMENT_SHIFT) & SEGMENT_MASK
    owner = load(x + X_OWNER)
    take_reference(owner)
    store(pin + PIN_TYPE, load(x + X_PIN_TYPE))
    store(pin + PIN_DATA, data)
    store(pin + PIN_SIZE, size)
    store(pin + PIN_CELL, load(x + X_ROW) + segment * PIN_BYTES)
    store(pin + PIN_OWNER, owner)
    return pin


@capi("void(int64)")
def pin_dealloc(pin):
    """The type's destructor: unpin. Runs when the last view in any engine is gone, on any thread."""
    owner, kind = load(pin + PIN_OWNER), load(pin + PIN_TYPE)
    fetch_add32(load(pin + PIN_CELL), -1)
    deallocate(pin)
    drop_reference(owner)
    drop_reference(kind)


@capi("int32(int64, int64, int32)")
def pin_getbuffer(pin, view, flags):
    """The type's buffer: the pinned bytes, read-only."""
    return fill_buffer(view, pin, load(pin + PIN_DATA), load(pin + PIN_SIZE), 1, flags)


@helper
def none(x):
    """A new reference to None."""
    value = load(x + X_NONE)
    take_reference(value)
    return value


@helper
def view_of(x, key, size, place):
    """memoryview, None (miss), an int (not a plain value in memory: take the slow path), or 0 with an error set."""
    found = find(x, key, size, place, 0, 0, 0, 1)
    if found == MISS:
        count(x, COUNT_MISSES, 1)
        return none(x)
    if found == STALE:
        return from_int(STALE)
    head = load(x + X_FOUND_HEAD)
    segment = (load(x + X_FOUND_ITEM) >> SEGMENT_SHIFT) & SEGMENT_MASK
    if found == UNMAPPED or load16(head + R_KIND) != KIND_BYTES or load32(head + R_BLOCK_COUNT) != 1:
        fetch_add32(load(x + X_ROW) + segment * PIN_BYTES, -1)
        return from_int(UNMAPPED)
    size = load(head + R_VALUE_BYTES)
    pin = new_pin(x, payload_of(head), size)
    if pin == 0:
        return 0
    count(x, COUNT_HITS, 1)
    count(x, COUNT_READ + load8(load(x + X_KINDS) + segment), size)
    if load(x + X_INJECT) != 0:
        charge(load(x + X_CONTROL), load(x + X_CLIENTS), segment, size, 0, x + X_SCRATCH)
    view = new_memoryview(pin)
    drop_reference(pin)
    return view


@capi("int64(int64, int64, int64)", method=True)
def get_view(self, arguments, _count):
    """(session, key: str): see view_of()."""
    x = as_int(load(arguments))
    key = utf8(load(arguments + 8), x + X_SCRATCH)
    if key == 0:
        return 0
    size = load(x + X_SCRATCH)
    return view_of(x, key, size, hash_bytes(key, size, 0))


@capi("int64(int64, int64, int64)", method=True)
def get_views(self, arguments, _count):
    """(session, keys: list[str]) -> list of what view_of() gives for each.

    Each look-up waits for memory twice, for the bucket and then for the record, which are rarely in a cache. So the waits of
    PREFETCH_GROUP keys are overlapped (group prefetching, Chen et al., ICDE 2004).
    """
    x, keys = as_int(load(arguments)), load(arguments + 8)
    total = list_size(keys)
    result = new_list(total)
    for first in range(0, total, PREFETCH_GROUP):
        last = min(total, first + PREFETCH_GROUP)
        for position in range(first, last):
            key = utf8(list_item(keys, position), x + X_SCRATCH)
            if key == 0:
                drop_reference(result)
                return 0
            place = hash_bytes(key, load(x + X_SCRATCH), 0)
            store(x + X_PLACES + 8 * (position - first), place)
            prefetch_bucket(x, place)
        for position in range(last - first):
            prefetch_record(x, load(x + X_PLACES + 8 * position))
        for position in range(first, last):
            key = utf8(list_item(keys, position), x + X_SCRATCH)
            view = view_of(x, key, load(x + X_SCRATCH), load(x + X_PLACES + 8 * (position - first)))
            if view == 0:
                drop_reference(result)
                return 0
            set_list(result, position, view)
    return result


@capi("int64(int64, int64, int64)", method=True)
def lookup(self, arguments, _count):
    """(session, key: str, block index, version, skip, heat) -> None (miss), STALE, or a tuple with a pin.

    The tuple: pin, header address (0: on disk), payload address, payload bytes, kind | codec << 8, blocks,
    schema bytes, value bytes, version, item, rows.
    """
    x = as_int(load(arguments))
    key = utf8(load(arguments + 8), x + X_SCRATCH)
    if key == 0:
        return 0
    size = load(x + X_SCRATCH)
    block_index, version = as_int(load(arguments + 16)), as_int(load(arguments + 24))
    place = place_of(hash_bytes(key, size, 0), block_index)
    found = find(x, key, size, place, block_index, version, as_int(load(arguments + 32)), as_int(load(arguments + 40)))
    if found == MISS:
        count(x, COUNT_MISSES, 1)
        return none(x)
    if found == STALE:
        return from_int(STALE)
    result = new_tuple(11)
    item = load(x + X_FOUND_ITEM)
    if found == UNMAPPED:
        set_tuple(result, 0, new_pin(x, 0, 0))
        for position in range(1, 9):
            set_tuple(result, position, from_int(0))
        set_tuple(result, 9, from_int(item))
        set_tuple(result, 10, from_int(0))
        return result
    head = load(x + X_FOUND_HEAD)
    payload, payload_bytes = payload_of(head), load32(head + R_PAYLOAD_BYTES)
    count(x, COUNT_HITS, 1)
    count(x, COUNT_READ + load8(load(x + X_KINDS) + ((item >> SEGMENT_SHIFT) & SEGMENT_MASK)), payload_bytes)
    set_tuple(result, 0, new_pin(x, payload, payload_bytes))
    set_tuple(result, 1, from_int(head))
    set_tuple(result, 2, from_int(payload))
    set_tuple(result, 3, from_int(payload_bytes))
    set_tuple(result, 4, from_int(load8(head + R_KIND) | load8(head + R_CODEC) << 8))
    set_tuple(result, 5, from_int(load32(head + R_BLOCK_COUNT)))
    set_tuple(result, 6, from_int(load32(head + R_SCHEMA_BYTES)))
    set_tuple(result, 7, from_int(load(head + R_VALUE_BYTES)))
    set_tuple(result, 8, from_int(load(head + R_VERSION)))
    set_tuple(result, 9, from_int(item))
    set_tuple(result, 10, from_int(load(head + R_ROWS)))
    return result


@capi("int64(int64, int64, int64)", method=True)
def contains(self, arguments, _count):
    """(session, key: str) -> MISS, MAPPED, UNMAPPED or STALE; leaves nothing pinned."""
    x = as_int(load(arguments))
    key = utf8(load(arguments + 8), x + X_SCRATCH)
    if key == 0:
        return 0
    size = load(x + X_SCRATCH)
    found = find(x, key, size, hash_bytes(key, size, 0), 0, 0, 0, 0)
    if found > 0:
        segment = (load(x + X_FOUND_ITEM) >> SEGMENT_SHIFT) & SEGMENT_MASK
        fetch_add32(load(x + X_ROW) + segment * PIN_BYTES, -1)
    return from_int(found)
