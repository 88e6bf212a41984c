"""The client's half of shared memory: attach to a store's regions, take leases, append, publish."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import layout
from . import session as words
from .codes import RING_FULL, WAIT_TIMED_OUT
from .counters import CLIENT
from .errors import Closed, PeerLost, TierstoreError
from .native import kernels
from .pintype import pin_type
from .region import PAGE_BYTES, Mapping, make_private, populate, round_up, share_lock, try_lock, unlock
from .steps import Trap
from .waiting import LEASE_POLL_S, LeaseWait

LEASE_WAIT_S = 20.0


@dataclass(frozen=True)
class ArenaInfo:
    """What a client is told of one arena."""

    kind: int
    first: int
    segment_count: int
    path: str
    mapped: bool


@dataclass
class Grant:
    """What the daemon hands to a new client: its slot, the geometry, and descriptors of the regions.

    arena_fds: read-only; write_fds: for the arenas this client may lease in (-1 elsewhere).
    """

    slot: int
    nonce: int
    slot_count: int
    segment_bytes: int
    segment_count: int
    epoch: int
    index_bytes: int
    arenas: list[ArenaInfo]
    control_fd: int
    clients_fd: int
    index_fd: int
    locks_fd: int
    arena_fds: list[int]
    write_fds: list[int]


# Lock files open in this process: closing any descriptor of one drops every lock the process holds on it, so
# descriptors are closed together when the last slot locked through them is given up. inode -> (slots, descriptors)
_lock_files: dict[tuple[int, int], tuple[set[int], list[int]]] = {}


def _hold_slot(fd: int, slot: int) -> bool:
    """Lock a slot's byte for as long as this process lives or until _drop_slot()."""
    status = os.fstat(fd)
    slots, fds = _lock_files.setdefault((status.st_dev, status.st_ino), (set(), []))
    fds.append(fd)
    slots.add(slot)
    return try_lock(fd, slot)


def _drop_slot(fd: int, slot: int) -> None:
    for name, (slots, fds) in list(_lock_files.items()):
        if fd in fds:
            unlock(fd, slot)
            slots.discard(slot)
            if not slots:
                del _lock_files[name]
                for each in fds:
                    os.close(each)


class _Mappings:
    """Keeps mappings, descriptors and the slot's lock alive; every pin holds a reference to it."""

    def __init__(self, locks_fd: int, slot: int) -> None:
        self.items: list[Any] = []
        self.fds: list[int] = []
        self.locks_fd, self.slot, self.pid = locks_fd, slot, os.getpid()

    def __del__(self) -> None:
        for fd in self.fds:
            os.close(fd)
        if self.locks_fd >= 0:
            _drop_slot(self.locks_fd, self.slot)


