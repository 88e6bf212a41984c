"""Streams of one call: batches in, checked, and batches out. Each step sees whether the daemon stops or the client is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa

from tierstore.cache.block import has_dictionary
from tierstore.ringbuf.errors import Closed, PeerLost

from .commands import BadCommand, Fields, fields_of
from .errors import flight_error

MESSAGE_BYTES_MAX = 256 << 20  # of a message that is taken
METADATA_BYTES_MAX = 4096


class Call:
    """One call under way. at_end: what is closed when it is over, whatever happened."""

    def __init__(self, method: str, stopping: Callable[[], bool]):
        self.method, self.peer = method, ""
        self._stopping = stopping
        self.moved = time.monotonic()  # when a batch last went through
        self.bytes_in = self.bytes_out = 0
        self.at_end: list[Callable[[], None]] = []

    def step(self) -> None:
        """Between two batches. Raises Closed if the daemon stops."""
        self.moved = time.monotonic()
        if self._stopping():
            raise Closed("the daemon is stopping; try again when it is back")


class Incoming:
    """What a client puts: iterate over (rows, metadata of the batch). Every batch is validated down to its last offset.

    At the end: the client must be there, and the rows as many as it said. Raises BadCommand, PeerLost, Closed.
    """

    def __init__(self, call: Call, context: Any, reader: Any, rows: int | None, counted: bool):
        self._call, self._context, self._reader = call, context, reader
        self._expected, self._counted = rows, counted and rows is None
        self.rows = 0
        try:
            self.schema = reader.schema
        except (pa.ArrowException, OSError) as error:
            raise BadCommand(f"the stream does not begin with a schema ({error})") from None

    def __iter__(self) -> Iterator[tuple[pa.RecordBatch, Fields | None]]:
        for chunk in self._chunks():
            self._call.step()
            metadata = chunk.app_metadata
            told = self._fields(metadata) if metadata is not None and metadata.size else None
            if chunk.data is None:
                if told is not None:
                    self._expected, self._counted = told.take("rows", int), False
                    told.end()
                continue
            yield self._checked(chunk.data), told
        self.check_client()
        if self._counted:
            raise BadCommand('the stream ended without the message {"rows": N} that "counted" asks for')
        if self._expected is not None and self._expected != self.rows:
            raise BadCommand(f"{self.rows} rows came, {self._expected} were announced: nothing is stored")

    def _chunks(self) -> Iterator[Any]:
        while True:
            try:
                chunk = next(self._reader)
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                self.check_client()
                raise BadCommand(f"a message cannot be read as a record batch ({error})") from None
            yield chunk

    def check_client(self) -> None:
        """Raise PeerLost if the client is gone: to gRPC's reader, a connection that broke ends like one that is done."""
        if self._context.is_cancelled():
            raise PeerLost(f"the client {self._call.peer} went away in the middle of its stream")

    def _fields(self, metadata: pa.Buffer) -> Fields:
        if metadata.size > METADATA_BYTES_MAX:
            raise BadCommand(f"metadata of {metadata.size} bytes; at most {METADATA_BYTES_MAX}")
        return fields_of(metadata.to_pybytes(), "the metadata of a message")

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        size = batch.nbytes
        if size > MESSAGE_BYTES_MAX:
            raise BadCommand(
                f"a batch of {size} bytes; at most {MESSAGE_BYTES_MAX}: write tables with max_chunksize, in rows"
            )
        batch.validate(full=True)  # what is stored here is read in place by others
        self.rows += batch.num_rows
        self._call.bytes_in += size
        return batch


class Outgoing:
    """What a client gets: an iterator for Flight's GeneratorStream, which raises nothing but Flight's errors.

    message_bytes: larger batches are cut by rows.
    """

    def __init__(self, call: Call, schema: pa.Schema, batches: Iterable[pa.RecordBatch], message_bytes: int):
        self._call = call
        # As tables their dictionaries go with each; a bare batch would go without.
        self._tables = any(has_dictionary(field.type) for field in schema)
        self._batches = _cut(batches, message_bytes)

    def __iter__(self) -> Outgoing:
        return self

    def __next__(self) -> pa.RecordBatch | pa.Table:
        try:
            self._call.step()
            batch = next(self._batches)
        except StopIteration:
            raise
        except Exception as error:
            raise flight_error(error, f"{self._call.method} of {self._call.peer}") from None
        self._call.bytes_out += batch.nbytes
        return pa.Table.from_batches([batch]) if self._tables else batch


def _cut(batches: Iterable[pa.RecordBatch], message_bytes: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        size = batch.nbytes
        if size <= message_bytes or batch.num_rows <= 1:
            if batch.num_rows:
                yield batch
            continue
        step = max(1, batch.num_rows * message_bytes // size)
        for start in range(0, batch.num_rows, step):
            yield batch.slice(start, step)
