"""K-means by Lloyd's iterations over columns that may live anywhere: pure functions over one compiled kernel.

A block is a batch of rows as columns of float64. Some blocks give one partial result, (sums, counts) per centroid;
partial results are combined in the order given. So the centroids have the same bits whichever process computed which
result, and wherever and in how many blocks the rows were kept.

Memory handed to the kernel, in items of 8 bytes, each array 64-byte aligned:

    model    per group of GROUP centroids: GROUP norms |c|**2, then per dimension GROUP factors -2 c; then the shift
    scratch  one tile, a row of STRIDE items per dimension, then TILE_ROWS labels (STRIDE of them)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TILE_ROWS = 256  # 20 columns of them are 40 KiB: most of a first-level cache
STRIDE = TILE_ROWS + 8  # not a power of two, or the columns of one row would share a few cache sets
GROUP = 5  # centroids whose distances are in registers together
KERNELS = ["tierstore.service.kmeans_kernels"]

DIMENSION_COUNT_MAX = 1_000  # a tile of more would leave the second-level cache
CENTROID_COUNT_MAX = 10_000


class Block(NamedTuple):
    """Rows as columns: addresses (d,) <i8 of float64 columns, row_count, and what keeps the memory alive."""

    addresses: Ints
    row_count: int
    owner: Any


class Partial(NamedTuple):
    """What one block contributes: sums (k, d) of rows minus the shift, counts (k,)."""

    sums: Floats
    counts: Ints


def block_of_batch(batch: pa.RecordBatch) -> Block:
    """The columns of a record batch, in place.

    Raises: ValueError for a column that is not float64 or holds nulls.
    """
    addresses = np.empty(batch.num_columns, np.int64)
    for index, column in enumerate(batch.columns):
        if str(column.type) != "double" or column.null_count:
            raise ValueError(
                f"column {batch.schema.names[index]!r} is {column.type} with {column.null_count} nulls; "
                "cast it to float64 and drop its nulls first"
            )
        data = column.buffers()[1]
        addresses[index] = (data.address if data is not None else 0) + 8 * column.offset
    return Block(addresses, batch.num_rows, batch)


def block_of_arrays(columns: Sequence[Floats]) -> Block:
    """The columns of plain NumPy arrays, in place: contiguous float64 of equal length."""
    for column in columns:
        if column.dtype != np.float64 or not column.flags.c_contiguous or len(column) != len(columns[0]):
            raise ValueError("each column must be a contiguous float64 array of the same length")
    addresses = np.array([column.ctypes.data for column in columns], np.int64)
    return Block(addresses, len(columns[0]), columns)


def shift_of(centroids: Floats) -> Floats:
    """The point (d,) that rows and centroids are taken relative to."""
    return np.asarray(centroids.mean(axis=0), np.float64)


def pack(centroids: Floats) -> Floats:
    """Centroids (k, d) in the kernel's layout; missing centroids of the last group are infinitely far."""
    k, dimension_count = centroids.shape
    shift = shift_of(centroids)
    moved = centroids - shift
    group_count = -(-k // GROUP)
    groups = np.zeros((group_count, dimension_count + 1, GROUP))
    groups[:, 0, :] = np.inf
    for index in range(k):
        group, place = divmod(index, GROUP)
        groups[group, 0, place] = moved[index] @ moved[index]
        groups[group, 1:, place] = -2.0 * moved[index]
    return aligned(np.concatenate([groups.ravel(), shift]))


def aligned(items: Floats) -> Floats:
    """A copy that starts on a cache line: a vector load across two lines costs twice."""
    whole = np.empty(items.size + 8)
    skip = -(whole.ctypes.data // 8) % 8
    copy = whole[skip : skip + items.size]
    copy[:] = items
    return copy


def scratch_items(dimension_count: int) -> int:
    """Items of working memory the kernel needs."""
    return STRIDE * (dimension_count + 1)


@functools.cache
def _kernels() -> Any:
    from tierstore.ringbuf.jit import load

    return load(KERNELS)


def warm_up() -> None:
    """Load the kernel, compiling it if it never was, so that no measured time contains it."""
    _kernels()


def partial(blocks: Iterable[Block], model: Floats, shape: tuple[int, int]) -> Partial:
    """Sums and counts of some blocks against packed centroids of this shape (k, d).

    Rows are added one by one in their order, so how they are cut into blocks leaves no trace in the bits.
    Releases the interpreter lock while computing.
    """
    k, dimension_count = shape
    result = Partial(np.zeros(shape), np.zeros(k, np.int64))
    scratch = aligned(np.empty(scratch_items(dimension_count)))
    for block in blocks:
        if len(block.addresses) != dimension_count:
            raise ValueError(f"a block of {len(block.addresses)} columns for centroids of {dimension_count}")
        _kernels().kmeans_step(
            block.addresses.ctypes.data,
            block.row_count,
            dimension_count,
            -(-k // GROUP),
            model.ctypes.data,
            result.sums.ctypes.data,
            result.counts.ctypes.data,
            scratch.ctypes.data,
        )
    return result


def combine(partials: Iterable[Partial], k: int, dimension_count: int) -> Partial:
    """The sum of partial results, in the order given."""
    sums, counts = np.zeros((k, dimension_count)), np.zeros(k, np.int64)
    for one in partials:
        sums += one.sums
        counts += one.counts
    return Partial(sums, counts)


def moved_centroids(centroids: Floats, total: Partial) -> Floats:
    """The means of the rows of each centroid; a centroid without rows stays."""
    rows = total.counts[:, None]
    means = shift_of(centroids) + total.sums / np.maximum(rows, 1)
    return np.where(rows > 0, means, centroids)


def step(blocks: Iterable[Block], centroids: Floats) -> Partial:
    """One pass over all blocks: sums and counts of each, combined in their order."""
    k, dimension_count = centroids.shape
    model = pack(centroids)
    return combine((partial([block], model, (k, dimension_count)) for block in blocks), k, dimension_count)


def lloyd(blocks: Sequence[Block], start: Floats, iterations: int) -> Floats:
    """Centroids (k, d) after exactly this many iterations from ``start``."""
    centroids = np.array(start, np.float64)
    for _ in range(iterations):
        centroids = moved_centroids(centroids, step(blocks, centroids))
    return centroids


def relative_difference(found: Floats, expected: Floats) -> float:
    """Largest difference, per dimension relative to its largest centroid value."""
    scale = np.maximum(np.abs(expected).max(axis=0), np.finfo(np.float64).tiny)
    return float((np.abs(found - expected).max(axis=0) / scale).max())