@dataclass
class Lease:
    """One segment this client may fill. words: see session.L_*."""

    segment: int
    pool: int
    kind: int
    words: np.ndarray
    group: str = ""  # what shares the segment: data that will go together
    open_writers: int = 0

    @property
    def name(self) -> tuple[int, int, str]:
        """Under which an open lease is found again."""
        return self.pool, self.kind, self.group

    @property
    def address(self) -> int:
        """Address of the words."""
        return int(self.words.ctypes.data)

    @property
    def next(self) -> int:
        """Offset of the next record."""
        return int(self.words[words.L_NEXT // 8])

    @next.setter
    def next(self, offset: int) -> None:
        self.words[words.L_NEXT // 8] = offset


class Session:
    """One attached client. Reads are wait-free kernels on ``x``; writes go through leases and the message ring.

    Threads: any; the interpreter lock orders reads, ``lock`` orders messages and leases; nobody who holds it
    waits for a segment.
    """

    def __init__(self, grant: Grant):
        self.native = kernels()
        self.grant, self.lock, self.lease_wait_s = grant, threading.RLock(), LEASE_WAIT_S
        self._patience = threading.local()
        self.kept = _Mappings(grant.locks_fd, grant.slot)
        self._memory = np.zeros(words.SESSION_BYTES // 8, "<u8")
        self.x = int(self._memory.ctypes.data)
        self._request_memory = np.zeros(words.REQUEST_BYTES // 8 + 2, "<u8")
        self.request = int(self._request_memory.ctypes.data)
        self._request_memory[words.Q_PIECES // 8] = self.request + words.REQUEST_BYTES
        self.trap = Trap()
        self._memory[words.X_TRAP // 8] = self.trap.word
        self._memory[words.X_TRAP // 8 + 1] = self.trap.left
        self._request_memory[words.Q_TRAP // 8] = self.x + words.X_TRAP
        self.leases: dict[tuple[int, int, str], Lease] = {}
        self.closed = False
        self.renew: Callable[[], None] = _nothing  # set by the store: map the index of a new daemon
        self._entered: set[int] = set()
        self._map(grant)
        self.version = self._get(self.slot_address + layout.P_NONCE)

    def _map(self, grant: Grant) -> None:
        control_bytes = round_up(
            layout.CONTROL_HEADER_BYTES + grant.segment_count * layout.SEGMENT_ENTRY_BYTES, PAGE_BYTES
        )
        row = round_up(grant.segment_count * layout.PIN_BYTES, PAGE_BYTES)
        self.row_offset = layout.SLOT_PAGE_BYTES + layout.RING_BYTES
        stride, access_stride = self.row_offset + row, grant.segment_bytes >> layout.ACCESS_SHIFT
        access_offset = layout.CLIENTS_HEADER_BYTES + grant.slot_count * stride
        clients_bytes = round_up(access_offset + grant.segment_count * access_stride, PAGE_BYTES)
        if grant.locks_fd >= 0 and not _hold_slot(grant.locks_fd, grant.slot):
            raise PeerLost(f"slot {grant.slot} is locked by another process; connect again")
        self.control = Mapping(grant.control_fd, control_bytes, writable=False)
        self.clients = Mapping(grant.clients_fd, clients_bytes, writable=True)
        self.slot_address = self.clients.address + layout.CLIENTS_HEADER_BYTES + grant.slot * stride
        self.slot_stride = stride
        if self._get(self.slot_address + layout.P_NONCE) != grant.nonce or (
            self._get(self.slot_address + layout.P_STATE) != layout.SLOT_ACTIVE
        ):
            raise PeerLost(f"slot {grant.slot} was given away before this process had locked it; connect again")
        self.addresses = np.zeros(grant.segment_count, "<u8")
        self.writable = np.zeros(grant.segment_count, "<u8")
        self.kinds = np.zeros(grant.segment_count, "u1")
        self._maps: list[Mapping] = []
        for arena, fd in zip(grant.arenas, grant.arena_fds, strict=True):
            self.kinds[arena.first : arena.first + arena.segment_count] = arena.kind
            if arena.mapped:
                self._fill(self.addresses, arena, fd, writable=False)
        self.kept.items += [self.control, self.clients, self._maps, self.addresses, self._memory]
        self.kept.fds += [grant.control_fd, grant.clients_fd, *grant.arena_fds]
        self.kept.fds += [fd for fd in grant.write_fds if fd >= 0]
        x = {
            words.X_CONTROL: self.control.address,
            words.X_ROW: self.slot_address + self.row_offset,
            words.X_ACCESS: self.clients.address + access_offset,
            words.X_ACCESS_STRIDE: access_stride,
            words.X_ADDRESSES: self.addresses.ctypes.data,
            words.X_TABLE: self.control.address + layout.CONTROL_HEADER_BYTES,
            words.X_SLOT: self.slot_address,
            words.X_CLIENTS: self.clients.address,
            words.X_PIN_TYPE: id(pin_type()),
            words.X_OWNER: id(self.kept),
            words.X_NONE: id(None),
            words.X_COUNTERS: self.slot_address + layout.P_COUNTERS,
            words.X_KINDS: self.kinds.ctypes.data,
            words.X_SEGMENT_BYTES: grant.segment_bytes,
            words.X_SLOT_NUMBER: grant.slot,
            words.X_INJECT: int(any(self._costs(number) for number in range(len(grant.arenas)))),
        }
        for offset, value in x.items():
            self._memory[offset // 8] = value
        self.map_index(grant.index_fd, grant.index_bytes, grant.epoch)

    def _fill(self, table: np.ndarray, arena: ArenaInfo, fd: int, writable: bool) -> None:
        size = layout.ARENA_HEADER_BYTES + arena.segment_count * self.grant.segment_bytes
        mapping = Mapping(fd, size, writable=writable, huge=True)
        self._maps.append(mapping)
        start = mapping.address + layout.ARENA_HEADER_BYTES
        steps = np.arange(arena.segment_count, dtype="<u8") * np.uint64(self.grant.segment_bytes)
        table[arena.first : arena.first + arena.segment_count] = np.uint64(start) + steps

    def map_index(self, fd: int, size: int, epoch: int) -> None:
        """Read through this index from now on. The interpreter lock keeps readers out meanwhile."""
        index = Mapping(fd, size, writable=False, huge=size >= 4 << 20)
        self._memory[words.X_INDEX // 8] = index.address
        self._memory[words.X_MASK // 8] = size // layout.BUCKET_BYTES - 1
        self._memory[words.X_EPOCH // 8] = epoch
        self.index = index
        os.close(fd)

    @staticmethod
    def _get(address: int) -> int:
        return ctypes.c_uint64.from_address(address).value

    def _costs(self, arena: int) -> bool:
        """Whether reads of an arena are slowed down to those of the device it plays."""
        entry = self.control.address + layout.C_ARENAS + 64 * arena
        return self._get(entry + layout.A_READ_PS) + self._get(entry + layout.A_READ_NS) > 0

    @property
    def injecting(self) -> bool:
        """Whether any tier plays a slower device."""
        return bool(self._memory[words.X_INJECT // 8])

    def charge(self, segment: int, size: int) -> None:
        """Wait as long as the device that a segment's tier plays would take to read so many bytes."""
        scratch = (ctypes.c_uint64 * 2)()
        at = ctypes.addressof(scratch)
        self.native.charge(self.control.address, self.clients.address, segment, size, 0, at)

    @property
    def store_id(self) -> str:
        """Which store this is; a daemon that was started afresh has another."""
        return ctypes.string_at(self.control.address + layout.C_STORE_ID, 16).hex()

    @property
    def epoch(self) -> int:
        """Number of the daemon's life that this store is in now."""
        return self._get(self.control.address + layout.C_EPOCH)

    @property
    def stale(self) -> bool:
        """Whether a new daemon took over: its index must be mapped."""
        return self.epoch != int(self._memory[words.X_EPOCH // 8])

    def count(self, counter: int, amount: int) -> None:
        """Add to one of this client's counters."""
        at = ctypes.c_uint64.from_address(self.slot_address + layout.P_COUNTERS + 8 * counter)
        at.value += amount

    def counters(self) -> dict[str, int]:
        """This client's own counters, by name."""
        values = (ctypes.c_uint64 * len(CLIENT)).from_address(self.slot_address + layout.P_COUNTERS)
        return {counter.name: value for counter, value in zip(CLIENT, values, strict=True)}

    # --- messages ----------------------------------------------------------------------------------------------------------

    def submit(
        self,
        alive: Callable[[], None],
        operation: int,
        segment: int = 0,
        offset: int = 0,
        end: int = 0,
        argument: int = 0,
    ) -> int:
        """Push one message and wait for its result.

        alive: called once a second while waiting; raises if nobody will ever answer.
        """
        with self.lock:
            if self.closed:
                raise Closed("this store was closed; open or connect again")
            clients = self.clients.address
            message = (self.slot_address, clients, operation, segment, offset, end, argument, self.x + words.X_TRAP)
            while (result := self.native.submit(*message)) == RING_FULL:
                alive()
                time.sleep(LEASE_POLL_S)
            while result == WAIT_TIMED_OUT:
                alive()
                if self.stale:
                    self.renew()
                result = self.native.await_result(self.slot_address, clients)
            return int(result)

    def take_lease(self, alive: Callable[[], None], pool: int, kind: int, arena: int = 0) -> Lease:
        """A fresh segment, waiting for the daemon to make room without holding the lock. Raises Full."""
        wait = self.lease_wait()
        while isinstance(lease := self.try_lease(alive, pool, kind, arena), int):
            wait.pause(lease, pool)
        return lease

    def try_lease(self, alive: Callable[[], None], pool: int, kind: int, arena: int = 0) -> Lease | int:
        """A fresh segment, or why there is none at the moment."""
        while True:
            segment = self.submit(alive, layout.OP_LEASE, arena, pool, kind)
            if segment < 0:
                self.count(words.COUNT_WAITS, 1)
                if segment == layout.RESULT_REFUSED:
                    raise TierstoreError(f"the daemon refused a lease for pool {pool}, class {kind}, arena {arena}")
                return segment
            self.trap("lease.granted")
            lease = self._begin(segment, pool, kind, arena)
            if lease is not None:
                return lease

    def lease_wait(self) -> LeaseWait:
        """A wait as long as this thread's patience, else of ``lease_wait_s``."""
        wait_s = getattr(self._patience, "wait_s", None)
        return LeaseWait(self.lease_wait_s if wait_s is None else wait_s)

    @contextlib.contextmanager
    def patience(self, wait_s: float) -> Iterator[None]:
        """Within this, leases are waited for no longer than so many seconds, by this thread."""
        before, self._patience.wait_s = getattr(self._patience, "wait_s", None), wait_s
        try:
            yield
        finally:
            self._patience.wait_s = before

    def _begin(self, segment: int, pool: int, kind: int, arena: int) -> Lease | None:
        """The lease on a segment just granted; None if it was taken back already, being idle."""
        if self.writable[segment] == 0:
            info = self.grant.arenas[arena]
            self._fill(self.writable, info, self.grant.write_fds[arena], writable=True)
        if segment not in self._entered:
            # Faulting page by page while copying would cost five times as much.
            self._entered.add(segment)
            populate(int(self.writable[segment]), self.grant.segment_bytes, writable=True)
        memory = np.zeros(words.LEASE_BYTES // 8, "<u8")
        word = self._get(self.control.address + layout.CONTROL_HEADER_BYTES + segment * layout.SEGMENT_ENTRY_BYTES)
        owner = layout.STATE_LEASED << layout.STATE_SHIFT | self.grant.slot << layout.OWNER_SHIFT
        if word & ~layout.GENERATION_MASK != owner:
            return None
        memory[words.L_SEGMENT // 8] = segment
        memory[words.L_BASE // 8] = self.writable[segment]
        memory[words.L_NEXT // 8] = memory[words.L_FIRST // 8] = layout.SEGMENT_HEADER_BYTES
        memory[words.L_GENERATION // 8] = word & layout.GENERATION_MASK
        memory[words.L_WORD // 8] = word
        return Lease(segment, pool, kind, memory)

    def seal(self, alive: Callable[[], None], lease: Lease) -> None:
        """Give a lease back."""
        self.submit(alive, layout.OP_SEAL, lease.segment, int(lease.words[words.L_GENERATION // 8]))

    def share_slot(self) -> int:
        """Let another process hold this slot too, by a shared lock on its byte; the descriptor of the lock file.

        What the slot holds (leases, pins) is taken back only when both are gone, so the other may write and read there.
        """
        share_lock(self.grant.locks_fd, self.grant.slot)
        return self.grant.locks_fd

    def after_fork(self) -> None:
        """In a forked child: cut the inherited row and slot off, so that dropping inherited views unpins nothing."""
        make_private(self.slot_address, self.slot_stride)
        self.closed = True

    def close(self) -> None:
        """No further use; mappings and the slot's lock stay until the last view is gone."""
        self.closed = True
        self.renew = _nothing  # it refers to this session: with the circle open, the lock goes with the last reference


def _nothing() -> None:
    """Before a store set it, and after close()."""
