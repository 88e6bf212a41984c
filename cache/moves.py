"""Copying blocks from segment to segment, across tiers, so that a death at any point loses none and finds none twice.

A move copies records into a segment leased by the daemon itself, makes them durable where the target promises it, and only
then asks the mutator to relink the index. A death before the relink leaves copies of which one or the other is kept; one
after it leaves originals that are marked dead. What is deleted during a move is marked so that its copies are dead too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tierstore.ringbuf import layout
from tierstore.ringbuf.mutator import ROW_ITEM, ROW_LENGTH, ROW_OFFSET, ROW_PACKED, ROW_PLACE, Mutator
from tierstore.ringbuf.recovery import SegmentImage
from tierstore.ringbuf.tier import Tier

from . import codec

_PAGE = 4096


@dataclass
class Target:
    """A segment that moves are filling: at ``offset`` its next record, at ``address`` its bytes (mapped, or staged)."""

    segment: int
    tier: Tier
    offset: int
    address: int
    staging: Any = None


def class_of(rows: np.ndarray) -> np.ndarray:
    """The classes of listed records."""
    return rows[:-1, ROW_PACKED] & np.uint64(0xFF)


def marked_durable(rows: np.ndarray) -> np.ndarray:
    """Which of the listed records were acknowledged as durable."""
    return np.asarray(class_of(rows) & np.uint64(layout.CLASS_DURABLE) != 0)


def codec_of(rows: np.ndarray) -> np.ndarray:
    """The codecs of listed records."""
    return rows[:-1, ROW_PACKED] >> np.uint64(48)


def chosen(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Some of the listed records, again with a spare row."""
    return np.concatenate([rows[:-1][keep], rows[-1:]])


