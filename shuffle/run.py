"""One run of a map task: rows of several batches, ordered by partition, as the payload of one record.

The payload is what cache/block.py makes of a batch under a root key (schema message, then one record batch message whose
buffers begin on cache lines), so a stored run is an ordinary object. It is never built in memory of its own: a plan knows
the size first, and then scatters the columns straight into the record.

    batches, partition numbers  ->  counting sort  ->  starts, places  ->  sizes  ->  fill(address)

Sources: counting sort by partition after Polychroniou and Ross, SIGMOD 2014; what was measured is in kernels/scatter.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import Column, Places, column_of, fill_columns
from .framing import FRAME_BYTES, padded, template
from .native import address_of, kernels
from .partition import check_partitions
from .physical import holds, is_list_view, is_view
from .taking import take

ROWS_MAX = 1 << 31
Numbers = npt.NDArray[Any]


class Order:
    """The stable order of rows by partition.

    numbers:    partition numbers of each batch, uint16 or uint32 arrays.
    rows:       of all batches.
    starts:     uint32[partitions + 1]; partition p gets the places starts[p] to starts[p + 1].
    places:     where each input row goes; sources(): which input row each place gets.
    Cost:       0.3 ns a row for 200 partitions, and 1 ns a partition; places and sources as much again when asked for.
    The numbers must not change meanwhile.
    Raises:     TypeError, ValueError for numbers of another type or beyond the partitions.
    """

    def __init__(self, numbers: Sequence[Numbers], partitions: int):
        check_partitions(partitions)
        checked = [_check_numbers(array) for array in numbers]
        self.rows = sum(len(array) for array in checked)
        if self.rows >= ROWS_MAX:
            raise ValueError(f"{self.rows:,} rows in one run: make runs of fewer than {ROWS_MAX:,}")
        native, counts = kernels(), np.zeros(partitions, np.uint32)
        for array in checked:
            top = native.count_rows(address_of(array), len(array), array.itemsize == 4, partitions, address_of(counts))
            if top >= partitions:
                raise ValueError(f"partition number {top} of {partitions} partitions: numbers begin with 0")
        self.starts = np.zeros(partitions + 1, np.uint32)
        np.cumsum(counts, out=self.starts[1:])
        self.places = Places(checked, self.starts)

    def sources(self) -> npt.NDArray[np.uint32]:
        """uint32[rows]: the argument of take() that puts the concatenated batches into this order."""
        return self.places.sources()


def _check_numbers(array: Numbers) -> Numbers:
    if not isinstance(array, np.ndarray) or array.dtype not in (np.dtype("u2"), np.dtype("u4")) or array.ndim != 1:
        raise TypeError("partition numbers are numpy arrays of uint16 or uint32; convert with .astype(np.uint32)")
    return np.ascontiguousarray(array)


class RunPlan:
    """How rows of several batches become one run.

    schema:        of all batches; metadata may differ, names and types may not.
    ids:           the partition numbers of each batch: uint16 or uint32, one a row.
    in_place:      whether fill() can write the run; if not (no rows, dictionaries, views, unions, run ends), put
                   batch() with the store.
    rows, starts:  the number of rows; uint32[partitions + 1], partition p being the rows starts[p] to starts[p + 1].
    payload_bytes: of the payload, padding included, a multiple of 64; 0 if not in place.
    schema_bytes:  of the schema message at its begin, padding included.
    value_bytes:   payload_bytes without the padding behind the last buffer.
    Callers:       one thread; the batches must not change meanwhile. It keeps them alive.
    Cost:          the constructor 0.3 ns a row and 5 us a batch, plus take() of the columns that are not flat; nothing is copied.
    Raises:        TypeError, ValueError for batches, numbers or a schema that do not fit.
    """

    def __init__(self, schema: pa.Schema, batches: Sequence[pa.RecordBatch], ids: Sequence[Numbers], partitions: int):
        if len(batches) != len(ids):
            raise ValueError(f"{len(batches)} batches and {len(ids)} arrays of partition numbers")
        if len(schema) == 0:
            raise ValueError("a schema without columns cannot be stored as a run: keep at least one column")
        for batch, numbers in zip(batches, ids, strict=True):
            if not batch.schema.equals(schema):
                raise TypeError(f"a batch of another schema:\n{batch.schema}\nthe run has\n{schema}")
            if batch.num_rows != len(numbers):
                raise ValueError(f"{len(numbers)} partition numbers for a batch of {batch.num_rows} rows")
        kept = [number for number, batch in enumerate(batches) if batch.num_rows]
        self.schema, self._batches = schema, [batches[number] for number in kept]
        self._order = Order([ids[number] for number in kept], partitions)
        self.rows, self.starts = self._order.rows, self._order.starts
        self.in_place = self.rows > 0 and not any(holds(field.type, *_ELSEWHERE) for field in schema)
        self.payload_bytes = self.schema_bytes = self.value_bytes = 0
        if self.in_place:
            self._lay_out()

    def _lay_out(self) -> None:
        """Sizes and offsets of everything in the payload."""
        columns = [column_of(field, self._chunks(i), self._order.places) for i, field in enumerate(self.schema)]
        message, frame = template(self.schema)
        sizes = [size for column in columns for size in column.sizes]
        offsets = frame.patch(self.rows, [node for column in columns for node in column.nodes], sizes)
        self._columns: list[Column] = columns
        self.schema_bytes = padded(len(message))
        body = self.schema_bytes + padded(len(frame.data))
        frame.data[4:FRAME_BYTES] = (padded(len(frame.data)) - FRAME_BYTES).to_bytes(4, "little")
        self._head = bytes(message.ljust(self.schema_bytes, b"\0") + frame.data).ljust(body, b"\0")
        self._sizes, self._offsets = sizes, [body + offset for offset in offsets]
        self.payload_bytes = self._offsets[-1]
        last = max((i for i, size in enumerate(sizes) if size), default=-1)
        end = self._offsets[last] + sizes[last] if last >= 0 else self.schema_bytes + FRAME_BYTES
        self.value_bytes = end

    def _chunks(self, column: int) -> list[pa.Array]:
        return [batch.column(column) for batch in self._batches]

    def fill(self, address: int) -> None:
        """Write the payload to memory.

        address: of payload_bytes writable bytes, a multiple of 64, overlapping no input. All of them are written.
        Cost:    for flat columns one pass over the input; 0.6 to 1.1 ns a value of 8 bytes.
        Callers: the interpreter lock is free while columns are moved.
        Raises:  ValueError if the run is not in_place.
        """
        if not self.in_place:
            raise ValueError("this run cannot be written in place: store what batch() returns")
        ctypes.memmove(address, self._head, len(self._head))
        clear = kernels().clear
        for offset, size in zip(self._offsets, self._sizes):
            if size:
                clear(address + offset + size, padded(size) - size)
        fill_columns(self._columns, [address + offset for offset in self._offsets], self._order.places)

    def batch(self) -> pa.RecordBatch:
        """The rows in partition order as an ordinary batch, made by pyarrow.

        Dictionaries are unified, and views hold the values' own bytes and nothing else.
        Cost:   several copies. The result shares nothing with the input, save dictionaries.
        Raises: ValueError if unified dictionaries need a wider index type; what pyarrow raises for exotic nestings.
        """
        if self.rows == 0:
            return pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in self.schema], schema=self.schema)
        sources = pa.array(self._order.sources())
        columns = []
        for position, field in enumerate(self.schema):
            try:
                columns.append(take(self._chunks(position), field.type, sources))
            except pa.ArrowInvalid as error:
                raise ValueError(f"column {field.name!r} cannot be stored in one run: {error}") from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


# Types whose buffers cannot be laid out before the rows are in order.
_ELSEWHERE = (pa.types.is_dictionary, pa.types.is_union, pa.types.is_run_end_encoded, is_view, is_list_view)
