"""What moves between tiers, in the background: demote, drop, compact, promote. How a move is made: moves.py."""

from __future__ import annotations

import ctypes
import time
from functools import partial

import numpy as np

from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import Full
from tierstore.ringbuf.mutator import (
    ROW_EXPIRY,
    ROW_ITEM,
    ROW_LENGTH,
    ROW_PACKED,
    ROW_PLACE,
    Mutator,
)

from .moves import Mover, marked_durable
from .policy import Policy

# A segment with less than this share of live bytes is emptied into others instead of pushing anything out.
COMPACT_SHARE = 0.5
COMPACT_SHARE_KEEP = 0.92
# Reads must be so much more uneven than chance before anything moves up (index of dispersion; 1 is a Poisson process).
DISPERSION_MIN = 1.5
# A block moves up when it was read so often, and by this factor more often than what makes room for it.
HEAT_TO_PROMOTE = 2
HEAT_RATIO = 2
DROP_AT_ONCE = 512


def _hot_share(rows: np.ndarray) -> float:
    """Share of the bytes of listed records that was read lately."""
    lengths = rows[:-1, ROW_LENGTH]
    hot = lengths[heat_of(rows) > 0]
    return float(hot.sum() / max(1, lengths.sum()))


def heat_of(rows: np.ndarray) -> np.ndarray:
    """The marks of listed records."""
    return rows[:-1, ROW_PACKED] >> np.uint64(8) & np.uint64(0xFF)


def _may_rise(threshold: float, bound: bool, rows: np.ndarray) -> np.ndarray:
    """Which of the listed records were read so often; bound: without those that were acknowledged as durable."""
    hot = np.asarray(heat_of(rows) >= threshold)
    return hot & ~marked_durable(rows) if bound else hot


