"""What moves between tiers, in the background: demote, drop, compact, promote. How a move is made: moves.py."""

from __future__ import annotations

import ctypes
import time

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

from .moves import Mover, chosen
from .policy import Policy

# A segment with less than this share of live bytes is emptied into others instead of pushing anything out.
COMPACT_SHARE = 0.5
COMPACT_SHARE_KEEP = 0.94
HEAT_TO_PROMOTE = 3
DROP_AT_ONCE = 512


def _hot_share(rows: np.ndarray) -> float:
    """Share of the bytes of listed records that was read lately."""
    lengths = rows[:-1, ROW_LENGTH]
    hot = lengths[heat_of(rows) > 0]
    return float(hot.sum() / max(1, lengths.sum()))


def heat_of(rows: np.ndarray) -> np.ndarray:
    """The marks of listed records."""
    return rows[:-1, ROW_PACKED] >> np.uint64(8) & np.uint64(0xFF)


class Cascade:
    """All movement in one store. One thread: the policy thread."""

    def __init__(self, mutator: Mutator):
        self.mutator = mutator
        self.policies = [Policy() for _ in mutator.arenas]
        self.mover = Mover(mutator, lambda segment: self.sealed(segment, warm=True), self.freed)
        self.move, self.records = self.mover.move, self.mover.records
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
            moved = self.move(segment, self.records(segment), number)
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

    def heat(self, segment: int) -> int:
        """The highest mark in a segment."""
        return int(self.mutator.heat_bytes(segment).max())

    def _warmth(self, segment: int) -> float:
        return _hot_share(self.records(segment)) if self.heat(segment) else 0.0

    def _cool(self, segment: int) -> None:
        self.mutator.heat_bytes(segment)[:] = 0

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
