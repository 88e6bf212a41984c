"""Arenas: the one preallocated file behind a tier (or behind one directory of the disk tier); implements ``Tier``."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, CorruptionError
from .layout import (
    ARENA_HEADER_BYTES,
    KIND_DISK,
    KIND_DRAM,
    KINDS,
    LAYOUT_VERSION,
    SB_HASH,
    SUPER_MAGIC,
    SUPERBLOCK_BYTES,
)
from .region import HUGE_PAGE_BYTES, PAGE_BYTES, Mapping, collapse, create_file, map_sync_works, reserve, round_up

START_EMPTY = "put a whole copy there, or remove the file to start empty"
UNNAMED = ".new"  # ends the name of a file that has no superblock yet
_SUPER = struct.Struct("<QQQQQQ16sQQ")  # SB_MAGIC to SB_INDEX; the hash follows
assert _SUPER.size == SB_HASH


@dataclass
class Arena:
    """One arena as the daemon (or, opened from passed descriptors, a client) has it open.

    mapped: its segments are addressable; else they are read and written by ``direct`` (O_DIRECT where possible).
    compress: blocks that move here are compressed with LZ4 where that makes them smaller.
    """

    kind: int
    path: str
    segment_bytes: int
    segment_count: int
    index: int = 0
    first: int = 0
    fd: int = -1
    direct: int = -1
    mapping: Mapping | None = None
    warm: bool = False
    sequence: int = 0
    incarnation: int = 0
    dax: bool = False
    volatile: bool = False
    compress: bool = False
    cost: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def name(self) -> str:
        """The tier's name, for messages."""
        return KINDS[self.kind]

    @property
    def mapped(self) -> bool:
        """Whether readers use its bytes in place."""
        return self.kind != KIND_DISK

    @property
    def file_bytes(self) -> int:
        """Size of the whole file."""
        return ARENA_HEADER_BYTES + self.segment_count * self.segment_bytes

    @property
    def durable(self) -> bool:
        """Whether its contents survive power loss once they are acknowledged."""
        return self.kind != KIND_DRAM and not self.volatile

    @property
    def needs_sync(self) -> bool:
        """Whether durable takes a system call, because stores and flushes only reach the page cache."""
        return self.durable and not self.dax

    def create(self, store_id: bytes) -> None:
        """Open or create the file and its superblock. ``warm`` tells whether it held this geometry before.

        Raises: ConfigError if it cannot be opened or belongs to another version or store, CorruptionError, Full.
        """
        try:
            self._open(store_id)
        except OSError as error:
            raise ConfigError(
                f"{self.name} file",
                self.path,
                f"a file that can be opened or made ({error.strerror}); mend {error.filename or self.path} or give "
                "another path",
            ) from error

    def _open(self, store_id: bytes) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ConfigError(f"{self.name} file", self.path, "a regular file, not a directory, pipe or device")
        before = os.path.getsize(self.path) if os.path.exists(self.path) else 0
        self.warm = bool(before)
        if before:
            self._check_existing(before, store_id)
            self.fd = create_file(self.path, self.file_bytes)
            self._claim()
        else:
            self._begin(store_id)
        if self.mapped:
            self.dax = map_sync_works(self.fd)
            self.mapping = Mapping(self.fd, self.file_bytes, writable=True, huge=True, sync=self.dax)
            if self.dax and any(self.cost):
                raise ConfigError(
                    f"{self.name} profile",
                    self.path,
                    "none: the file is on a real DAX device, which needs no emulation",
                )
        else:
            self.direct = open_direct(self.path, os.O_RDWR)
        self.volatile = in_memory(self.path)

    def _begin(self, store_id: bytes) -> None:
        """A new file gets its name only with a superblock in it: a start that dies before leaves nothing to be refused."""
        unnamed = self.path + UNNAMED
        self.fd = create_file(unnamed, self.file_bytes)
        self._claim()
        try:
            if os.path.exists(self.path) and os.path.getsize(self.path):  # another start was faster
                raise ConfigError(f"{self.name} file", self.path, "a file that no other store made in this moment")
            reserve(self.fd, 0, 2 * SUPERBLOCK_BYTES, unnamed)
            for _ in range(2):  # both places, so that a damaged one is not the only one
                self.write_superblock(store_id)
        except BaseException:
            os.unlink(unnamed)
            os.close(self.fd)
            self.fd = -1  # nothing at the path is ours
            raise
        os.rename(unnamed, self.path)

    def _claim(self) -> None:
        """One store at a time: flock, which closing other descriptors of the file does not drop."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.fd)
            self.fd = -1
            raise ConfigError(f"{self.name} file", self.path, "a file that no other running store uses") from None

    def _check_existing(self, size: int, store_id: bytes) -> None:
        fields = read_superblock(self.path)
        if fields is None:
            raise CorruptionError(
                self.path, 0, "a superblock of tierstore", "none with a valid checksum", remedy=START_EMPTY
            )
        if fields["version"] != LAYOUT_VERSION:
            raise ConfigError(
                f"{self.name} file {self.path}",
                f"layout version {fields['version']}",
                f"this tierstore reads version {LAYOUT_VERSION}; use the tierstore that wrote it, or "
                "remove the file to start empty",
            )
        if (fields["segment_bytes"], fields["segment_count"]) != (self.segment_bytes, self.segment_count):
            raise ConfigError(
                f"{self.name} file {self.path}",
                f"{fields['segment_count']} segments of {fields['segment_bytes']} bytes",
                f"configured are {self.segment_count} of "
                f"{self.segment_bytes}; give the old size, or remove the file to start empty",
            )
        if size < self.file_bytes:
            raise CorruptionError(
                self.path, size, f"{self.file_bytes} bytes", f"a file truncated to {size}", remedy=START_EMPTY
            )
        if self.kind != KIND_DRAM and fields["store_id"] != store_id and any(store_id):
            raise ConfigError(
                f"{self.name} file {self.path}",
                fields["store_id"].hex(),
                "the file belongs to "
                f"another store ({store_id.hex()} is this one); give another path or remove the file",
            )
        self.sequence, self.incarnation = fields["sequence"], fields["incarnation"]

    def write_superblock(self, store_id: bytes) -> None:
        """Write the older of the two superblocks and make it durable: the other stays valid until this one is."""
        from .native import kernels

        self.sequence += 1
        body = _SUPER.pack(
            SUPER_MAGIC,
            LAYOUT_VERSION,
            self.sequence,
            self.segment_bytes,
            self.segment_count,
            self.kind,
            store_id,
            self.incarnation,
            self.index,
        )
        padded = ctypes.create_string_buffer(body.ljust(128, b"\0"), 128)
        state = ctypes.create_string_buffer(128)
        digest = kernels().hash_payload(ctypes.addressof(padded), 128, ctypes.addressof(state)) & (2**64 - 1)
        os.pwrite(self.fd, body + struct.pack("<Q", digest), (self.sequence & 1) * SUPERBLOCK_BYTES)
        os.fdatasync(self.fd)

    def offset_of(self, segment: int) -> int:
        """Where a segment (by its store-wide id) begins in the file."""
        return ARENA_HEADER_BYTES + (segment - self.first) * self.segment_bytes

    def back(self, segment: int, hurry: bool = False) -> None:
        """Reserve a segment's bytes, in memory in huge pages where there are some and nobody waits. Raises Full.

        Whole huge pages: a file system that keeps files in such allocates all of one when any of it is written, and a store into
        it is SIGBUS where there is no room for the rest.
        """
        start = self.offset_of(segment) & -HUGE_PAGE_BYTES
        end = min(round_up(self.offset_of(segment) + self.segment_bytes, HUGE_PAGE_BYTES), self.file_bytes)
        if self.volatile and self.mapping is not None and not hurry:
            whole = end & -HUGE_PAGE_BYTES
            for offset in range(start, whole, HUGE_PAGE_BYTES):
                reserve(self.fd, offset, PAGE_BYTES, self.path)  # what holds nothing at all is refused
            collapse(self.mapping.address + start, whole - start)
        reserve(self.fd, start, end - start, self.path)

    def read(self, segment: int, offset: int, view: memoryview) -> int:
        """Read past the page cache; see Tier."""
        done, start = 0, self.offset_of(segment) + offset
        while done < len(view):
            got = os.preadv(self.direct if self.direct >= 0 else self.fd, [view[done:]], start + done)
            if got <= 0:
                break
            done += got
        return done

    def write(self, segment: int, offset: int, view: memoryview) -> None:
        """Write past the page cache; see Tier."""
        done, start = 0, self.offset_of(segment) + offset
        while done < len(view):
            done += os.pwritev(self.direct if self.direct >= 0 else self.fd, [view[done:]], start + done)

    def sync(self) -> None:
        """Make all data of the file durable, through whichever descriptor it was written."""
        os.fdatasync(self.fd)

    def reader_fd(self) -> int:
        """A client's descriptor."""
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC) if self.mapped else open_direct(self.path, os.O_RDONLY)

    def writer_fd(self) -> int:
        """A client's descriptor to fill leased segments through."""
        return os.open(self.path, os.O_RDWR | os.O_CLOEXEC) if self.mapped else -1

    def known_store(self) -> bytes | None:
        """The id in the superblock of an arena that outlives memory."""
        if self.kind == KIND_DRAM or not os.path.isfile(self.path):
            return None  # what else may be there, create() refuses
        fields = read_superblock(self.path)
        return bytes(fields["store_id"]) if fields is not None else None

    def close(self, remove: bool) -> None:
        """Close the descriptors; remove: the file too."""
        for fd in (self.fd, self.direct):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct = -1
        self.mapping = None
        if remove and os.path.exists(self.path):
            os.unlink(self.path)


