"""What messages ask of the mutator: lease, publish, delete, relink, reap, recall; drops.py has the rest.

Callers: the mutator thread (core.py). Each is bounded by one segment, or one object, and safe to be repeated.
"""

from __future__ import annotations

from .atomic import (
    fence,
    load,
    load8,
    load16,
    load32,
    load_acquire,
    shift_right,
    store,
    store8,
    store32,
    store_release,
)
from .core_state import (
    D_ACCESS,
    D_ACCESS_STRIDE,
    D_ADDRESSES,
    D_CONTROL,
    D_GHOST,
    D_GHOST_MASK,
    D_INDEX,
    D_MASK,
    D_POOL_QUOTA,
    D_POOL_USED,
    D_RESERVE,
    D_ROW_OFFSET,
    D_SCRATCH,
    D_SEGMENT_BYTES,
    D_SEGMENT_COUNT,
    D_SLOT_STRIDE,
    D_SLOTS,
    D_TRAP,
    EVENT_PRESSURE,
)
from .counters import daemon_index
from .index import (
    AHEAD,
    HEAD_READ_BYTES,
    entry_of,
    find_item,
    head_at,
    insert,
    look_ahead,
    owner_of,
    remove,
    state_of,
    tally,
    tell,
    word_of,
)
from .jit import helper
from .layout import (
    A_COUNT,
    A_FIRST,
    ACCESS_SHIFT,
    C_ARENAS,
    C_FREE,
    DEAD,
    DEAD_COPIED,
    GENERATION_MASK,
    GRANULE,
    KEY_BYTES_MAX,
    P_BUSY,
    P_STATE,
    PIN_BYTES,
    R_BLOCK_COUNT,
    R_BLOCK_INDEX,
    R_EXPIRY,
    R_HEADER_HASH,
    R_KEY_BYTES,
    R_KEY_HASH,
    R_LENGTH,
    R_PUBLISHED,
    R_VERSION,
    RECORD_HEADER_BYTES,
    RESULT_INDEX_FULL,
    RESULT_NONE_FREE,
    RESULT_QUOTA,
    RESULT_REFUSED,
    S_CLASS,
    S_EXPIRY,
    S_LIVE_BYTES,
    S_LIVE_COUNT,
    S_POOL,
    S_WORD,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
    STATE_LEASED,
    STATE_QUARANTINED,
    STATE_SEALED,
    STATE_UNBACKED,
)
from .records import (
    checked,
    find_exact,
    hash_bytes,
    header_hash,
    item_of,
    item_offset,
    place_of,
    sound_length,
    step,
    unchecked,
)
from .segments import (
    bury,
    mark_dead,
    moving_cell,
    next_sequence,
    persist_published,
    pop_free,
    release,
    seal,
    write_segment_header,
)
from .steps import (
    DELETE_MARKED,
    LEASE_MARKED,
    LEASE_POPPED,
    PUBLISH_INDEXED,
    PUBLISH_NUMBERED,
    PUBLISH_SWAPPED,
    RECALL_MARKED,
    RELINK_LINKED,
)

COUNT_PUBLISHED = daemon_index("published")
COUNT_DELETED = daemon_index("deleted")
COUNT_REPLACED = daemon_index("replaced")
COUNT_RELINKED = daemon_index("relinked")
COUNT_LEASES = daemon_index("leases")
COUNT_RECALLED = daemon_index("recalled")


@helper
def lease(d, slot, arena, pool, kind):
    """Grant a free segment: its id, or why not."""
    if pool < 0 or pool >= 64 or arena < 0 or arena >= 16:
        return RESULT_REFUSED
    used, quota = load(d + D_POOL_USED) + 8 * pool, load(load(d + D_POOL_QUOTA) + 8 * pool)
    if slot != 0 and quota > 0 and load(used) >= quota:
        tell(d, EVENT_PRESSURE, arena | (pool + 1) << 8)
        return RESULT_QUOTA
    free = load(load(d + D_CONTROL) + C_FREE + 8 * arena)
    if slot != 0 and free <= load(d + D_RESERVE):
        recall(d, arena)
        tell(d, EVENT_PRESSURE, arena)
        return RESULT_NONE_FREE
    segment = pop_free(d, arena)
    if segment < 0:
        tell(d, EVENT_PRESSURE, arena)
        return RESULT_NONE_FREE
    if slot != 0 and free <= load(d + D_RESERVE) + 2:
        tell(d, EVENT_PRESSURE, arena)
    step(d + D_TRAP, LEASE_POPPED)
    entry = entry_of(d, segment)
    generation = load(entry + S_WORD) & GENERATION_MASK
    store(used, load(used) + 1)
    store(entry + S_POOL, pool)
    store(entry + S_CLASS, kind)
    write_segment_header(d, segment, generation, pool, kind, 0)
    store_release(entry + S_WORD, word_of(STATE_LEASED, slot, generation))  # SYNC lease
    step(d + D_TRAP, LEASE_MARKED)
    tally(d, COUNT_LEASES, 1)
    return segment


