"""Start: which segments hold what, and the index rebuilt from them.

After a kill of the daemon the control file tells every segment's state (warm). After power loss only the segment headers
of persistent arenas do (cold). Either way a record counts if it was published, is not buried, carries its segment's
generation and passes its header's hash; whatever is in doubt is dropped (CACHE) or reported as lost (KEEP).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from . import core_state as core
from . import layout
from .codes import LISTED_BYTES, NOTE_COPIED, NOTE_DAMAGED
from .region import lock_holder

if TYPE_CHECKING:
    from .mutator import Mutator

_HELD = (layout.STATE_LEASED, layout.STATE_SEALED, layout.STATE_EVICTING, layout.STATE_QUARANTINED)
# Below this average the whole segment is read at once instead of header by header.
_HEADER_READ_BYTES = 8192


@dataclass
class Recovery:
    """What a start found; the second half runs once the mutator does."""

    blocks: int = 0
    damaged: list[int] = field(default_factory=list)  # segments that hold, or held, something not as it was written
    dead_slots: list[int] = field(default_factory=list)
    copied: list[int] = field(default_factory=list)  # segments where objects were deleted while they were moved
    segments: list[int] = field(default_factory=list)
    lost_keep: int = 0
    incomplete: list[tuple[int, np.ndarray]] = field(default_factory=list)


def recover(mutator: Mutator) -> Recovery:
    """First half, before the mutator runs: free rings, segment states, index."""
    found = Recovery()
    _find_slots(mutator, found)
    for number, arena in enumerate(mutator.arenas):
        free = []
        for segment in range(arena.first, arena.first + arena.segment_count):
            state = _settle_state(mutator, number, segment, found)
            if state == layout.STATE_FREE:
                free.append(segment)
            elif state in _HELD and mutator.generation(segment):
                _recover_segment(mutator, segment, found)
        _fill_free_ring(mutator, number, free)
    for segment in found.copied:
        image = SegmentImage(mutator, segment)
        mutator.native.bury_copies(mutator.core, segment, image.address)
    mutator.trap("recover.indexed")
    for name in os.listdir(mutator.folder):
        if name.startswith("index-") and name != f"index-{mutator.epoch}":
            os.unlink(os.path.join(mutator.folder, name))
    for segment in found.segments:
        _find_incomplete(mutator, segment, found)
    return found


def _find_incomplete(mutator: Mutator, segment: int, found: Recovery) -> None:
    """Note the blocks of objects that are not whole; the mutator, once it runs, takes them out."""
    if mutator.state(segment) == layout.STATE_LEASED:
        return  # its client lives and may be about to publish the root
    room = max(1, mutator.segment_field(segment, layout.S_LIVE_COUNT))
    out = np.zeros((room, LISTED_BYTES // 8), "<u8")
    image = SegmentImage(mutator, segment)
    count = mutator.native.incomplete(mutator.core, segment, image.address, out.ctypes.data, room)
    if count:
        # Blocks without a root belong to a put that was never acknowledged; a root without blocks is a loss.
        roots = out[:count, 4] >> np.uint64(16) == 0  # no codec is listed there
        found.lost_keep += int((out[:count, 4][roots] & np.uint64(1)).sum())
        found.incomplete.append((segment, np.ascontiguousarray(out[:count, :2])))


def _find_slots(mutator: Mutator, found: Recovery) -> None:
    for slot in range(1, mutator.slot_count if mutator.warm else 0):
        # Not by its address: that would take a page of memory for every slot that nobody ever had.
        at = mutator.slot_address(slot) - mutator.clients.address
        if int.from_bytes(os.pread(mutator.clients_fd, 8, at), "little") != layout.SLOT_ACTIVE:
            continue
        mutator.raise_slot_high(slot + 1)
        if lock_holder(mutator.locks_fd, slot) == 0:
            found.dead_slots.append(slot)


def _settle_state(mutator: Mutator, number: int, segment: int, found: Recovery) -> int:
    """The state a segment starts this life with."""
    entry = mutator._entry(segment)
    word = mutator._get(entry)
    arena = mutator.arenas[number]
    if mutator.warm and not arena.warm:  # its file was lost, and with it everything that the control file tells of
        if word >> layout.STATE_SHIFT in _HELD:
            found.damaged.append(segment)
        mutator._put(entry, layout.STATE_UNBACKED << layout.STATE_SHIFT)
        for offset in (layout.S_LIVE_BYTES, layout.S_LIVE_COUNT, layout.S_EXPIRY):
            mutator._put(entry + offset, 0)
        return layout.STATE_UNBACKED
    if not mutator.warm:
        if arena.kind == layout.KIND_DRAM or not arena.warm:
            return layout.STATE_UNBACKED
        header = _segment_header(mutator, segment)
        if not any(header):
            return layout.STATE_UNBACKED
        life, sealed, sequence = (layout.unchecked(word) for word in header[1:4])
        if header[0] != layout.SEGMENT_MAGIC or min(life, sealed, sequence) < 0:
            found.damaged.append(segment)
        if life < 0:  # which records are of this life, nobody can tell: the bytes stay as they are, out of use
            mutator._put(entry, layout.STATE_QUARANTINED << layout.STATE_SHIFT)
            mutator._pools[0] += 1
            return layout.STATE_QUARANTINED
        if arena.mapped:
            arena.back(segment)  # a copy may have holes where there were zeros
        generation = life & (1 << layout.LIFE_POOL_SHIFT) - 1
        word = generation | layout.STATE_SEALED << layout.STATE_SHIFT
        mutator._put(entry + layout.S_POOL, life >> layout.LIFE_POOL_SHIFT & 63)
        mutator._put(entry + layout.S_CLASS, life >> layout.LIFE_CLASS_SHIFT)
        mutator._put(entry + layout.S_TAIL, max(0, sealed))
        mutator._put(entry + layout.S_SEQUENCE, max(0, sequence))
    state = word >> layout.STATE_SHIFT
    if state in _HELD:
        owner, generation = word >> layout.OWNER_SHIFT & layout.OWNER_MASK, word & layout.GENERATION_MASK
        # SEALED with an owner: the daemon died while it took an idle lease back; it may be in use by now.
        if owner > 0 and lock_holder(mutator.locks_fd, owner) != 0:
            word = layout.STATE_LEASED << layout.STATE_SHIFT | owner << layout.OWNER_SHIFT | generation
        else:
            word = layout.STATE_SEALED << layout.STATE_SHIFT | generation
        for offset in (layout.S_LIVE_BYTES, layout.S_LIVE_COUNT, layout.S_EXPIRY):
            mutator._put(entry + offset, 0)
        pool = mutator._get(entry + layout.S_POOL)
        mutator._pools[min(pool, 63)] += 1
    mutator._put(entry, word)
    return word >> layout.STATE_SHIFT


def _segment_header(mutator: Mutator, segment: int) -> list[int]:
    arena = mutator.arena_of(segment)
    raw = os.pread(arena.fd, 32, arena.offset_of(segment))
    return list(np.frombuffer(raw.ljust(32, b"\0"), "<u8").tolist())


def _recover_segment(mutator: Mutator, segment: int, found: Recovery) -> None:
    mutator.trap("recover.segment")
    sealed = layout.unchecked(_segment_header(mutator, segment)[layout.SH_SEALED_BYTES // 8])
    verify = not mutator.address(segment) and sealed <= 0
    image = SegmentImage(mutator, segment, payloads=verify)
    notes = ctypes.c_uint64()
    at = ctypes.addressof(notes)
    found.blocks += mutator.native.recover(mutator.core, segment, image.address, int(verify), at)
    if notes.value & NOTE_DAMAGED:
        found.damaged.append(segment)
    if notes.value & NOTE_COPIED:
        found.copied.append(segment)
    found.segments.append(segment)


class SegmentImage:
    """A segment's bytes as memory: the mapping itself, or the headers (or, with payloads, all) read from the file."""

    def __init__(self, mutator: Mutator, segment: int, payloads: bool = False):
        self.address = mutator.address(segment)
        if self.address:
            return
        arena, size = mutator.arena_of(segment), mutator.segment_bytes
        self._memory = mmap.mmap(-1, size)
        view = np.frombuffer(self._memory, "u1")
        self.address = view.ctypes.data
        offset, base = layout.SEGMENT_HEADER_BYTES, arena.offset_of(segment)
        life = layout.checked(mutator.generation(segment))
        while offset + layout.RECORD_HEADER_BYTES <= size:
            raw = os.pread(arena.fd, min(_HEADER_READ_BYTES, size - offset), base + offset)
            if len(raw) < layout.RECORD_HEADER_BYTES:
                return
            length = abs(int.from_bytes(raw[:8], "little", signed=True))
            if length < layout.RECORD_HEADER_BYTES or int.from_bytes(raw[8:16], "little") != life:
                return
            ctypes.memmove(self.address + offset, raw, min(len(raw), size - offset))
            if length < _HEADER_READ_BYTES or payloads:
                raw = os.pread(arena.fd, size - offset, base + offset)
                ctypes.memmove(self.address + offset, raw, min(len(raw), size - offset))
                return
            offset += length


def _fill_free_ring(mutator: Mutator, number: int, free: list[int]) -> None:
    mutator._rings[number][: len(free)] = free
    words = (core.D_FREE_RINGS + number * core.FREE_RING_BYTES) // 8
    mutator._words[words], mutator._words[words + 1] = 0, len(free)
    mutator._put(mutator.control.address + layout.C_FREE + 8 * number, len(free))


def finish(mutator: Mutator, found: Recovery) -> None:
    """Second half, with the mutator running: bury what is not whole, free what is empty, reap who is dead."""
    for slot in found.dead_slots:
        mutator.reap(slot)
    for segment, pairs in found.incomplete:
        mutator.submit(layout.OP_DROP, segment, 0, len(pairs), pairs.ctypes.data)
    for segment in found.segments:
        if mutator.state(segment) == layout.STATE_SEALED and mutator.segment_field(segment, layout.S_LIVE_COUNT) == 0:
            mutator.submit(layout.OP_RETIRE, segment)
    for arena in mutator.arenas:
        if not arena.mapped:
            arena.sync()  # what was buried must not come back when its twin is deleted
