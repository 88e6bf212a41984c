"""Files as memory: creating, reserving, mapping and locking them."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from . import guard
from .errors import Full

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x01, 0x02, 0x10, 0x20, 0x4000
_SHARED_VALIDATE_SYNC = 0x03 | 0x80000  # refuses what it does not know; MAP_SHARED alone would ignore MAP_SYNC
_MADV_WILLNEED, _MADV_DONTNEED, _MADV_HUGEPAGE, _MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 3, 4, 14, 22, 23
_MADV_COLLAPSE = 25  # Linux 6.1
_POPULATE_STEP_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def round_up(value: int, unit: int) -> int:
    """The smallest multiple of unit that is not below value."""
    return -(-value // unit) * unit


def _map(address: int | None, size: int, protection: int, flags: int, fd: int, offset: int = 0) -> int:
    result = _libc.mmap(address, size, protection, flags, fd, offset)
    if result in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map {size} bytes: {os.strerror(code)}")
    return int(result)


class Mapping:
    """A shared mapping of a file from its start; unmapped when the last reference goes.

    Pins and leases hold a reference, so memory that anybody can still read stays mapped. sync: with MAP_SYNC, see
    map_sync_works().
    """

    def __init__(self, fd: int, size: int, writable: bool, huge: bool = False, sync: bool = False):
        if os.fstat(fd).st_size < size:
            raise OSError(
                errno.EINVAL,
                f"the file behind a mapping holds {os.fstat(fd).st_size} bytes, not {size}: it was truncated",
            )
        self.size, self._unmap, self._entry = size, _libc.munmap, -1
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        shared = _SHARED_VALIDATE_SYNC if sync else _MAP_SHARED
        if not huge:
            self.address = _map(None, size, protection, shared, fd)
            self._watch(fd)
            return
        # Huge pages need the mapping to begin where one could: reserve more room and map into its aligned part.
        room = size + HUGE_PAGE_BYTES
        start = _map(None, room, 0, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1)
        self.address = round_up(start, HUGE_PAGE_BYTES)
        _map(self.address, size, protection, shared | _MAP_FIXED, fd)
        if self.address > start:
            _libc.munmap(start, self.address - start)
        end = round_up(self.address + size, PAGE_BYTES)
        if end < start + room:
            _libc.munmap(end, start + room - end)
        _libc.madvise(self.address, size, _MADV_HUGEPAGE)
        self._watch(fd)

    def _watch(self, fd: int) -> None:
        self._entry, self._forget = (
            guard.watch(self.address, self.size, os.readlink(f"/proc/self/fd/{fd}")),
            guard.forget,
        )

    def __del__(self) -> None:
        if hasattr(self, "address"):
            self._forget(self._entry)
            self._unmap(self.address, self.size)


class Pages:
    """Ranges of files as one range of addresses, to read; unmapped when the last reference goes.

    parts: (descriptor, offset, size) of each; offsets and sizes are multiples of pages, but for the last size. With a
    descriptor of -1 the bytes at the address ``offset`` are copied.

    Where the files lie in huge pages, parts are mapped with them whose distances in their files are those of the range, or differ
    by multiples of HUGE_PAGE_BYTES.
    """

    def __init__(self, parts: list[tuple[int, int, int]]):
        self._unmap, self.size = _libc.munmap, round_up(sum(size for _, _, size in parts), PAGE_BYTES)
        room = self.size + HUGE_PAGE_BYTES
        self._room = _map(None, room, 0, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE, -1), room
        at = self.address = self._room[0] + (_huge_offset(parts) - self._room[0]) % HUGE_PAGE_BYTES
        for fd, offset, size in parts:
            room = round_up(size, PAGE_BYTES)
            if fd >= 0:
                _map(at, room, _PROT_READ, _MAP_SHARED | _MAP_FIXED, fd, offset)
            else:
                _map(at, room, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED, -1)
                ctypes.memmove(at, offset, size)
            at += size

    def __del__(self) -> None:
        if hasattr(self, "_room"):
            self._unmap(*self._room)


def _huge_offset(parts: list[tuple[int, int, int]]) -> int:
    """Where the range must begin within a huge page, so that its largest part can be mapped with huge pages."""
    before = best = largest = 0
    for fd, offset, size in parts:
        if fd >= 0 and size > largest:
            best, largest = offset - before, size
        before += size
    return best % HUGE_PAGE_BYTES


def forget_pages(address: int, size: int) -> None:
    """Take a range of a shared mapping out of this process's page tables; it is entered again where it is touched."""
    _libc.madvise(address, size, _MADV_DONTNEED)


