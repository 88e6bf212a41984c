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
    Cost:        for six columns of numbers and one number as the key about 40 ns a row from 8 inputs and 70 from 64, half
                 of it the copies; besides, for every batch read 0.1 ms, and 0.2 ms from 500 inputs.
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
    """One batch of an input. first: the first row that was not given out yet; next: the next to pick, once known."""

    def __init__(self, number: int, batch: pa.RecordBatch):
        self.number, self.batch = number, batch
        self.first, self.next = 0, 0
        self.parts: list[Part] = []


class _Merge:
    """The state of one merge.

    segments: the batches being read, and those that still have rows to give out.
    live:     of every input, the segment being read; -1 at its end. rows: (next row, end) of it, (0, 0) at its end.
    picked:   (segment, row) of the rows to give out next, the first ``count`` of them.
    """

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
        self._live = np.full(len(readers), -1, np.int64)
        self._rows = np.zeros((len(readers), 2), np.int64)
        self._kinds = np.empty(0, np.int64)
        self._places = np.zeros((len(readers), 0, 2), np.int64)  # of the parts of every input
        self._tree = np.empty(2 * len(readers), np.int64)
        self._picked = np.empty((batch_rows, 2), np.int64)
        self._count = 0

    def run(self) -> Iterator[pa.RecordBatch]:
        """The output."""
        for number in range(len(self._readers)):
            self._read(number, None)
        while (self._live >= 0).any():
            ended = self._pick()
            if ended >= 0:
                before = self._segments[int(self._live[ended])]
                before.next = int(self._rows[ended, 0])
                self._live[ended], self._rows[ended] = -1, 0
                self._read(ended, before)
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
        self._live[number], self._rows[number] = len(self._segments), (0, batch.num_rows)
        self._segments.append(_Segment(number, batch))
        self._find_parts(self._segments[-1])

    def _find_parts(self, segment: _Segment) -> None:
        """The keys of a segment as parts; if it is the first with nulls in a key, those of the others again."""
        found = self._leaves(segment.batch)
        known = self._nullable or [False] * len(found)
        self._nullable = [leaf.null_count > 0 or had for (leaf, _, _), had in zip(found, known, strict=True)]
        segment.parts = self._parts(found, self._nullable)
        renewed = [segment]
        if self._nullable != known or not len(self._kinds):
            renewed = [self._segments[i] for i in self._live.tolist() if i >= 0]
            for other in renewed:
                other.parts = self._parts(self._leaves(other.batch), self._nullable)
            self._kinds = np.array([part.kind for part in segment.parts], np.int64)
            self._places = np.zeros((len(self._readers), len(self._kinds), 2), np.int64)
        for other in renewed:
            self._places[other.number] = [(part.at, part.data) for part in other.parts]

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
        kinds = np.array([part.kind for part in parts], np.int64)
        places = np.array([[(part.at, part.data) for part in parts]], np.int64)
        picked = np.empty((2, 2), np.int64)
        if _merge(kinds, places, np.array([[0, 2]], np.int64), np.empty(2, np.int64), picked) < 0:
            raise self._unsorted(number)

    def _unsorted(self, number: int) -> ValueError:
        return ValueError(
            f"input {number} is not sorted by {', '.join(self._names)}: sort its rows, with the same directions and place "
            "of nulls"
        )

    # --- rows -------------------------------------------------------------------------------------------------------------

    def _pick(self) -> int:
        """Pick rows until a batch is at its end or the output is full; the input whose batch is at its end, or -1."""
        room = self._picked[self._count :]
        count = _merge(self._kinds, self._places, self._rows, self._tree, room)
        if count < 0:
            raise self._unsorted(-1 - count)
        last = int(room[count - 1, 0])
        room[:count, 0] = self._live[room[:count, 0]]
        self._count += count
        return last if self._rows[last, 0] == self._rows[last, 1] else -1

    def _output(self) -> pa.RecordBatch:
        """The rows picked, as a batch; forgets them, and the segments that have no others."""
        assert self._schema is not None
        live = self._live >= 0
        for number in np.flatnonzero(live).tolist():
            self._segments[int(self._live[number])].next = int(self._rows[number, 0])
        used = [segment for segment in self._segments if segment.next > segment.first]
        slices = [segment.batch.slice(segment.first, segment.next - segment.first) for segment in used]
        if len(slices) == 1:
            made = slices[0]
        else:
            lengths = np.array([segment.next - segment.first for segment in self._segments], np.int64)
            shifts = np.cumsum(lengths) - lengths - [segment.first for segment in self._segments]
            picked = self._picked[: self._count]
            rows = pa.array((picked[:, 1] + shifts[picked[:, 0]]).astype(np.uint32))
            columns = [
                take([part.column(i) for part in slices], field.type, rows) for i, field in enumerate(self._schema)
            ]
            made = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._segments = [self._segments[i] for i in self._live[live].tolist()]
        self._live[live] = np.arange(len(self._segments))
        for segment in self._segments:
            segment.first = segment.next
        self._count = 0
        return made


def _merge(kinds: Pairs, places: Pairs, rows: Pairs, tree: Pairs, picked: Pairs) -> int:
    """Call the kernel; how many rows it picked."""
    at = [address_of(array) for array in (kinds, places, rows, tree, picked)]
    return int(kernels().merge(at[0], len(kinds), at[1], at[2], len(rows), at[3], at[4], len(picked)))
