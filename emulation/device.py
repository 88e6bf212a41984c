"""What a persistent device must be able to do, and three that can: the store's own kernels, libpmem, and a shadow that records.

Stores reach a mapping at once and are durable after flush() and fence(); streamed (non-temporal) ones after fence() alone.
The store's hot paths have these operations compiled into its kernels; this is the same set as an interface, so that one suite
(``check_device``) judges every provider.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import Protocol, runtime_checkable

from tierstore.ringbuf import pmem
from tierstore.ringbuf.native import batch_kernels

from .shadow import FENCE, FLUSH, STORE, STREAM, Event, Shadow

LINE_BYTES = 64


@runtime_checkable
class Device(Protocol):
    """A range of persistent memory. Offsets and sizes in bytes; any alignment. Callers: one thread."""

    size: int

    def load(self, offset: int, size: int) -> bytes:
        """What a reader sees now."""

    def store(self, offset: int, data: bytes) -> None:
        """Ordinary stores: visible at once, durable after flush() of their lines and fence()."""

    def stream(self, offset: int, data: bytes) -> None:
        """A copy past the caches: durable after fence()."""

    def flush(self, offset: int, size: int) -> None:
        """Write back the lines that hold a range; done at the next fence()."""

    def fence(self) -> None:
        """Return when everything flushed and streamed before is durable."""

    def close(self) -> None:
        """Give the mapping up; a device on a file keeps its contents."""


class _Mapped:
    """A file, mapped shared."""

    def __init__(self, path: str, size: int):
        self.size = size
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, max(size, os.fstat(fd).st_size))
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._view = (ctypes.c_char * size).from_buffer(self._memory)
        self.address = ctypes.addressof(self._view)

    def load(self, offset: int, size: int) -> bytes:
        """The mapping's bytes."""
        return self._memory[offset : offset + size]

    def store(self, offset: int, data: bytes) -> None:
        """Plain stores into the mapping."""
        self._memory[offset : offset + len(data)] = data

    def close(self) -> None:
        """Unmap."""
        del self._view
        self._memory.close()


class KernelDevice(_Mapped):
    """The instructions that the store's kernels use: see ringbuf/atomic.py."""

    def stream(self, offset: int, data: bytes) -> None:
        """Whole aligned lines by non-temporal stores, the ends by plain ones and a flush."""
        first, last = -(-offset // LINE_BYTES) * LINE_BYTES, (offset + len(data)) // LINE_BYTES * LINE_BYTES
        if first >= last:
            self.store(offset, data)
            self.flush(offset, len(data))
            return
        for start, end in ((offset, first), (last, offset + len(data))):
            self.store(start, data[start - offset : end - offset])
            self.flush(start, end - start)
        room = ctypes.create_string_buffer(last - first + LINE_BYTES)
        source = -(-ctypes.addressof(room) // LINE_BYTES) * LINE_BYTES
        ctypes.memmove(source, data[first - offset : last - offset], last - first)
        state = (ctypes.c_uint64 * 9)()
        batch_kernels().copy_hash(self.address + first, source, last - first, ctypes.addressof(state))

    def flush(self, offset: int, size: int) -> None:
        """One flush a line."""
        if size:
            batch_kernels().flush(self.address + offset, size)

    def fence(self) -> None:
        """A store fence."""
        batch_kernels().drain_stores()


class LibpmemDevice(_Mapped):
    """The same through libpmem, called by ctypes. Raises OSError where libpmem is not installed."""

    def __init__(self, path: str, size: int):
        library = pmem.library()
        if library is None:
            raise OSError("libpmem is not installed: install the package libpmem1 of your system")
        super().__init__(path, size)
        self._library = library

    def stream(self, offset: int, data: bytes) -> None:
        """pmem_memcpy_nodrain(): large copies go past the caches, small ones are flushed."""
        self._library.pmem_memcpy_nodrain(self.address + offset, data, len(data))

    def flush(self, offset: int, size: int) -> None:
        """pmem_flush()."""
        self._library.pmem_flush(self.address + offset, size)

    def fence(self) -> None:
        """pmem_drain()."""
        self._library.pmem_drain()


class ShadowDevice:
    """Records what is done; ``shadow`` knows what a power loss would leave."""

    def __init__(self, size: int, eadr: bool = False):
        self.size, self.shadow = size, Shadow(bytearray(size), eadr)

    def load(self, offset: int, size: int) -> bytes:
        """What a reader sees while there is power."""
        return self.shadow.latest()[offset : offset + size]

    def store(self, offset: int, data: bytes) -> None:
        """Record stores."""
        self.shadow.apply(Event(STORE, offset, data))

    def stream(self, offset: int, data: bytes) -> None:
        """Record non-temporal stores."""
        self.shadow.apply(Event(STREAM, offset, data))

    def flush(self, offset: int, size: int) -> None:
        """Record a flush of each line."""
        for line in range(offset // LINE_BYTES * LINE_BYTES, offset + size, LINE_BYTES):
            self.shadow.apply(Event(FLUSH, line))

    def fence(self) -> None:
        """Record a fence."""
        self.shadow.apply(Event(FENCE))

    def close(self) -> None:
        """Nothing to give up."""
