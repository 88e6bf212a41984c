"""The columns of a run: how large each becomes, and how its rows get to their places in the payload.

A column is made of chunks, one per input batch, and of the places of their rows. Flat columns are scattered straight into
the payload; all others are rearranged by pyarrow's take() and copied. Used by run.py only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .framing import encoded
from .native import address_of, kernels
from .physical import (
    address,
    bytes_offset_width,
    fixed_width,
    offsets_of,
    storage,
    storage_type,
    validity,
    wide_offsets,
)

TEXT_BYTES_MAX = (1 << 31) - 1


TILE_ROWS = 1 << 16  # the places of a tile stay in the cache while all columns are moved by them


class Places:
    """The place of every input row in the output, by counting.

    numbers: partition numbers of each batch; starts: u4[partitions + 1]. Kept whole, u4[rows], only if something asks for
    it; else made tile by tile.
    """

    def __init__(self, numbers: Sequence[npt.NDArray[Any]], starts: npt.NDArray[np.uint32]):
        self._numbers, self._starts = numbers, starts
        self._firsts = [0, *itertools.accumulate(len(array) for array in numbers)]
        self.rows = self._firsts[-1]
        self._whole: npt.NDArray[np.uint32] | None = None
        self._sources: npt.NDArray[np.uint32] | None = None

    def whole(self) -> npt.NDArray[np.uint32]:
        """The places of all rows, batch after batch."""
        if self._whole is None:
            found, cursors = np.empty(self.rows, np.uint32), self._starts[:-1].copy()
            for number, first in enumerate(self._firsts[:-1]):
                self._give(number, 0, len(self._numbers[number]), cursors, address_of(found) + 4 * first)
            self._whole = found
        return self._whole

    def _give(self, batch: int, first: int, rows: int, cursors: npt.NDArray[np.uint32], target: int) -> None:
        numbers = self._numbers[batch]
        at = address_of(numbers) + first * numbers.itemsize
        kernels().give_places(at, rows, numbers.itemsize == 4, address_of(cursors), target)

    def of(self, batch: int) -> int:
        """Address of the places of a batch's rows."""
        return address_of(self.whole()) + 4 * self._firsts[batch]

    def tiles(self) -> Iterator[tuple[int, int, int, int]]:
        """Batch, first row in it, rows, and the address of their places, which lasts until the next one."""
        if self._whole is not None:
            yield from ((number, 0, len(array), self.of(number)) for number, array in enumerate(self._numbers))
            return
        scratch, cursors = np.empty(min(self.rows, TILE_ROWS), np.uint32), self._starts[:-1].copy()
        for number, array in enumerate(self._numbers):
            for first in range(0, len(array), TILE_ROWS):
                rows = min(TILE_ROWS, len(array) - first)
                self._give(number, first, rows, cursors, address_of(scratch))
                yield number, first, rows, address_of(scratch)

    def sources(self) -> npt.NDArray[np.uint32]:
        """The input row of every output row: what take() needs."""
        if self._sources is None:
            found = np.empty(self.rows, np.uint32)
            kernels().invert(address_of(self.whole()), self.rows, 0, address_of(found))
            self._sources = found
        return self._sources


class Column(Protocol):
    """nodes: (rows, nulls) pairs; sizes: the bytes of each of its buffers."""

    nodes: list[tuple[int, int]]
    sizes: list[int]

    def fill(self, targets: list[int]) -> None:
        """Write the buffers to these addresses."""


def column_of(field: pa.Field, chunks: list[pa.Array], places: Places) -> Column:
    """The column of a field."""
    kind = storage_type(field.type)
    if pa.types.is_boolean(kind):
        return _Bits(chunks, places)
    if fixed_width(kind) >= 0:
        return _Fixed(chunks, places, fixed_width(kind))
    if bytes_offset_width(kind):
        return _Text(field, chunks, places, bytes_offset_width(kind))
    return _Taken(field, chunks, places)


