"""Moving blocks between tiers, in the background: demote, drop, compact, promote.

A move copies records into a segment leased by the daemon itself, makes them durable where the target promises it, and only
then asks the mutator to relink the index. A death before the relink leaves copies that nothing points to; one after it
leaves originals that are marked dead. Either way every block is found exactly once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierstore.ringbuf import layout
from tierstore.ringbuf.arena import Arena
from tierstore.ringbuf.errors import Full
from tierstore.ringbuf.mutator import (
    ROW_EXPIRY,
    ROW_ITEM,
    ROW_LENGTH,
    ROW_OFFSET,
    ROW_PACKED,
    ROW_PLACE,
    Mutator,
)
from tierstore.ringbuf.recovery import SegmentImage

from .policy import Policy

_PAGE = 4096
# A segment with less than this share of live bytes is emptied into others instead of pushing anything out.
COMPACT_SHARE = 0.5
COMPACT_SHARE_KEEP = 0.94
HEAT_TO_PROMOTE = 3
DROP_AT_ONCE = 512


@dataclass
class Target:
    """A segment that moves are filling."""

    segment: int
    arena: Arena
    offset: int
    address: int
    written: int
    staging: Any = None


def _hot_share(rows: np.ndarray) -> float:
    """Share of the bytes of listed records that was read lately."""
    lengths = rows[:-1, ROW_LENGTH]
    hot = lengths[heat_of(rows) > 0]
    return float(hot.sum() / max(1, lengths.sum()))


def heat_of(rows: np.ndarray) -> np.ndarray:
    """The marks of listed records."""
    return rows[:-1, ROW_PACKED] >> np.uint64(8) & np.uint64(0xFF)


def class_of(rows: np.ndarray) -> np.ndarray:
    """The classes of listed records."""
    return rows[:-1, ROW_PACKED] & np.uint64(0xFF)


def chosen(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Some of the listed records, again with a spare row."""
    return np.concatenate([rows[:-1][keep], rows[-1:]])