class Mover:
    """Moves listed records. One thread: the one that holds the engine's turn.

    sealed, condemned: told of segments that were filled, and of ones whose bytes cannot be trusted.
    """

    def __init__(self, mutator: Mutator, sealed: Callable[[int], None], condemned: Callable[[int], None]):
        self.mutator = mutator
        self._sealed, self._condemned = sealed, condemned
        self._targets: dict[tuple[int, int, int], Target] = {}
        self._hash_state = (ctypes.c_uint64 * 9)()
        self._step = mutator.trap  # named points of the protocol, where tests kill the daemon
        self._staging: list[Any] = []
        self._image: Any = None

    def records(self, segment: int) -> np.ndarray:
        """The live records of a segment, whatever tier it is in; see Mutator.list_live()."""
        if self.mutator.address(segment):
            return self.mutator.list_live(segment)
        image = SegmentImage(self.mutator, segment)  # a name keeps its memory mapped during the call
        return self.mutator.list_live(segment, image.address)

    def move(
        self,
        source: int,
        number: int,
        keep: Callable[[np.ndarray], np.ndarray] | None = None,
        pinned: bool | None = None,
        durable: bool = False,
    ) -> int | None:
        """Move records of one segment to a tier; bytes written there, None if there was no room or they may not go there.

        keep: which of the listed records (a mask); default all. pinned: make the copies pinned or not; None leaves their class.
        durable: mark KEEP copies: from now on they go to a volatile tier only where a user pins them in it, which ends the mark.
        """
        for name in [name for name, target in self._targets.items() if target.segment == source]:
            self._finish(name)  # else the copies might go to the end of the segment that they come from
        self.mutator.submit(layout.OP_MOVING, source, 1)  # before they are listed; see operations.delete()
        try:
            rows = self.records(source)
            moved = self._move_rows(source, rows if keep is None else chosen(rows, keep(rows)), number, pinned, durable)
        finally:
            self.mutator.submit(layout.OP_MOVING, source, 0)
        if not self.mutator.address(source):
            self.mutator.arena_of(source).sync()  # buried originals must not come back when the copies are deleted
        return moved

    def _move_rows(self, source: int, rows: np.ndarray, number: int, pinned: bool | None, durable: bool) -> int | None:
        if len(rows) < 2:
            return 0
        volatile = not self.mutator.arenas[number].durable
        if volatile and not pinned and marked_durable(rows).any():
            return None
        pool = self.mutator.segment_field(source, layout.S_POOL)
        image = self.mutator.address(source) or self.read_segment(source, rows)
        moved = 0
        for kind in np.unique(class_of(rows)).tolist():
            group = chosen(rows, class_of(rows) == kind)
            made = _class_of(kind, pinned, durable) & ~(layout.CLASS_DURABLE if volatile else 0)
            copied = self._move_class(source, image, group, number, pool, made)
            if copied is None:
                return None
            moved += copied
        return moved

    def _move_class(self, source: int, image: int, rows: np.ndarray, number: int, pool: int, kind: int) -> int | None:
        total, position, moved = len(rows) - 1, 0, 0
        while position < total:
            room = self._room(rows[position], image, number)
            target = self._target(number, pool, kind & layout.CLASS_PINNED_KEEP, room)
            if target is None:
                return None
            self._start_page(target)
            begin, first = target.offset, position
            position = self._copy(target, image, rows, first, kind)
            moved += target.offset - begin
            self._step("move.copied")
            self._persist(target, begin)
            self._step("move.persisted")
            self._charge(target, target.offset - begin)
            self.mutator.submit(layout.OP_RELINK, target.segment | source << 20, begin, target.offset, target.address)
            self._step("move.relinked")
            for row in rows[first:position][rows[first:position, ROW_LENGTH] == 0]:
                self._condemn(source, row, kind)
        return moved

    def _charge(self, target: Target, size: int) -> None:
        """Take as long as the device that the tier plays."""
        if any(target.tier.cost):
            regions, scratch = self.mutator, ctypes.addressof(self._hash_state)
            self.mutator.native.charge(
                regions.control.address, regions.clients.address, target.segment, size, 1, scratch
            )

    def _room(self, row: np.ndarray, image: int, number: int) -> int:
        """What a record may need in a tier: decompressed, it is longer than now."""
        if self.mutator.arenas[number].compress or not int(row[ROW_PACKED]) >> 48:
            return int(row[ROW_LENGTH])
        return codec.raw_record_bytes(image + int(row[ROW_OFFSET]))

    def _copy(self, target: Target, image: int, rows: np.ndarray, first: int, kind: int) -> int:
        """Copy as many records as fit from ``first`` on; the position of the next. Damaged ones get length 0."""
        total, generation = len(rows) - 1, self.mutator.generation(target.segment)
        flush, staged = int(target.tier.kind == layout.KIND_PMEM), int(target.staging is not None)
        state = ctypes.addressof(self._hash_state)
        native, size = self.mutator.native, self.mutator.segment_bytes
        if not target.tier.compress and not codec_of(rows).any():
            position = native.copy_records(
                target.address,
                target.offset,
                size,
                image,
                rows.ctypes.data,
                first,
                total,
                generation,
                kind,
                flush,
                staged,
                state,
            )
            target.offset = int(rows[total, 0])
            return int(position)
        for position in range(first, total):
            head = image + int(rows[position, ROW_OFFSET])
            made = codec.recoded(native, head, state, target.tier.compress)
            length = made.record_bytes if made is not None else int(rows[position, ROW_LENGTH])
            if target.offset + length > size or target.offset >= layout.RECORD_START_LIMIT:
                return position
            at = target.address + target.offset
            if made is None:  # as it is
                done = native.copy_record(at, head, length, generation, kind, flush, staged, state)
            else:
                done = native.recode_record(
                    at,
                    head,
                    made.address,
                    made.stored_bytes,
                    made.codec,
                    length,
                    generation,
                    kind,
                    flush,
                    staged,
                    state,
                )
            rows[position, ROW_LENGTH] = length if done else 0
            target.offset += length if done else 0
        return total

    def _start_page(self, target: Target) -> None:
        """Begin each write to disk on a page of its own: a page written again would undo marks made in it meanwhile."""
        gap = -target.offset % _PAGE
        if target.staging is None or gap == 0:
            return
        filler = target.address + target.offset
        ctypes.memset(filler, 0, layout.RECORD_HEADER_BYTES)
        life = layout.checked(self.mutator.generation(target.segment))
        ctypes.c_uint64.from_address(filler + layout.R_GENERATION).value = life
        ctypes.c_uint64.from_address(filler + layout.R_KEY_HASH).value = layout.checked(gap)
        ctypes.c_int64.from_address(filler + layout.R_LENGTH).value = gap
        os.pwrite(target.tier.fd, ctypes.string_at(filler, 24), target.tier.offset_of(target.segment) + target.offset)
        target.offset += gap

    def _persist(self, target: Target, begin: int) -> None:
        """Make what was copied since ``begin`` as durable as the tier can."""
        if target.staging is None:
            if target.tier.kind == layout.KIND_PMEM and target.tier.needs_sync:
                target.tier.sync()
            return
        last = -(-target.offset // _PAGE) * _PAGE
        # What an earlier use of the staging memory left behind the last record must not look like one.
        ctypes.memset(target.address + target.offset, 0, last - target.offset)
        target.tier.write(target.segment, begin, memoryview(target.staging)[begin:last])
        target.tier.sync()
        self.mutator.count("disk_bytes_written", last - begin)

    def _condemn(self, segment: int, row: np.ndarray, kind: int) -> None:
        """A payload is not what was written: a CACHE block becomes a miss, a KEEP block is set aside with its segment."""
        if not kind & layout.CLASS_KEEP:
            pair = np.array([row[ROW_PLACE], row[ROW_ITEM]], "<u8")
            self.mutator.submit(layout.OP_DROP, segment, 0, 1, pair.ctypes.data)
        elif self.mutator.submit(layout.OP_QUARANTINE, segment) == 1:
            self.mutator.count("quarantined", 1)
            self._condemned(segment)

    # --- targets ----------------------------------------------------------------------------------------------------------------

    def _target(self, number: int, pool: int, kind: int, size: int) -> Target | None:
        """The segment that moves to a tier are filling, with room for ``size`` bytes."""
        name = (number, pool, kind)
        target = self._targets.get(name)
        if target is not None:
            start = -(-target.offset // _PAGE) * _PAGE
            if start + size > self.mutator.segment_bytes or start >= layout.RECORD_START_LIMIT:
                self._finish(name)
                target = None
        if target is None:
            segment = self.mutator.submit(layout.OP_LEASE, number, pool, kind)
            if segment < 0:
                return None
            tier, staging = self.mutator.arenas[number], None
            if not tier.mapped:
                tier.sync()  # the new generation is on disk before anything older is overwritten
                staging = self._staging.pop() if self._staging else mmap.mmap(-1, self.mutator.segment_bytes)
            address = self.mutator.address(segment) or _address(staging)
            target = self._targets[name] = Target(segment, tier, layout.SEGMENT_HEADER_BYTES, address, staging)
        return target

    def _finish(self, name: tuple[int, int, int]) -> None:
        target = self._targets.pop(name)
        generation = self.mutator.generation(target.segment)
        self.mutator.submit(layout.OP_SEAL, target.segment, generation, end=target.offset)
        self._sealed(target.segment)
        if target.staging is not None:
            self._staging.append(target.staging)

    def room_left(self, number: int, pool: int, kind: int) -> int:
        """Bytes left in the segment that moves to a tier are filling, 0 if there is none."""
        target = self._targets.get((number, pool, kind))
        return self.mutator.segment_bytes - target.offset if target is not None else 0

    def finish_tier(self, number: int) -> None:
        """Seal a tier's open targets, so that what lies in them can move on."""
        for name in [name for name in self._targets if name[0] == number]:
            self._finish(name)

    def finish_all(self) -> None:
        """Seal all open targets."""
        for name in list(self._targets):
            self._finish(name)

    def detach(self) -> None:
        """After the end: forget who was told, so that no circle keeps a closed store's memory."""
        self._sealed = self._condemned = lambda segment: None

    def staged(self, segment: int) -> int:
        """Where the bytes of a segment are that moves are filling right now, 0 for any other."""
        return next((target.address for target in self._targets.values() if target.segment == segment), 0)

    # --- sources ----------------------------------------------------------------------------------------------------------------

    def read_segment(self, segment: int, rows: np.ndarray) -> int:
        """Read the listed records of an unmapped segment to their offsets in memory, which the next call uses again."""
        if self._image is None:
            self._image = mmap.mmap(-1, self.mutator.segment_bytes)
        tier, view = self.mutator.arena_of(segment), memoryview(self._image)
        for offset, length in rows[:-1, [ROW_OFFSET, ROW_LENGTH]].tolist():
            first, last = offset // _PAGE * _PAGE, -(-(offset + length) // _PAGE) * _PAGE
            tier.read(segment, first, view[first : min(last, self.mutator.segment_bytes)])
        return _address(self._image)


def _class_of(kind: int, pinned: bool | None, durable: bool) -> int:
    if durable and kind & layout.CLASS_KEEP:
        kind |= layout.CLASS_DURABLE
    if pinned is None:
        return kind
    return kind | layout.CLASS_PINNED_CACHE if pinned else kind & ~layout.CLASS_PINNED_CACHE


def _address(memory: Any) -> int:
    return int(np.frombuffer(memory, "u1").ctypes.data)