def in_memory(path: str) -> bool:
    """Whether a path lies on tmpfs or ramfs, which forget at power loss."""
    best, kind = "", ""
    real = os.path.realpath(path)
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            point, name = line.split()[1:3]
            if (real + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best):
                best, kind = point, name
    return kind in ("tmpfs", "ramfs", "devtmpfs")


def open_direct(path: str, flags: int) -> int:
    """Open past the page cache where the file system can, so that the disk tier does not eat memory twice."""
    try:
        return os.open(path, flags | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return os.open(path, flags | os.O_CLOEXEC)


def read_superblock(path: str) -> dict[str, Any] | None:
    """The valid superblock with the higher sequence, None if neither is valid."""
    from .native import kernels

    best: dict[str, Any] | None = None
    with open(path, "rb") as file:
        for copy in range(2):
            file.seek(copy * SUPERBLOCK_BYTES)
            raw = file.read(SB_HASH + 8)
            if len(raw) < SB_HASH + 8:
                continue
            padded = ctypes.create_string_buffer(raw[:SB_HASH].ljust(128, b"\0"), 128)
            state = ctypes.create_string_buffer(128)
            digest = kernels().hash_payload(ctypes.addressof(padded), 128, ctypes.addressof(state)) & (2**64 - 1)
            magic, version, sequence, segment_bytes, count, kind, store_id, incarnation, index = _SUPER.unpack(
                raw[:SB_HASH]
            )
            if magic != SUPER_MAGIC or digest != struct.unpack_from("<Q", raw, SB_HASH)[0]:
                continue
            if best is None or sequence > best["sequence"]:
                best = {
                    "version": version,
                    "sequence": sequence,
                    "segment_bytes": segment_bytes,
                    "segment_count": count,
                    "kind": kind,
                    "store_id": store_id,
                    "incarnation": incarnation,
                    "index": index,
                }
    return best