class Cascade:
    """All movement in one store. One thread: the policy thread."""

    def __init__(self, mutator: Mutator):
        self.mutator = mutator
        self.policies = [Policy() for _ in mutator.arenas]
        self._targets: dict[tuple[int, int, int], Target] = {}
        self._hash_state = (ctypes.c_uint64 * 9)()
        self._step = mutator.trap  # named points of the protocol, where tests kill the daemon
        self._staging: list[Any] = []
        table = mutator.control.address + layout.CONTROL_HEADER_BYTES
        words = ctypes.c_uint64 * (mutator.segment_count * layout.SEGMENT_ENTRY_BYTES // 8)
        self._table = np.ctypeslib.as_array(words.from_address(table)).reshape(mutator.segment_count, -1)

    # --- bookkeeping --------------------------------------------------------------------------------------------------------

    def sealed(self, segment: int, warm: bool = False) -> None:
        """A segment was sealed: it may leave from now on (pinned ones may not)."""
        kind = self.mutator.segment_field(segment, layout.S_CLASS)
        if kind < layout.CLASS_PINNED_CACHE and self.mutator.state(segment) == layout.STATE_SEALED:
            pool = self.mutator.segment_field(segment, layout.S_POOL)
            self.policies[self._number(segment)].add(segment, pool, warm)

    def freed(self, segment: int) -> None:
        """A segment is free again."""
        self.policies[self._number(segment)].discard(segment)

    def _number(self, segment: int) -> int:
        return int(self.mutator._arena_of[segment])

    def slower(self, number: int) -> list[int]:
        """Arenas of the next slower tier, those with most free segments first."""
        arenas = self.mutator.arenas
        kinds = sorted({arena.kind for arena in arenas if arena.kind > arenas[number].kind})
        if not kinds:
            return []
        found = [i for i, arena in enumerate(arenas) if arena.kind == kinds[0]]
        return sorted(found, key=lambda i: -self.mutator.free_count(i))

    # --- making room ----------------------------------------------------------------------------------------------------------

    def shrink_pool(self, pool: int) -> bool:
        """Drop one segment of CACHE data of a pool that reached its quota, from the slowest tier that has any."""
        for number in reversed(range(len(self.policies))):
            segment = self.policies[number].victim(pool, self._warmth, self._cool, self._droppable)
            if segment is not None and self._drop(segment):
                return True
        return False

    def drop_expired(self, now_ms: int) -> None:
        """Take objects out whose time to live has passed, whatever their class."""
        due = self._table[:, layout.S_EXPIRY // 8]
        states = self._table[:, 0] >> np.uint64(layout.STATE_SHIFT)
        for segment in np.flatnonzero((due > 0) & (due <= now_ms) & (states == layout.STATE_SEALED)).tolist():
            rows = self.records(segment)[:-1]
            past = rows[(rows[:, ROW_EXPIRY] > 0) & (rows[:, ROW_EXPIRY] <= now_ms)]
            if len(past):
                pairs = np.ascontiguousarray(past[:, [ROW_PLACE, ROW_ITEM]])
                self.mutator.submit(layout.OP_DROP, segment, 0, len(pairs), pairs.ctypes.data)

    def make_room(self, number: int, pool: int | None = None, depth: int = 0) -> bool:
        """Free one segment of an arena (of a pool): compact, demote, or drop. False if nothing may go."""
        if pool is None and self._compact(number, COMPACT_SHARE):
            return True
        policy = self.policies[number]
        fullest_first = sorted(policy.pools, key=lambda name: -len(policy.pools[name]))
        for name in fullest_first if pool is None else [pool]:
            if self._push_out(number, name, depth):
                return True
        return self._compact(number, COMPACT_SHARE_KEEP)

    def _push_out(self, number: int, pool: int, depth: int) -> bool:
        """Demote or drop one victim of a pool."""
        lower, policy = self.slower(number), self.policies[number]
        for gone in [s for s in policy.members() if self.mutator.state(s) != layout.STATE_SEALED]:
            policy.discard(gone)  # empty already, and only kept by somebody who still reads it
        for _ in range(4):
            segment = policy.victim(pool, self._warmth, self._cool, lambda s: bool(lower) or self._droppable(s))
            if segment is None:
                return False
            self._step("evict.chosen")
            if lower and self._demote(segment, lower, depth):
                return True
            if self._drop(segment):
                return True
            policy.add(segment, pool, warm=True)
        return False

    def _droppable(self, segment: int) -> bool:
        """Whether a segment holds nothing that must be kept."""
        return self.mutator.segment_field(segment, layout.S_CLASS) == layout.CLASS_CACHE

    def _demote(self, segment: int, lower: list[int], depth: int) -> bool:
        for number in lower:
            if self.mutator.free_count(number) <= self.mutator.reserve_count() and depth < 2:
                self.make_room(number, depth=depth + 1)
            moved = self.move(segment, self.records(segment), number)
            if moved is not None:
                self.mutator.count("demoted_bytes", moved)
                return True
        return False

    def _drop(self, segment: int) -> bool:
        """Let the CACHE blocks of a segment go; False if it holds anything else."""
        if not self._droppable(segment):
            return False
        self._step("evict.drop")
        if self.mutator.address(segment):
            offset = layout.SEGMENT_HEADER_BYTES
            while offset > 0:  # in steps, so that nobody's put waits for a whole segment
                offset = self.mutator.submit(layout.OP_DROP, segment, offset, DROP_AT_ONCE)
        else:
            pairs = np.ascontiguousarray(self.records(segment)[:-1, [ROW_PLACE, ROW_ITEM]])
            self.mutator.submit(layout.OP_DROP, segment, 0, len(pairs), pairs.ctypes.data)
        self.policies[self._number(segment)].discard(segment)
        return True

    def _compact(self, number: int, share: float) -> bool:
        """Empty the sealed segment with the fewest live bytes into another of the same arena."""
        arena = self.mutator.arenas[number]
        rows = self._table[arena.first : arena.first + arena.segment_count]
        sealed = rows[:, 0] >> np.uint64(layout.STATE_SHIFT) == layout.STATE_SEALED
        if not sealed.any():
            return False
        live = np.where(sealed, rows[:, layout.S_LIVE_BYTES // 8], np.uint64(2**63))
        best = int(live.argmin())
        if int(live[best]) > share * self.mutator.segment_bytes:
            return False
        segment = arena.first + best
        return self.move(segment, self.records(segment), number) is not None

    def records(self, segment: int) -> np.ndarray:
        """The live records of a segment, whatever arena it is in; see Mutator.list_live()."""
        if self.mutator.address(segment):
            return self.mutator.list_live(segment)
        image = SegmentImage(self.mutator, segment)  # a name keeps its memory mapped during the call
        return self.mutator.list_live(segment, image.address)

    def heat(self, segment: int) -> int:
        """The highest mark in a segment."""
        return int(self.mutator.heat_bytes(segment).max())

    def _warmth(self, segment: int) -> float:
        return _hot_share(self.records(segment)) if self.heat(segment) else 0.0

    def _cool(self, segment: int) -> None:
        self.mutator.heat_bytes(segment)[:] = 0

    # --- moving -----------------------------------------------------------------------------------------------------------------

    def move(self, source: int, rows: np.ndarray, number: int, pinned: bool | None = None) -> int | None:
        """Move listed records of one segment to an arena; bytes moved, None if there was no room.

        pinned: make the copies pinned or not; None leaves their class.
        """
        if len(rows) < 2:
            return 0
        pool = self.mutator.segment_field(source, layout.S_POOL)
        image = self.mutator.address(source) or self._read_segment(source, rows)
        moved = 0
        for kind in np.unique(class_of(rows)).tolist():
            group = chosen(rows, class_of(rows) == kind)
            copied = self._move_class(source, image, group, number, pool, _class_of(kind, pinned))
            if copied is None:
                return None
            moved += copied
        return moved

    def _move_class(self, source: int, image: int, rows: np.ndarray, number: int, pool: int, kind: int) -> int | None:
        total, position, moved = len(rows) - 1, 0, 0
        while position < total:
            target = self._target(number, pool, kind, int(rows[position, ROW_LENGTH]))
            if target is None:
                return None
            self._start_page(target)
            begin, first = target.offset, position
            flush = int(target.arena.kind == layout.KIND_PMEM)
            position = self.mutator.native.copy_records(
                target.address,
                begin,
                self.mutator.segment_bytes,
                image,
                rows.ctypes.data,
                first,
                total,
                self.mutator.generation(target.segment),
                kind,
                flush,
                ctypes.addressof(self._hash_state),
            )
            target.offset = int(rows[total, 0])
            moved += target.offset - begin
            self._step("move.copied")
            self._persist(target, begin)
            self._step("move.persisted")
            self.mutator.submit(layout.OP_RELINK, target.segment | source << 20, begin, target.offset, target.address)
            self._step("move.relinked")
            for row in rows[first:position][rows[first:position, ROW_LENGTH] == 0]:
                self._condemn(source, row, kind)
        return moved

    def _start_page(self, target: Target) -> None:
        """Begin each write to disk on a page of its own: a page written again would undo marks made in it meanwhile."""
        gap = -target.offset % _PAGE
        if target.staging is None or gap == 0:
            return
        filler = target.address + target.offset
        ctypes.memset(filler, 0, layout.RECORD_HEADER_BYTES)
        ctypes.c_uint64.from_address(filler + layout.R_GENERATION).value = self.mutator.generation(target.segment)
        ctypes.c_int64.from_address(filler + layout.R_LENGTH).value = gap
        os.pwrite(target.arena.fd, ctypes.string_at(filler, 16), target.arena.offset_of(target.segment) + target.offset)
        target.offset += gap

    def _condemn(self, segment: int, row: np.ndarray, kind: int) -> None:
        """A payload is not what was written: a CACHE block becomes a miss, a KEEP block is set aside with its segment."""
        if kind in (layout.CLASS_CACHE, layout.CLASS_PINNED_CACHE):
            pair = np.array([row[ROW_PLACE], row[ROW_ITEM]], "<u8")
            self.mutator.submit(layout.OP_DROP, segment, 0, 1, pair.ctypes.data)
        elif self.mutator.submit(layout.OP_QUARANTINE, segment) == 1:
            self.mutator.count("quarantined", 1)
            self.policies[self._number(segment)].discard(segment)

    def _target(self, number: int, pool: int, kind: int, size: int) -> Target | None:
        """The segment that moves to an arena are filling, with room for ``size`` bytes."""
        name = (number, pool, kind)
        target = self._targets.get(name)
        if target is not None and target.offset + size + _PAGE > self.mutator.segment_bytes:
            self._finish(name)
            target = None
        if target is None:
            segment = self.mutator.submit(layout.OP_LEASE, number, pool, kind)
            if segment < 0:
                return None
            arena = self.mutator.arenas[number]
            if not arena.mapped:
                os.fdatasync(arena.fd)  # the new generation is on disk before anything older is overwritten
            staging = None if arena.mapped else self._take_staging()
            address = _address(staging) if staging is not None else self.mutator.address(segment)
            target = Target(segment, arena, layout.SEGMENT_HEADER_BYTES, address, 0, staging)
            self._targets[name] = target
        return target

    def _take_staging(self) -> Any:
        return self._staging.pop() if self._staging else mmap.mmap(-1, self.mutator.segment_bytes)

    def _finish(self, name: tuple[int, int, int]) -> None:
        target = self._targets.pop(name)
        self.mutator.submit(layout.OP_SEAL, target.segment)
        self.sealed(target.segment, warm=True)
        if target.staging is not None:
            self._staging.append(target.staging)

    def finish_arena(self, number: int) -> None:
        """Seal an arena's open targets, so that what lies in them can move on."""
        for name in [name for name in self._targets if name[0] == number]:
            self._finish(name)

    def finish_all(self) -> None:
        """Seal all open targets."""
        for name in list(self._targets):
            self._finish(name)

    def _persist(self, target: Target, begin: int) -> None:
        """Make what was copied since ``begin`` as durable as the arena can."""
        if target.staging is None:
            if target.arena.kind == layout.KIND_PMEM and target.arena.needs_sync:
                os.fdatasync(target.arena.fd)
            return
        first = begin // _PAGE * _PAGE
        last = -(-target.offset // _PAGE) * _PAGE
        # What an earlier use of the staging memory left behind the last record must not look like one.
        ctypes.memset(target.address + target.offset, 0, last - target.offset)
        base = target.arena.offset_of(target.segment)
        view = memoryview(target.staging)
        first = max(first, _PAGE)  # the first page is the segment's header, which the mutator writes
        while first < last:
            first += os.pwritev(target.arena.direct, [view[first:last]], base + first)
        os.fdatasync(target.arena.direct)
        self.mutator.count("disk_bytes_written", last - begin // _PAGE * _PAGE)

    def _read_segment(self, segment: int, rows: np.ndarray) -> int:
        """Read the listed records of an unmapped segment to their offsets in memory."""
        if not hasattr(self, "_image"):
            self._image = mmap.mmap(-1, self.mutator.segment_bytes)
        arena = self.mutator.arena_of(segment)
        view, base = memoryview(self._image), arena.offset_of(segment)
        for offset, length in rows[:-1, [ROW_OFFSET, ROW_LENGTH]].tolist():
            first = offset // _PAGE * _PAGE
            last = min(-(-(offset + length) // _PAGE) * _PAGE, self.mutator.segment_bytes)
            while first < last:
                got = os.preadv(arena.direct, [view[first:last]], base + first)
                if got <= 0:
                    break
                first += got
        return _address(self._image)

    # --- promotion ----------------------------------------------------------------------------------------------------------------

    def promote_hot(self, limit_bytes: int) -> int:
        """Bring blocks that were read often up to the fastest tier, where they may replace unread ones; bytes moved."""
        moved = 0
        for number in range(1, len(self.mutator.arenas)):
            for segment in self.policies[number].members():
                if moved >= limit_bytes:
                    return moved
                if self.heat(segment) < HEAT_TO_PROMOTE:
                    continue
                rows = self.records(segment)
                hot = chosen(rows, heat_of(rows) >= HEAT_TO_PROMOTE)
                size = int(hot[:-1, ROW_LENGTH].sum())
                if not size or not self._room_for(0, size):
                    continue
                got = self.move(segment, hot, 0)
                if got:
                    self.mutator.count("promoted_bytes", got)
                    moved += got
        return moved

    def _room_for(self, number: int, size: int) -> bool:
        """Whether free segments, or ones that nobody reads, can take ``size`` bytes."""
        needed = -(-size // self.mutator.segment_bytes)
        for _ in range(needed + 1):
            if self.mutator.free_count(number) > self.mutator.reserve_count() + needed:
                return True
            cold = self.policies[number].coldest(self.heat, lambda s: True)
            lower = self.slower(number)
            if cold is None or not lower or not self._demote(cold, lower, 0):
                return False
            time.sleep(0.002)  # the mutator frees the emptied segment at its next round
        return False

    def age(self) -> None:
        """Halve all marks, so that they tell the recent rate of reads."""
        start = self.mutator.clients.address + self.mutator.access_offset
        count = self.mutator.segment_count * self.mutator.access_stride
        heat = np.ctypeslib.as_array((ctypes.c_uint8 * count).from_address(start))
        heat >>= 1

    def require(self, moved: int | None, what: str) -> None:
        """Raise Full where a move that a user asked for found no room."""
        if moved is None:
            raise Full(f"{what}: no room there; delete or unpin something, or enlarge the tier")


def _class_of(kind: int, pinned: bool | None) -> int:
    if pinned is None:
        return kind
    return kind | layout.CLASS_PINNED_CACHE if pinned else kind & layout.CLASS_KEEP


def _address(memory: Any) -> int:
    return int(np.frombuffer(memory, "u1").ctypes.data)