@helper
def withdraw_orphans(d, segment):
    """Take published blocks out whose root was never published (their writer gave up or died); the end of the last record.

    Called when a lease ends; a client keeps the leases of an object until its root is published. One pass over all headers.
    """
    start, room = load(load(d + D_ADDRESSES) + 8 * segment), load(d + D_SEGMENT_BYTES)
    generation, offset = load(entry_of(d, segment) + S_WORD) & GENERATION_MASK, SEGMENT_HEADER_BYTES
    while start != 0 and offset + RECORD_HEADER_BYTES <= room:
        head = start + offset
        length = sound_length(head, generation, room - offset)
        if length == 0:
            break
        published = load(head + R_PUBLISHED)
        if load32(head + R_BLOCK_INDEX) != 0 and load(head + R_LENGTH) > 0 and unchecked(published) > 0:
            key, size = head + RECORD_HEADER_BYTES, load16(head + R_KEY_BYTES)
            if find_item(d, key, size, hash_bytes(key, size, 0), 0, load(head + R_VERSION), -1) == 0:
                place = load(head + R_KEY_HASH)
                withdraw_block(d, key, size, place, load32(head + R_BLOCK_INDEX), load(head + R_VERSION))
        offset += length
    return offset if start != 0 else room


@helper
def recall(d, arena):
    """Take one idle lease back so that many writers can share few segments.

    Also one of the client that asks: of another pool or class, or granted by a daemon that died before it answered.
    Order: the word says SEALED, fence, then the owner's busy count; the owner raises busy, then looks at the word.
    Dies: in between, the word still names the owner, and recovery gives a living one its lease back.
    """
    entry = load(d + D_CONTROL) + C_ARENAS + 64 * arena
    first = load(entry + A_FIRST)
    for segment in range(first, first + load(entry + A_COUNT)):
        word = load(entry_of(d, segment) + S_WORD)
        owner = owner_of(word)
        if state_of(word) != STATE_LEASED or owner == 0:
            continue
        busy = load(d + D_SLOTS) + owner * load(d + D_SLOT_STRIDE) + P_BUSY
        if load(busy) != 0:
            continue
        store(entry_of(d, segment) + S_WORD, word_of(STATE_SEALED, owner, word & GENERATION_MASK))
        step(d + D_TRAP, RECALL_MARKED)
        fence()
        if load_acquire(busy) != 0:  # SYNC lease: the owner is in an append and keeps it
            store(entry_of(d, segment) + S_WORD, word)
            continue
        seal(d, segment, withdraw_orphans(d, segment))
        tally(d, COUNT_RECALLED, 1)
        return


@helper
def publish(d, slot, segment, begin, end):
    """Make the committed records of a range visible, in order; how many, or why not."""
    if segment < 0 or segment >= load(d + D_SEGMENT_COUNT):
        return RESULT_REFUSED
    word = load(entry_of(d, segment) + S_WORD)
    start = load(load(d + D_ADDRESSES) + 8 * segment)
    if state_of(word) != STATE_LEASED or owner_of(word) != slot or start == 0 or begin < SEGMENT_HEADER_BYTES:
        return RESULT_REFUSED
    if begin & (GRANULE - 1) != 0 or end > load(d + D_SEGMENT_BYTES):
        return RESULT_REFUSED
    generation, offset, done, seen = word & GENERATION_MASK, begin, 0, 0
    while offset + RECORD_HEADER_BYTES <= end:
        head = start + offset
        length = sound_length(head, generation, end - offset)
        if length == 0:
            break
        if seen % AHEAD == 0:
            look_ahead(d, head, start + end)
        seen += 1
        if load(head + R_LENGTH) > 0 and load(head + R_PUBLISHED) != 0:
            done += 1  # by an earlier daemon that died before it answered
        elif load(head + R_LENGTH) > 0:
            size = load16(head + R_KEY_BYTES)
            if size == 0 or size > KEY_BYTES_MAX or RECORD_HEADER_BYTES + size > length:
                return RESULT_REFUSED
            if header_hash(head) != load(head + R_HEADER_HASH):
                return RESULT_REFUSED
            if publish_record(d, segment, offset, head, length) == 0:
                return RESULT_INDEX_FULL
            done += 1
        offset += length
    return done


