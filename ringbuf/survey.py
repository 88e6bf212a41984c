"""Kernels that read whole segments: listing for the policy thread, recovery at start, verification."""

from __future__ import annotations

from .atomic import fence, load, load8, load16, load32, load_acquire, store
from .codes import LISTED_BYTES, NOTE_COPIED, NOTE_DAMAGED
from .core_state import D_ACCESS, D_ACCESS_STRIDE, D_ADDRESSES, D_CONTROL, D_INDEX, D_MASK, D_PAGE, D_SEGMENT_BYTES
from .index import (
    entry_of,
    find_item,
    head_at,
    insert,
    remove,
)
from .jit import helper, kernel
from .layout import (
    ACCESS_SHIFT,
    C_PUBLISH_SEQUENCE,
    DEAD,
    DEAD_COPIED,
    GENERATION_MASK,
    GRANULE,
    R_BLOCK_COUNT,
    R_BLOCK_INDEX,
    R_CLASS,
    R_CODEC,
    R_EXPIRY,
    R_GENERATION,
    R_HEADER_HASH,
    R_KEY_BYTES,
    R_KEY_HASH,
    R_LENGTH,
    R_PAYLOAD_BYTES,
    R_PAYLOAD_HASH,
    R_PUBLISHED,
    R_VERSION,
    RECORD_HEADER_BYTES,
    S_LIVE_BYTES,
    S_LIVE_COUNT,
    S_TAIL,
    S_WORD,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MASK,
    SEGMENT_SHIFT,
)
from .operations import account, bury_object
from .records import (
    checked,
    find_exact,
    hash_bytes,
    header_hash,
    item_of,
    item_offset,
    place_of,
    sound_length,
    unchecked,
)
from .segments import (
    mark_dead,
)
from .writer import record_bytes
from .xxh3 import hash_payload

# One listed record: place, item, offset, length, class | heat << 8 | block index << 16 | codec << 48, expiry


@kernel()
def list_live(d, segment, image, out, room):
    """List the live records of a segment into ``out`` (48 bytes each, at most ``room``); how many.

    image: where the segment's bytes are (its mapping, or a copy read from disk). Caller: the policy thread; racing
    deletions may leave listed records dead, which every later step checks again.
    """
    generation = load(entry_of(d, segment) + S_WORD) & GENERATION_MASK
    size, heat = load(d + D_SEGMENT_BYTES), load(d + D_ACCESS) + segment * load(d + D_ACCESS_STRIDE)
    offset, total = SEGMENT_HEADER_BYTES, 0
    while offset + RECORD_HEADER_BYTES <= size and total < room:
        head = image + offset
        length = sound_length(head, generation, size - offset)
        if length == 0:
            break
        place = load(head + R_KEY_HASH)
        item = item_of(place, segment, offset)
        if load(head + R_LENGTH) > 0 and find_exact(load(d + D_INDEX), load(d + D_MASK), place, item) != 0:
            entry = out + LISTED_BYTES * total
            store(entry, place)
            store(entry + 8, item)
            store(entry + 16, offset)
            store(entry + 24, length)
            warmth = load8(heat + (offset >> ACCESS_SHIFT))
            traits = load8(head + R_CLASS) | warmth << 8 | load32(head + R_BLOCK_INDEX) << 16
            store(entry + 32, traits | load8(head + R_CODEC) << 48)
            store(entry + 40, load(head + R_EXPIRY))
            total += 1
        offset += length
    return total


