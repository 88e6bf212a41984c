"""A shadow of a persistent device: what was stored, flushed and fenced, and every content a power loss may leave behind.

Model of memory (Intel SDM volume 1, 11.6.13; Pelley et al., "Memory persistency", ISCA 2014; as in pmemcheck and Yat):
stores to one cache line reach the medium in order, and may do so at any time; a flush followed by a fence guarantees all
stores to the line before the flush; a non-temporal store is guaranteed by a fence alone; lines are independent, and a
fence speaks only for the flushes and non-temporal stores of its own processor. With
``eadr`` the caches belong to the medium: ordinary stores are durable when done, non-temporal ones after a fence.

Model of a file: pages written since the last sync may each be there or not; sync guarantees them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

LINE_BYTES, PAGE_BYTES = 64, 4096
STORE, STREAM, FLUSH, FENCE, WRITE, SYNC, RESET = "store", "stream", "flush", "fence", "write", "sync", "reset"


@dataclass(frozen=True)
class Event:
    """One thing done to the device. offset: in the device; data: of stores and writes; cpu: which processor did it."""

    kind: str
    offset: int = 0
    data: bytes = b""
    cpu: int = 0


@dataclass
class _Unit:
    """A cache line or page with stores that the medium need not have yet: contents after each, oldest first.

    flushed: how many of them the next fence of a processor (or the next sync) guarantees.
    """

    contents: list[bytes]
    flushed: dict[int, int] = field(default_factory=dict)


@dataclass
class Shadow:
    """Follows events; ``image`` is what the medium certainly has, ``pending`` what it may have besides.

    eadr: ordinary stores are durable when done.
    """

    image: bytearray
    eadr: bool = False
    pending: dict[tuple[int, int], _Unit] = field(default_factory=dict)  # (offset, size) of the unit

    def apply(self, event: Event) -> None:
        """Take in what was done next."""
        if event.kind in (STORE, STREAM):
            self._store(event)
        elif event.kind == WRITE:
            for start, part in _units(event.offset, event.data, PAGE_BYTES):
                unit = self._change(start // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES, start, part)
                unit.flushed[0] = len(unit.contents)
        elif event.kind == FLUSH:
            unit_ = self.pending.get((event.offset // LINE_BYTES * LINE_BYTES, LINE_BYTES))
            if unit_ is not None:
                unit_.flushed[event.cpu] = len(unit_.contents)
        elif event.kind == FENCE:
            self._settle(LINE_BYTES, event.cpu)
        elif event.kind == SYNC:
            self._settle(PAGE_BYTES, 0)
        elif event.kind == RESET:
            self.image[:] = event.data
            self.pending.clear()

    def _store(self, event: Event) -> None:
        for start, part in _units(event.offset, event.data, LINE_BYTES):
            line = start // LINE_BYTES * LINE_BYTES
            if self.eadr and event.kind == STORE and (line, LINE_BYTES) not in self.pending:
                self.image[start : start + len(part)] = part
                continue
            unit = self._change(line, LINE_BYTES, start, part)
            if event.kind == STREAM or self.eadr:
                unit.flushed[event.cpu] = len(unit.contents)

    def _change(self, unit_at: int, size: int, start: int, part: bytes) -> _Unit:
        unit = self.pending.setdefault((unit_at, size), _Unit([]))
        before = unit.contents[-1] if unit.contents else bytes(self.image[unit_at : unit_at + size])
        at = start - unit_at
        unit.contents.append(before[:at] + part + before[at + len(part) :])
        return unit

    def _settle(self, size: int, cpu: int) -> None:
        for name in [name for name, unit in self.pending.items() if name[1] == size and unit.flushed.get(cpu)]:
            unit = self.pending[name]
            count = unit.flushed.pop(cpu)
            self.image[name[0] : name[0] + size] = unit.contents[count - 1]
            unit.contents = unit.contents[count:]
            unit.flushed = {other: left - count for other, left in unit.flushed.items() if left > count}
            if not unit.contents:
                del self.pending[name]

    def latest(self) -> bytes:
        """What a reader sees while there is power."""
        whole = bytearray(self.image)
        for (offset, size), unit in self.pending.items():
            whole[offset : offset + size] = unit.contents[-1]
        return bytes(whole)

    # --- power loss -------------------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """How many different choices a power loss has now."""
        return math.prod(len(self._choices(name, unit)) for name, unit in self.pending.items())

    def images(self, limit: int, generator: random.Random) -> Iterator[bytes]:
        """What a power loss may leave behind: all of it if at most ``limit`` choices, else a sample of that size.

        The sample holds nothing, everything, each unit alone and all but each unit, then random ones.
        """
        names = list(self.pending)
        choices = [self._choices(name, self.pending[name]) for name in names]
        if self.count() <= limit:
            for picked in itertools.product(*choices):
                yield self._compose(names, picked)
            return
        first, last = [options[0] for options in choices], [options[-1] for options in choices]
        fixed = [first, last]
        for position in range(len(names)):
            fixed.append([*first[:position], last[position], *first[position + 1 :]])
            fixed.append([*last[:position], first[position], *last[position + 1 :]])
        generator.shuffle(fixed)
        for picked_list in fixed[: limit // 2]:
            yield self._compose(names, picked_list)
        for _ in range(limit - min(len(fixed), limit // 2)):
            yield self._compose(names, [generator.choice(options) for options in choices])

    def _choices(self, name: tuple[int, int], unit: _Unit) -> list[bytes]:
        """Contents that one unit may have; repeated ones once."""
        now = bytes(self.image[name[0] : name[0] + name[1]])
        found = [now, *unit.contents]
        if name[1] == LINE_BYTES and len(unit.contents) == 1 and unit.flushed:
            # A write-combining buffer may be emptied in part.
            after = unit.contents[0]
            found[1:1] = [after[:32] + now[32:], now[:32] + after[32:]]
        return list(dict.fromkeys(found))

    def _compose(self, names: list[tuple[int, int]], picked: object) -> bytes:
        whole = bytearray(self.image)
        for (offset, size), content in zip(names, picked, strict=True):  # type: ignore[call-overload]
            whole[offset : offset + size] = content
        return bytes(whole)


def _units(offset: int, data: bytes, size: int) -> Iterator[tuple[int, bytes]]:
    """Cut a store where units end."""
    done = 0
    while done < len(data):
        room = size - (offset + done) % size
        yield offset + done, data[done : done + room]
        done += room
