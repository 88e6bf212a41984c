"""One pass of k-means over the columns of one block: nearest centroid of each row, sums and counts per centroid.

Imported only where kernels are compiled; kmeans.py packs the arguments and states their layouts.

The rows go through in tiles small enough for the first-level cache. A tile is copied once, minus the shift, column by
column; then its rows are labelled and added up while the next tile is on its way from memory.

Distances are |c|**2 - 2 x.c, both relative to the shift: |x|**2 is the same for all centroids, and without the shift
columns far from zero (years, identifiers) would cancel to nothing. The order of every addition is fixed by the rows of
the block alone, so the same block gives the same bits wherever it is kept.
"""

from __future__ import annotations

from tierstore.ringbuf.jit import helper, kernel
from tierstore.ringbuf.vectors import MICRO_ROWS, load_float, load_int, nearest_of, prefetch, store_float, store_int

from .kmeans import GROUP, STRIDE, TILE_ROWS

assert TILE_ROWS % MICRO_ROWS == 0, "a tile is whole micro-tiles"

label_rows = nearest_of(GROUP, STRIDE)


@helper
def copy_tile(columns, first, rows, dimension_count, shift, tile):  # type: ignore[no-untyped-def]
    """tile[d, r] = column d at row first + r, minus shift[d]."""
    for dimension in range(dimension_count):
        source = load_int(columns, dimension) + 8 * first
        target = tile + 8 * STRIDE * dimension
        offset = load_float(shift, dimension)
        for row in range(rows):
            store_float(target, row, load_float(source, row) - offset)


@helper
def prefetch_rows(columns, first, dimension_count):  # type: ignore[no-untyped-def]
    """Fetch the next tile while this one is computed: the two together take the longer of their times, not the sum."""
    for dimension in range(dimension_count):
        address = load_int(columns, dimension) + 8 * first
        for line in range(MICRO_ROWS // 8):
            prefetch(address + 64 * line)


@helper
def add_rows(tile, rows, dimension_count, labels, sums, counts):  # type: ignore[no-untyped-def]
    """Add each row of the tile to the sums of its centroid."""
    for row in range(rows):
        label = load_int(labels, row)
        store_int(counts, label, load_int(counts, label) + 1)
        total = sums + 8 * dimension_count * label
        value = tile + 8 * row
        for dimension in range(dimension_count):
            item = load_float(value, STRIDE * dimension)
            store_float(total, dimension, load_float(total, dimension) + item)


@kernel(nogil=True)
def kmeans_step(  # type: ignore[no-untyped-def]
    columns, row_count, dimension_count, group_count, model, sums, counts, scratch
):
    """Add the rows of one block to the sums and counts of their nearest centroids.

    columns:  (dimension_count,) <i8, addresses of float64 columns of row_count finite values.
    model:    (group_count, dimension_count + 1, GROUP) <f8, then (dimension_count,) <f8 of shift; see kmeans.pack.
    sums:     (k, dimension_count) <f8 of rows minus shift; counts: (k,) <i8. Both are added to.
    scratch:  kmeans.scratch_items(dimension_count) items, 64-byte aligned; contents do not matter.
    Cost:     about 16 ns a row of 20 columns and 10 centroids on one AVX-512 core, that is 10 GB/s read once.
    """
    shift = model + 8 * GROUP * group_count * (dimension_count + 1)
    labels = scratch + 8 * STRIDE * dimension_count
    first = 0
    while first < row_count:
        rows = min(TILE_ROWS, row_count - first)
        copy_tile(columns, first, rows, dimension_count, shift, scratch)
        row = 0
        while row < rows:
            prefetch_rows(columns, first + TILE_ROWS + row, dimension_count)
            label_rows(scratch, row, dimension_count, group_count, model, labels)
            row += MICRO_ROWS
        add_rows(scratch, rows, dimension_count, labels, sums, counts)
        first += rows
    return 0
