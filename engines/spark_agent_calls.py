"""What an agent does for its JVM: objects that the JVM fills, objects that it maps, attempts and partitions of shuffles.

One Calls per connection: what it began and did not finish goes when the connection does. docs/SPARK.md has the table of requests.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from tierstore.cache.lean import Lean
from tierstore.cache.placing import Placing, arena_of, put_large_bytes, room_for
from tierstore.ringbuf.errors import NotFound, PeerLost, TierstoreError
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.output import Piece
from tierstore.shuffle.placed import PlacedWriter
from tierstore.shuffle.receipt import Receipt

from .spark_agent_cache import TABLE as CACHE_TABLE
from .spark_agent_scan import TABLE as SCAN_TABLE
from .spark_agent_scan import Scanning, scan_end

# Of one answer to `next`; a piece above that comes alone. STARTS_MAX: where partitions begin, in all its pieces.
PIECES_MAX, PIECES_BYTES, STARTS_MAX = 512, 32 << 20, 1 << 17
Answer = tuple[dict[str, Any], list[Any]]


class Shared:
    """What all connections of an agent use: the store and the shuffles that are open. Any thread.

    store: None for an agent without a daemon, which reads files and can do nothing else.
    """

    def __init__(self, store: Store | None):
        self.store_or_none, self._lean = store, None if store is None else Lean(store)
        self._turn = threading.Lock()
        self._shuffles: dict[tuple[str, int], Shuffle] = {}
        self.apps: set[str] = set()  # whose lease this agent renews
        self.groups: dict[str, float] = {}  # of caches: when they were last written to

    @property
    def store(self) -> Store:
        """The node's store. Raises PeerLost where this agent has none."""
        if self.store_or_none is None:
            raise PeerLost("no daemon answered when this agent was started; it reads files and nothing else")
        return self.store_or_none

    @property
    def lean(self) -> Lean:
        """By which blocks are mapped. Raises PeerLost where this agent has no store."""
        if self._lean is None:
            raise PeerLost("no daemon answered when this agent was started; it reads files and nothing else")
        return self._lean

    def opened(self, app: str, number: int, terms: dict[str, Any] | None = None) -> Shuffle:
        """A shuffle, opened at its first use. terms: partitions, and of the application's first opening lease_s, quota, pool."""
        with self._turn:
            found = self._shuffles.get((app, number))
            if found is None:
                if terms is None:
                    raise NotFound(f"shuffle {number} of application {app!r} is not open in this agent")
                found = self.store.shuffle(app, number, **terms, renew=False)
                self._shuffles[app, number] = found
                self.apps.add(app)
            return found

    def forget(self, app: str, number: int | None = None) -> None:
        """A shuffle (or all of an application) is over, or is to be opened again."""
        with self._turn:
            for name in [name for name in self._shuffles if name[0] == app and number in (None, name[1])]:
                self._shuffles.pop(name).close()
            if number is None:
                self.apps.discard(app)


