"""K-means by NumPy inside Spark tasks, over points in Parquet files; where the tasks get the points from is one option.

    python examples/spark_kmeans.py                     # map_batches: tasks map the columns in tierstore
    python examples/spark_kmeans.py --source cache      # without tierstore: df.cache() and mapInArrow
    python examples/spark_kmeans.py --source pyarrow    # without tierstore: each task reads Parquet again

Needs PySpark and a Java: pip install 'tierstore[spark]'. A daemon is started for the run if none answers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession

from tierstore.spark import configure, map_batches

Floats = npt.NDArray[np.float64]
Batches = Iterator[pa.RecordBatch]
Step = Callable[[Callable[[Batches], Batches]], DataFrame]

RESULT = "cluster int, rows long, sums array<double>"
TILE_ROWS = 8192  # of which the distances fit a second-level cache


def make_points(folder: Path, rows: int, dimensions: int, files: int = 4) -> list[str]:
    """Points around random centers, in Parquet files."""
    random = np.random.default_rng(7)
    centers = random.normal(scale=8, size=(10, dimensions))
    paths = []
    for number in range(files):
        points = centers[random.integers(len(centers), size=rows // files)]
        points = points + random.normal(size=points.shape)
        paths.append(str(folder / f"points-{number}.parquet"))
        table = pa.table({f"f{column}": points[:, column] for column in range(dimensions)})
        pq.write_table(table, paths[-1], row_group_size=1 << 17)
    return paths


def assign(centroids: Floats) -> Callable[[Batches], Batches]:
    """A function for mapInArrow and map_batches: for each centroid, how many rows are nearest to it, and their sum."""
    count, dimensions = centroids.shape
    norms = (centroids**2).sum(axis=1)

    def run(batches: Batches) -> Batches:
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

    return run


def moved(centroids: Floats, parts: DataFrame) -> Floats:
    """The mean of the rows of each centroid, of what all tasks found."""
    sums, rows = np.zeros(centroids.shape), np.zeros(len(centroids))
    for part in parts.collect():
        sums[part.cluster] += part.sums
        rows[part.cluster] += part.rows
    return np.where(rows[:, None] > 0, sums / np.maximum(rows, 1)[:, None], centroids)


def mapped(spark: SparkSession, paths: list[str]) -> Step:
    """With tierstore: tasks map the columns, which the first iteration brings into the store."""
    return lambda step: map_batches(spark, paths, step, RESULT)


def cached(spark: SparkSession, paths: list[str]) -> Step:
    """Spark's own cache; rows cross from the JVM to Python."""
    frame = spark.read.parquet(*paths).cache()
    return lambda step: frame.mapInArrow(step, RESULT)


def reread(spark: SparkSession, paths: list[str]) -> Step:
    """Each task reads its file with pyarrow, in each iteration."""

    def read(step: Callable[[Batches], Batches]) -> Callable[[Batches], Batches]:
        def run(numbers: Batches) -> Batches:
            for batch in numbers:
                for number in batch.column(0).to_pylist():
                    yield from step(pq.ParquetFile(paths[number]).iter_batches(1 << 17))

        return run

    numbers = spark.range(0, len(paths), 1, len(paths))
    return lambda step: numbers.mapInArrow(read(step), RESULT)


SOURCES: dict[str, Callable[[SparkSession, list[str]], Step]] = {
    "tierstore": mapped,
    "cache": cached,
    "pyarrow": reread,
}


def iterate(step: Step, centroids: Floats, iterations: int) -> Floats:
    """Lloyd's iterations; the centroids at the end."""
    for number in range(iterations):
        began = time.perf_counter()
        centroids = moved(centroids, step(assign(centroids)))
        print(f"iteration {number + 1}: {time.perf_counter() - began:.2f} s", flush=True)
    return centroids


def session(options: argparse.Namespace) -> SparkSession:
    """A session; with tierstore, configured for it."""
    builder: Any = SparkSession.builder.master(options.master).config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.memory", options.memory)
    if options.source == "tierstore":
        builder = configure(builder, dram=options.dram)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # or workers are whatever python3 is first in PATH
    made: SparkSession = builder.getOrCreate()
    made.sparkContext.setLogLevel("ERROR")
    return made


def main() -> None:
    """Make points, and find their clusters."""
    parser = argparse.ArgumentParser(description="K-means by NumPy inside Spark tasks.")
    parser.add_argument("--source", choices=SOURCES, default="tierstore", help="where tasks get the points from")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--dimensions", type=int, default=20)
    parser.add_argument("--clusters", type=int, default=10)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--master", default="local[2]")
    parser.add_argument("--memory", default="1g", help="of the driver's JVM")
    parser.add_argument("--dram", default="1GiB", help="of the daemon, if none answers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spark-kmeans-") as folder:
        paths = make_points(Path(folder), options.rows, options.dimensions)
        spark = session(options)
        start = pq.ParquetFile(paths[0]).read_row_group(0).slice(0, options.clusters)
        centroids = np.stack([column.to_numpy() for column in start.columns], axis=1)
        found = iterate(SOURCES[options.source](spark, paths), centroids, options.iterations)
        print(f"first centroid: {np.array2string(found[0][:4], precision=6)} ...")
        spark.stop()


if __name__ == "__main__":
    main()
