"""What a tier must be able to do: the protocol that the store's own file arenas and third-party tiers implement.

A tier is one preallocated file of equal segments. Who reads: client processes, from descriptors they are handed, by
mapping (``mapped``) or with pread. Who writes: clients into segments of mapped tiers leased to them, and the daemon.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from .region import Mapping


@runtime_checkable
class Tier(Protocol):
    """One medium (or one directory of the disk tier). Tests of your own: ``tierstore.emulation.check_tier``.

    Order of calls: known_store() at any time; create() once; the rest after it, from several threads; close() last.
    Which bytes of a segment are written when, and which must be durable in which order, is the store's business; the
    tier's is that sync() does not return before everything written through it would survive power loss, if ``durable``.
    """

    # What it is; set before create().
    kind: int  # layout.KIND_DRAM, KIND_PMEM or KIND_DISK: its place in the cascade, fastest first
    path: str  # for messages, and what clients are told
    segment_bytes: int
    segment_count: int
    compress: bool  # whether blocks moved here are to be compressed; only where not mapped
    cost: tuple[int, int, int, int]  # added: ps per byte read, written; ns per read, write; all 0 for a real device
    first: int  # set by the store: the number of its first segment

    # What it turned out to be; valid after create().
    fd: int  # the file, read and written through the page cache (headers of records)
    mapping: Mapping | None  # the whole file, writable, where mapped
    warm: bool  # whether the file was there before, with this geometry and store
    dax: bool  # whether flushed lines are durable without a system call

    @property
    def name(self) -> str:
        """For messages and statistics: the tier's kind by name."""

    @property
    def mapped(self) -> bool:
        """Whether readers use its bytes in place. The first tier of a store must be."""

    @property
    def durable(self) -> bool:
        """Whether its contents survive power loss once they are acknowledged."""

    @property
    def needs_sync(self) -> bool:
        """Whether that takes sync(), because stores and flushes only reach the page cache."""

    def known_store(self) -> bytes | None:
        """The id of the store whose data lie here, None if there are none. Creates nothing."""

    def create(self, store_id: bytes) -> None:
        """Open or create the file. Raises ConfigError if it belongs to another store, version or geometry."""

    def offset_of(self, segment: int) -> int:
        """Where a segment (by its number in the store) begins in the file."""

    def back(self, segment: int, hurry: bool = False) -> None:
        """Make the medium promise a segment's bytes: no later write or store may fail for want of room. Raises Full.

        hurry: somebody waits for it; what only makes later access faster is left out.
        """

    def read(self, segment: int, offset: int, view: memoryview) -> int:
        """Read into page-aligned memory from a page-aligned offset of a segment; bytes read, fewer at the file's end."""

    def write(self, segment: int, offset: int, view: memoryview) -> None:
        """Write whole pages at a page-aligned offset of a segment; durable after the next sync()."""

    def sync(self) -> None:
        """Make everything written so far durable (file data, also what was written through ``fd``)."""

    def reader_fd(self) -> int:
        """A new descriptor for a client: to map read-only, or to pread past the page cache."""

    def writer_fd(self) -> int:
        """A new descriptor for a client to map writable; -1 where segments are not leased to clients."""

    def close(self, remove: bool) -> None:
        """Close everything; remove: the file too. Mappings that views still need live on."""
