"""What the crash explorer lets happen: each protocol once, with what is legal to be found after a power loss at each moment."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tierstore.ringbuf import layout

from . import observe
from .still import DISK, DRAM, PMEM, StillStore

Legal = dict[str, frozenset[bytes | None]]


@dataclass
class Stage:
    """One run: the store, and what is legal. ``change`` says what a step may turn a key into, ``done`` that it has."""

    store: StillStore
    recorder: observe.Recorder
    legal: Legal = field(default_factory=dict)

    def change(self, key: str, value: bytes | None) -> None:
        """A step begins that makes a key hold this value (None: absent)."""
        self.legal[key] = self.legal.get(key, frozenset({None})) | {value}
        self.recorder.legal(self.legal)

    def done(self, key: str, value: bytes | None) -> None:
        """It was acknowledged as durable."""
        self.legal[key] = frozenset({value})
        self.recorder.legal(self.legal)

    def put(self, tier: int, key: str, value: bytes) -> int:
        """A durable put into a persistent tier (into memory: nothing is promised)."""
        self.change(key, value)
        segment = self.store.put(tier, key, value)
        if tier != DRAM:
            self.done(key, value)
        return segment

    def delete(self, key: str) -> None:
        """A delete that is durable when it is answered."""
        self.change(key, None)
        self.store.delete(key)
        self.done(key, None)

    def move(self, segment: int, tier: int, keys: dict[str, bytes]) -> None:
        """A move; afterwards the keys are durable if the tier is."""
        for key, value in keys.items():
            self.change(key, value)
        self.store.move(segment, tier)
        self.store.mover.finish_all()
        if tier != DRAM:
            for key, value in keys.items():
                self.done(key, value)


A, B, C = b"a" * 300, b"B" * 5000, b"c" * 64


def append(stage: Stage) -> None:
    """Append and publish into persistent memory, several records, then seal."""
    for key, value in (("a", A), ("b", B), ("c", C), ("nothing", b"")):
        stage.put(PMEM, key, value)
    stage.store.seal(PMEM)


def replace(stage: Stage) -> None:
    """A newer value under the same key, in the same segment and in another."""
    stage.put(PMEM, "a", A)
    stage.put(PMEM, "a", B)
    stage.store.seal(PMEM)
    stage.put(PMEM, "a", C)
    stage.store.seal(PMEM)


def delete(stage: Stage) -> None:
    """Deletes from an open and from a sealed segment."""
    for key in ("a", "b", "c"):
        stage.put(PMEM, key, A)
    stage.delete("a")
    stage.store.seal(PMEM)
    stage.delete("b")


def reuse(stage: Stage) -> None:
    """A segment is emptied and filled again, several times around the ring: nothing of an earlier life comes back."""
    for number in range(7):
        stage.put(PMEM, f"k{number}", bytes([65 + number]) * 9000)
        stage.put(PMEM, f"l{number}", bytes([97 + number]) * 700)
        stage.store.seal(PMEM)
        stage.delete(f"k{number}")
        stage.delete(f"l{number}")


def demote_to_pmem(stage: Stage) -> None:
    """From memory to persistent memory."""
    stage.put(DRAM, "a", A)
    segment = stage.put(DRAM, "b", B)
    stage.store.seal(DRAM)
    stage.move(segment, PMEM, {"a": A, "b": B})


def demote_to_disk(stage: Stage) -> None:
    """From memory to disk, in two moves that share a segment there."""
    for key, value in (("a", A), ("b", B)):
        segment = stage.put(DRAM, key, value)
        stage.store.seal(DRAM)
        stage.change(key, value)
        stage.store.move(segment, DISK)
        stage.done(key, value)
    stage.store.mover.finish_all()


def pmem_to_disk(stage: Stage) -> None:
    """From one persistent tier to the other: at no moment is anything in neither."""
    stage.put(PMEM, "a", A)
    segment = stage.put(PMEM, "b", B)
    stage.store.seal(PMEM)
    stage.move(segment, DISK, {"a": A, "b": B})
    stage.put(PMEM, "c", C)


def disk_to_pmem(stage: Stage) -> None:
    """Promotion between persistent tiers, then the source on disk is used again."""
    segment = stage.put(DRAM, "a", A)
    stage.store.seal(DRAM)
    stage.move(segment, DISK, {"a": A})
    source = next(s for s, _ in stage.store._rows())
    stage.move(source, PMEM, {"a": A})
    stage.delete("a")
    for number in range(6):  # around the ring of disk segments
        key, value = f"d{number}", bytes([65 + number]) * 600
        segment = stage.put(DRAM, key, value)
        stage.store.seal(DRAM)
        stage.move(segment, DISK, {key: value})
        if number < 5:
            stage.change(key, None)  # a delete on disk is durable with the next sync only
            stage.store.delete(key)


def overwrite_on_disk(stage: Stage) -> None:
    """The one free segment of a full disk is emptied and used again at once, by blocks of several pages."""
    for number in range(4):
        segment = stage.put(DRAM, f"full{number}", A)
        stage.store.seal(DRAM)
        stage.move(segment, DISK, {f"full{number}": A})
    for number in range(3):
        key, value = f"o{number}", bytes([65 + number]) * 9000
        segment = stage.put(DRAM, key, value)
        stage.store.seal(DRAM)
        stage.move(segment, DISK, {key: value})
        stage.change(key, None)
        stage.store.delete(key)


def compact(stage: Stage) -> None:
    """Within persistent memory, and what was moved is replaced and deleted afterwards."""
    stage.put(PMEM, "a", A)
    segment = stage.put(PMEM, "b", B)
    stage.store.seal(PMEM)
    stage.delete("a")
    stage.move(segment, PMEM, {"b": B})
    stage.put(PMEM, "b", C)
    stage.delete("b")


def recover_itself(stage: Stage) -> None:
    """A power loss during recovery, which buries what a move and a replacement left behind."""
    segment = stage.put(PMEM, "a", A)
    stage.put(PMEM, "b", B)
    stage.store.seal(PMEM)
    left = stage.store.device()
    stage.move(segment, DISK, {"a": A, "b": B})
    # As if the power had gone before the originals were marked: both are there.
    merged = left[: stage.store.part_bytes] + stage.store.device()[stage.store.part_bytes :]
    stage.recorder.events.append(observe.everything(merged))
    stage.store.reset(merged)
    stage.put(PMEM, "c", C)
    stage.delete("a")


SCENARIOS: dict[str, Callable[[Stage], None]] = {
    scenario.__name__: scenario
    for scenario in (
        append,
        replace,
        delete,
        reuse,
        demote_to_pmem,
        demote_to_disk,
        pmem_to_disk,
        disk_to_pmem,
        overwrite_on_disk,
        compact,
        recover_itself,
    )
}


def record(store: StillStore, scenario: Callable[[Stage], None]) -> Any:
    """Let a scenario happen on an empty store and return its recorder; ``base``: what the device held before."""
    store.reset(bytes(2 * store.part_bytes))
    disk = os.fstat(store.arenas[DISK].fd)

    def memory(address: int) -> int | None:
        offset = address - store.pmem_address
        return offset if 0 <= offset < store.part_bytes else None

    def file(offset: int) -> int | None:
        offset -= layout.ARENA_HEADER_BYTES
        return offset + store.part_bytes if offset >= 0 else None

    recorder = observe.Recorder(
        memory, {(disk.st_dev, disk.st_ino): file}, base=store.device(), cpu=lambda: store.mutator.cpu
    )
    with observe.recording(recorder):
        scenario(Stage(store, recorder))
    return recorder
