"""What the mutator does to segments: bury records, retire, drain, free, lease out and seal.

Callers: the mutator thread (core.py).
"""

from __future__ import annotations

from .atomic import (
    fence,
    flush_line,
    load,
    load32,
    store,
    store32,
    store_fence,
    store_release,
)
from .core_state import (
    D_ACCESS,
    D_ACCESS_STRIDE,
    D_ADDRESSES,
    D_CONTROL,
    D_DRAIN,
    D_DRAIN_COUNT,
    D_FREE_RINGS,
    D_PAGE,
    D_POOL_USED,
    D_ROW_OFFSET,
    D_SLOT_HIGH,
    D_SLOT_STRIDE,
    D_SLOTS,
    D_TRAP,
    DRAIN_MAX,
    EVENT_FREED,
    EVENT_SEALED,
    FREE_RING_BYTES,
)
from .index import (
    COUNT_FREED,
    arena_of,
    entry_of,
    file_of,
    file_offset,
    state_of,
    tally,
    tell,
    word_of,
    write_file,
)
from .jit import helper
from .layout import (
    A_COUNT,
    A_KIND,
    C_ARENAS,
    C_FREE,
    C_PUBLISH_SEQUENCE,
    GENERATION_MASK,
    KIND_PMEM,
    LIFE_CLASS_SHIFT,
    LIFE_POOL_SHIFT,
    PIN_BYTES,
    R_PUBLISHED,
    S_CLASS,
    S_LIVE_BYTES,
    S_LIVE_COUNT,
    S_POOL,
    S_SEQUENCE,
    S_TAIL,
    S_WORD,
    SEGMENT_ENTRY_BYTES,
    SEGMENT_MAGIC,
    SH_LIFE,
    SH_MAGIC,
    SH_SEALED_BYTES,
    SH_SEQUENCE,
    STATE_EVICTING,
    STATE_FREE,
    STATE_SEALED,
)
from .records import (
    checked,
    step,
)
from .steps import (
    BURY_MARKED,
    RELEASE_INVALIDATED,
    RETIRE_MARKED,
    SEAL_MARKED,
)

# --- segments -----------------------------------------------------------------------------------------------------------


@helper
def persist_published(d, segment, head):
    """Make the publish word of a record durable, in arenas where a flush is enough for that."""
    if load(load(d + D_CONTROL) + C_ARENAS + 64 * arena_of(d, segment) + A_KIND) == KIND_PMEM:
        flush_line(head + R_PUBLISHED)
        store_fence()


@helper
def mark_dead(d, segment, offset, mark):
    """Note in a record's own header that it must not come back at the next start. mark: DEAD or DEAD_COPIED."""
    start = load(load(d + D_ADDRESSES) + 8 * segment)
    if start != 0:
        store(start + offset + R_PUBLISHED, mark)
        persist_published(d, segment, start + offset)
    else:
        page = load(d + D_PAGE)
        store(page + 128, mark)
        write_file(file_of(d, segment), page + 128, 8, file_offset(d, segment, offset + R_PUBLISHED))


@helper
def bury(d, segment, offset, length, mark):
    """A published record stops being live: mark it, and retire its segment when it was the last one there."""
    entry = entry_of(d, segment)
    mark_dead(d, segment, offset, mark)
    step(d + D_TRAP, BURY_MARKED)
    store(entry + S_LIVE_BYTES, load(entry + S_LIVE_BYTES) - length)
    store(entry + S_LIVE_COUNT, load(entry + S_LIVE_COUNT) - 1)
    if load(entry + S_LIVE_COUNT) == 0 and state_of(load(entry + S_WORD)) == STATE_SEALED:
        retire(d, segment)


@helper
def retire(d, segment):
    """SEALED to EVICTING: the segment waits for its last pins, then it is free. Idempotent."""
    entry = entry_of(d, segment)
    word = load(entry + S_WORD)
    if state_of(word) != STATE_SEALED or load(d + D_DRAIN_COUNT) >= DRAIN_MAX:
        return
    store_release(entry + S_WORD, word_of(STATE_EVICTING, 0, word & GENERATION_MASK))  # SYNC segment.word
    step(d + D_TRAP, RETIRE_MARKED)
    waiting = load(d + D_DRAIN_COUNT)
    store(load(d + D_DRAIN) + 8 * waiting, segment)
    store(d + D_DRAIN_COUNT, waiting + 1)


@helper
def pins_on(d, segment):
    """The sum of a column of the hazard matrix. Items were withdrawn before, so no new pin can hold."""
    fence()  # SYNC pins: pairs with the pin in find(); withdrawal comes before the sum
    total = 0
    for slot in range(load(d + D_SLOT_HIGH)):
        row = load(d + D_SLOTS) + slot * load(d + D_SLOT_STRIDE) + load(d + D_ROW_OFFSET)
        total += load32(row + segment * PIN_BYTES)
    return total


