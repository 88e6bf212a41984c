"""Memory that reads from disk and from other nodes go into, used again: fresh memory costs a page fault for every 4 KiB."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np

# What is kept for the next read, per store handle; what views hold does not count.
KEPT_BYTES_MAX = 64 << 20
_UNIT = 256 << 10
_HUGE = 2 << 20


class Lent:
    """Page-aligned memory on loan; goes back when the last view of it is gone."""

    __slots__ = ("_owner", "address", "memory")

    def __init__(self, owner: Buffers, memory: mmap.mmap):
        self._owner, self.memory = owner, memory
        self.address = int(np.frombuffer(memory, "u1").ctypes.data)

    def __del__(self) -> None:
        self._owner.give_back(self.memory)


class Buffers:
    """The memory of one store handle. Threads: any; each list operation is one step under the interpreter lock."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, size: int) -> Lent:
        """At least ``size`` bytes (and at most half as many again, where they were used before)."""
        room = -(-size // _UNIT) * _UNIT
        for memory in list(self._free):
            if room <= len(memory) <= room + room // 2:
                try:
                    self._free.remove(memory)
                except ValueError:  # another thread took it
                    continue
                return Lent(self, memory)
        return Lent(self, _fresh(room))

    def give_back(self, memory: mmap.mmap) -> None:
        """Keep it for the next read, in place of the oldest ones."""
        self._free.append(memory)
        while sum(map(len, list(self._free))) > KEPT_BYTES_MAX:
            try:
                self._free.pop(0)
            except IndexError:
                return


def _fresh(size: int) -> mmap.mmap:
    """New memory of this process alone, in huge pages where the system gives them when asked: a fault for 2 MiB."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE:
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
