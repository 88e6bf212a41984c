"""The write side: rows (or bytes) of one attempt, in runs that are put in place in leased segments.

Rows wait by reference until there are enough for a run of about a segment; then they are ordered by partition while they are
copied, once, to where readers will map them. No more than a run is ever held, and nothing is written to local files.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tierstore.cache.placing import put_batch, put_large_bytes, put_placed, room_for
from tierstore.ringbuf import layout
from tierstore.ringbuf.errors import Closed, Full, NotFound, TierstoreError

from .checks import partition_checks
from .feeding import batch_at, batches_of, column_of, halves, join, whole
from .manifest import BYTES, ROWS, Manifest, Run
from .names import MANIFEST_BYTES_MAX
from .partition import hash_partitions, range_partitions
from .receipt import Receipt
from .run import RunPlan
from .slices import byte_batch, coalesced

if TYPE_CHECKING:
    from .handle import Shuffle

# A run is put into what is left of a segment only where that is at least this share of one.
SHARE_MIN = 8
# Estimates of a run's bytes are this much too small at most, else the run is halved.
FILL_SHARE = 0.97
WAIT_S = 20.0
BYTES_MAX = (1 << 32) - (1 << 20)  # of one run; where partitions begin is told in 32 bits
FAILED, COMMITTED = "lost rows when a write failed", "committed"
POLL_S = 0.01
RESERVED_MAX = 16  # runs at once


class MapWriter:
    """Writes one attempt. Callers: one thread. Nothing can be read before close(); abort() or an exception drops all.

    schema: of the rows; default: of the first batch.  durable: close() returns only when all would survive power loss.
    partition_rows: after close(), rows (for bytes: bytes) of each partition.
    """

    def __init__(self, shuffle: Shuffle, map_index: int, attempt: str, schema: pa.Schema | None, durable: bool):
        self._shuffle, self._durable, self._nonce = shuffle, durable, secrets.token_hex(8)
        self.name = shuffle.attempt(map_index, attempt)
        self._group = f"{shuffle.app}/{shuffle.number}"
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._ids: list[np.ndarray] = []
        self._held_bytes = 0
        self._parts: list[list[Any]] | None = None  # opaque bytes, by partition
        self._records = 0
        self._bytes = 0
        self._runs: list[Run] = []
        self._reserved = 0
        self._done = ""
        self._receipt: Receipt | None = None
        self.partition_rows: np.ndarray | None = None

    # --- rows -----------------------------------------------------------------------------------------------------------------

    def write(
        self,
        data: pa.RecordBatch | pa.Table,
        by: Sequence[str] | None = None,
        by_range: pa.RecordBatch | pa.Table | None = None,
        descending: Sequence[bool] | None = None,
        nulls_first: bool = False,
        to: np.ndarray | None = None,
    ) -> None:
        """Add rows, each to the partition that its keys say.

        by:       columns whose hash chooses the partition.
        by_range: sorted split points, one fewer than there are partitions, in columns named as the keys: row r goes to the
                  partition whose number is how many split points are <= r.  descending, nulls_first: their order.
        to:       the number of each row's partition, where the caller knows it.
        Held:     by reference, until a run is full.  Raises: Full, Conflict, Expired, ValueError, TypeError.
        """
        if sum(way is not None for way in (by, by_range, to)) != 1:
            raise ValueError(
                "give either by=[columns] (hash), by_range=split points, or to=numbers of partitions; write_partition() "
                "takes none"
            )
        if to is not None:
            self._write_to(data, to)
            return
        for batch in batches_of(data):
            if by is not None:
                ids = hash_partitions([column_of(batch, name) for name in by], self._shuffle.partitions)
            else:
                assert by_range is not None
                if by_range.num_rows != self._shuffle.partitions - 1:
                    raise ValueError(
                        f"by_range has {by_range.num_rows} split points; {self._shuffle.partitions} partitions take "
                        f"{self._shuffle.partitions - 1}"
                    )
                bounds = [whole(by_range.column(name)) for name in by_range.schema.names]
                keys = [column_of(batch, name) for name in by_range.schema.names]
                ids = range_partitions(keys, bounds, descending=descending, nulls_first=nulls_first)
            self._add(batch, ids)

    def _write_to(self, data: pa.RecordBatch | pa.Table, to: np.ndarray) -> None:
        last = self._shuffle.partitions - 1
        if to.dtype.kind not in "iu" or to.shape != (data.num_rows,):
            raise ValueError(f"to= must be {data.num_rows} integers, not {to.dtype} of shape {to.shape}")
        if len(to) and not 0 <= int(to.min()) <= int(to.max()) <= last:
            raise ValueError(f"to= names partitions {to.min()} to {to.max()}: there are 0 to {last}")
        numbers = to.astype("u2" if last < 1 << 16 else "u4", copy=False)
        for batch in batches_of(data):
            self._add(batch, numbers[: batch.num_rows])
            numbers = numbers[batch.num_rows :]

    def write_partition(self, partition: int, data: pa.RecordBatch | pa.Table) -> None:
        """Add rows to one partition."""
        self._check_partition(partition)
        for batch in batches_of(data):
            kind = "u2" if self._shuffle.partitions <= 1 << 16 else "u4"
            self._add(batch, np.full(batch.num_rows, partition, kind))

    def _check_partition(self, partition: int) -> None:
        if isinstance(partition, bool) or not 0 <= partition < self._shuffle.partitions:
            raise ValueError(f"partition {partition!r} cannot be used: 0 to {self._shuffle.partitions - 1}")

    def _add(self, batch: pa.RecordBatch, ids: np.ndarray) -> None:
        self._check_open()
        if self._parts is not None:
            raise TypeError("this attempt has opaque bytes already; rows go to another")
        if self._schema is None:
            self._schema = batch.schema
        if not batch.schema.equals(self._schema):
            raise ValueError(f"the batch's schema is not the attempt's:\n{batch.schema}\nagainst\n{self._schema}")
        room = self._room()
        while batch.num_rows:
            size = max(1, batch.nbytes)
            if self._held_bytes + size <= room:
                self._hold(batch, ids, size)
                return
            rows = min(batch.num_rows, max(1, int(batch.num_rows * (room - self._held_bytes) / size)))
            self._hold(batch.slice(0, rows), ids[:rows], int(size * rows / batch.num_rows))
            batch, ids = batch.slice(rows), ids[rows:]
            self._flush()
            room = self._room()

    def _hold(self, batch: pa.RecordBatch, ids: np.ndarray, size: int) -> None:
        self._batches.append(batch)
        self._ids.append(ids)
        self._held_bytes += size
        self._records += batch.num_rows

    def _room(self) -> int:
        """Bytes that the next run may have."""
        left, empty = room_for(self._shuffle.store, 512, self._shuffle.pool, self._group)
        return int(FILL_SHARE * (left if left >= empty // SHARE_MIN else empty))

    # --- opaque bytes -----------------------------------------------------------------------------------------------------------

    def write_bytes(self, partition: int, data: Any, records: int = 1) -> None:
        """Add bytes (any buffer, which is held until a run is full) to one partition; reads give them back in pieces.

        records: how many records of the caller's they are, for the counts.
        """
        self._check_open()
        self._check_partition(partition)
        if self._schema is not None:
            raise TypeError("this attempt has rows already; opaque bytes go to another")
        if self._parts is None:
            self._parts = [[] for _ in range(self._shuffle.partitions)]
        view = memoryview(data).cast("B")
        if len(view) > BYTES_MAX:
            raise ValueError(f"{len(view)} bytes at once: at most {BYTES_MAX}")
        if self._held_bytes and self._held_bytes + len(view) > self._room():
            self._flush()
        if len(view):
            self._parts[partition].append(view)
        self._held_bytes += len(view)
        self._records += records

    # --- runs -----------------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write what is held as a run now. For memory pressure; runs much shorter than a segment make reads slower."""
        self._check_open()
        self._flush()

    def _flush(self) -> None:
        self._done = FAILED  # unless all goes well: what was held may be stored in part
        if self._parts is not None:
            self._flush_bytes()
        elif self._batches:
            batches, ids = self._batches, self._ids
            self._batches, self._ids = [], []
            self._write_rows(batches, ids)
        self._held_bytes, self._done = 0, ""
        self._shuffle.store._session.trap("shuffle.flushed")

    def _write_rows(self, batches: list[pa.RecordBatch], ids: list[np.ndarray]) -> None:
        assert self._schema is not None
        plan = RunPlan(self._schema, *coalesced(batches, ids), self._shuffle.partitions)
        _, empty = room_for(self._shuffle.store, 512, self._shuffle.pool, self._group)
        if plan.payload_bytes > empty and plan.rows > 1:
            for half in halves(batches, ids):
                self._write_rows(*half)
            return
        place = {"pool": self._shuffle.pool, "group": self._group}
        if plan.in_place and plan.payload_bytes <= empty:
            checks: list[np.ndarray] = []

            def fill(address: int) -> None:
                plan.fill(address)
                checks.append(partition_checks(batch_at(address, plan), plan.starts))

            key, kind, schema_bytes = self._begin(plan.payload_bytes), layout.KIND_BATCH, plan.schema_bytes
            hashed = put_placed(
                self._shuffle.store, key, kind, plan.rows, plan.payload_bytes, schema_bytes, fill, **place
            )
            self._runs.append(Run(hashed, plan.starts, checks[0]))
            size = plan.payload_bytes
        else:
            try:
                batch = plan.batch()
            except ValueError:  # dictionaries that do not fit one index type together
                if len(batches) == 1:
                    raise
                middle = len(batches) // 2
                self._write_rows(batches[:middle], ids[:middle])
                self._write_rows(batches[middle:], ids[middle:])
                return
            key = self._begin(max(plan.payload_bytes, batch.nbytes))
            hashed = put_batch(self._shuffle.store, key, batch, **place)
            self._runs.append(Run(hashed, plan.starts, partition_checks(batch, plan.starts)))
            size = batch.nbytes
        self._bytes += size

    def _flush_bytes(self) -> None:
        assert self._parts is not None
        sizes = [sum(map(len, parts)) for parts in self._parts]
        starts = np.zeros(self._shuffle.partitions + 1, "u4")
        np.cumsum(sizes, out=starts[1:])
        total = int(starts[-1])
        if total == 0:
            return
        parts = [part for group in self._parts for part in group]
        self._parts = [[] for _ in range(self._shuffle.partitions)]
        key = self._begin(total)
        place = {"pool": self._shuffle.pool, "group": self._group}
        checks: list[np.ndarray] = []
        _, empty = room_for(self._shuffle.store, 512, self._shuffle.pool, self._group)
        if total > empty:
            everything = b"".join(parts)
            checks.append(partition_checks(byte_batch(pa.py_buffer(everything)), starts))
            hashed = put_large_bytes(self._shuffle.store, key, everything, **place)
        else:

            def fill(address: int) -> None:
                join(parts, address, total)
                checks.append(partition_checks(byte_batch(pa.foreign_buffer(address, total, parts)), starts))

            hashed = put_placed(self._shuffle.store, key, layout.KIND_BYTES, 0, total, 0, fill, **place)
        self._runs.append(Run(hashed, starts, checks[0]))
        self._bytes += total

    def _begin(self, size: int) -> str:
        """The next run's key, once the application's quota has room for it."""
        sequence, deadline = len(self._runs), time.monotonic() + WAIT_S
        if 12 * self._shuffle.partitions * (sequence + 1) > MANIFEST_BYTES_MAX:
            raise Full(
                f"{sequence + 1} runs of {self._shuffle.partitions} partitions are more than a manifest holds; write "
                "less in one attempt, or use fewer partitions"
            )
        if sequence < self._reserved:
            return self.name.run(sequence, self._nonce)
        # Without a quota to wait for, the names of as many runs as there are so far: a long attempt asks seldom.
        runs = 1 if self._shuffle.quota_bytes else min(max(1, sequence), RESERVED_MAX)
        arguments = {**self.name._asdict(), "sequence": sequence + runs - 1, "size": runs * size, "nonce": self._nonce}
        while not self._shuffle.call("shuffle_reserve", **arguments):
            if time.monotonic() > deadline:
                raise Full(
                    f"application {self.name.app!r} has used its quota and freed nothing for {WAIT_S:g} s; "
                    "drop shuffles it has read, or give it a larger quota"
                )
            time.sleep(POLL_S)
        self._reserved = sequence + runs
        return self.name.run(sequence, self._nonce)

    # --- end ------------------------------------------------------------------------------------------------------------------

    def close(self) -> Receipt:
        """Write what is held, and commit. Again: the same receipt. Raises Conflict, Expired, Full, PeerLost.

        Cost: one call to the daemon besides the last run.
        """
        if self._receipt is not None:
            return self._receipt
        self._check_open()
        self._flush()
        manifest = Manifest(
            BYTES if self._schema is None and self._parts is not None else ROWS,
            self._shuffle.partitions,
            self._schema.serialize().to_pybytes() if self._schema is not None else b"",
            self._records,
            self._bytes,
            self._runs,
            self._durable,
            self._nonce,
        )
        raw = manifest.encode()
        self._shuffle.store._session.trap("shuffle.committing")
        answer = self._shuffle.call(
            "shuffle_commit", **self.name._asdict(), manifest=base64.b64encode(raw).decode(), durable=self._durable
        )
        self._done = COMMITTED
        self.partition_rows = manifest.partition_rows
        self._receipt = Receipt(
            *self.name,
            rows=self._records,
            bytes=self._bytes,
            manifest_hash=manifest.hash,
            **{**answer, "replicas": tuple(answer["replicas"])},
        )
        return self._receipt

    @property
    def receipt(self) -> Receipt:
        """What readers need. Raises Closed before the attempt is committed."""
        if self._receipt is None:
            raise Closed(
                f"attempt {self.name.attempt!r} of map {self.name.map_index} is not committed; close() does that"
            )
        return self._receipt

    def abort(self) -> None:
        """Drop what was written. Nothing to do after close()."""
        if self._done not in ("", FAILED):
            return
        self._done = "aborted"
        self._batches, self._ids, self._parts = [], [], None
        try:
            self._shuffle.call("shuffle_abort", **self.name._asdict(), nonce=self._nonce)
        except NotFound:  # it went with its shuffle; what was published since is nobody's
            for sequence in range(len(self._runs) + 1):
                with contextlib.suppress(NotFound):
                    self._shuffle.store.delete(self.name.run(sequence, self._nonce))
            raise

    def _check_open(self) -> None:
        if self._done == FAILED:
            raise Closed(
                f"attempt {self.name.attempt!r} of map {self.name.map_index} {FAILED}; abort it, and run the map again"
            )
        if self._done:
            raise Closed(f"attempt {self.name.attempt!r} of map {self.name.map_index} was {self._done}")

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is None and self._done in ("", COMMITTED):
            try:
                self.close()
            except BaseException:
                with contextlib.suppress(TierstoreError):
                    self.abort()
                raise
        elif kind is not None:
            with contextlib.suppress(TierstoreError):
                self.abort()