class Cascade:
    """All movement in one store. One thread: the policy thread."""

    def __init__(self, mutator: Mutator):
        self.mutator = mutator
        self.policies = [Policy() for _ in mutator.arenas]
        self.mover = Mover(mutator, lambda segment: self.sealed(segment, warm=True), self.freed)
        self.move, self.records = self.mover.move, self.mover.records
        self._bound = not mutator.arenas[0].durable  # what was acknowledged as durable stays below the fastest tier
        self._settled: dict[int, int] = {}  # segments that hold nothing else, and their generation
        self._step = mutator.trap  # named points of the protocol, where tests kill the daemon
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
        self._settled.pop(segment, None)

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
                if self.make_room(number, depth=depth + 1):
                    self.wait_free(number, 1)
            moved = self.move(segment, number)
            if moved is not None:
                self.mutator.count("demoted_bytes", moved)
                return True
        return False

    def wait_free(self, number: int, count: int) -> bool:
        """Give the mutator its next round to free what was emptied, unless somebody still reads it."""
        for _ in range(5):
            if self.mutator.free_count(number) >= count:
                return True
            time.sleep(0.0005)
        return False

    def freed_count(self) -> int:
        """Segments freed since the start."""
        return self.mutator.counters()["freed"]

    def wait_freed(self, before: int) -> None:
        """Give the mutator its next round to free a segment that was emptied, unless somebody still reads it."""
        for _ in range(25):
            if self.freed_count() > before:
                return
            time.sleep(0.0001)

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
        """Empty the sealed segment with the fewest live bytes into another of the same arena, if that frees one.

        It does where a segment that moves are filling has room for them, or where the bytes of two segments fit into one.
        """
        arena, size = self.mutator.arenas[number], self.mutator.segment_bytes
        rows = self._table[arena.first : arena.first + arena.segment_count]
        sealed = np.flatnonzero(rows[:, 0] >> np.uint64(layout.STATE_SHIFT) == layout.STATE_SEALED)
        live = rows[sealed, layout.S_LIVE_BYTES // 8].astype("i8")
        kinds = rows[sealed, layout.S_POOL // 8] << np.uint64(8) | rows[sealed, layout.S_CLASS // 8]
        for at in np.argsort(live, kind="stable").tolist():
            if live[at] > share * size:
                return False
            pool, kind = divmod(int(kinds[at]), 256)
            same = live[kinds == kinds[at]]
            two = np.partition(same, 1)[:2].sum() if len(same) > 1 else size + 1
            if two <= size or live[at] <= self.mover.room_left(number, pool, kind):
                return self.move(arena.first + int(sealed[at]), number) is not None
        return False

    def _warmth(self, segment: int) -> float:
        return _hot_share(self.records(segment)) if self.mutator.heat_bytes(segment).any() else 0.0

    def _cool(self, segment: int) -> None:
        self.mutator.heat_bytes(segment)[:] >>= 1

    # --- promotion ----------------------------------------------------------------------------------------------------------------

    def promote_hot(self, limit_bytes: int, spare: bool) -> int:
        """Bring blocks that are read much more often than what the fastest tier holds up to it; bytes moved.

        While reads differ no more than chance makes them (a cyclic scan, uniform reads), only room that is free is used,
        and that only if it is to spare.
        """
        moved, replace = 0, self._dispersion() >= DISPERSION_MIN
        if not replace and not spare:
            return moved
        for segment in self._hottest():
            if moved >= limit_bytes:
                break
            victim, coldness = self._coldest() if replace else (None, 0.0)
            threshold = HEAT_RATIO * coldness + HEAT_TO_PROMOTE
            rows = self.records(segment)
            rising = partial(_may_rise, threshold, self._bound)
            size = int(rows[:-1, ROW_LENGTH][rising(rows)].sum())
            if not size:
                if self._bound and marked_durable(rows).all():
                    self._settled[segment] = self.mutator.generation(segment)  # until it is free: no record is added
                if int(self.heats()[segment].max()) < threshold:
                    break  # the others are colder still
                continue
            if not self._room_for(size, victim):
                break
            got = self.move(segment, 0, rising)
            if got:
                self.mutator.count("promoted_bytes", got)
                moved += got
        return moved

    def _hottest(self) -> list[int]:
        """Segments below the fastest tier that hold a block worth a look, hottest first."""
        heats, found = self.heats(), []
        for number in range(1, len(self.mutator.arenas)):
            arena = self.mutator.arenas[number]
            most = heats[arena.first : arena.first + arena.segment_count].max(axis=1)
            places = np.flatnonzero(most >= HEAT_TO_PROMOTE).tolist()
            found += [(int(most[p]), arena.first + p) for p in places if arena.first + p in self.policies[number]]
        return [segment for _, segment in sorted(found, reverse=True) if not self._is_settled(segment)]

    def _is_settled(self, segment: int) -> bool:
        return segment in self._settled and self._settled[segment] == self.mutator.generation(segment)

    def _dispersion(self) -> float:
        """Variance over mean of the reads of all blocks: 0 in a cyclic scan, 1 for reads at random, more where some are hot."""
        marks, blocks = self.heats(), int(self._table[:, layout.S_LIVE_COUNT // 8].sum())
        total, squares = int(marks.sum(dtype="u8")), int(np.square(marks, dtype="u4").sum(dtype="u8"))
        return squares / total - total / max(1, blocks) if total else 0.0

    def _coldest(self) -> tuple[int | None, float]:
        """The segment of the fastest tier whose blocks are read least, and how often: marks per block."""
        members = [s for s in self.policies[0].members() if self.mutator.state(s) == layout.STATE_SEALED]
        if not members:
            return None, 0.0
        marks = self.heats()[members].sum(axis=1, dtype="u8")
        blocks = np.clip(self._table[members, layout.S_LIVE_COUNT // 8], 1, self.mutator.access_stride)
        rate = marks / blocks
        best = int(rate.argmin())
        return members[best], float(rate[best])

    def _room_for(self, size: int, victim: int | None) -> bool:
        """Whether the fastest tier has, or gets by demoting one segment, room for ``size`` bytes."""
        needed = -(-size // self.mutator.segment_bytes) + self.mutator.reserve_count()
        if self.mutator.free_count(0) > needed:
            return True
        lower = self.slower(0)
        return victim is not None and bool(lower) and self._demote(victim, lower, 0) and self.wait_free(0, needed)

    def heats(self) -> np.ndarray:
        """The marks of all segments, a row each, writable."""
        count, stride = self.mutator.segment_count, self.mutator.access_stride
        start = self.mutator.clients.address + self.mutator.access_offset
        return np.ctypeslib.as_array((ctypes.c_uint8 * (count * stride)).from_address(start)).reshape(count, stride)

    def age(self) -> None:
        """Halve all marks, so that they tell the recent rate of reads."""
        heats = self.heats()
        heats >>= 1

    def require(self, moved: int | None, what: str) -> None:
        """Raise Full where a move that a user asked for found no room."""
        if moved is None:
            raise Full(f"{what}: no room there; delete or unpin something, or enlarge the tier")
