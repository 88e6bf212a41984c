"""Writing objects: blocks go straight into leased segments, and one publish makes the object visible.

The last block written is the root (block 0); it names how many others there are, so an object whose writer dies is never
visible. Rows are read back in the order 1, 2, ..., 0.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tierstore.ringbuf import layout
from tierstore.ringbuf import session as words
from tierstore.ringbuf.client import Lease, Session
from tierstore.ringbuf.errors import CorruptionError, Full, PeerLost
from tierstore.ringbuf.waiting import LeaseWait

from .block import Payload, cut, encoder_of, one_piece
from .keys import check_key
from .record import Block, payload_start, record_bytes

# A block is split by rows to fill a segment only where at least this much of the segment is left.
SPLIT_SHARE = 8
EXPIRY_MS_MAX = 1 << 62
SPLIT_ROWS = 64  # splits fall on whole bytes of validity bitmaps, so slices need no copy


class Appender:
    """Takes leases of one session and appends records to them."""

    def __init__(self, session: Session, alive: Callable[[], None]):
        self.session, self.alive = session, alive
        self.room = session.grant.segment_bytes - layout.SEGMENT_HEADER_BYTES

    def lease_with(self, pool: int, kind: int, size: int, group: str = "") -> Lease | int:
        """The open lease of a pool, class and group if ``size`` more bytes fit, else a new one; or why there is none.

        It is entered. Caller: holds the session's lock, and gives it up before it waits: another thread may be about to free
        a segment. Whoever asks again takes the lease that another thread was granted meanwhile, so none is taken twice.
        """
        session = self.session
        while True:
            lease = session.leases.get((pool, kind, group))
            if lease is not None:
                if size <= self._left(lease) and session.native.lease_enter(session.x, lease.address):
                    return lease
                self.retire(lease)
            granted = session.try_lease(self.alive, pool, kind)
            if isinstance(granted, int):
                return granted
            granted.group = group
            session.leases[granted.name] = granted

    def remaining(self, pool: int, kind: int, group: str = "") -> int:
        """Bytes left in the open lease, 0 without one."""
        lease = self.session.leases.get((pool, kind, group))
        return self._left(lease) if lease is not None else 0

    def _left(self, lease: Lease) -> int:
        start = lease.next
        return self.session.grant.segment_bytes - start if start < layout.RECORD_START_LIMIT else 0

    def retire(self, lease: Lease) -> None:
        """Stop filling a lease; it is given back when no unpublished object lies in it any more."""
        with self.session.lock:
            if self.session.leases.get(lease.name) is lease:
                del self.session.leases[lease.name]
            if lease.open_writers == 0:
                self.session.seal(self.alive, lease)

    def retire_group(self, group: str) -> None:
        """Stop filling the leases of a group that is over: nothing else would ever be put there."""
        with self.session.lock:
            for lease in [lease for lease in self.session.leases.values() if lease.group == group]:
                self.retire(lease)

    def release_all(self) -> None:
        """Give every lease back; before closing."""
        with self.session.lock:
            for lease in list(self.session.leases.values()):
                self.retire(lease)

    def put_values(self, items: Sequence[tuple[str, Any]], pool: int, kind: int, expiry_ms: int) -> None:
        """Append and publish plain values, in order; those that do not fit a segment go piece by piece."""
        session, position = self.session, 0
        wait: LeaseWait | None = None
        items = items if isinstance(items, list) else list(items)
        while position < len(items):
            with session.lock:
                lease = self.lease_with(pool, kind, layout.RECORD_HEADER_BYTES)
                if not isinstance(lease, int):
                    position, wait = self._put_some(items, position, lease, expiry_ms), None
                    if position == len(items) or not self._is_large(items[position]):
                        continue
            if isinstance(lease, int):
                wait = wait or session.lease_wait()
                wait.pause(lease, pool)
                continue
            writer = ObjectWriter(self, items[position][0], pool, kind, expiry_ms)
            writer.write_bytes(items[position][1])
            writer.close()
            position += 1

    def _put_some(self, items: list[tuple[str, Any]], position: int, lease: Lease, expiry_ms: int) -> int:
        """Put what fits an entered lease, and leave it; the position of the first value that does not."""
        session, first = self.session, lease.next
        try:
            self._template(lease, lease.pool, lease.kind, expiry_ms)
            try:
                reached = session.native.put_values(session.x, lease.address, session.request, items, position)
            except (TypeError, UnicodeEncodeError):
                for key, _ in items[position:]:
                    check_key(key)
                raise
            finally:  # what came before a bad item is stored
                session.version = int(session._request_memory[words.Q_VERSION // 8])
                self._publish(lease, first)
        finally:
            session.native.lease_leave(session.x)
        if reached < len(items) and not self._is_large(items[reached]):
            self.retire(lease)
        return int(reached)

    def _is_large(self, item: tuple[str, Any]) -> bool:
        """Whether a value is larger than a segment. Raises what is wrong with its key."""
        return record_bytes(len(check_key(item[0])), memoryview(item[1]).nbytes) > self.room

    def _template(self, lease: Lease, pool: int, kind: int, expiry_ms: int) -> None:
        request = self.session._request_memory
        request[: words.Q_PIECES // 8] = 0
        request[words.Q_BLOCK_COUNT // 8] = 1
        request[words.Q_POOL // 8], request[words.Q_CLASS // 8] = pool, kind
        request[words.Q_EXPIRY // 8] = expiry_ms
        request[words.Q_VERSION // 8] = self.session.version + 1
        self._flush_flag(request, lease)

    def _flush_flag(self, request: np.ndarray, lease: Lease) -> None:
        request[words.Q_FLUSH // 8] = int(self.session.kinds[lease.segment]) == layout.KIND_PMEM

    def _publish(self, lease: Lease, first: int) -> None:
        """Have the daemon make the records from ``first`` on visible."""
        if lease.next == first:
            return
        result = self.session.submit(self.alive, layout.OP_PUBLISH, lease.segment, first, lease.next)
        if result == layout.RESULT_INDEX_FULL:
            raise Full(
                "the index has no room for another key; delete objects, use larger values, or configure a larger "
                "store (the index is sized by its capacity)"
            )
        if result < 0:
            raise CorruptionError(f"segment {lease.segment}", first, "a publishable record", f"refusal {result}")

    def claim(self, pool: int, kind: int, length: int, group: str = "") -> tuple[Lease, int]:
        """Room for one record in an open lease, and its offset there. The lease stays entered, for one open writer more."""
        session = self.session
        wait: LeaseWait | None = None
        while True:
            with session.lock:
                lease = self.lease_with(pool, kind, length, group)
                if not isinstance(lease, int):
                    offset, generation = lease.next, int(lease.words[words.L_GENERATION // 8])
                    session.native.claim_record(int(lease.words[words.L_BASE // 8]) + offset, length, generation)
                    lease.next = offset + length
                    lease.open_writers += 1
                    return lease, offset
            wait = wait or session.lease_wait()
            wait.pause(lease, pool)

    def append(self, lease: Lease, offset: int, length: int, block: Block) -> int:
        """Put one block into the room claimed for it; the hash of its payload."""
        session, generation = self.session, int(lease.words[words.L_GENERATION // 8])
        session.native.nudge(session.clients.address)
        target = int(lease.words[words.L_BASE // 8]) + offset
        flush = int(session.kinds[lease.segment]) == layout.KIND_PMEM
        request = block.request(target, length, generation, lease.pool, lease.kind, flush, session.x + words.X_TRAP)
        at = ctypes.addressof(request)
        if block.payload.fill is None:
            session.native.append(at)
        else:
            block.payload.fill(target + payload_start(len(block.key)))
            session.native.commit_placed(at)
        session.count(words.COUNT_BYTES_PUT, block.payload.padded_bytes)
        return ctypes.c_uint64.from_address(target + layout.R_PAYLOAD_HASH).value


class RowTooLarge(Full):
    """A row larger than a segment in an object of several batches."""


class ObjectWriter:
    """Writes one object; nothing of it is visible before close().

    Callers: one thread. A writer dropped without close(), or whose process dies, leaves nothing visible; its bytes come
    back with its segments.
    """

    def __init__(
        self,
        appender: Appender,
        key: str,
        pool: int,
        kind: int,
        expiry_ms: int,
        schema: pa.Schema | None = None,
        group: str = "",
    ):
        session = appender.session
        session.native.nudge(session.clients.address)
        self.appender, self.key = appender, check_key(key)
        self.pool, self.kind, self.expiry_ms, self.group = pool, kind, expiry_ms, group
        self._encoder = encoder_of(schema) if schema is not None else None
        self._held: pa.RecordBatch | None = None
        self._ranges: list[tuple[Lease, int, int]] = []
        self._blocks, self._rows, self._bytes = 0, 0, 0
        self.payload_hash = 0  # of the last block
        with session.lock:
            session.version += 1
            self.version = session.version
        self._key_buffer = ctypes.create_string_buffer(self.key, len(self.key) + 8)
        self.key_at = ctypes.addressof(self._key_buffer)
        self._hash = session.native.hash_key(self.key_at, len(self.key)) & (2**64 - 1)
        self._done = False

    # --- batches: one is held back, because the last becomes the root ---------------------------------------------------

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        if batch.num_rows == 0 and batch.num_columns > 0:
            return
        if self._held is not None:
            self._write_rows(self._held, last=False)
        self._held = batch

    def close_batches(self) -> None:
        """Write what is held back as the root, and publish."""
        assert self._encoder is not None
        if self._held is None:
            self._append(self._encoder.whole([]), root=True)
        else:
            self._write_rows(self._held, last=True)
        self._publish()

    def _write_rows(self, batch: pa.RecordBatch, last: bool) -> None:
        """Encode a batch as one block, or as several where it does not fit the room left."""
        assert self._encoder is not None
        while True:
            payload = self._encoder.encode(batch, root=last)
            size = record_bytes(len(self.key), payload.padded_bytes)
            room = self.appender.remaining(self.pool, self.kind, self.group)
            if size <= room:
                break
            if room < self.appender.room // SPLIT_SHARE or batch.num_rows <= 1:
                room = self.appender.room
                if size <= room:
                    break
            rows = int(batch.num_rows * (room - self._encoder.message_bytes) / size * 0.999) // SPLIT_ROWS * SPLIT_ROWS
            rows = rows or (batch.num_rows // 2 if size > self.appender.room else 0)
            if batch.num_rows <= 1 or not self._fits(batch, rows, room):
                if size <= self.appender.room:
                    break
                self._write_pieces(payload, last)
                return
            self._append(self._encoder.encode(batch.slice(0, rows), root=False), root=False)
            batch = batch.slice(rows)
        self._append(payload, root=last)

    def _fits(self, batch: pa.RecordBatch, rows: int, room: int) -> bool:
        """Whether a slice really becomes small enough (string views and dictionaries may not)."""
        assert self._encoder is not None
        if rows <= 0:
            return False
        payload = self._encoder.encode(batch.slice(0, rows), root=False)
        return record_bytes(len(self.key), payload.padded_bytes) <= room

    # --- bytes ------------------------------------------------------------------------------------------------------------

    def write_bytes(self, value: Any) -> None:
        """A value of any size, as pieces."""
        view = memoryview(value).cast("B")
        source = np.frombuffer(view, "u1")
        payload = one_piece(layout.KIND_BYTES, 0, source.ctypes.data, len(view), [source, value])
        if record_bytes(len(self.key), payload.padded_bytes) <= self.appender.room:
            self._append(payload, root=True)
        else:
            self._write_pieces(payload, last=True)

    def close(self) -> None:
        """Publish what write_bytes() wrote."""
        self._publish()

    def write_whole(self, table: pa.Table) -> None:
        """A table that no split by rows makes small enough: one stream, cut into pieces."""
        assert self._encoder is not None
        self._write_pieces(self._encoder.whole(table.to_batches()), last=True)
        self._publish()

    def _write_pieces(self, payload: Payload, last: bool) -> None:
        """Cut a payload that rows cannot make smaller; the reader puts it together in memory of its own."""
        whole: Any = None
        if payload.kind == layout.KIND_BYTES:
            kind, base, total = layout.KIND_BYTES_PIECE, int(payload.pieces[0]), int(payload.pieces[1])
        elif payload.kind == layout.KIND_STREAM and last and self._blocks == 0:
            whole = np.frombuffer(cut(payload), "u1")
            kind, base, total = layout.KIND_STREAM_PIECE, int(whole.ctypes.data), len(whole)
        else:
            raise RowTooLarge(
                f"one row of key {self.key.decode()!r:.60} does not fit a segment of "
                f"{self.appender.room} bytes: put the table whole, or configure larger segments"
            )
        step = (self.appender.room - layout.RECORD_HEADER_BYTES - len(self.key) - 256) & ~63
        for start in range(0, total, step):
            rows = payload.rows if start + step >= total else 0
            part = one_piece(kind, rows, base + start, min(step, total - start), [whole, payload])
            self._append(part, root=start + step >= total)

    # --- records ------------------------------------------------------------------------------------------------------------

    def write_placed(self, payload: Payload) -> int:
        """The only block, put in place by its maker; the hash of its payload. Then close()."""
        self._append(payload, root=True)
        return self.payload_hash

    def claim_placed(self, payload: Payload) -> tuple[Lease, int]:
        """Room for the only block, which another process may fill: the lease, and where in its segment the payload goes.

        Then finish_placed() or abort(). Until then the lease stays entered, so nobody takes it back.
        """
        self._claimed = self._claim(payload, root=True)
        lease, first = self._claimed[:2]
        return lease, first + payload_start(len(self.key))

    def finish_placed(self) -> int:
        """What was claimed is filled; the hash of its payload. Then close()."""
        self.payload_hash = self.appender.append(*self._claimed)
        return self.payload_hash

    def _append(self, payload: Payload, root: bool) -> None:
        self.payload_hash = self.appender.append(*self._claim(payload, root))

    def _claim(self, payload: Payload, root: bool) -> tuple[Lease, int, int, Block]:
        index = 0 if root else self._blocks + 1
        block = Block(self.key, self.key_at, self.version, self._hash, self.expiry_ms, index, payload)
        self._blocks += 1
        self._rows += payload.rows
        self._bytes += payload.value_bytes
        if root:
            block.count, block.object_bytes, block.object_rows = self._blocks, self._bytes, self._rows
        length = record_bytes(len(self.key), payload.padded_bytes)
        # The lease stays entered until the object is published: an idle one may be taken back with what lies in it.
        lease, first = self.appender.claim(self.pool, self.kind, length, self.group)
        self._ranges.append((lease, first, first + length))
        return lease, first, length, block

    def _publish(self) -> None:
        """Publish all ranges, the root's last; one store in the index makes the object visible."""
        appender, session = self.appender, self.appender.session
        session.trap("put.appended")
        for lease, first, end in self._ranges:
            result = session.submit(appender.alive, layout.OP_PUBLISH, lease.segment, first, end)
            if result == layout.RESULT_INDEX_FULL:
                self.abort()
                raise Full("the index has no room for another block; delete objects or configure a larger store")
            if result < 1:
                self.abort()
                raise PeerLost(
                    f"the daemon refused to publish {self.key.decode()!r:.60} ({result}): it took the lease "
                    "back, or restarted and lost it; put again"
                )
        session.count(words.COUNT_PUTS, 1)
        self._finish()

    def abort(self) -> None:
        """Give up: nothing of the object becomes visible."""
        self._finish()

    def _finish(self) -> None:
        if self._done:
            return
        self._done = True
        with self.appender.session.lock:
            for lease, _, _ in self._ranges:
                lease.open_writers -= 1
                self.appender.session.native.lease_leave(self.appender.session.x)
                if lease.open_writers == 0 and self.appender.session.leases.get(lease.name) is not lease:
                    self.appender.session.seal(self.appender.alive, lease)


def expiry_of(ttl: float | None) -> int:
    """Unix milliseconds at which a time to live of ``ttl`` seconds ends; 0 for never."""
    if ttl is None or ttl == math.inf:
        return 0
    if not ttl > 0:
        raise ValueError(f"ttl = {ttl!r} must be a positive number of seconds, or None for no limit")
    return min(int((time.time() + ttl) * 1000), EXPIRY_MS_MAX)
