"""The store as its users see it: objects under keys, handed out without copying."""

from __future__ import annotations

import atexit
import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import pyarrow as pa

from tierstore.ringbuf import guard, layout
from tierstore.ringbuf import session as words
from tierstore.ringbuf.client import Session
from tierstore.ringbuf.codes import MAPPED, MISS
from tierstore.ringbuf.errors import Closed, CorruptionError, NotFound, TierstoreError

from .appender import Appender, ObjectWriter, RowTooLarge, expiry_of
from .block import SchemaCache, decode_batch, decode_stream
from .keys import check_key
from .reading import Found, Reader
from .stream import StreamWriter, batches_of

if TYPE_CHECKING:
    from .columns.dataset import Dataset
    from .columns.shared import ColumnCache

# Values from here on are copied without the interpreter lock.
LARGE_VALUE_BYTES = 256 << 10
REPLACED_RETRIES = 100


class Control(Protocol):
    """What only the daemon can do; embedded stores call it directly, clients send it over the socket."""

    def call(self, name: str, **arguments: Any) -> Any:
        """Carry out one request. Raises the errors of its kind."""

    def alive(self) -> None:
        """Return if somebody will answer messages; else wait for a restart, or raise PeerLost."""

    def answers(self) -> bool:
        """Whether somebody is there now; does not wait."""

    def renew(self, session: Session) -> None:
        """A new daemon runs: map its index."""

    def close(self) -> None:
        """End the connection (or the embedded store)."""