@kernel()
def recover(d, segment, image, verify, notes):
    """Put a segment's published, living records back into an index that is being rebuilt; how many.

    notes: address of a word; set to NOTE_DAMAGED where something is not as written, plus NOTE_COPIED where a record was
    deleted while it was copied: bury_copies() must follow when all segments were recovered.
    verify: check payloads too, and bury what is not whole; for segments on disk that were being filled when their daemon
    died, or the power did: pages reach a disk in any order. Where the key is there already: the same version elsewhere is a
    copy that a move left behind, and an older publish sequence loses. Caller: the starting daemon, before any client is
    served.
    """
    generation, tail = load(entry_of(d, segment) + S_WORD) & GENERATION_MASK, load(entry_of(d, segment) + S_TAIL)
    size, offset, total, bad, copied = load(d + D_SEGMENT_BYTES), SEGMENT_HEADER_BYTES, 0, 0, 0
    while offset + RECORD_HEADER_BYTES <= size:
        head = image + offset
        length = sound_length(head, generation, size - offset)
        if length == 0:
            break
        if load(head + R_PUBLISHED) == DEAD_COPIED:
            copied = 1
        sequence = unchecked(load(head + R_PUBLISHED))
        newest = load(d + D_CONTROL) + C_PUBLISH_SEQUENCE
        if sequence > load(newest):
            store(newest, sequence)
        if load(head + R_LENGTH) < 0:
            bad |= claim_is_damaged(d, segment, head, length, sequence)
        elif header_is_damaged(head, length) == 1:
            bad = 1
        elif sequence > 0 and verify == 1 and payload_is_whole(d, head, length) == 0:
            mark_dead(d, segment, offset, DEAD)
        elif sequence > 0:
            total += recover_record(d, segment, offset, head, length)
        offset += length
    if offset < tail or ends_in_damage(image, offset, generation, size) == 1:
        bad = 1
    store(notes, NOTE_DAMAGED * bad + NOTE_COPIED * copied)
    return total


@kernel()
def bury_copies(d, segment, image):
    """Bury what moves had copied, and not linked, of the objects that were deleted meanwhile in this segment.

    Caller: the starting daemon, after every segment went through recover().
    """
    generation, size = load(entry_of(d, segment) + S_WORD) & GENERATION_MASK, load(d + D_SEGMENT_BYTES)
    offset = SEGMENT_HEADER_BYTES
    while offset + RECORD_HEADER_BYTES <= size:
        head = image + offset
        length = sound_length(head, generation, size - offset)
        if length == 0:
            break
        if load(head + R_PUBLISHED) == DEAD_COPIED:
            key, key_bytes, place = head + RECORD_HEADER_BYTES, load16(head + R_KEY_BYTES), load(head + R_KEY_HASH)
            copy = find_item(d, key, key_bytes, place, 0, load(head + R_VERSION), -1)
            if copy != 0:
                item = load(copy)
                remove(d, place, copy)
                bury_object(d, item, key, key_bytes, place, DEAD)
        offset += length
    return 0


@helper
def header_is_damaged(head, length):
    """1 if a committed record's header is not what was written."""
    key_bytes, published = load16(head + R_KEY_BYTES), load(head + R_PUBLISHED)
    if RECORD_HEADER_BYTES + key_bytes > length or header_hash(head) != load(head + R_HEADER_HASH):
        return 1
    if published != DEAD and published != DEAD_COPIED and unchecked(published) < 0:
        return 1
    return 0 if record_bytes(key_bytes, load32(head + R_PAYLOAD_BYTES)) == length else 1


@helper
def claim_is_damaged(d, segment, head, length, sequence):
    """1 if what looks like room that was claimed and never filled is something else: published, or a wrong gap on disk."""
    if load(load(d + D_ADDRESSES) + 8 * segment) != 0:
        return 1 if sequence > 0 else 0
    return 0 if load(head + R_KEY_HASH) == checked(length) else 1


@helper
def ends_in_damage(image, offset, generation, size):
    """1 if records of this life of the segment, or a damaged one, lie where the walk ended."""
    if offset + RECORD_HEADER_BYTES <= size:
        life = unchecked(load(image + offset + R_GENERATION))
        if life < 0 or (life == generation and load(image + offset + R_LENGTH) != 0):
            return 1
    for place in range(offset, size - RECORD_HEADER_BYTES, GRANULE):
        head = image + place
        length = sound_length(head, generation, size - place)
        if length > 0 and unchecked(load(head + R_PUBLISHED)) > 0 and header_is_damaged(head, length) == 0:
            return 1
    return 0


@helper
def payload_is_whole(d, head, length):
    """1 if a payload has its checksum."""
    start, size = (RECORD_HEADER_BYTES + load16(head + R_KEY_BYTES) + 63) & ~63, load32(head + R_PAYLOAD_BYTES)
    if start + size > length:
        return 0
    state = load(d + D_PAGE) + 1024
    return 1 if size == 0 or hash_payload(head + start, size, state) == load(head + R_PAYLOAD_HASH) else 0