def map_sync_works(fd: int) -> bool:
    """Whether a file can be mapped with MAP_SYNC: a flushed line is then durable."""
    try:
        address = _map(None, PAGE_BYTES, _PROT_READ | _PROT_WRITE, _SHARED_VALIDATE_SYNC, fd)
    except OSError:
        return False
    _libc.munmap(address, PAGE_BYTES)
    return True


def make_private(address: int, size: int) -> None:
    """Replace a page range by a private copy of itself: writes there reach nobody else. For forked children."""
    copy = ctypes.string_at(address, size)
    _map(address, size, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_FIXED | _MAP_ANONYMOUS, -1)
    ctypes.memmove(address, copy, size)


def populate(address: int, size: int, writable: bool) -> None:
    """Enter a range into the page tables ahead of use; a hint, errors are ignored.

    In steps: meanwhile no other thread of the process can map or unmap memory, which every large allocation does.
    """
    advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
    for start in range(0, size, _POPULATE_STEP_BYTES):
        _libc.madvise(address + start, min(_POPULATE_STEP_BYTES, size - start), advice)


def collapse(address: int, size: int) -> bool:
    """Put a range of a shared mapping of a file in memory into huge pages where there are some; whether all of it is.

    Each huge page must hold something. Linux 6.1 does so when it is asked, whatever the mount and ``shmem_enabled`` say, unless
    that says "deny"; it needs free memory in large pieces. Contents stay, also for those who write meanwhile.
    Cost: a call waits for all processors, so ask for much at a time.
    """
    return int(_libc.madvise(address, size, _MADV_COLLAPSE)) == 0


def collapse_works(folder: str) -> bool:
    """Whether files in a folder come into huge pages when that is asked. Cost: one page is made, and goes."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        os.posix_fallocate(fd, 0, HUGE_PAGE_BYTES)
        mapping = Mapping(fd, HUGE_PAGE_BYTES, writable=True, huge=True)
        return collapse(mapping.address, mapping.size)
    except OSError:
        return False
    finally:
        os.close(fd)


def will_need(address: int, size: int) -> None:
    """Have the pages of a range of a mapped file read in the background; a hint, errors are ignored."""
    first = address & -PAGE_BYTES
    _libc.madvise(first, address + size - first, _MADV_WILLNEED)


def create_file(path: str, size: int) -> int:
    """Open or create a file of at least this size (sparse); the descriptor."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if os.fstat(fd).st_size < size:
        os.ftruncate(fd, size)
    return fd


def reserve(fd: int, offset: int, size: int, path: str) -> None:
    """Make the file system promise the bytes, so that no later store dies of SIGBUS.

    Raises: Full with path, size and what is free.
    """
    try:
        os.posix_fallocate(fd, offset, size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG):
            raise
        free = os.statvfs(path)
        raise Full(
            f"{path}: no room for {size} more bytes ({free.f_bavail * free.f_frsize} are free); "
            "free some or configure a smaller tier"
        ) from error


# Files that this process holds (or held) locks on: opening and closing one again would drop them.
_locked_here: set[tuple[int, int]] = set()


def locked_here(path: str) -> bool:
    """Whether this process locked bytes of a file; such a file must not be opened a second time."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) in _locked_here


def try_lock(fd: int, byte: int) -> bool:
    """Take this process's lock on one byte; the kernel drops it when the process ends, however it ends.

    POSIX record locks, not OFD locks: a forked child must not keep them. Closing any descriptor of the file in this
    process drops them too, so lock files are opened once.
    """
    request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    status = os.fstat(fd)
    _locked_here.add((status.st_dev, status.st_ino))
    try:
        fcntl.fcntl(fd, fcntl.F_SETLK, request)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def share_lock(fd: int, byte: int) -> None:
    """Let other processes hold this process's lock on one byte with it: it ends when all of them have."""
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))


def unlock(fd: int, byte: int) -> None:
    """Give one byte's lock back."""
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def lock_holder(fd: int, byte: int) -> int:
    """The pid that holds a byte's lock, 0 for nobody (or for this process, which the kernel does not report).

    -1: somebody in a process namespace that cannot be seen from here.
    """
    request = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, _, _, _, pid = struct.unpack("hhqqi", fcntl.fcntl(fd, fcntl.F_GETLK, request))
    return 0 if kind == fcntl.F_UNLCK else int(pid) or -1
