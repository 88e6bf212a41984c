"""What the tasks of bench/spark.py do: one pass of k-means by NumPy over some batches, and the sources of these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

RESULT = "cluster int, rows long, sums array<double>"
TILE_ROWS = 8192
Batches = Iterator[pa.RecordBatch]


class Assign:
    """Sums and counts of the rows nearest to each centroid; one batch for all that one task is given."""

    def __init__(self, centroids: npt.NDArray[np.float64]):
        self.centroids = centroids

    def __call__(self, batches: Batches) -> Batches:
        centroids, (count, dimensions) = self.centroids, self.centroids.shape
        norms = (centroids**2).sum(axis=1)
        sums, rows = np.zeros((count, dimensions)), np.zeros(count, np.int64)
        for batch in batches:
            columns = [column.to_numpy() for column in batch.columns]
            for first in range(0, batch.num_rows, TILE_ROWS):
                tile = np.stack([column[first : first + TILE_ROWS] for column in columns], axis=1)
                nearest = (norms - 2 * tile @ centroids.T).argmin(axis=1)
                chosen = np.zeros((count, len(tile)))
                chosen[nearest, np.arange(len(tile))] = 1
                sums += chosen @ tile
                rows += np.bincount(nearest, minlength=count)
        yield pa.record_batch(
            {"cluster": pa.array(range(count), pa.int32()), "rows": rows, "sums": pa.array(list(sums))}
        )


class FromFiles:
    """For mapInArrow over numbers of files: a pass over the batches of each, read again each time, or mapped."""

    def __init__(self, paths: list[str], mapped: bool, step: Assign):
        self.paths, self.mapped, self.step = paths, mapped, step

    def __call__(self, numbers: Batches) -> Batches:
        for batch in numbers:
            for number in batch.column(0).to_pylist():
                yield from self.step(self._batches(self.paths[number]))

    def _batches(self, path: str) -> Batches:
        if not self.mapped:
            yield from pq.ParquetFile(path).iter_batches(1 << 17)
            return
        file: Any = pa.ipc.open_file(pa.memory_map(path))
        for number in range(file.num_record_batches):
            yield file.get_batch(number)
