"""The demo's second opinion: scikit-learn's KMeans from the same start, where it is installed.

Runs in an executor, so that the memory it takes ends with that process.
"""

from __future__ import annotations

import time
import warnings
from typing import NamedTuple

import numpy as np

from . import demo_input, kmeans

SAMPLE_BYTES_MAX = 2 << 30  # scikit-learn wants all rows in one array


class Opinion(NamedTuple):
    """What scikit-learn found.

    version: "" if it is not installed; row_count: the first rows that both sides used.
    centroids: (k, d) of scikit-learn; ours: (k, d) of this package's kernel over the same rows if they are a sample.
    """

    version: str
    row_count: int = 0
    centroids: kmeans.Floats | None = None
    ours: kmeans.Floats | None = None
    seconds: float = 0.0


def run(data: demo_input.Input, start: kmeans.Floats, iterations: int) -> Opinion:
    """Ask scikit-learn for the same number of Lloyd iterations over as many rows as it is given memory for."""
    try:
        import sklearn
        from sklearn.cluster import KMeans
    except ImportError:
        return Opinion("")
    row_count = min(data.row_count, SAMPLE_BYTES_MAX // (8 * len(data.columns)))
    rows = _first_rows(data, row_count)
    ours = None
    if row_count < data.row_count:
        ours = kmeans.lloyd([kmeans.block_of_arrays([column.copy() for column in rows.T])], start, iterations)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer clusters than centroids is for the comparison to find
        model = KMeans(len(start), init=start, n_init=1, max_iter=iterations, tol=0.0, algorithm="lloyd", copy_x=False)
        model.fit(rows)
    return Opinion(sklearn.__version__, row_count, model.cluster_centers_, ours, time.perf_counter() - began)


def _first_rows(data: demo_input.Input, row_count: int) -> kmeans.Floats:
    rows, filled = np.empty((row_count, len(data.columns))), 0
    for group in data.groups:
        for _, batch in demo_input.read_pieces(group, data.columns):
            end = min(row_count, filled + batch.num_rows)
            for index, column in enumerate(batch.columns):
                rows[filled:end, index] = column.to_numpy()[: end - filled]
            filled = end
            if filled == row_count:
                return rows
    return rows