class Store:
    """All tiers of one node, seen from one process.

    Callers: any thread. A forked child must open its own (``connect`` again); its inherited handle says so.
    """

    def __init__(self, session: Session, control: Control, pools: Mapping[str, int]):
        self._session, self._control, self._pools = session, control, dict(pools)
        session.renew = lambda: control.renew(session)
        self._native = session.native
        self._x = session.x
        self._reader = Reader(session)
        self._appender = Appender(session, control.alive)
        self._schemas = SchemaCache()
        self._columns: ColumnCache | None = None  # once it is used
        self._closed = False
        self._pid = os.getpid()
        self.at_close: list[Callable[[], None]] = []  # what packages above end with the store
        _stores.add(self)

    # --- writing ------------------------------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: pa.Table | pa.RecordBatch,
        *,
        keep: bool = False,
        ttl: float | None = None,
        pool: str = "default",
        durable: bool = False,
    ) -> str:
        """Store a table or record batch under a key, replacing what was there.

        keep:     must not be lost while the store lives (KEEP); else it may be evicted at any time (CACHE).
        ttl:      seconds until it vanishes.
        durable:  return only when it would survive power loss (needs a pmem or disk tier).
        Returns:  "volatile" or "durable": what the acknowledgement means.
        Callers:  any thread. Cost: one copy of the bytes plus about 20 us.
        Raises:   InvalidKey, Full, PeerLost, ConfigError (unknown pool).
        """
        batches = batches_of(data)
        writer = self._writer(key, data.schema, keep, ttl, pool)
        try:
            for batch in batches:
                writer.write_batch(batch)
            writer.close_batches()
        except RowTooLarge:
            writer.abort()
            writer = self._writer(key, data.schema, keep, ttl, pool)
            writer.write_whole(data if isinstance(data, pa.Table) else pa.Table.from_batches([data]))
        except BaseException:
            writer.abort()
            raise
        return self._acknowledge(key, durable)

    def put_bytes(
        self,
        key: str,
        value: Any,
        *,
        keep: bool = False,
        ttl: float | None = None,
        pool: str = "default",
        durable: bool = False,
    ) -> str:
        """Store bytes (any buffer) under a key; arguments, result and errors as for put()."""
        self.put_many([(key, value)], keep=keep, ttl=ttl, pool=pool)
        return self._acknowledge(key, durable)

    def put_many(
        self,
        items: Mapping[str, Any] | Iterable[tuple[str, Any]],
        *,
        keep: bool = False,
        ttl: float | None = None,
        pool: str = "default",
    ) -> None:
        """Store many byte values, in order; each becomes visible by itself. Cost: below 1 us for 4 KiB each."""
        self._check_open()
        pairs = list(items.items()) if isinstance(items, Mapping) else list(items)
        kind, number, expiry = self._class(keep), self._pool(pool), expiry_of(ttl)
        if len(pairs) == 1 and memoryview(pairs[0][1]).nbytes >= LARGE_VALUE_BYTES:
            writer = ObjectWriter(self._appender, pairs[0][0], number, kind, expiry)
            try:
                writer.write_bytes(pairs[0][1])
                writer.close()
            except BaseException:
                writer.abort()
                raise
            return
        self._appender.put_values(pairs, number, kind, expiry)

    @contextlib.contextmanager
    def writer(
        self, key: str, schema: pa.Schema, *, keep: bool = False, ttl: float | None = None, pool: str = "default"
    ) -> Iterator[StreamWriter]:
        """Write an object batch by batch; nothing is visible until the block ends, and nothing at all if it raises."""
        stream = StreamWriter(self._writer(key, schema, keep, ttl, pool), schema)
        try:
            yield stream
        except BaseException:
            stream.abort()
            raise
        stream.close()

    def _writer(self, key: str, schema: pa.Schema, keep: bool, ttl: float | None, pool: str) -> ObjectWriter:
        self._check_open()
        return ObjectWriter(self._appender, key, self._pool(pool), self._class(keep), expiry_of(ttl), schema)

    def _acknowledge(self, key: str, durable: bool) -> str:
        if durable:
            self._control.call("flush", key=key)
            return "durable"
        return "volatile"

    # --- reading ------------------------------------------------------------------------------------------------------------

    def get(self, key: str, columns: Sequence[str] | None = None, verify: bool = False) -> pa.Table:
        """A table, without copying from ``dram`` and ``pmem``.

        columns: only these, in this order.  verify: check the payload checksums first (reads all bytes).
        Lives:   the blocks stay where they are until the table, and everything made of it, is gone.
        Callers: any thread. Cost: 8 us for one block, independent of its size; from ``disk`` one read of the bytes.
        Raises:  NotFound (a KeyError), CorruptionError, TierstoreError if the key holds bytes (use get_bytes).
        """
        self._check_open()
        blocks = self._blocks(key)
        tables = self._decode(key, blocks, verify)
        table = tables if isinstance(tables, pa.Table) else pa.Table.from_batches(tables)
        chosen = table.select(columns) if columns is not None else table
        if self._session.injecting:
            self._charge(blocks, chosen.get_total_buffer_size() / max(1, table.get_total_buffer_size()))
        return chosen

    def _charge(self, blocks: list[Found], share: float) -> None:
        """Where a tier plays a slower device: take the time it needs for the share of the blocks that is handed out."""
        for block in blocks:
            if block.head:  # others were read, and paid for, on the way
                self._session.charge(block.segment, int(share * block.payload_bytes))

    def _decode(self, key: str, blocks: list[Found], verify: bool) -> pa.Table | list[pa.RecordBatch]:
        root = blocks[-1]
        if root.kind == layout.KIND_BATCH:
            first = root.payload(verify)
            schema = self._schemas.parse(first.slice(0, root.schema_bytes).to_pybytes())
            batches = [decode_batch(block.payload(verify), schema, 0) for block in blocks[:-1]]
            batches.append(decode_batch(first, schema, root.schema_bytes))
            return batches
        if root.kind == layout.KIND_STREAM:
            streams = [decode_stream(block.payload(verify)) for block in blocks]
            return streams[0] if len(streams) == 1 else pa.concat_tables(streams)
        if root.kind == layout.KIND_STREAM_PIECE:
            return decode_stream(pa.py_buffer(self._assemble(blocks, verify)))
        raise TierstoreError(f"key {key!r} holds bytes, not a table: read it with get_bytes()")

    def _blocks(self, key: str) -> list[Found]:
        """All blocks of an object, the root last. Where it is replaced between the first look and the last: of the next version."""
        for _ in range(REPLACED_RETRIES):
            root = self._find(key)
            blocks = [self._reader.find(key, index, root.version) for index in range(1, root.block_count)]
            if None not in blocks:
                return [*(block for block in blocks if block is not None), root]
        raise NotFound(f"key {key!r:.200} was replaced {REPLACED_RETRIES} times while it was read; read it again")

    def _assemble(self, blocks: list[Found], verify: bool) -> bytearray:
        """The pieces of a payload, copied together."""
        whole = bytearray()
        for block in blocks:
            whole += memoryview(block.payload(verify))[: block.value_bytes]
            self._session.count(words.COUNT_COPIES, 1)
        return whole

    def _find(self, key: str) -> Found:
        found = self._reader.find(key, 0, 0)
        if found is None:
            raise self._missing(key)
        return found

    def _missing(self, key: str) -> TierstoreError:
        """Why a key is not there."""
        lost = guard.truncated.intersection(arena.path for arena in self._session.grant.arenas)
        if lost:
            return CorruptionError(min(lost), 0, f"all of the store, and in it perhaps {key!r:.60}", "a truncated file")
        return NotFound(f"key {key!r:.200} is not in the store")

    def get_bytes(self, key: str) -> memoryview:
        """The value under a key as a read-only view, without copying (values cut into pieces are copied).

        Lives, Callers, Raises: as for get(). Cost: 0.3 us.
        """
        if self._closed or self._session.closed:
            self._check_open()
        try:
            view = self._native.get_view(self._x, key)
        except (TypeError, UnicodeEncodeError):
            check_key(key)
            raise
        if type(view) is memoryview:
            return view
        return self._slow_view(key, view)

    def get_many(self, keys: Sequence[str]) -> list[memoryview | None]:
        """The values under many keys, None where a key is absent. Cost: 0.2 us each."""
        self._check_open()
        keys = keys if type(keys) is list else list(keys)
        try:
            views = self._native.get_views(self._x, keys)
        except (TypeError, UnicodeEncodeError):
            for key in keys:
                check_key(key)
            raise
        for position, view in enumerate(views):
            if type(view) is int:
                try:
                    views[position] = self._slow_view(keys[position], view)
                except NotFound:
                    views[position] = None
        return views  # type: ignore[no-any-return]

    def _slow_view(self, key: str, code: int | None) -> memoryview:
        """Values on disk, in pieces, or behind a new daemon's index."""
        if code is None:
            raise self._missing(key)
        blocks = self._blocks(key)
        root = blocks[-1]
        if root.kind == layout.KIND_BYTES:
            return memoryview(root.payload(False)).cast("B")[: root.value_bytes].toreadonly()
        if root.kind == layout.KIND_BYTES_PIECE:
            return memoryview(self._assemble(blocks, False)).toreadonly()
        raise TierstoreError(f"key {key!r} holds a table, not bytes: read it with get()")

    def __contains__(self, key: str) -> bool:
        self._check_open()
        try:
            code = self._native.contains(self._x, key)
        except (TypeError, UnicodeEncodeError):
            check_key(key)
            raise
        return code == MAPPED if code in (MISS, MAPPED) else self._reader.find(key, 0, 0) is not None

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that begin with a prefix, sorted. Cost: a walk over all blocks in the daemon."""
        self._check_open()
        return list(self._control.call("keys", prefix=prefix))

    def info(self, key: str) -> dict[str, Any]:
        """What is stored under a key: tier, class, bytes, rows, blocks, durability, expiry. Raises NotFound."""
        self._check_open()
        return dict(self._control.call("info", key=key))

    # --- changing -----------------------------------------------------------------------------------------------------------

    def delete(self, key: str) -> None:
        """Remove an object. Views of it stay valid. Raises NotFound."""
        self._check_open()
        place, epoch, root = self._reader.place(key), self._session.epoch, self._find(key)
        while self._session.submit(self._control.alive, layout.OP_DELETE, 0, place, 0, root.item) != 1:
            if self._session.epoch != epoch and self._reader.find(key, 0, 0) is None:
                return  # carried out by a daemon that died before it answered
            root = self._find(key)  # replaced or moved meanwhile

    def pin(self, key: str, tier: str = "dram") -> None:
        """Move an object to a tier and keep it there until unpin(), whatever else needs room.

        Raises: NotFound, Full (no room in that tier), ConfigError (no such tier).
        """
        self._check_open()
        check_key(key)
        self._control.call("pin", key=key, tier=tier)

    def unpin(self, key: str) -> None:
        """Let a pinned object be moved and evicted again. Raises NotFound."""
        self._check_open()
        self._control.call("unpin", key=key)

    # --- the column cache ---------------------------------------------------------------------------------------------------

    def dataset(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        validate: str = "all",
        snapshot: str | None = None,
        hint: str = "",
        pool: str = "default",
        prefetch: bool = True,
        form: str = "decoded",
    ) -> Dataset:
        """Parquet files as a table whose columns are kept in this store as they are read.

        paths:    files, patterns (``*.parquet``), directories (with key=value folders), URLs that fsspec understands.
        validate: when files are looked at again: "all" (before each scan), "remote" (only those behind URLs), "none",
                  "ttl:SECONDS" (at most so often).  snapshot: a name under which these files never change.
        hint:     "once": what is read is not kept.  pool: where it is kept.
        prefetch: fill ahead, while there is room, what is missing of columns that queries keep reading.
        form:     "decoded", or "encoded": kept as it is in the file, in its room, and decoded by each scan.
        Cost:     reads the footers of all files.
        Raises:   FileNotFoundError, ConfigError, and what pyarrow raises for what is no Parquet file.
        """
        from .columns.shared import ColumnCache

        self._check_open()
        with self._session.lock:
            if self._columns is None:
                self._columns = ColumnCache(self)
        options = {"validate": validate, "snapshot": snapshot, "hint": hint, "pool": pool}
        return self._columns.dataset(self, paths, prefetch=prefetch, form=form, **options)

    def tables(self) -> list[dict[str, Any]]:
        """What the column cache holds and did since the daemon started, by table, over all clients."""
        self._check_open()
        return list(self._control.call("tables"))

    # --- the store ----------------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Tiers, counters, pools and clients, as of now; ``own``: the counters of this client alone."""
        self._check_open()
        return {**self._control.call("stats"), "own": self._session.counters()}

    def verify(self, payloads: bool = False) -> dict[str, Any]:
        """Check the store's structures (and, if asked, every payload's checksum). ``ok`` says the result."""
        self._check_open()
        return dict(self._control.call("verify", payloads=payloads))

    def close(self) -> None:
        """Give leases back and disconnect; views handed out stay valid. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() == self._pid and not self._session.closed:
            for end in list(self.at_close):
                end()
            if self._columns is not None:
                self._columns.close()
            with contextlib.suppress(TierstoreError, OSError):
                self._appender.release_all()
        self._session.close()
        self._control.close()
        self._detach("by close()")

    def _detach(self, how: str) -> None:
        """From now on every use is refused; mappings and descriptors go with the last view."""
        self._closed = True
        gone: Any = _Gone(f"this store handle was closed {how}; open or connect again")
        self._gone = self._session = self._native = self._reader = self._appender = self._control = gone

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(self._gone.message)

    @staticmethod
    def _class(keep: bool) -> int:
        return layout.CLASS_KEEP if keep else layout.CLASS_CACHE

    def _pool(self, name: str) -> int:
        number = self._pools.get(name)
        if number is None:
            from tierstore.ringbuf.errors import ConfigError

            raise ConfigError("pool", name, f"configured pools are {sorted(self._pools)}; add it under [pools]")
        return number


class _Gone:
    """Stands where the parts of a closed store were."""

    def __init__(self, message: str):
        self.message = message

    def __getattr__(self, name: str) -> Any:
        raise Closed(self.message)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        if not store._closed:
            store._session.after_fork()
            store._detach("in this forked process; the parent's is unaffected")


def _close_all() -> None:
    """At exit: the engine's threads must end before the interpreter does."""
    for store in list(_stores):
        store.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_all)