class Calls:
    """The requests of one connection. Callers: its thread."""

    def __init__(self, shared: Shared):
        self._shared = shared
        self._placings: dict[int, Placing] = {}
        self._pins: dict[int, Any] = {}
        self._writer: PlacedWriter | None = None
        self._pieces: Iterator[tuple[Receipt, Piece]] | None = None
        self._held: list[Piece] = []
        self._waiting: tuple[Receipt, Piece] | None = None
        self._numbers: dict[Receipt, int] = {}
        self._lean: Lean | None = None  # by which what is read is mapped
        self.scanning: Scanning | None = None
        self._last = 0
        self._of: tuple[str, int] | None = None  # the shuffle that was opened last

    @property
    def _store(self) -> Store:
        return self._shared.store

    def handle(self, head: dict[str, Any], body: bytearray) -> Answer:
        """Carry out one request. Raises TierstoreError, ValueError."""
        arguments = dict(head)
        name = arguments.pop("op", None)
        call: Callable[..., Answer] | None = TABLE.get(str(name))
        if call is None:
            raise ValueError(f"request {name!r:.60} is not known: {', '.join(TABLE)}")
        try:
            return call(self, body, **arguments)
        except TypeError as error:
            raise ValueError(f"request {name}: {error}") from None

    def close(self) -> None:
        """The connection ended: drop what is unfinished."""
        with contextlib.suppress(TierstoreError, OSError):
            self.read_end(bytearray())
        with contextlib.suppress(TierstoreError, OSError, ValueError):
            scan_end(self, bytearray())
        self._pins.clear()
        for placing in self._placings.values():
            with contextlib.suppress(TierstoreError, OSError):
                placing.abort()
        self._placings.clear()
        self._drop_writer()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(TierstoreError, OSError):
                writer.abort()

    def expired(self) -> None:
        """Something of its shuffle is gone, perhaps all: whoever asks next opens it again."""
        if self._of is not None:
            self._shared.forget(*self._of)

    def _number(self) -> int:
        self._last += 1
        return self._last

    # --- objects under a key --------------------------------------------------------------------------------------------------

    def room(self, _: bytearray, pool: str = "default", group: str = "") -> Answer:
        left, empty = room_for(self._store, 512, pool, group)
        return {"left": left, "most": empty}, []

    def fill(self, _: bytearray) -> Answer:
        """How full the store is. free, size: of its first tier.  used: by objects in all tiers."""
        tiers = self._store.stats()["tiers"]
        first = next(iter(tiers.values()))
        segments = sum(first["segments"].values())
        free = first["capacity_bytes"] * first["free_segments"] // max(1, segments)
        used = sum(tier["live_bytes"] for tier in tiers.values())
        return {"free": free, "size": first["capacity_bytes"], "used": used}, []

    def begin(self, _: bytearray, key: str, size: int, pool: str = "default", group: str = "") -> Answer:
        placing, number = Placing(self._store, key, size, pool=pool, group=group), self._number()
        self._placings[number] = placing
        return {"id": number, "arena": placing.arena, "offset": placing.offset}, []

    def seal(self, _: bytearray, id: int) -> Answer:
        return {"hash": f"{self._taken(id).finish():016x}"}, []

    def cancel(self, _: bytearray, id: int) -> Answer:
        self._taken(id).abort()
        return {}, []

    def _taken(self, number: int) -> Placing:
        placing = self._placings.pop(number, None)
        if placing is None:
            raise ValueError(f"object {number} was not begun on this connection, or is ended")
        return placing

    def put(self, body: bytearray, key: str, pool: str = "default", group: str = "") -> Answer:
        return {"hash": f"{put_large_bytes(self._store, key, body, pool=pool, group=group):016x}"}, []

    def pin(self, _: bytearray, key: str) -> Answer:
        buffer, _parts = self._shared.lean.bytes(key)
        place = arena_of(self._store, self._shared.lean, buffer.address, buffer.size) if buffer.size else None
        if place is None:
            return {"id": 0, "arena": -1, "offset": 0, "size": buffer.size}, [buffer]
        number = self._number()
        self._pins[number] = buffer
        return {"id": number, "arena": place[0], "offset": place[1], "size": buffer.size}, []

    def release(self, _: bytearray, id: int) -> Answer:
        self._pins.pop(id, None)
        return {}, []

    def delete(self, _: bytearray, key: str) -> Answer:
        try:
            self._store.delete(key)
        except NotFound:
            return {"found": False}, []
        return {"found": True}, []

    def keys(self, _: bytearray, prefix: str) -> Answer:
        return {"keys": self._store.keys(prefix)}, []

    # --- shuffles -------------------------------------------------------------------------------------------------------------

    def shuffle(self, _: bytearray, app: str, shuffle: int, **terms: Any) -> Answer:
        self._of = app, shuffle
        opened = self._shared.opened(app, shuffle, terms)
        return {"store": opened.store_id, "node": opened.node}, []

    def attempt(self, _: bytearray, app: str, shuffle: int, map: int, attempt: str, durable: bool = False) -> Answer:
        self._drop_writer()
        self._writer = PlacedWriter(self._shared.opened(app, shuffle), map, attempt, durable)
        return self._room({})

    def _attempt(self) -> PlacedWriter:
        if self._writer is None:
            raise ValueError("no attempt was begun on this connection")
        return self._writer

    def _room(self, head: dict[str, Any]) -> Answer:
        left, most = self._attempt().room()
        return {**head, "left": left, "most": most}, []

    def run(self, _: bytearray, size: int) -> Answer:
        placing = self._attempt().begin_run(size)
        return {"arena": placing.arena, "offset": placing.offset}, []

    def run_seal(self, body: bytearray) -> Answer:
        self._attempt().end_run(*self._told(body)[:2])
        return self._room({})

    def run_put(self, body: bytearray) -> Answer:
        starts, checks, data = self._told(body)
        self._attempt().write_large(data, starts, checks)
        return self._room({})

    def _told(self, body: bytearray) -> tuple[np.ndarray, np.ndarray, memoryview]:
        """Where partitions begin (int32, big-endian), their checks (int64, big-endian), and what follows."""
        count = self._attempt()._shuffle.partitions
        middle, end = 4 * (count + 1), 4 * (count + 1) + 8 * count
        if len(body) < end:
            raise ValueError(f"{len(body)} bytes: {end} are needed for {count} partitions")
        starts, checks = np.frombuffer(body, ">u4", count + 1), np.frombuffer(body, ">u8", count, middle)
        return starts, checks, memoryview(body)[end:]

    def commit(self, _: bytearray, records: int) -> Answer:
        receipt = self._attempt().commit(records)
        self._writer = None
        return {"receipt": receipt.to_dict()}, []

    def abort(self, _: bytearray) -> Answer:
        self._drop_writer()
        return {}, []

    def read(self, _: bytearray, app: str, shuffle: int, first: int, last: int, receipts: list[Any]) -> Answer:
        self.read_end(bytearray())
        opened = self._shared.opened(app, shuffle)
        named = [_receipt(app, shuffle, fields) for fields in receipts]
        self._numbers = {receipt: number for number, receipt in enumerate(named)}
        reader = opened._reader(named, None, True, pa.schema([pa.field("", pa.uint8(), nullable=False)]), ordered=False)
        self._pieces, self._lean = reader.named_pieces(first, last), opened._lean
        return {}, []

    def next(self, _: bytearray) -> Answer:
        """The next pieces, mapped or sent; those of the answer before are given up."""
        self._held.clear()
        if self._pieces is None or self._lean is None:
            raise ValueError("nothing is being read on this connection")
        told: list[list[Any]] = []
        parts: list[Any] = []
        size = starts = 0
        while len(told) < PIECES_MAX:
            found = self._waiting or next(self._pieces, None)
            self._waiting = None
            if found is None:
                break
            receipt, piece = found
            if told and (size + piece.rows.num_rows > PIECES_BYTES or starts + len(piece.starts) > STARTS_MAX):
                self._waiting = found
                break
            size, starts = size + piece.rows.num_rows, starts + len(piece.starts)
            column = piece.rows.column(0)
            buffer = column.buffers()[1].slice(column.offset, len(column))
            place = arena_of(self._store, self._lean, buffer.address, buffer.size) or (-1, 0)
            if place[0] < 0:
                parts.append(buffer)
            self._held.append(piece)
            told.append([self._numbers[receipt], *place, piece.starts.tolist()])
        return {"pieces": told}, parts

    def read_end(self, _: bytearray) -> Answer:
        """Nothing more of what is being read is wanted."""
        self._held.clear()
        pieces, self._pieces, self._waiting = self._pieces, None, None
        if pieces is not None:
            pieces.close()  # type: ignore[attr-defined]
        return {}, []

    def drop(self, _: bytearray, app: str, shuffle: int) -> Answer:
        self._shared.forget(app, shuffle)
        with contextlib.suppress(NotFound):
            self._store._control.call("shuffle_drop", app=app, shuffle=shuffle)
        return {}, []

    def end(self, _: bytearray, app: str) -> Answer:
        self._shared.forget(app)
        with contextlib.suppress(NotFound):
            self._store._control.call("shuffle_end", app=app)
        return {}, []


def _receipt(app: str, shuffle: int, fields: list[Any]) -> Receipt:
    """A receipt of what a JVM keeps of one: map, attempt, hash, store, incarnation, node, replicas."""
    map_index, attempt, hashed, store, incarnation, node, replicas = fields
    return Receipt(
        app, shuffle, map_index, attempt, 0, 0, int(hashed, 16), "volatile", store, incarnation, node, tuple(replicas)
    )


TABLE: dict[str, Callable[..., Answer]] = (
    {
        name: getattr(Calls, name)
        for name in (
            *("room", "fill", "begin", "seal", "cancel", "put", "pin", "release", "delete", "keys"),
            *("shuffle", "attempt", "run", "run_seal", "run_put", "commit", "abort"),
            *("read", "next", "read_end", "drop", "end"),
        )
    }
    | CACHE_TABLE
    | SCAN_TABLE
)
