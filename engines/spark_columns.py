"""Columns as a JVM reads them: not copied, but told by where their buffers lie. Column.java is the other side.

A column is told as

    {"kind": ..., "rows": N, "offset": FIRST, "nulls": N, "buffers": [[ARENA, OFFSET, BYTES], ...], "children": [...]}

with the buffers of Arrow's format: validity first ([-2, 0, 0] where there is none). ARENA is -1 for bytes of the answer's body.
Kinds: bits; w1 to w8 (values of one width); d4, d8, d16 (decimals); text4, text8 and list4, list8 (offsets of 32 or 64 bits);
codes1, codes2, codes4 (of the one child's text); map (children: keys, values); struct; null; and constant, with a value alone.
A column of a batch has "bytes" as well: how many are read in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

# Of one batch: as much as an operator works on at a time, and what is sent of it.
ROWS_MAX, SENT_BYTES = 1 << 20, 16 << 20
ROWS_MIN = 64
NO_BUFFER = [-2, 0, 0]
Placer = Callable[[pa.Buffer], tuple[int, int] | None]


@dataclass(frozen=True)
class Constant:
    """A column of one value: a number, a text, or None."""

    value: int | str | None


@dataclass(frozen=True)
class Batch:
    """Rows of some columns."""

    rows: int
    columns: list[Constant | pa.Array]

    def behind(self, skip: int) -> Batch:
        """Without the first rows."""
        rest = [column if isinstance(column, Constant) else column.slice(skip) for column in self.columns]
        return Batch(self.rows - skip, rest)

    def told(self, place: Placer, parts: list[Any]) -> list[dict[str, Any]]:
        """Each column as above. parts: grows by what has to be sent."""
        teller = _Teller(place, parts)
        return [
            {"kind": "constant", "value": column.value} if isinstance(column, Constant) else teller.whole(column)
            for column in self.columns
        ]


def batches(
    rows: int, columns: Sequence[Constant | list[pa.Array]], is_placed: Callable[[pa.Array], bool]
) -> Iterator[Batch]:
    """Columns of so many rows as batches, cut where any of their arrays ends, and so that not much has to be sent at once."""
    arrays = [column for column in columns if not isinstance(column, Constant)]
    sent = sum(array.nbytes for column in arrays for array in column if not is_placed(array))
    most = max(ROWS_MIN, min(ROWS_MAX, rows if not sent else SENT_BYTES * rows // sent))
    if not arrays:
        yield from (Batch(min(most, rows - start), list(columns)) for start in range(0, rows, most))
        return
    named = [pa.chunked_array(column) for column in arrays]
    table = pa.Table.from_arrays(named, names=[str(number) for number in range(len(named))])
    for batch in table.to_batches(max_chunksize=most):
        found = iter(batch.columns)
        yield Batch(batch.num_rows, [c if isinstance(c, Constant) else next(found) for c in columns])


class _Teller:
    """Writes columns of one batch; what lies nowhere else goes into its parts."""

    def __init__(self, place: Placer, parts: list[Any]):
        self._place, self._parts = place, parts
        self._sent = 0

    def whole(self, array: pa.Array) -> dict[str, Any]:
        """A column of the batch. Of a slice of private memory only what it shows is sent."""
        private = any(buffer is not None and buffer.size and self._place(buffer) is None for buffer in array.buffers())
        if private and array.get_total_buffer_size() > 2 * array.nbytes:
            array = pa.concat_arrays([array, array[:0]])
        before = self._sent
        told = self._told(array)
        return told | {"bytes": array.nbytes if self._sent == before else 0}

    def _told(self, array: pa.Array) -> dict[str, Any]:
        kind, children = _kind(array.type), _children(array)
        count = _BUFFERS[kind.rstrip("0123456789")]
        return {
            "kind": kind,
            "rows": len(array),
            "offset": array.offset,
            "nulls": array.null_count,
            "buffers": [self._buffer(buffer) for buffer in array.buffers()[:count]],
            "children": [self._told(child) for child in children],
        }

    def _buffer(self, buffer: pa.Buffer | None) -> list[int]:
        if buffer is None:
            return NO_BUFFER
        place = self._place(buffer) if buffer.size else None
        if place is not None:
            return [*place, buffer.size]
        self._parts.append(buffer)
        self._sent += buffer.size
        return [-1, self._sent - buffer.size, buffer.size]


_BUFFERS = {"bits": 2, "w": 2, "d": 2, "text": 3, "list": 2, "codes": 2, "map": 2, "struct": 1, "null": 0}


def _kind(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(kind):
        return f"codes{kind.index_type.bit_width // 8}"
    if types.is_boolean(kind):
        return "bits"
    if types.is_string(kind) or types.is_binary(kind):
        return "text4"
    if types.is_large_string(kind) or types.is_large_binary(kind):
        return "text8"
    if types.is_map(kind):
        return "map"
    if types.is_struct(kind):
        return "struct"
    if types.is_list(kind) or types.is_large_list(kind):
        return "list4" if types.is_list(kind) else "list8"
    if types.is_null(kind):
        return "null"
    return f"{'d' if types.is_decimal(kind) else 'w'}{kind.bit_width // 8}"


def _children(array: pa.Array) -> list[pa.Array]:
    kind = array.type
    if pa.types.is_dictionary(kind):
        return [array.dictionary]
    if pa.types.is_map(kind):
        return [array.keys, array.items]
    if pa.types.is_struct(kind):
        return [array.field(position) for position in range(kind.num_fields)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [array.values]
    return []
