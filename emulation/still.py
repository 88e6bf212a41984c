"""A store without threads, small enough to be recovered thousands of times a second: what the crash explorer runs.

Kernels, layouts, recovery and moves are the product's own; only the thread that carries messages out is missing: submit()
does one round of it in the caller's thread.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from typing import Any

import numpy as np

from tierstore.cache.moves import Mover
from tierstore.cache.record import record_bytes
from tierstore.ringbuf import layout, recovery
from tierstore.ringbuf import session as words
from tierstore.ringbuf.arena import Arena
from tierstore.ringbuf.mutator import ROW_LENGTH, ROW_OFFSET, Mutator

SEGMENT_BYTES = 32 << 10
SEGMENTS = 5
DRAM, PMEM, DISK = 0, 1, 2
MUTATOR, CLIENT, POLICY = 0, 1, 2  # three threads, each on a processor of its own
_MASK = 2**64 - 1


class Violation(AssertionError):
    """A promise of the store does not hold."""


class StillMutator(Mutator):
    """A mutator whose thread is whoever calls submit(). cpu: who is at work, MUTATOR inside of submit()."""

    cpu = MUTATOR

    def _start(self) -> None:
        pass

    def submit(self, operation: int, segment: int = 0, offset: int = 0, end: int = 0, argument: int = 0) -> int:
        """Push one message of the daemon's own and carry it out."""
        slot = self.slot_address(0)
        tail = self._get(slot + layout.P_TAIL)
        message = slot + layout.SLOT_PAGE_BYTES + tail % layout.MESSAGE_COUNT * layout.MESSAGE_BYTES
        for field, value in zip(
            (layout.M_OP, layout.M_SEGMENT, layout.M_OFFSET, layout.M_END, layout.M_ARG),
            (operation, segment, offset, end, argument),
            strict=True,
        ):
            self._put(message + field, value & _MASK)
        self._put(slot + layout.P_TAIL, tail + 1)
        caller, self.cpu = self.cpu, MUTATOR
        self.native.one_round(self.core)
        self.cpu = caller
        return int(ctypes.c_int64.from_address(message + layout.M_RESULT).value)

    def restart(self) -> None:
        """Begin anew as after power loss: memory is gone, the arenas of pmem and disk are what they are."""
        ctypes.memset(self.control.address, 0, self.control_bytes)
        ctypes.memset(self.index.address, 0, self.index_bytes)
        self._pools[:64] = 0
        self._words[_DRAIN_COUNT] = 0
        for segment in range(self.segment_count):
            self._put(self._entry(segment), layout.STATE_UNBACKED << layout.STATE_SHIFT)
        self._write_control()
        self.warm = False
        for arena in self.arenas:
            arena.warm = arena.kind != layout.KIND_DRAM
        self.found = recovery.recover(self)
        recovery.finish(self, self.found)
        for segment in range(self.segment_count):
            if self.state(segment) == layout.STATE_UNBACKED:
                self.submit(layout.OP_BACKED, segment)


_DRAIN_COUNT = 184 // 8  # core_state.D_DRAIN_COUNT


