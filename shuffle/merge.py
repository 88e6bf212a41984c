"""Merging sorted inputs into one sorted stream of batches, holding little more than one batch of each.

Each input is an iterator of record batches that are sorted, each by itself and one behind the other, by the same keys in
the order of ordering.py. A tree of losers picks the next row; rows with equal keys come in the order of the inputs. It
stops when an input's batch is at its end, the next batch of that input is read, and it goes on. Which rows were picked is
only noted; when enough are noted, each column is put together by one take().
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .native import address_of, kernels
from .ordering import Part, leaves, parts_of
from .taking import take

DIRECTIONS = ("ascending", "descending")
Pairs = npt.NDArray[np.int64]
Leaf = tuple[pa.Array, str, int]


def merge_sorted(
    readers: Sequence[Iterable[pa.RecordBatch]],
    by: Sequence[tuple[str, str]],
    batch_rows: int = 65536,
    nulls_first: bool = False,
) -> Iterator[pa.RecordBatch]:
    """The rows of sorted inputs in one order.

    readers:     the inputs; equal keys come in this order, and within an input in its own (stable). Empty ones are fine.
    by:          (column, "ascending" or "descending") of each key, most important first; nulls_first as in
                 range_partitions(), whose order this is.
    Yields:      batches of batch_rows rows, the last one shorter; none if there are no rows.
    Holds:       the batch being read of every input and its keys as words, and batches read to their end until their
                 last rows are given out: at most one more of each input, besides batches that are wholly in one output.
    Cost:        with one number as the key about 10 ns a row and doubling of the inputs, and two copies of each column.
    Callers:     one thread; inputs are read on demand, one batch ahead of what is given out.
    Raises:      ValueError for an input that turns out not to be sorted, or another schema than the first one's; KeyError
                 for a key that is not one column; TypeError for a key without an order.
    """
    if batch_rows < 1:
        raise ValueError(f"batches of {batch_rows} rows: give at least 1")
    if not by:
        raise ValueError("nothing to merge by: name at least one column")
    for name, direction in by:
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} of {name!r}: give {' or '.join(map(repr, DIRECTIONS))}")
    return _Merge(readers, by, batch_rows, nulls_first).run()


class _Segment:
    """One batch of an input. first: the first row that was not given out yet; next: the next one to pick."""

    def __init__(self, number: int, batch: pa.RecordBatch):
        self.number, self.batch = number, batch
        self.first, self.next = 0, 0
        self.parts: list[Part] = []

    @property
    def finished(self) -> bool:
        """Whether all rows were picked."""
        return self.next == int(self.batch.num_rows)


class _Merge:
    """The state of one merge. segments: the batches being read, and those that still have rows to give out."""

    def __init__(
        self,
        readers: Sequence[Iterable[pa.RecordBatch]],
        by: Sequence[tuple[str, str]],
        batch_rows: int,
        nulls_first: bool,
    ):
        self._names = [name for name, _ in by]
        self._descending = [direction == "descending" for _, direction in by]
        self._nulls_first = nulls_first
        self._readers = [iter(reader) for reader in readers]
        self._schema: pa.Schema | None = None
        self._nullable: list[bool] = []
        self._segments: list[_Segment] = []
        self._live: list[int] = []  # of the segments being read, in the order of the inputs
        self._picked = np.empty((batch_rows, 2), np.int64)  # (segment, row)
        self._count = 0

    def run(self) -> Iterator[pa.RecordBatch]:
        """The output."""
        for number in range(len(self._readers)):
            self._read(number, None)
        while self._live:
            self._pick()
            for position in reversed(range(len(self._live))):
                segment = self._segments[self._live[position]]
                if segment.finished:
                    del self._live[position]
                    self._read(segment.number, segment)
            if self._count == len(self._picked):
                yield self._output()
        if self._count:
            yield self._output()

    # --- inputs -----------------------------------------------------------------------------------------------------------

    def _read(self, number: int, before: _Segment | None) -> None:
        """Read the next batch of an input that has rows."""
        batch = next((batch for batch in self._readers[number] if batch.num_rows), None)
        if batch is None:
            return
        if self._schema is None:
            self._schema = batch.schema
            for name in self._names:
                if batch.schema.get_field_index(name) < 0:
                    raise KeyError(f"{name!r} to merge by is not one column of {batch.schema.names}")
        elif not batch.schema.equals(self._schema):
            raise ValueError(f"input {number} has another schema:\n{batch.schema}\nthe first has\n{self._schema}")
        if before is not None:
            self._check_border(number, before.batch, batch)
        segment = _Segment(number, batch)
        self._find_parts(segment)
        place = sum(self._segments[i].number < number for i in self._live)
        self._live.insert(place, len(self._segments))
        self._segments.append(segment)

    def _find_parts(self, segment: _Segment) -> None:
        """The keys of a segment as parts; if it is the first with nulls in a key, those of the others again."""
        found = self._leaves(segment.batch)
        known = self._nullable or [False] * len(found)
        self._nullable = [leaf.null_count > 0 or had for (leaf, _, _), had in zip(found, known, strict=True)]
        segment.parts = self._parts(found, self._nullable)
        if self._nullable != known:
            for other in (self._segments[i] for i in self._live):
                other.parts = self._parts(self._leaves(other.batch), self._nullable)

    def _leaves(self, batch: pa.RecordBatch) -> list[Leaf]:
        return leaves([batch.column(name) for name in self._names], [f"column {name!r}" for name in self._names])

    def _parts(self, found: list[Leaf], nullable: list[bool]) -> list[Part]:
        made: list[Part] = []
        for (leaf, name, key), with_nulls in zip(found, nullable, strict=True):
            made += parts_of(leaf, name, self._descending[key], self._nulls_first, with_nulls)
        return made

    def _check_border(self, number: int, before: pa.RecordBatch, batch: pa.RecordBatch) -> None:
        """Refuse an input whose batch begins before the one ahead of it ended: merge the two rows as one input."""
        edge = pa.Table.from_batches([before.slice(before.num_rows - 1), batch.slice(0, 1)]).select(self._names)
        rows = pa.array([0, 1], pa.uint32())
        columns = [take(column.chunks, column.type, rows) for column in edge.columns]
        found = self._leaves(pa.RecordBatch.from_arrays(columns, schema=edge.schema))
        parts = self._parts(found, [leaf.null_count > 0 for leaf, _, _ in found])
        self._merge([parts], np.array([[0, 2]], np.int64), np.empty((2, 2), np.int64), [number])

    # --- rows -------------------------------------------------------------------------------------------------------------

    def _pick(self) -> None:
        """Note rows until a segment is at its end or the output is full."""
        live = [self._segments[i] for i in self._live]
        rows = np.array([[segment.next, segment.batch.num_rows] for segment in live], np.int64)
        room = self._picked[self._count :]
        count = self._merge([segment.parts for segment in live], rows, room, [segment.number for segment in live])
        room[:count, 0] = np.array(self._live)[room[:count, 0]]
        for segment, end in zip(live, rows[:, 0].tolist(), strict=True):
            segment.next = end
        self._count += count

    def _merge(self, parts: list[list[Part]], rows: Pairs, room: Pairs, numbers: list[int]) -> int:
        """Call the kernel; how many rows it noted."""
        kinds = np.array([part.kind for part in parts[0]], np.int64)
        inputs = np.array([[(part.at, part.data) for part in mine] for mine in parts], np.int64)
        tree, sizes = np.empty(len(parts), np.int64), (len(kinds), len(parts), len(room))
        at = [address_of(array) for array in (kinds, inputs, rows, tree, room)]
        count = int(kernels().merge(at[0], sizes[0], at[1], at[2], sizes[1], at[3], at[4], sizes[2]))
        if count < 0:
            raise ValueError(
                f"input {numbers[-1 - count]} is not sorted by {', '.join(self._names)}: sort its rows, with the same "
                "directions and place of nulls"
            )
        return count

    def _output(self) -> pa.RecordBatch:
        """The rows noted, as a batch; forgets them, and the segments that have no others."""
        assert self._schema is not None
        lengths = np.array([segment.next - segment.first for segment in self._segments], np.int64)
        firsts = np.array([segment.first for segment in self._segments], np.int64)
        slices = [s.batch.slice(s.first, s.next - s.first) for s in self._segments if s.next > s.first]
        if len(slices) == 1:
            made = slices[0]
        else:
            shifts = np.cumsum(lengths) - lengths - firsts
            picked = self._picked[: self._count]
            rows = pa.array((picked[:, 1] + shifts[picked[:, 0]]).astype(np.uint32))
            columns = [
                take([part.column(i) for part in slices], field.type, rows) for i, field in enumerate(self._schema)
            ]
            made = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._segments = [self._segments[i] for i in self._live]
        self._live = list(range(len(self._segments)))
        for segment in self._segments:
            segment.first = segment.next
        self._count = 0
        return made
