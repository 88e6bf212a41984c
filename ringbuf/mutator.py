"""The daemon's half of shared memory: it creates the regions, recovers what they hold, and runs the mutator thread."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from . import core_state as core
from . import layout
from .codes import LISTED_BYTES, WAIT_TIMED_OUT
from .counters import CLIENT, DAEMON
from .errors import ConfigError, PeerLost
from .native import daemon_kernels
from .recovery import Recovery, finish, recover
from .region import PAGE_BYTES, Mapping, create_file, lock_holder, reserve, round_up, try_lock, unlock
from .steps import Trap
from .tier import Tier

DAEMON_LOCK = 1 << 20  # the byte of the lock file that the daemon holds; slot k holds byte k
_PENDING_BYTES_PER_BUCKET = {layout.KIND_DRAM: 1, layout.KIND_PMEM: 1, layout.KIND_DISK: 2}


# Columns of list_live(): place, item, offset, length, class | heat << 8 | block index << 16 | codec << 48,
# expiry in ms
ROW_PLACE, ROW_ITEM, ROW_OFFSET, ROW_LENGTH, ROW_PACKED, ROW_EXPIRY = range(6)


class Mutator:
    """Regions, recovery and the mutator thread of one store.

    folder:     where control, clients, index and lock files live (a tmpfs); created if missing.
    arenas:     fastest first; their ``first`` is set here.
    Threads:    submit() may be called by any thread; everything else by the one that made it.
    """

    def __init__(
        self, folder: str, arenas: Sequence[Tier], segment_bytes: int, slot_count: int, quotas: Sequence[int] = ()
    ):
        self.folder, self.arenas, self.segment_bytes, self.slot_count = folder, list(arenas), segment_bytes, slot_count
        self.native = daemon_kernels()
        self.trap = Trap()
        self._submitting = threading.Lock()
        self._thread: threading.Thread | None = None
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self.locks_fd = os.open(os.path.join(folder, "locks"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not try_lock(self.locks_fd, DAEMON_LOCK):
            holder = lock_holder(self.locks_fd, DAEMON_LOCK)
            os.close(self.locks_fd)
            raise ConfigError(
                "store folder",
                folder,
                f"a daemon (process {holder}) is serving it already; stop that one or choose another socket",
            )
        self.segment_count = 0
        for arena in self.arenas:
            arena.first = self.segment_count
            self.segment_count += arena.segment_count
        try:
            self._open_control()
            for arena in self.arenas:
                arena.create(self.store_id)
            self._open_clients()
            self._open_index()
            self._build_core(quotas)
        except BaseException:
            self.close_failed()
            raise

    # --- regions ---------------------------------------------------------------------------------------------------------

    def _open_control(self) -> None:
        size = layout.CONTROL_HEADER_BYTES + self.segment_count * layout.SEGMENT_ENTRY_BYTES
        self.control_bytes = round_up(size, PAGE_BYTES)
        path = os.path.join(self.folder, "control")
        boot = _boot_id()
        self.warm = self._control_fits(path, boot)
        if not self.warm:
            self._retire_control(path)
            for name in os.listdir(self.folder):
                if name in ("control", "clients", "dram.arena") or name.startswith("index-"):
                    os.unlink(os.path.join(self.folder, name))
        self.control_fd = create_file(path, self.control_bytes)
        reserve(self.control_fd, 0, self.control_bytes, path)
        self.control = Mapping(self.control_fd, self.control_bytes, writable=True)
        if not self.warm:
            ctypes.memmove(self.control.address + layout.C_STORE_ID, self._known_store_id(), 16)
            ctypes.memmove(self.control.address + 80, boot, 16)
            unbacked = layout.STATE_UNBACKED << layout.STATE_SHIFT
            for segment in range(self.segment_count):
                self._put(self._entry(segment), unbacked)
        self.store_id = ctypes.string_at(self.control.address + layout.C_STORE_ID, 16)

    @staticmethod
    def _retire_control(path: str) -> None:
        """Tell clients that still map an old control file that it is not the store's any more."""
        if os.path.exists(path) and os.path.getsize(path) >= layout.CONTROL_HEADER_BYTES:
            with open(path, "r+b") as file:
                file.seek(layout.C_EPOCH)
                epoch = int.from_bytes(file.read(8), "little")
                file.seek(layout.C_EPOCH)
                file.write((epoch + 1 & 2**64 - 1).to_bytes(8, "little"))

    def _known_store_id(self) -> bytes:
        """The id in an arena that outlived the control file, else a new one."""
        known = (arena.known_store() for arena in self.arenas)
        return next((name for name in known if name is not None), None) or uuid.uuid4().bytes

    def _control_fits(self, path: str, boot: bytes) -> bool:
        """Whether a control file of this layout, geometry and boot is there: then memory contents are ours to keep."""
        try:
            with open(path, "rb") as file:
                raw = file.read(layout.CONTROL_HEADER_BYTES)
        except OSError:
            return False
        if len(raw) < layout.CONTROL_HEADER_BYTES or os.path.getsize(path) < self.control_bytes:
            return False
        word = struct.Struct("<Q").unpack_from
        expected = {
            layout.C_MAGIC: layout.CONTROL_MAGIC,
            layout.C_VERSION: layout.LAYOUT_VERSION,
            layout.C_SEGMENT_BYTES: self.segment_bytes,
            layout.C_SEGMENT_COUNT: self.segment_count,
            layout.C_SLOT_COUNT: self.slot_count,
            layout.C_TIER_COUNT: len(self.arenas),
        }
        return raw[80:96] == boot and all(word(raw, at)[0] == value for at, value in expected.items())

    def _open_clients(self) -> None:
        row = round_up(self.segment_count * layout.PIN_BYTES, PAGE_BYTES)
        self.row_offset = layout.SLOT_PAGE_BYTES + layout.RING_BYTES
        self.slot_stride = self.row_offset + row
        self.access_stride = self.segment_bytes >> layout.ACCESS_SHIFT
        self.access_offset = layout.CLIENTS_HEADER_BYTES + self.slot_count * self.slot_stride
        self.clients_bytes = round_up(self.access_offset + self.segment_count * self.access_stride, PAGE_BYTES)
        path = os.path.join(self.folder, "clients")
        self.clients_fd = create_file(path, self.clients_bytes)
        # Everything that is touched without asking is promised by the file system first: no SIGBUS later.
        reserve(self.clients_fd, 0, layout.CLIENTS_HEADER_BYTES + self.slot_stride, path)
        reserve(self.clients_fd, self.access_offset, self.clients_bytes - self.access_offset, path)
        self.clients = Mapping(self.clients_fd, self.clients_bytes, writable=True)

    def slot_address(self, slot: int) -> int:
        """Where a slot's page begins."""
        return self.clients.address + layout.CLIENTS_HEADER_BYTES + slot * self.slot_stride

    def _open_index(self) -> None:
        """A new index for this life of the daemon; readers of the old one notice by the epoch."""
        self.epoch = self._get(self.control.address + layout.C_EPOCH) + 1
        buckets = sum(
            arena.segment_count * self.segment_bytes // layout.BYTES_PER_BUCKET // _PENDING_BYTES_PER_BUCKET[arena.kind]
            for arena in self.arenas
        )
        self.bucket_count = 1 << max(8, (buckets - 1).bit_length())
        path = os.path.join(self.folder, f"index-{self.epoch}")
        self.index_bytes = self.bucket_count * layout.BUCKET_BYTES
        self.index_fd = create_file(path, self.index_bytes)
        reserve(self.index_fd, 0, self.index_bytes, path)
        self.index = Mapping(self.index_fd, self.index_bytes, writable=True, huge=self.index_bytes >= 4 << 20)

    def _build_core(self, quotas: Sequence[int]) -> None:
        """The private words of the mutator."""
        self._words = np.zeros(core.CORE_TOTAL_BYTES // 8, "<u8")
        self._addresses = np.zeros(self.segment_count, "<u8")
        self._arena_of = np.zeros(self.segment_count, "u1")
        self._files = np.zeros(layout.ARENA_MAX, "<u8")
        self._pools = np.zeros(128, "<u8")
        self._pools[64 : 64 + len(quotas)] = [max(1, quota // self.segment_bytes) if quota else 0 for quota in quotas]
        self._drain = np.zeros(core.DRAIN_MAX, "<u8")
        self._events = np.zeros(core.EVENT_COUNT, "<u8")
        self._scratch = np.zeros(core.SCRATCH_BYTES + PAGE_BYTES, "u1")
        ghosts = 1 << max(10, min(20, self.bucket_count.bit_length()))
        self._ghost = np.zeros(ghosts, "<u4")
        self._rings = [np.zeros(arena.segment_count, "<u8") for arena in self.arenas]
        self.event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        for number, arena in enumerate(self.arenas):
            last = arena.first + arena.segment_count
            self._arena_of[arena.first : last] = number
            self._files[number] = arena.fd
            if arena.mapping is not None:
                self._addresses[arena.first : last] = (
                    arena.mapping.address
                    + layout.ARENA_HEADER_BYTES
                    + np.arange(arena.segment_count, dtype="<u8") * np.uint64(self.segment_bytes)
                )
        at = self.control.address
        values = {
            core.D_CONTROL: at,
            core.D_INDEX: self.index.address,
            core.D_MASK: self.bucket_count - 1,
            core.D_CLIENTS: self.clients.address,
            core.D_SLOTS: self.slot_address(0),
            core.D_SLOT_STRIDE: self.slot_stride,
            core.D_SLOT_HIGH: 1,
            core.D_TABLE: at + layout.CONTROL_HEADER_BYTES,
            core.D_ADDRESSES: self._addresses.ctypes.data,
            core.D_SEGMENT_BYTES: self.segment_bytes,
            core.D_SEGMENT_COUNT: self.segment_count,
            core.D_ROW_OFFSET: self.row_offset,
            core.D_ACCESS: self.clients.address + self.access_offset,
            core.D_ACCESS_STRIDE: self.access_stride,
            core.D_GHOST: self._ghost.ctypes.data,
            core.D_GHOST_MASK: ghosts - 1,
            core.D_ARENAS: self._arena_of.ctypes.data,
            core.D_FILES: self._files.ctypes.data,
            core.D_POOL_USED: self._pools.ctypes.data,
            core.D_POOL_QUOTA: self._pools.ctypes.data + 512,
            core.D_RESERVE: self.reserve_count(),
            core.D_DRAIN: self._drain.ctypes.data,
            core.D_EVENT_FD: self.event_fd,
            core.D_EVENTS: self._events.ctypes.data,
            core.D_SCRATCH: self._scratch.ctypes.data,
            core.D_PAGE: self._scratch.ctypes.data + core.SCRATCH_BYTES,
            core.D_HEADER_BYTES: layout.ARENA_HEADER_BYTES,
        }
        for offset, value in values.items():
            self._words[offset // 8] = value
        for number, ring in enumerate(self._rings):
            self._words[(core.D_FREE_RINGS + number * core.FREE_RING_BYTES) // 8 + 2] = ring.ctypes.data
        self.core = self._words.ctypes.data
        self._words[core.D_TRAP // 8], self._words[core.D_TRAP // 8 + 1] = self.trap.word, self.trap.left

    def reserve_count(self) -> int:
        """Free segments kept for the daemon's own moves, so that making room never needs room it cannot get."""
        return 1

    def _write_control(self) -> None:
        at = self.control.address
        for field, value in {
            layout.C_VERSION: layout.LAYOUT_VERSION,
            layout.C_SEGMENT_BYTES: self.segment_bytes,
            layout.C_SEGMENT_COUNT: self.segment_count,
            layout.C_TIER_COUNT: len(self.arenas),
            layout.C_BUCKET_MASK: self.bucket_count - 1,
            layout.C_SLOT_COUNT: self.slot_count,
            layout.C_INDEX_ITEMS: 0,
        }.items():
            self._put(at + field, value)
        for number, arena in enumerate(self.arenas):
            entry = at + layout.C_ARENAS + 64 * number
            self._put(entry + layout.A_KIND, arena.kind)
            self._put(entry + layout.A_FIRST, arena.first)
            self._put(entry + layout.A_COUNT, arena.segment_count)
            self._put(entry + layout.A_MAPPED, int(arena.mapped))
            fields = (layout.A_READ_PS, layout.A_WRITE_PS, layout.A_READ_NS, layout.A_WRITE_NS)
            for field, cost in zip(fields, arena.cost, strict=True):
                self._put(entry + field, cost)
            self._put(at + layout.C_FREE + 8 * number, 0)
        self._put(at + layout.C_MAGIC, layout.CONTROL_MAGIC)

    @staticmethod
    def _put(address: int, value: int) -> None:
        ctypes.c_uint64.from_address(address).value = value

    @staticmethod
    def _get(address: int) -> int:
        return ctypes.c_uint64.from_address(address).value

    def _entry(self, segment: int) -> int:
        return self.control.address + layout.CONTROL_HEADER_BYTES + segment * layout.SEGMENT_ENTRY_BYTES

    # --- segments, seen by the policy --------------------------------------------------------------------------------------

    def segment_field(self, segment: int, field: int) -> int:
        """One word of a segment's line."""
        return self._get(self._entry(segment) + field)

    def state(self, segment: int) -> int:
        """A segment's state."""
        return self.segment_field(segment, layout.S_WORD) >> layout.STATE_SHIFT

    def generation(self, segment: int) -> int:
        """A segment's generation."""
        return self.segment_field(segment, layout.S_WORD) & layout.GENERATION_MASK

    def address(self, segment: int) -> int:
        """A segment's writable address, 0 if it is not mapped."""
        return int(self._addresses[segment])

    def arena_of(self, segment: int) -> Tier:
        """The arena a segment lies in."""
        return self.arenas[int(self._arena_of[segment])]

    def free_count(self, number: int) -> int:
        """Free segments of an arena."""
        return self._get(self.control.address + layout.C_FREE + 8 * number)

    def heat_bytes(self, segment: int) -> np.ndarray:
        """The access bytes of a segment, writable."""
        start = self.clients.address + self.access_offset + segment * self.access_stride
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.access_stride).from_address(start))

    def list_live(self, segment: int, image: int = 0) -> np.ndarray:
        """The live records of a segment, a row each (see ROW_*), with one spare row behind them.

        image: address of a copy of the segment's bytes where it is not mapped.
        """
        room = max(1, self.segment_field(segment, layout.S_LIVE_COUNT))
        out = np.zeros((room + 1, LISTED_BYTES // 8), "<u8")
        count = self.native.list_live(self.core, segment, image or self.address(segment), out.ctypes.data, room)
        return out[: count + 1]

    def counters(self) -> dict[str, int]:
        """The daemon's counters by name."""
        at = self.control.address + layout.C_COUNTERS
        return {counter.name: self._get(at + 8 * i) for i, counter in enumerate(DAEMON)}

    def count(self, name: str, amount: int) -> None:
        """Add to a counter that the policy thread owns."""
        position = next(i for i, counter in enumerate(DAEMON) if counter.name == name)
        at = self.control.address + layout.C_COUNTERS + 8 * position
        self._put(at, self._get(at) + amount)

    def client_counters(self) -> dict[str, int]:
        """The clients' counters, summed over all slots ever used (a slot's counters are kept when it is reused)."""
        sums = dict.fromkeys((counter.name for counter in CLIENT), 0)
        for slot in range(int(self._words[core.D_SLOT_HIGH // 8])):
            at = self.slot_address(slot) + layout.P_COUNTERS
            for position, counter in enumerate(CLIENT):
                sums[counter.name] += self._get(at + 8 * position)
        return sums

    # --- life ----------------------------------------------------------------------------------------------------------------

    def recover(self) -> Recovery:
        """Rebuild the index from the segments and start the mutator thread. Then clients may be served."""
        self._write_control()
        # From here readers of the old index see that it is old; only then may anything be withdrawn from the new one.
        self._put(self.control.address + layout.C_EPOCH, self.epoch)
        # What the last daemon asked of itself died with it: its messages name addresses of that process.
        own = self.slot_address(0)
        self._put(own + layout.P_HEAD, self._get(own + layout.P_TAIL))
        ctypes.memset(own + self.row_offset, 0, self.segment_count * layout.PIN_BYTES)  # and so did its moves
        found = recover(self)
        self._start()
        finish(self, found)
        return found

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self.native.run, args=(self.core,), name="tierstore-mutator", daemon=True
        )
        self._thread.start()

    def submit(self, operation: int, segment: int = 0, offset: int = 0, end: int = 0, argument: int = 0) -> int:
        """Have the mutator carry out one operation in the daemon's own name, and wait for the result."""
        with self._submitting:
            slot, clients = self.slot_address(0), self.clients.address
            result = self.native.submit(
                slot, clients, operation, segment, offset, end, argument, self.core + core.D_TRAP
            )
            while result == WAIT_TIMED_OUT:
                if self._thread is None or not self._thread.is_alive():
                    raise PeerLost("the store's mutator thread has stopped")
                result = self.native.await_result(slot, clients)
            return int(result)

    def take_events(self) -> Iterator[tuple[int, int]]:
        """(kind, argument) of what the mutator told since the last call."""
        try:
            os.eventfd_read(self.event_fd)
        except BlockingIOError:
            pass
        tail = self.native.load_word(self.core + core.D_EVENT_TAIL)
        head = max(int(self._words[core.D_EVENT_HEAD // 8]), tail - core.EVENT_COUNT)
        while head < tail:
            event = int(self._events[head & (core.EVENT_COUNT - 1)])
            head += 1
            self._words[core.D_EVENT_HEAD // 8] = head
            yield event >> 32, event & 0xFFFFFFFF

    def claim_slot(self, pid: int) -> int:
        """A free client slot, made active; -1 if all are taken."""
        high = int(self._words[core.D_SLOT_HIGH // 8])
        for slot in range(1, self.slot_count):
            at = self.slot_address(slot)
            if slot >= high:  # nobody has had it: not even its state can be read while memory is full
                reserve(self.clients_fd, at - self.clients.address, self.slot_stride, self.folder)
            if self._get(at + layout.P_STATE) == layout.SLOT_FREE:
                self._put(at + layout.P_PID, pid)
                self._put(at + layout.P_NONCE, int.from_bytes(os.urandom(4), "little") >> 1 << 32)
                self._put(at + layout.P_TAIL, self._get(at + layout.P_HEAD))
                self._put(at + layout.P_STATE, layout.SLOT_ACTIVE)
                self.raise_slot_high(slot + 1)
                return slot
        return -1

    def reap(self, slot: int) -> bool:
        """Take back what a client held, if it is gone; False if it lives.

        The slot's lock is held meanwhile: a client that was granted the slot and attaches just now is told to connect again.
        """
        if not try_lock(self.locks_fd, slot):
            return False
        self.submit(layout.OP_REAP, offset=slot)
        unlock(self.locks_fd, slot)
        return True

    def raise_slot_high(self, count: int) -> None:
        """Slots below this are looked at."""
        self._words[core.D_SLOT_HIGH // 8] = max(int(self._words[core.D_SLOT_HIGH // 8]), count)

    def active_slots(self) -> Iterable[int]:
        """Slots that a client holds."""
        for slot in range(1, int(self._words[core.D_SLOT_HIGH // 8])):
            if self._get(self.slot_address(slot) + layout.P_STATE) == layout.SLOT_ACTIVE:
                yield slot

    def stop(self) -> None:
        """Stop the mutator thread; messages not yet handled stay in their rings."""
        if self._thread is not None:
            self._words[core.D_STOP // 8] = 1
            self.native.wake(self.core)
            self._thread.join()
            self._thread = None

    def close(self, remove: bool) -> None:
        """Stop and close everything; remove: the files in memory and the arenas too."""
        self.stop()
        self._close_files(remove, self.arenas)

    def close_failed(self) -> None:
        """Close after a start that came to nothing: what it made goes, what it found stays."""
        self.stop()
        for arena in self.arenas:
            arena.close(remove=arena.fd >= 0 and not arena.warm)
        self._close_files(remove=not getattr(self, "warm", True), arenas=())

    def _close_files(self, remove: bool, arenas: Sequence[Tier]) -> None:
        """Also where only some of them were opened."""
        for arena in arenas:
            arena.close(remove)
        for name in ("control_fd", "clients_fd", "index_fd", "event_fd"):
            if hasattr(self, name):
                os.close(getattr(self, name))
        if remove:
            self._retire_control(os.path.join(self.folder, "control"))
            for name in os.listdir(self.folder):
                os.unlink(os.path.join(self.folder, name))
            os.rmdir(self.folder)
        os.close(self.locks_fd)


def _boot_id() -> bytes:
    """Which boot of the machine this is: what lay in memory before another one is not to be trusted."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return uuid.UUID(file.read().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)