@helper
def publish_record(d, segment, offset, head, length):
    """One record into the index; a root replaces the root of an older version and buries that version."""
    place, block_index, size = load(head + R_KEY_HASH), load32(head + R_BLOCK_INDEX), load16(head + R_KEY_BYTES)
    key, item = head + RECORD_HEADER_BYTES, item_of(place, segment, offset)
    old = 0
    if block_index == 0:
        old = find_item(d, key, size, place, 0, 0, -1)
    if old == 0 and insert_published(d, segment, head, place, item) == 0:
        return 0
    account(d, segment, offset, head, length)
    if old != 0:
        replaced = load(old)
        store(head + R_PUBLISHED, checked(next_sequence(d)))
        persist_published(d, segment, head)
        store_release(old, item)  # SYNC index.item: pairs with load_acquire in find(); old version out, new one in
        step(d + D_TRAP, PUBLISH_SWAPPED)
        bury_object(d, replaced, key, size, place, DEAD)
        tally(d, COUNT_REPLACED, 1)
    tally(d, COUNT_PUBLISHED, 1)
    return 1


@helper
def insert_published(d, segment, head, place, item):
    """Number the record, then show it; the number is taken back where the index is full."""
    store(head + R_PUBLISHED, checked(next_sequence(d)))
    persist_published(d, segment, head)
    step(d + D_TRAP, PUBLISH_NUMBERED)
    if insert(d, place, item) == 0:
        store(head + R_PUBLISHED, 0)
        return 0
    step(d + D_TRAP, PUBLISH_INDEXED)
    return 1


@helper
def account(d, segment, offset, head, length):
    """Count a record as live in its segment, note its expiry, and warm it if its key was dropped lately."""
    entry = entry_of(d, segment)
    store(entry + S_LIVE_BYTES, load(entry + S_LIVE_BYTES) + length)
    store(entry + S_LIVE_COUNT, load(entry + S_LIVE_COUNT) + 1)
    expiry = load(head + R_EXPIRY)
    if expiry != 0 and (load(entry + S_EXPIRY) == 0 or expiry < load(entry + S_EXPIRY)):
        store(entry + S_EXPIRY, expiry)
    ghost = load(d + D_GHOST) + 4 * (load(head + R_KEY_HASH) & load(d + D_GHOST_MASK))
    if load32(ghost) == shift_right(load(head + R_KEY_HASH), 32) and load32(ghost) != 0:
        store32(ghost, 0)
        store8(load(d + D_ACCESS) + segment * load(d + D_ACCESS_STRIDE) + (offset >> ACCESS_SHIFT), 1)


@helper
def bury_object(d, root_item, key, size, key_hash, mark):
    """Bury the root that an item named (it is out of the index already) and withdraw its other blocks."""
    segment, offset = (root_item >> SEGMENT_SHIFT) & SEGMENT_MASK, item_offset(root_item)
    head = head_at(d, segment, offset)
    if head == 0:
        return
    version, blocks, length = load(head + R_VERSION), load32(head + R_BLOCK_COUNT), load(head + R_LENGTH)
    bury(d, segment, offset, length, mark)
    for block_index in range(1, blocks):
        withdraw_block(d, key, size, place_of(key_hash, block_index), block_index, version)


@helper
def withdraw_block(d, key, size, place, block_index, version):
    """Take one block that is not a root out of the index and bury it."""
    address = find_item(d, key, size, place, block_index, version, -1)
    if address == 0:
        return
    item = load(address)
    segment, offset = (item >> SEGMENT_SHIFT) & SEGMENT_MASK, item_offset(item)
    head = head_at(d, segment, offset)
    length = load(head + R_LENGTH) if head != 0 else 0  # 0: the disk could not be read; the count stays too high
    remove(d, place, address)
    bury(d, segment, offset, length, DEAD)


@helper
def key_copy(d, head):
    """A record's key, where it stays when the header's scratch is used for other records."""
    copy = load(d + D_SCRATCH) + HEAD_READ_BYTES
    for word in range(0, load16(head + R_KEY_BYTES), 8):
        store(copy + word, load(head + RECORD_HEADER_BYTES + word))
    return copy