class _Flat:
    """What flat columns share: the validity bitmap, absent where no chunk has nulls."""

    def __init__(self, chunks: list[pa.Array], places: Places):
        self.chunks = [storage(chunk) for chunk in chunks]
        self.places, self.rows = places, places.rows
        nulls = sum(chunk.null_count for chunk in self.chunks)
        self.nodes = [(self.rows, nulls)]
        self.sizes = [(self.rows + 7) // 8 if nulls else 0]

    def fill_validity(self, target: int) -> None:
        """All ones, less those that are null."""
        if self.sizes[0]:
            kernels().fill_ones(target, self.rows)
            self.clear_zeros(target, validity)

    def clear_zeros(self, target: int, bits_of: Any) -> None:
        """Clear the bits in target whose row has a 0 in the bitmap that bits_of() tells for a chunk."""
        for number, chunk in enumerate(self.chunks):
            bits = bits_of(chunk)
            if bits:
                kernels().clear_bits(bits, chunk.offset, len(chunk), self.places.of(number), target)


class _Fixed(_Flat):
    """Values of a fixed number of bytes."""

    def __init__(self, chunks: list[pa.Array], places: Places, width: int):
        super().__init__(chunks, places)
        self.width = width
        self.sizes.append(width * self.rows)

    def values(self, number: int) -> int:
        """Address of the first value of a chunk."""
        chunk = self.chunks[number]
        return address(chunk.buffers()[1]) + int(chunk.offset) * self.width

    def fill(self, targets: list[int]) -> None:
        """Validity; the values are moved by fill_columns(), which moves those of several columns together."""
        self.fill_validity(targets[0])


def fill_columns(columns: Sequence[Column], targets: list[int], places: Places) -> None:
    """Write all columns. targets: addresses of all their buffers, in order."""
    fixed: list[tuple[_Fixed, int]] = []
    position = 0
    for column in columns:
        mine = targets[position : position + len(column.sizes)]
        column.fill(mine)
        if isinstance(column, _Fixed):
            fixed.append((column, mine[1]))
        position += len(mine)
    fixed.sort(key=lambda entry: entry[0].width != 8)
    paired = sum(column.width == 8 for column, _ in fixed) // 2 * 2
    native = kernels()
    for number, first, rows, at in places.tiles():
        for i in range(0, paired, 2):
            (left, target), (right, other) = fixed[i : i + 2]
            values = left.values(number) + 8 * first, right.values(number) + 8 * first
            native.scatter_pair(*values, rows, at, target, other)
        for column, target in fixed[paired:]:
            native.scatter_fixed(column.values(number) + column.width * first, column.width, rows, at, target)


class _Bits(_Flat):
    """Booleans."""

    def __init__(self, chunks: list[pa.Array], places: Places):
        super().__init__(chunks, places)
        self.sizes.append((self.rows + 7) // 8)

    def fill(self, targets: list[int]) -> None:
        """Validity, bits."""
        self.fill_validity(targets[0])
        kernels().fill_ones(targets[1], self.rows)
        self.clear_zeros(targets[1], lambda chunk: address(chunk.buffers()[1]))


class _Text(_Flat):
    """Strings and binary values with offsets."""

    def __init__(self, field: pa.Field, chunks: list[pa.Array], places: Places, width: int):
        super().__init__(chunks, places)
        self._width = width
        total = 0
        for chunk in self.chunks:
            last = wide_offsets(chunk.slice(len(chunk) - 1), width)[1]
            total += int(last - wide_offsets(chunk.slice(0, 1), width)[0])
        if width == 4 and total > TEXT_BYTES_MAX:
            raise ValueError(
                f"column {field.name!r} has {total:,} bytes in one run, more than its 32-bit offsets can count: "
                "make smaller runs, or use the large type"
            )
        self.sizes += [width * (self.rows + 1), total]

    def fill(self, targets: list[int]) -> None:
        """Validity, offsets, bytes."""
        native, wide = kernels(), int(self._width == 8)
        self.fill_validity(targets[0])
        for number, chunk in enumerate(self.chunks):
            offsets = offsets_of(chunk, self._width)
            native.scatter_lengths(offsets, wide, len(chunk), self.places.of(number), targets[1])
        native.sum_lengths(targets[1], wide, self.rows)
        for number, chunk in enumerate(self.chunks):
            offsets, data = offsets_of(chunk, self._width), address(chunk.buffers()[2])
            native.scatter_bytes(offsets, wide, data, len(chunk), self.places.of(number), targets[1], targets[2])


class _Taken:
    """Any other type: rearranged by pyarrow, then copied."""

    def __init__(self, field: pa.Field, chunks: list[pa.Array], places: Places):
        array = pa.concat_arrays(chunks).take(pa.array(places.sources()))
        frame, self._buffers, self._alive = encoded(field, array)
        self.nodes, self.sizes = frame.nodes(), frame.sizes()

    def fill(self, targets: list[int]) -> None:
        """Every buffer."""
        for target, (source, size) in zip(targets, self._buffers, strict=True):
            if size:
                kernels().copy(target, source, size)
