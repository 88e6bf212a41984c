"""One store's engine: the mutator, the policy thread beside it, and the requests that only the daemon can serve."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tierstore.ringbuf import core_state, layout
from tierstore.ringbuf.client import ArenaInfo, Grant
from tierstore.ringbuf.errors import Full
from tierstore.ringbuf.mutator import Mutator
from tierstore.ringbuf.region import populate
from tierstore.ringbuf.tier import Tier

from .cascade import Cascade

log = logging.getLogger("tierstore")

TICK_S = 0.5
LIVENESS_S = 1.0
PROMOTE_S = 0.1
PROMOTE_REST = 1  # after a round of promotion, reads have the device for so many times as long
READS_PER_AGE = 1  # marks are halved when every block could have been read so often
# Free segments that the policy thread tries to keep per arena, beyond the reserve: while clients fill segments fast, and
# at rest, when an empty segment is only room that nothing is cached in.
FREE_AHEAD, FREE_AT_REST = 6, 1
HURRY_S = 2.0
# Segments reserved before the store says that it is ready; the others follow in the background.
BACKED_AT_START = 3
# At most this many bytes are promoted per round, so that reads keep the device.
PROMOTE_BYTES = 128 << 20


@dataclass
class EngineConfig:
    """What an engine is made of."""

    folder: str
    segment_bytes: int
    arenas: Sequence[Tier]
    slot_count: int = 64
    pools: dict[str, int] = field(default_factory=lambda: {"default": 0})  # name to quota in bytes, 0 unlimited
    ephemeral: bool = False
    labels: dict[str, str] = field(default_factory=dict)  # tier to what must be said of the device it plays
    columns_allow: Sequence[str] = ()  # which files the column cache takes, see columns/ledger.py
    columns_deny: Sequence[str] = ()


class Engine:
    """Runs one store. Requests (``request_*`` of requests.py) and the policy thread take turns through ``turn``."""

    def __init__(self, config: EngineConfig):
        self.config = config
        self.pools = {name: number for number, name in enumerate(config.pools)}
        self.mutator = Mutator(
            config.folder, config.arenas, config.segment_bytes, config.slot_count, list(config.pools.values())
        )
        self.cascade = Cascade(self.mutator)
        self.turn = threading.RLock()
        self.started = time.time()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._slots_turn = threading.RLock()  # a slot is claimed and marked as held in one step
        self.held_slots: set[int] = set()  # of this process, or with an open connection
        self._unbacked: list[int] = []
        self._unentered: list[int] = []
        self._hits_when_aged = self._hits_seen = 0
        self._reading, self._gone_when_synced = False, 0
        self._next_check = self._next_promotion = 0.0
        self._hurry_until = [0.0] * len(self.mutator.arenas)
        try:
            self.recovery = self.mutator.recover()
            self._after_recovery()
        except BaseException:  # the mutator thread must not outlive the memory that it works on
            self.mutator.close_failed()
            raise

    def _after_recovery(self) -> None:
        mutator = self.mutator
        found = [s for s in range(mutator.segment_count) if mutator.state(s) == layout.STATE_SEALED]
        for segment in sorted(found, key=lambda s: mutator.segment_field(s, layout.S_SEQUENCE)):
            self.cascade.sealed(segment)
        self._unbacked = [s for s in range(mutator.segment_count) if mutator.state(s) == layout.STATE_UNBACKED]
        self._unentered = [
            s for s in range(mutator.segment_count) if mutator.address(s) and s not in set(self._unbacked)
        ]
        for arena in mutator.arenas:
            mine = [s for s in self._unbacked if arena.first <= s < arena.first + arena.segment_count]
            for segment in mine[: BACKED_AT_START + mutator.reserve_count()]:
                if not self._back(segment):
                    break

    def _back(self, segment: int) -> bool:
        """Reserve one segment's bytes and put it in circulation. False: there is no room for it or any other of its arena.

        Raises Full where the arena has fewer than two segments to use.
        """
        arena = self.mutator.arena_of(segment)
        try:
            arena.back(segment, hurry=time.monotonic() < self._hurry_until[self.mutator.arenas.index(arena)])
        except Full:
            rest = [s for s in self._unbacked if arena.first <= s < arena.first + arena.segment_count]
            usable = arena.segment_count - len(rest)
            if usable < 2:
                raise
            self._unbacked = [s for s in self._unbacked if s not in rest]
            log.warning(
                "%s is full: the %s tier uses %d of %d segments; free room there and restart",
                arena.path,
                arena.name,
                usable,
                arena.segment_count,
            )
            return False
        self._unbacked.remove(segment)
        self.mutator.submit(layout.OP_BACKED, segment)
        if self.mutator.address(segment):
            self._unentered.append(segment)
        return True

    def _enter(self) -> None:
        """Enter one segment into our page tables: else each publish in it waits for page faults of some microseconds."""
        populate(self.mutator.address(self._unentered.pop()), self.mutator.segment_bytes, writable=True)

    def start(self) -> None:
        """Start the policy thread."""
        self._thread = threading.Thread(target=self._run, name="tierstore-policy", daemon=True)
        self._thread.start()

    # --- the policy thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.mutator.event_fd, select.POLLIN)
        while not self._stop.is_set():
            if not self._unbacked and not self._unentered:
                poll.poll(int(1000 * (PROMOTE_S if self._reading else TICK_S)))
            try:
                with self.turn:
                    self.round()
            except Exception:  # the policy thread must outlive any one move
                log.exception("moving data failed; the store goes on, the next round tries again")
                time.sleep(TICK_S)

    def round(self) -> None:
        """Take events in, keep room free, and do one piece of background work."""
        wanted: set[tuple[int, int]] = set()
        for kind, argument in self.mutator.take_events():
            if kind == core_state.EVENT_SEALED:
                self.cascade.sealed(argument)
            elif kind == core_state.EVENT_FREED:
                self.cascade.freed(argument)
            elif kind == core_state.EVENT_PRESSURE:
                wanted.add((argument & 0xFF, argument >> 8))
                self._hurry_until[argument & 0xFF] = time.monotonic() + HURRY_S
        for _ in range(4):
            if self._unbacked:
                self._back(self._unbacked[0])
        if self._unentered:
            self._enter()
        for _, pool in wanted:
            if pool:
                self.cascade.shrink_pool(pool - 1)
        for number in range(len(self.mutator.arenas)):
            self._keep_free(number)
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + LIVENESS_S
            self.reap_dead()
            self.cascade.drop_expired(int(time.time() * 1000))
            self._sync_deletes()
        if now >= self._next_promotion:
            self._promote()
            took = time.monotonic() - now
            self._next_promotion = now + max(PROMOTE_S, PROMOTE_REST * took)

    def _keep_free(self, number: int) -> None:
        """Make room ahead of need, a few segments at a time."""
        arena = self.mutator.arenas[number]
        if any(arena.first <= s < arena.first + arena.segment_count for s in self._unbacked[:1]):
            return
        ahead = FREE_AHEAD if time.monotonic() < self._hurry_until[number] else FREE_AT_REST
        goal = self.mutator.reserve_count() + min(ahead, arena.segment_count // 8 + 1)
        for _ in range(4):
            if self.mutator.free_count(number) >= goal:
                return
            freed = self.cascade.freed_count()
            if not self.cascade.make_room(number):
                if self.mutator.free_count(number) <= self.mutator.reserve_count():
                    # Nothing else may go: what moves are filling may, once it is sealed.
                    self.cascade.mover.finish_tier(number)
                return
            # Not until the goal is reached: a client that fills segments as fast as they are freed would never let it be.
            self.cascade.wait_freed(freed)

    def _sync_deletes(self) -> None:
        """Make what was deleted or replaced on disk since the last time stay so after power loss."""
        counters = self.mutator.counters()
        gone = counters["deleted"] + counters["replaced"]
        if gone != self._gone_when_synced:
            self._gone_when_synced = gone
            for arena in self.mutator.arenas:
                if not arena.mapped:
                    arena.sync()

    def _promote(self) -> None:
        hits = self.mutator.client_counters()["hits"]
        self._reading, self._hits_seen = hits != self._hits_seen, hits
        blocks = self.mutator._get(self.mutator.control.address + layout.C_INDEX_ITEMS)
        if hits == self._hits_when_aged or len(self.mutator.arenas) < 2:
            return
        self.cascade.promote_hot(PROMOTE_BYTES, spare=time.monotonic() > self._hurry_until[0])
        if hits - self._hits_when_aged > READS_PER_AGE * max(64, blocks):
            self._hits_when_aged = hits
            self.cascade.age()

    def reap_dead(self) -> None:
        """Take back what killed clients held: their locks are gone, the kernel says so.

        A slot whose connection is open is left alone: its client may not have taken the lock yet.
        """
        with self._slots_turn:
            for slot in list(self.mutator.active_slots()):
                if slot not in self.held_slots:
                    self.mutator.reap(slot)

    # --- clients ------------------------------------------------------------------------------------------------------------

    def admit(self, pid: int, own: bool = False) -> Grant:
        """Give a client a slot and descriptors of its own. Raises Full where all slots are taken."""
        mutator, folder = self.mutator, self.config.folder
        with self._slots_turn:
            slot = mutator.claim_slot(pid)
            if slot < 0:
                self.reap_dead()
                slot = mutator.claim_slot(pid)
            if slot < 0:
                raise Full(f"all {mutator.slot_count - 1} client slots are taken; close clients or raise `clients`")
            self.held_slots.add(slot)
        arenas = [ArenaInfo(a.kind, a.first, a.segment_count, a.path, a.mapped) for a in mutator.arenas]
        nonce = mutator._get(mutator.slot_address(slot) + layout.P_NONCE)
        return Grant(
            slot=slot,
            nonce=nonce,
            slot_count=mutator.slot_count,
            segment_bytes=mutator.segment_bytes,
            segment_count=mutator.segment_count,
            epoch=mutator.epoch,
            index_bytes=mutator.index_bytes,
            arenas=arenas,
            control_fd=os.open(os.path.join(folder, "control"), os.O_RDONLY | os.O_CLOEXEC),
            clients_fd=os.open(os.path.join(folder, "clients"), os.O_RDWR | os.O_CLOEXEC),
            index_fd=os.open(os.path.join(folder, f"index-{mutator.epoch}"), os.O_RDONLY | os.O_CLOEXEC),
            # Never another descriptor of the lock file here: closing one would drop the daemon's own lock.
            locks_fd=-1 if own else mutator.locks_fd,
            arena_fds=[arena.reader_fd() for arena in mutator.arenas],
            write_fds=[arena.writer_fd() for arena in mutator.arenas],
        )

    def leave(self, slot: int) -> None:
        """A client said goodbye; its pins may outlive it, so the slot goes only when its lock does."""
        self.held_slots.discard(slot)

    # --- end ----------------------------------------------------------------------------------------------------------------

    def close(self, remove: bool | None = None, unused: bool = False) -> None:
        """Stop moving data and serving; ``remove`` the files too (default: as configured).

        unused: it never served anybody; then what the start made in memory goes, and what it found stays.
        """
        self._stop.set()
        if self._thread is not None:
            os.eventfd_write(self.mutator.event_fd, 1)
            self._thread.join()
        with self.turn:
            self.cascade.mover.finish_all()
        if unused:
            self.mutator.close_failed()
        else:
            self.mutator.close(self.config.ephemeral if remove is None else remove)
        self.cascade.mover.detach()