@helper
def delete(d, place, item):
    """Remove the object whose root is exactly this item; 1, or 0 if it is not there any more."""
    address = find_exact(load(d + D_INDEX), load(d + D_MASK), place, item)
    segment, offset = (item >> SEGMENT_SHIFT) & SEGMENT_MASK, item_offset(item)
    if address == 0 or segment >= load(d + D_SEGMENT_COUNT):
        return 0
    head = head_at(d, segment, offset)
    if head == 0 or load32(head + R_BLOCK_INDEX) != 0:
        return RESULT_REFUSED
    size, copy = load16(head + R_KEY_BYTES), key_copy(d, head)
    mark = DEAD_COPIED if load32(moving_cell(d, segment)) != 0 else DEAD
    mark_dead(d, segment, offset, mark)  # before the removal: what a reader has missed must not come back
    step(d + D_TRAP, DELETE_MARKED)
    remove(d, place, address)
    bury_object(d, item, copy, size, place, mark)
    tally(d, COUNT_DELETED, 1)
    return 1


@helper
def copy_heat(d, source, old, target, offset):
    """A block keeps the marks of its reads when it is moved."""
    access, stride = load(d + D_ACCESS), load(d + D_ACCESS_STRIDE)
    store8(access + target * stride + (offset >> ACCESS_SHIFT), load8(access + source * stride + (old >> ACCESS_SHIFT)))


@helper
def relink(d, packed, begin, end, image):
    """Records copied from one segment to another take the old ones' place, unless those died meanwhile.

    packed: target segment | source segment << 20; image: address of the target segment's bytes. How many moved.
    Dies: before the number is stored, the copy is nothing; after it, recovery keeps one of the two.
    """
    target, source = packed & SEGMENT_MASK, packed >> 20
    offset, moved = begin, 0
    while offset + RECORD_HEADER_BYTES <= end:
        head = image + offset
        length = load(head + R_LENGTH)
        place, block_index, size = load(head + R_KEY_HASH), load32(head + R_BLOCK_INDEX), load16(head + R_KEY_BYTES)
        key, version = head + RECORD_HEADER_BYTES, load(head + R_VERSION)
        address = find_item(d, key, size, place, block_index, version, source)
        account(d, target, offset, head, length)
        if address == 0:
            bury(d, target, offset, length, DEAD)
        else:
            old = item_offset(load(address))
            if load(head + R_PUBLISHED) == 0:
                store(head + R_PUBLISHED, checked(next_sequence(d)))
                persist_published(d, target, head)
            store_release(address, item_of(place, target, offset))  # SYNC index.item: pairs with find()
            step(d + D_TRAP, RELINK_LINKED)
            copy_heat(d, source, old, target, offset)
            original = head_at(d, source, old)  # its length may differ: the copy may be compressed, or not any more
            bury(d, source, old, load(original + R_LENGTH) if original != 0 else length, DEAD)
            moved += 1
        offset += length
    tally(d, COUNT_RELINKED, moved)
    return moved


@helper
def reap(d, slot):
    """A client is gone: seal its leases, clear its pins, free its slot. Idempotent."""
    for segment in range(load(d + D_SEGMENT_COUNT)):
        word = load(entry_of(d, segment) + S_WORD)
        if state_of(word) == STATE_LEASED and owner_of(word) == slot:
            seal(d, segment, withdraw_orphans(d, segment))
    base = load(d + D_SLOTS) + slot * load(d + D_SLOT_STRIDE)
    row = base + load(d + D_ROW_OFFSET)
    for segment in range(load(d + D_SEGMENT_COUNT)):
        store32(row + segment * PIN_BYTES, 0)
    store(base + P_BUSY, 0)
    store_release(base + P_STATE, 0)  # SYNC slot.state
    return 1


@helper
def seal_lease(d, slot, segment, generation, end):
    """A lease is given back, unless it was taken back before: then the segment may be another lease, of another generation.

    end: of the last record, where the daemon itself filled the segment.
    """
    if segment < 0 or segment >= load(d + D_SEGMENT_COUNT):
        return RESULT_REFUSED
    word = load(entry_of(d, segment) + S_WORD)
    if word != word_of(STATE_LEASED, slot, generation):
        return RESULT_REFUSED
    tail = withdraw_orphans(d, segment)
    seal(d, segment, end if slot == 0 and end > 0 else tail)
    return 1


@helper
def set_aside(d, segment):
    """A segment whose bytes cannot be trusted leaves circulation."""
    entry = entry_of(d, segment)
    word = load(entry + S_WORD)
    if state_of(word) == STATE_SEALED:
        store_release(entry + S_WORD, word_of(STATE_QUARANTINED, 0, word & GENERATION_MASK))  # SYNC segment.word
        return 1
    return 0


@helper
def back(d, segment):
    """Memory or disk was reserved for a segment: it becomes free."""
    if state_of(load(entry_of(d, segment) + S_WORD)) != STATE_UNBACKED:
        return 0
    release(d, segment)
    return 1
