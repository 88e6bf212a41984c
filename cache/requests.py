"""Requests that only the daemon can serve: listings, statistics, pins, durability, verification.

Each is a function of the engine and plain values, and answers plain values, so that it crosses a socket as it is.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tierstore.ringbuf import layout
from tierstore.ringbuf.client import Session
from tierstore.ringbuf.errors import ConfigError, NotFound
from tierstore.ringbuf.mutator import ROW_EXPIRY, ROW_ITEM, ROW_OFFSET, ROW_PACKED
from tierstore.ringbuf.recovery import SegmentImage

from .columns.chunks import place_of
from .columns.ledger import Ledger
from .engine import Engine
from .reading import Found, Reader

MOVE_WAIT_S = 20.0


class Requests:
    """The requests of one engine. Callers: one thread at a time per engine turn; each takes the turn it needs."""

    def __init__(self, engine: Engine):
        self.engine = engine
        self.session = Session(engine.admit(os.getpid(), own=True))
        self._reader = Reader(self.session)
        self.ledger = Ledger()
        self.table: dict[str, Callable[..., Any]] = {
            "keys": self.keys,
            "info": self.info,
            "stats": self.stats,
            "verify": self.verify,
            "pin": self.pin,
            "unpin": self.unpin,
            "flush": self.flush,
            "tables": self.tables,
            "count_table": self.ledger.add,
            "column_rules": lambda: [self.engine.config.columns_allow, self.engine.config.columns_deny],
        }
        self.at_close: list[Callable[[], None]] = []  # what packages above end before the engine
        self.counters: dict[str, Callable[[], dict[str, int]]] = {}  # what they count, for stats(); quick
        # What packages above add to the table once a call of theirs comes: the calls' first word, and who adds them.
        self.late: dict[str, Callable[[], object]] = {}
        self._adding = threading.Lock()

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Serve one request by name. Raises whatever it raises; KeyError for an unknown name."""
        if name not in self.table:
            self.add_late(name.partition("_")[0])
        return self.table[name](**arguments)

    def add_late(self, word: str) -> None:
        """Have a package above add its calls, unless it did."""
        with self._adding:
            if word in self.late:
                self.late[word]()
                del self.late[word]

    def close(self) -> None:
        """Give the internal client up."""
        for end in self.at_close:
            end()
        self.at_close.clear()
        self.counters.clear()
        self.late.clear()
        self.session.close()
        self.table.clear()  # it refers to this object: with the circle open, memory goes with the last reference

    # --- listings -----------------------------------------------------------------------------------------------------------

    def _roots(self) -> Iterator[tuple[int, int, int]]:
        """Header address, expiry and segment of every live root."""
        mutator = self.engine.mutator
        for segment in range(mutator.segment_count):
            if mutator.segment_field(segment, layout.S_LIVE_COUNT) == 0:
                continue
            image = SegmentImage(mutator, segment)
            rows = mutator.list_live(segment, image.address)[:-1]
            roots = rows[rows[:, ROW_PACKED] >> np.uint64(16) & np.uint64(2**32 - 1) == 0]
            for offset, expiry in roots[:, [ROW_OFFSET, ROW_EXPIRY]].tolist():
                yield image.address + offset, expiry, segment

    def holds(self, prefix: str) -> bool:
        """Whether any key begins with the prefix."""
        raw = prefix.encode()
        with self.engine.turn:
            return any(_key_at(head).startswith(raw) for head, _, _ in self._roots())

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin with the prefix, sorted."""
        raw, now = prefix.encode(), int(time.time() * 1000)
        found = set()  # a key that is replaced during the walk may be met twice
        with self.engine.turn:  # nothing is moved meanwhile
            for head, expiry, _ in self._roots():
                key = _key_at(head)
                if key.startswith(raw) and not 0 < expiry <= now:
                    found.add(key.decode())
        return sorted(found)

    def tables(self) -> list[dict[str, Any]]:
        """What the column cache holds and did, by table. Cost: as keys()."""
        cached, mutator = [], self.engine.mutator
        with self.engine.turn:
            for head, _, segment in self._roots():
                place = place_of(_key_at(head).decode())
                if place is not None:
                    size = ctypes.c_uint64.from_address(head + layout.R_OBJECT_BYTES).value
                    cached.append((place.path, mutator.arena_of(segment).name, size))
        return self.ledger.rows(cached)

    def info(self, key: str) -> dict[str, Any]:
        """What is stored under a key."""
        blocks = self._blocks(key)
        mutator, root = self.engine.mutator, blocks[0]
        arenas = [mutator.arena_of(block.segment) for block in blocks]
        head = self.header(root)
        kind = head[layout.R_CLASS]
        expiry = int.from_bytes(head[layout.R_EXPIRY : layout.R_EXPIRY + 8], "little")
        tiers = sorted({arena.name for arena in arenas}, key=layout.KINDS.index)
        return {
            "key": key,
            "class": "KEEP" if kind & layout.CLASS_KEEP else "CACHE",
            "pinned": kind & layout.CLASS_PINNED_CACHE != 0,
            "tiers": tiers,
            "durability": "durable" if all(arena.durable for arena in arenas) else "volatile",
            "kind": "bytes" if root.kind in (layout.KIND_BYTES, layout.KIND_BYTES_PIECE) else "table",
            "bytes": int.from_bytes(head[layout.R_OBJECT_BYTES : layout.R_OBJECT_BYTES + 8], "little"),
            "rows": int.from_bytes(head[layout.R_OBJECT_ROWS : layout.R_OBJECT_ROWS + 8], "little"),
            "blocks": len(blocks),
            "expires_unix_s": expiry / 1000 if expiry else None,
            "pool": list(self.engine.pools)[int.from_bytes(head[layout.R_POOL : layout.R_POOL + 2], "little")],
        }

    def find_root(self, key: str) -> Found | None:
        """The root of an object, None if there is none."""
        return self._reader.find(key, 0, 0)

    def header(self, block: Found) -> bytes:
        """The header of a block, as it lies in its segment."""
        mutator, segment = self.engine.mutator, block.segment
        offset = (block.item & layout.GRANULE_MASK) * layout.GRANULE
        if mutator.address(segment):
            return ctypes.string_at(mutator.address(segment) + offset, layout.RECORD_HEADER_BYTES)
        arena = mutator.arena_of(segment)
        return os.pread(arena.fd, layout.RECORD_HEADER_BYTES, arena.offset_of(segment) + offset)

    def _blocks(self, key: str) -> list[Found]:
        root = self._reader.find(key, 0, 0)
        if root is None:
            raise NotFound(f"key {key!r:.200} is not in the store")
        blocks = [root]
        for index in range(1, root.block_count):
            block = self._reader.find(key, index, root.version)
            if block is None:
                raise NotFound(f"key {key!r:.200} was replaced meanwhile")
            blocks.append(block)
        return blocks

    # --- moves that a user asked for ----------------------------------------------------------------------------------------

    def pin(self, key: str, tier: str) -> None:
        """Move an object to a tier, out of the rings; to a volatile one also what was acknowledged as durable."""
        self._move(key, self._arenas_of(tier), True, f"pin {key!r:.60} in {tier}")

    def unpin(self, key: str) -> None:
        """Put an object back into the rings of the tier it is in."""
        self._move(key, None, False, f"unpin {key!r:.60}")

    def flush(self, key: str) -> None:
        """Move an object's blocks to the first tier that survives power loss, and have those of KEEP stay in such tiers."""
        arenas = self.engine.mutator.arenas
        durable = [i for i, arena in enumerate(arenas) if arena.durable]
        if not durable:
            raise ConfigError(
                "durable",
                True,
                "this store has no tier that survives power loss; configure `disk` (or "
                "`pmem` on a DAX or disk file system)",
            )
        self._move(key, durable, None, f"make {key!r:.60} durable", mark=len(durable) < len(arenas))

    def _arenas_of(self, tier: str) -> list[int]:
        numbers = [i for i, arena in enumerate(self.engine.mutator.arenas) if arena.name == tier]
        if not numbers:
            have = sorted({arena.name for arena in self.engine.mutator.arenas}, key=layout.KINDS.index)
            raise ConfigError("tier", tier, f"this store has {', '.join(have)}")
        return numbers

    def _move(self, key: str, numbers: list[int] | None, pinned: bool | None, what: str, mark: bool = False) -> None:
        """Move all blocks of an object, retrying while room is being made. mark: what is KEEP, as durable."""
        engine, deadline = self.engine, time.monotonic() + MOVE_WAIT_S
        while True:
            moved: int | None = 0
            with engine.turn:
                for number in (numbers or [])[:1]:  # while a segment is left into which others can be emptied
                    if engine.mutator.free_count(number) <= engine.mutator.reserve_count():
                        engine.cascade.make_room(number)
                for block in self._blocks(key):
                    segment = block.segment
                    place = engine.cascade._number(segment)
                    if numbers is not None and place in numbers and pinned is None:
                        kind = self.header(block)[layout.R_CLASS] if mark else layout.CLASS_CACHE
                        if kind & (layout.CLASS_KEEP | layout.CLASS_DURABLE) != layout.CLASS_KEEP:
                            continue
                    # What is unpinned where all is pinned goes down; a tier may have several arenas.
                    choices = [place, *engine.cascade.slower(place)] if numbers is None else numbers
                    choices = [place] if numbers is not None and place in numbers else choices
                    only = partial(_is_item, block.item & (2**64 - 1))
                    tries = (engine.cascade.move(segment, target, only, pinned, mark) for target in choices)
                    moved = next((got for got in tries if got is not None), None)
                    if moved is None:
                        engine.cascade.make_room(choices[0])
                        break
                if pinned is not None:
                    engine.cascade.mover.finish_all()  # durable objects follow each other in one segment
            if moved is not None:
                return
            if time.monotonic() > deadline:
                engine.cascade.require(None, what)
            time.sleep(0.01)

    # --- statistics -----------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Tiers, counters, pools and clients."""
        engine, mutator = self.engine, self.engine.mutator
        clients, daemon = mutator.client_counters(), mutator.counters()
        tiers: dict[str, Any] = {}
        for number, arena in enumerate(mutator.arenas):
            tier = tiers.setdefault(arena.name, _new_tier(arena.kind, clients))
            rows = engine.cascade._table[arena.first : arena.first + arena.segment_count]
            states = (rows[:, 0] >> np.uint64(layout.STATE_SHIFT)).astype(int)
            tier["capacity_bytes"] += arena.segment_count * mutator.segment_bytes
            tier["live_bytes"] += int(rows[:, layout.S_LIVE_BYTES // 8].sum())
            tier["blocks"] += int(rows[:, layout.S_LIVE_COUNT // 8].sum())
            for state, name in enumerate(layout.STATE_NAMES):
                tier["segments"][name] += int((states == state).sum())
            tier["paths"].append(arena.path)
            tier["durability"] = "durable" if arena.durable else "volatile"
            tier["emulated"] = engine.config.labels.get(arena.name, "") or (
                "a file without DAX" if arena.kind == layout.KIND_PMEM and not arena.dax else ""
            )
            tier["free_segments"] += mutator.free_count(number)
        lookups = clients["hits"] + clients["misses"]
        return {
            "tiers": tiers,
            "clients": clients,
            "daemon": daemon,
            "hit_rate": clients["hits"] / lookups if lookups else None,
            "index": {
                "items": mutator._get(mutator.control.address + layout.C_INDEX_ITEMS),
                "bytes": mutator.index_bytes,
                "slots": mutator.bucket_count * layout.ITEM_COUNT,
            },
            "pools": self._pools(),
            "connected": len(list(mutator.active_slots())) - 1,
            "segment_bytes": mutator.segment_bytes,
            "uptime_s": time.time() - engine.started,
            "pid": os.getpid(),
            "recovered_blocks": engine.recovery.blocks,
            "lost_keep_blocks": engine.recovery.lost_keep,
            "damaged_segments": len(engine.recovery.damaged),
            "store_id": mutator.store_id.hex(),
            "epoch": mutator.epoch,
            **{name: counts() for name, counts in self.counters.items()},
        }

    def _pools(self) -> dict[str, Any]:
        used = self.engine.mutator._pools
        return {
            name: {
                "used_bytes": int(used[number]) * self.engine.mutator.segment_bytes,
                "quota_bytes": self.engine.config.pools[name],
            }
            for name, number in self.engine.pools.items()
        }

    # --- verification ---------------------------------------------------------------------------------------------------------

    def verify(self, payloads: bool = False) -> dict[str, Any]:
        """Check that segments, index and counts agree; with payloads, every checksum too."""
        problems: list[str] = []
        with self.engine.turn:
            for _ in range(3):  # clients go on meanwhile: what disagrees once may have been under way
                problems = self._check_segments(payloads)
                if not problems:
                    break
                time.sleep(0.05)
        mutator = self.engine.mutator
        states = [mutator.state(segment) for segment in range(mutator.segment_count)]
        counts = {name: states.count(state) for state, name in enumerate(layout.STATE_NAMES)}
        ring = sum(mutator.free_count(number) for number in range(len(mutator.arenas)))
        return {
            "ok": not problems,
            "problems": problems,
            "segments": counts,
            "free_ring": ring,
            "blocks": mutator._get(mutator.control.address + layout.C_INDEX_ITEMS),
        }

    def _check_segments(self, payloads: bool) -> list[str]:
        mutator, problems, items = self.engine.mutator, [], 0
        out = (ctypes.c_uint64 * 3)()
        free = [0] * len(mutator.arenas)
        for segment in range(mutator.segment_count):
            state = mutator.state(segment)
            count, size = (mutator.segment_field(segment, f) for f in (layout.S_LIVE_COUNT, layout.S_LIVE_BYTES))
            if state in (layout.STATE_FREE, layout.STATE_UNBACKED):
                free[self.engine.cascade._number(segment)] += state == layout.STATE_FREE
                if count:
                    problems.append(f"segment {segment} is {layout.STATE_NAMES[state]} but counts {count} live blocks")
                continue
            image = SegmentImage(mutator, segment)
            mutator.native.check(mutator.core, segment, self._image(segment, image), ctypes.addressof(out))
            items += out[0]
            if (out[0], out[1]) != (count, size):
                problems.append(
                    f"segment {segment} ({layout.STATE_NAMES[state]}) counts {count} blocks of {size} bytes; "
                    f"the index has {out[0]} of {out[1]}"
                )
            if out[2]:
                problems.append(f"segment {segment}: {out[2]} blocks are in the index though dead or unpublished")
            if payloads:
                problems += self._check_payloads(segment)
        indexed = mutator._get(mutator.control.address + layout.C_INDEX_ITEMS)
        if indexed != items:
            problems.append(f"the index holds {indexed} items, the segments {items}")
        for number, arena in enumerate(mutator.arenas):
            if free[number] != mutator.free_count(number):
                problems.append(
                    f"{arena.name} arena {number}: {free[number]} segments are free, the ring holds "
                    f"{mutator.free_count(number)}"
                )
        return problems

    def _image(self, segment: int, image: SegmentImage) -> int:
        """The bytes to check; where moves are filling a segment on disk, their staging memory has them first."""
        return self.engine.cascade.mover.staged(segment) or image.address

    def _check_payloads(self, segment: int) -> list[str]:
        cascade, mutator = self.engine.cascade, self.engine.mutator
        records = cascade.records(segment)
        image = mutator.address(segment) or cascade.mover.read_segment(segment, records)
        state, problems = (ctypes.c_uint64 * 9)(), []
        for offset in records[:-1, ROW_OFFSET].tolist():
            head = image + offset
            size = ctypes.c_uint32.from_address(head + layout.R_PAYLOAD_BYTES).value
            key_bytes = ctypes.c_uint16.from_address(head + layout.R_KEY_BYTES).value
            start = head + (layout.RECORD_HEADER_BYTES + key_bytes + 63 & ~63)
            found = mutator.native.hash_payload(start, size, ctypes.addressof(state)) & (2**64 - 1)
            expected = ctypes.c_uint64.from_address(head + layout.R_PAYLOAD_HASH).value
            if size and found != expected:
                key = ctypes.string_at(head + layout.RECORD_HEADER_BYTES, key_bytes).decode(errors="replace")
                problems.append(f"segment {segment} at {offset}: payload of {key!r:.80} is not what was written")
        return problems


def _key_at(head: int) -> bytes:
    """The key of the record at an address."""
    size = ctypes.c_uint16.from_address(head + layout.R_KEY_BYTES).value
    return ctypes.string_at(head + layout.RECORD_HEADER_BYTES, size)


def _is_item(item: int, rows: np.ndarray) -> np.ndarray:
    """Which of the listed records an index item names."""
    return np.asarray(rows[:-1, ROW_ITEM] == item)


def _new_tier(kind: int, clients: dict[str, int]) -> dict[str, Any]:
    return {
        "capacity_bytes": 0,
        "live_bytes": 0,
        "blocks": 0,
        "free_segments": 0,
        "paths": [],
        "bytes_read": clients[f"{layout.KINDS[kind]}_bytes_read"],
        "segments": dict.fromkeys(layout.STATE_NAMES, 0),
    }