@helper
def recover_record(d, segment, offset, head, length):
    """One record; 1 if it became the live one."""
    place, block_index, size = load(head + R_KEY_HASH), load32(head + R_BLOCK_INDEX), load16(head + R_KEY_BYTES)
    key, version = head + RECORD_HEADER_BYTES, load(head + R_VERSION)
    item = item_of(place, segment, offset)
    # Other blocks than roots are told apart by version: two versions may coexist until the roots are compared.
    old = find_item(d, key, size, place, block_index, 0 if block_index == 0 else version, -1)
    if old == 0:
        if insert(d, place, item) == 0:
            return 0
        account(d, segment, offset, head, length)
        return 1
    other = load(old)
    old_segment, old_offset = (other >> SEGMENT_SHIFT) & SEGMENT_MASK, item_offset(other)
    if old_segment == segment and old_offset == offset:
        return 0
    old_head = head_at(d, old_segment, old_offset)
    older = old_head == 0 or (
        load(old_head + R_VERSION) != version
        and unchecked(load(old_head + R_PUBLISHED)) < unchecked(load(head + R_PUBLISHED))
    )
    if (
        not older
    ):  # a copy that a move left behind, or an older version: it must not come back when the other is deleted
        mark_dead(d, segment, offset, DEAD)
        return 0
    entry = entry_of(d, old_segment)
    if old_head != 0:
        store(entry + S_LIVE_BYTES, load(entry + S_LIVE_BYTES) - load(old_head + R_LENGTH))
    store(entry + S_LIVE_COUNT, load(entry + S_LIVE_COUNT) - 1)
    mark_dead(d, old_segment, old_offset, DEAD)
    store(old, item)
    account(d, segment, offset, head, length)
    return 1


@kernel()
def incomplete(d, segment, image, out, room):
    """List (like list_live) the live records whose object is not whole: a root that misses a block, a block without root.

    Caller: the starting daemon after every segment went through recover(); it drops them.
    """
    generation = load(entry_of(d, segment) + S_WORD) & GENERATION_MASK
    size, offset, total = load(d + D_SEGMENT_BYTES), SEGMENT_HEADER_BYTES, 0
    while offset + RECORD_HEADER_BYTES <= size and total < room:
        head = image + offset
        length = sound_length(head, generation, size - offset)
        if length == 0:
            break
        place = load(head + R_KEY_HASH)
        item = item_of(place, segment, offset)
        live = find_exact(load(d + D_INDEX), load(d + D_MASK), place, item)
        if load(head + R_LENGTH) > 0 and live != 0 and whole(d, head) == 0:
            entry = out + LISTED_BYTES * total
            store(entry, place)
            store(entry + 8, item)
            store(entry + 16, offset)
            store(entry + 24, length)
            store(entry + 32, load8(head + R_CLASS) | load32(head + R_BLOCK_INDEX) << 16)
            store(entry + 40, 0)
            total += 1
        offset += length
    return total


@helper
def whole(d, head):
    """1 if a root's blocks, or another block's root, are in the index with the same version."""
    size, version = load16(head + R_KEY_BYTES), load(head + R_VERSION)
    key = head + RECORD_HEADER_BYTES
    key_hash = hash_bytes(key, size, 0)
    if load32(head + R_BLOCK_INDEX) != 0:
        return 1 if find_item(d, key, size, key_hash, 0, version, -1) != 0 else 0
    for block_index in range(1, load32(head + R_BLOCK_COUNT)):
        if find_item(d, key, size, place_of(key_hash, block_index), block_index, version, -1) == 0:
            return 0
    return 1


@kernel()
def check(d, segment, image, out):
    """Compare a segment with the index. out: live records found, their bytes, records that are both dead and indexed.

    Caller: anyone in the daemon while no message is under way for the segment.
    """
    fence()
    generation = load_acquire(entry_of(d, segment) + S_WORD) & GENERATION_MASK  # SYNC segment.word
    size, offset = load(d + D_SEGMENT_BYTES), SEGMENT_HEADER_BYTES
    count, total, wrong = 0, 0, 0
    while offset + RECORD_HEADER_BYTES <= size:
        head = image + offset
        length = sound_length(head, generation, size - offset)
        if length == 0:
            break
        place = load(head + R_KEY_HASH)
        item = item_of(place, segment, offset)
        if load(head + R_LENGTH) > 0 and find_exact(load(d + D_INDEX), load(d + D_MASK), place, item) != 0:
            count += 1
            total += length
            if unchecked(load(head + R_PUBLISHED)) <= 0:
                wrong += 1
        offset += length
    store(out, count)
    store(out + 8, total)
    store(out + 16, wrong)
    return count