@helper
def moving_cell(d, segment):
    """The daemon's own pin on a segment: 1 while a move copies from there."""
    return load(d + D_SLOTS) + load(d + D_ROW_OFFSET) + segment * PIN_BYTES


@helper
def hold(d, segment, value):
    """A move from a segment begins (1) or ends (0). Deletes that follow see it, those before are seen by the copying."""
    store32(moving_cell(d, segment), value)
    return 1


@helper
def drain(d):
    """Free every retired segment without pins."""
    kept, table = 0, load(d + D_DRAIN)
    for position in range(load(d + D_DRAIN_COUNT)):
        segment = load(table + 8 * position)
        if pins_on(d, segment) == 0:
            release(d, segment)
        else:
            store(table + 8 * kept, segment)
            kept += 1
    store(d + D_DRAIN_COUNT, kept)


@helper
def release(d, segment):
    """EVICTING (or a fresh UNBACKED one) to FREE: invalidate what lies there, then hand it to the free ring."""
    entry = entry_of(d, segment)
    word = load(entry + S_WORD)
    generation = (word & GENERATION_MASK) + 1
    if state_of(word) == STATE_EVICTING:
        used = load(d + D_POOL_USED) + 8 * load(entry + S_POOL)
        store(used, load(used) - 1)
    write_segment_header(d, segment, generation, 0, 0, 0)
    step(d + D_TRAP, RELEASE_INVALIDATED)
    for field in range(S_LIVE_BYTES, SEGMENT_ENTRY_BYTES, 8):
        store(entry + field, 0)
    heat = load(d + D_ACCESS) + segment * load(d + D_ACCESS_STRIDE)
    for offset in range(0, load(d + D_ACCESS_STRIDE), 8):
        if load(heat + offset) != 0:
            store(heat + offset, 0)
    store_release(entry + S_WORD, word_of(STATE_FREE, 0, generation))  # SYNC segment.word
    push_free(d, segment)
    tally(d, COUNT_FREED, 1)
    tell(d, EVENT_FREED, segment)


@helper
def write_segment_header(d, segment, generation, pool, kind, sealed_bytes):
    """The first line of a segment, durable on arenas where a flush is: a new generation kills all older records."""
    start = load(load(d + D_ADDRESSES) + 8 * segment)
    target = start if start != 0 else load(d + D_PAGE) + 192
    store(target + SH_MAGIC, SEGMENT_MAGIC)
    store(target + SH_LIFE, checked(generation | pool << LIFE_POOL_SHIFT | kind << LIFE_CLASS_SHIFT))
    store(target + SH_SEALED_BYTES, checked(sealed_bytes))
    store(target + SH_SEQUENCE, checked(load(entry_of(d, segment) + S_SEQUENCE)))
    if start != 0:
        flush_line(target)
        store_fence()
    else:
        write_file(file_of(d, segment), target, 32, file_offset(d, segment, 0))


@helper
def push_free(d, segment):
    """Append to the arena's free ring; it holds all ids of the arena, so it cannot overflow."""
    arena = arena_of(d, segment)
    ring = d + D_FREE_RINGS + arena * FREE_RING_BYTES
    size = load(load(d + D_CONTROL) + C_ARENAS + 64 * arena + A_COUNT)
    tail = load(ring + 8)
    store(load(ring + 16) + 8 * (tail % size), segment)
    store(ring + 8, tail + 1)
    store(load(d + D_CONTROL) + C_FREE + 8 * arena, tail + 1 - load(ring))


@helper
def pop_free(d, arena):
    """The free segment that was freed longest ago, -1 if there is none."""
    ring = d + D_FREE_RINGS + arena * FREE_RING_BYTES
    head = load(ring)
    if head == load(ring + 8):
        return -1
    size = load(load(d + D_CONTROL) + C_ARENAS + 64 * arena + A_COUNT)
    store(ring, head + 1)
    store(load(d + D_CONTROL) + C_FREE + 8 * arena, load(ring + 8) - head - 1)
    return load(load(ring + 16) + 8 * (head % size))


@helper
def seal(d, segment, tail):
    """LEASED to SEALED; a segment without live records is retired at once."""
    entry = entry_of(d, segment)
    generation = load(entry + S_WORD) & GENERATION_MASK
    store(entry + S_TAIL, tail)
    store(entry + S_SEQUENCE, next_sequence(d))
    store_release(entry + S_WORD, word_of(STATE_SEALED, 0, generation))  # SYNC segment.word
    step(d + D_TRAP, SEAL_MARKED)
    # On disk every record was synced before: a start that finds this header need not check payloads.
    write_segment_header(d, segment, generation, load(entry + S_POOL), load(entry + S_CLASS), tail)
    if load(entry + S_LIVE_COUNT) == 0:
        retire(d, segment)
    else:
        tell(d, EVENT_SEALED, segment)


@helper
def next_sequence(d):
    """The next number of the store's one order of events."""
    address = load(d + D_CONTROL) + C_PUBLISH_SEQUENCE
    store(address, load(address) + 1)
    return load(address)
