"""The k-means kernel and the functions around it, against a naive twin."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierstore.service import kmeans


def naive_partial(rows, centroids):
    """Counts (k,) and sums (k, d) of rows by nearest centroid, all distances written out."""
    squares = ((rows[:, None, :] - centroids[None, :, :]) ** 2).sum(axis=2)
    labels = squares.argmin(axis=1)
    sums = np.array([rows[labels == index].sum(axis=0) for index in range(len(centroids))])
    return sums, np.bincount(labels, minlength=len(centroids))


def naive_lloyd(rows, start, iterations):
    centroids = start.copy()
    for _ in range(iterations):
        sums, counts = naive_partial(rows, centroids)
        for index, count in enumerate(counts):
            if count:
                centroids[index] = sums[index] / count
    return centroids


def block_of(rows):
    return kmeans.block_of_arrays([np.ascontiguousarray(column) for column in rows.T])


def partial_of(rows, centroids):
    return kmeans.partial([block_of(rows)], kmeans.pack(centroids), centroids.shape)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 700), st.integers(1, 25), st.integers(1, 12), st.integers(0, 2**32))
def test_partial_equals_the_naive_twin(row_count, dimension_count, k, seed):
    random = np.random.default_rng(seed)
    rows = random.normal(0.0, 100.0, (row_count, dimension_count))
    centroids = random.normal(0.0, 100.0, (k, dimension_count))
    found = partial_of(rows, centroids)
    sums, counts = naive_partial(rows, centroids)
    assert found.counts.tolist() == counts.tolist()
    moved = sums - counts[:, None] * kmeans.shift_of(centroids)
    np.testing.assert_allclose(found.sums, moved, rtol=1e-9, atol=1e-7)


def test_a_tie_goes_to_the_lower_centroid():
    rows = np.array([[1.0, 0.0], [0.0, 0.0]])
    centroids = np.array([[5.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    assert partial_of(rows, centroids).counts.tolist() == [0, 2, 0, 0]


def test_columns_far_from_zero_keep_their_distances():
    random = np.random.default_rng(5)
    offset = np.array([1e9, -3e8, 2023.0])
    rows, centroids = random.normal(0, 1, (5_000, 3)) + offset, random.normal(0, 1, (7, 3)) + offset
    assert partial_of(rows, centroids).counts.tolist() == naive_partial(rows, centroids)[1].tolist()


def test_the_same_rows_give_the_same_bits_wherever_they_are():
    rows = np.random.default_rng(1).normal(0, 10, (1_003, 4))
    centroids = rows[:3].copy()
    expected = partial_of(rows, centroids)
    for shift in range(1, 9):
        columns = [np.empty(len(rows) + shift)[shift:] for _ in range(4)]
        for column, source in zip(columns, rows.T, strict=True):
            column[:] = source
        found = kmeans.partial([kmeans.block_of_arrays(columns)], kmeans.pack(centroids), (3, 4))
        assert found.sums.tobytes() == expected.sums.tobytes()


def test_how_rows_are_cut_into_blocks_leaves_no_trace():
    rows = np.random.default_rng(6).normal(0, 10, (2_000, 4))
    expected = partial_of(rows, rows[:3])
    for cut in (1, 255, 256, 999):
        blocks = [block_of(rows[:cut]), block_of(rows[cut:])]
        found = kmeans.partial(blocks, kmeans.pack(rows[:3]), (3, 4))
        assert found.sums.tobytes() == expected.sums.tobytes()


def test_a_block_of_another_width_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        kmeans.partial([block_of(np.zeros((4, 2)))], kmeans.pack(np.zeros((1, 3))), (1, 3))


def test_a_sliced_record_batch_is_read_in_place():
    rows = np.random.default_rng(2).normal(0, 10, (900, 3))
    batch = pa.record_batch([pa.array(column) for column in rows.T], names=["a", "b", "c"])
    block = kmeans.block_of_batch(batch.slice(100, 500))
    found = kmeans.partial([block], kmeans.pack(rows[:4]), (4, 3))
    assert block.addresses[0] == batch.column(0).buffers()[1].address + 800
    assert found.sums.tobytes() == partial_of(rows[100:600], rows[:4]).sums.tobytes()


@pytest.mark.parametrize("column", [pa.array([1.0, None]), pa.array([1, 2]), pa.array([1.0, 2.0], pa.float32())])
def test_other_columns_are_refused(column):
    with pytest.raises(ValueError, match="cast it to float64"):
        kmeans.block_of_batch(pa.record_batch([column], names=["x"]))


def test_arrays_of_other_layouts_are_refused():
    whole = np.zeros((4, 4))
    with pytest.raises(ValueError, match="contiguous"):
        kmeans.block_of_arrays([whole[:, 0], whole[:, 1]])


def test_lloyd_equals_the_naive_twin_over_several_blocks():
    random = np.random.default_rng(3)
    rows = random.normal(0, 1, (3_000, 6)) + random.integers(0, 4, (3_000, 1)) * 5.0
    start = rows[:5].copy()
    blocks = [block_of(part) for part in np.array_split(rows, 7)]
    assert kmeans.relative_difference(kmeans.lloyd(blocks, start, 6), naive_lloyd(rows, start, 6)) < 1e-12


def test_a_centroid_without_rows_stays():
    rows = np.random.default_rng(4).normal(0, 1, (50, 2))
    start = np.array([[0.0, 0.0], [1e6, 1e6]])
    assert kmeans.lloyd([block_of(rows)], start, 3)[1].tolist() == [1e6, 1e6]


def test_relative_difference_is_per_dimension():
    expected = np.array([[1e6, 1e-3], [2e6, 2e-3]])
    found = expected + np.array([[0.0, 1e-6], [0.0, 0.0]])
    assert kmeans.relative_difference(found, expected) == pytest.approx(5e-4)


@pytest.mark.slow
def test_a_ready_kernel_runs_without_numba():
    kmeans.warm_up()
    program = (
        "import sys, numpy as np; from tierstore.service import kmeans as k\n"
        "rows = np.arange(40.0); k.lloyd([k.block_of_arrays([rows])], np.array([[1.0], [30.0]]), 2)\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