class StillStore:
    """Three tiers of five segments of 32 KiB. ``device`` is what survives power loss: pmem's segments, then disk's."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tierstore-still-", dir="/dev/shm")
        path = self._folder.name
        kinds = (("dram", layout.KIND_DRAM), ("pmem", layout.KIND_PMEM), ("disk", layout.KIND_DISK))
        self.arenas = [
            Arena(kind, os.path.join(path, f"{name}.arena"), SEGMENT_BYTES, SEGMENTS) for name, kind in kinds
        ]
        self.mutator = StillMutator(os.path.join(path, "store"), self.arenas, SEGMENT_BYTES, 8)
        for arena in self.arenas:
            os.posix_fallocate(arena.fd, 0, arena.file_bytes)
        self.native = self.mutator.native
        self.mover = Mover(self.mutator, lambda _: None, lambda _: None)
        self.part_bytes = SEGMENTS * SEGMENT_BYTES
        pmem = self.arenas[PMEM].mapping
        assert pmem is not None
        self.pmem_address = pmem.address + layout.ARENA_HEADER_BYTES
        self._leases: dict[tuple[int, int], list[int]] = {}
        self._version = 1
        self.reset(bytes(2 * self.part_bytes))

    def close(self) -> None:
        """Give everything back."""
        self.mutator.close(remove=True)
        self._folder.cleanup()

    # --- the device ---------------------------------------------------------------------------------------------------------

    def device(self) -> bytes:
        """What lies on the persistent tiers now."""
        disk = os.pread(self.arenas[DISK].fd, self.part_bytes, layout.ARENA_HEADER_BYTES)
        return ctypes.string_at(self.pmem_address, self.part_bytes) + disk

    def reset(self, device: bytes) -> None:
        """Power came back and this is what the devices hold: recover."""
        ctypes.memmove(self.pmem_address, device[: self.part_bytes], self.part_bytes)
        os.pwrite(self.arenas[DISK].fd, device[self.part_bytes :], layout.ARENA_HEADER_BYTES)
        self._leases.clear()
        self.mover._targets.clear()
        self.mutator.restart()

    # --- operations ---------------------------------------------------------------------------------------------------------

    def put(self, tier: int, key: str, value: bytes, kind: int = layout.CLASS_KEEP) -> int:
        """Append and publish in a tier that is mapped; the segment it went to."""
        mutator, raw = self.mutator, key.encode()
        length = record_bytes(len(raw), len(value) + 63 & ~63)
        lease = self._leases.get((tier, kind))
        if lease is None or lease[1] + length > SEGMENT_BYTES:
            if lease is not None:
                self.seal(tier, kind)
            segment = mutator.submit(layout.OP_LEASE, tier, 0, kind)
            if segment < 0:
                raise Violation(f"no free segment in tier {tier}: {segment}")
            lease = self._leases[tier, kind] = [segment, layout.SEGMENT_HEADER_BYTES]
        mutator.cpu = CLIENT
        target = mutator.address(lease[0]) + lease[1]
        self.native.claim_record(target, length, mutator.generation(lease[0]))
        self._append(target, length, raw, value, kind, int(tier == PMEM))
        if mutator.submit(layout.OP_PUBLISH, lease[0], lease[1], lease[1] + length) != 1:
            raise Violation(f"{key} was not published")
        lease[1] += length
        return lease[0]

    def _append(self, target: int, length: int, raw: bytes, value: bytes, kind: int, flush: int) -> None:
        request, trap = np.zeros(words.REQUEST_BYTES // 8 + 4, "<u8"), np.zeros(2, "<u8")
        key, source = ctypes.create_string_buffer(raw, len(raw) + 8), np.frombuffer(value + b"\0", "u1")
        pieces = np.array([source.ctypes.data, len(value)], "<u8")
        self._version += 1
        fields = {
            words.Q_TARGET: target,
            words.Q_LENGTH: length,
            words.Q_PLACE: self.native.hash_key(ctypes.addressof(key), len(raw)) & _MASK,
            words.Q_VERSION: self._version,
            words.Q_KEY: ctypes.addressof(key),
            words.Q_KEY_BYTES: len(raw),
            words.Q_BLOCK_COUNT: 1,
            words.Q_VALUE_BYTES: len(value),
            words.Q_CLASS: kind,
            words.Q_OBJECT_BYTES: len(value),
            words.Q_STORED_BYTES: len(value),
            words.Q_PAYLOAD_BYTES: len(value) + 63 & ~63,
            words.Q_PIECES: pieces.ctypes.data,
            words.Q_PIECE_COUNT: 1,
            words.Q_FLUSH: flush,
            words.Q_TRAP: trap.ctypes.data,
        }
        for field, word in fields.items():
            request[field // 8] = word
        self.native.append(request.ctypes.data)

    def seal(self, tier: int, kind: int = layout.CLASS_KEEP) -> int:
        """Give the open lease of a tier back; its segment."""
        segment, _ = self._leases.pop((tier, kind))
        self.mutator.submit(layout.OP_SEAL, segment, self.mutator.generation(segment))
        return segment

    def move(self, segment: int, tier: int) -> None:
        """Move all of a sealed segment to a tier, as demotion does."""
        self.mutator.cpu = POLICY
        if self.mover.move(segment, tier) is None:
            raise Violation(f"no room to move segment {segment} to tier {tier}")

    def delete(self, key: str) -> None:
        """Delete by key."""
        for segment, row in self._rows():
            if self._key_of(segment, row) == key:
                self.mutator.submit(layout.OP_DELETE, 0, int(row[0]), 0, int(row[1]))
                return
        raise Violation(f"{key} is not there to be deleted")

    # --- looking ------------------------------------------------------------------------------------------------------------

    def _rows(self) -> Any:
        for segment in range(self.mutator.segment_count):
            if self.mutator.segment_field(segment, layout.S_LIVE_COUNT):
                for row in self.mover.records(segment)[:-1]:
                    yield segment, row

    def _head(self, segment: int, row: np.ndarray) -> bytes:
        """A whole record."""
        offset, length = int(row[ROW_OFFSET]), int(row[ROW_LENGTH])
        if self.mutator.address(segment):
            return ctypes.string_at(self.mutator.address(segment) + offset, length)
        arena = self.mutator.arena_of(segment)
        return os.pread(arena.fd, length, arena.offset_of(segment) + offset)

    def _key_of(self, segment: int, row: np.ndarray) -> str:
        record = self._head(segment, row)
        size = int.from_bytes(record[layout.R_KEY_BYTES : layout.R_KEY_BYTES + 2], "little")
        return record[layout.RECORD_HEADER_BYTES :][:size].decode()

    def contents(self) -> dict[str, bytes]:
        """Every key and its value, checked. Raises Violation for a key found twice or a payload that is not whole."""
        found: dict[str, bytes] = {}
        state = (ctypes.c_uint64 * 9)()
        for segment, row in self._rows():
            record, key = self._head(segment, row), self._key_of(segment, row)
            size = int.from_bytes(record[layout.R_VALUE_BYTES : layout.R_VALUE_BYTES + 8], "little")
            start = layout.RECORD_HEADER_BYTES + len(key.encode()) + 63 & ~63
            payload = np.frombuffer(record[start:], "u1")[: size + 63 & ~63].copy()
            digest = self.native.hash_payload(payload.ctypes.data, len(payload), ctypes.addressof(state)) & _MASK
            if key in found:
                raise Violation(f"{key} is there twice")
            if size and digest != int.from_bytes(record[layout.R_PAYLOAD_HASH : layout.R_PAYLOAD_HASH + 8], "little"):
                raise Violation(f"{key} is torn: its payload does not have its checksum")
            found[key] = record[start : start + size]
        return found

    def check_space(self) -> None:
        """Every segment is in one state, and counts agree. Raises Violation."""
        out = (ctypes.c_uint64 * 3)()
        for number, arena in enumerate(self.arenas):
            free = 0
            for segment in range(arena.first, arena.first + arena.segment_count):
                free += self.mutator.state(segment) == layout.STATE_FREE
                live = self.mutator.segment_field(segment, layout.S_LIVE_COUNT)
                image = recovery.SegmentImage(self.mutator, segment)
                self.native.check(self.mutator.core, segment, image.address, ctypes.addressof(out))
                if self.mutator.state(segment) != layout.STATE_FREE and (out[0] != live or out[2]):
                    raise Violation(f"segment {segment} counts {live} live blocks, the index {out[0]}, dead {out[2]}")
            if free != self.mutator.free_count(number):
                raise Violation(
                    f"tier {number}: {free} segments are free, its ring holds {self.mutator.free_count(number)}"
                )
