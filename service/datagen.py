"""Gaussian clusters in Parquet files, made the way HiBench's GenKMeansDataset makes its k-means input.

Each cluster has, per dimension, a mean drawn uniformly from [0, 1000] and a standard deviation drawn uniformly from
[0.01, 100]; its samples are normal around that mean. HiBench writes one cluster after the other; here each row draws
its cluster, so that every part of the data looks like the whole. The same spec gives the same bytes on every run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MEAN_MAX, DEVIATION_MIN, DEVIATION_MAX = 1000.0, 0.01, 100.0
ROW_GROUP_BYTES = 40 << 20  # of float64; several per file and executor, so that both get the same share


class ClusterSpec(NamedTuple):
    """What to generate: row_count rows of dimension_count float64 columns from cluster_count clusters."""

    row_count: int
    dimension_count: int = 20
    cluster_count: int = 5
    seed: int = 1
    file_count: int = 4


def spec_for(total_bytes: int, dimension_count: int = 20, seed: int = 1) -> ClusterSpec:
    """As many rows as fit total_bytes of float64."""
    return ClusterSpec(max(1, total_bytes // (8 * dimension_count)), dimension_count, seed=seed)


def clusters(spec: ClusterSpec) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations, each (cluster_count, dimension_count)."""
    random = np.random.default_rng(spec.seed)
    shape = (spec.cluster_count, spec.dimension_count)
    return random.uniform(0.0, MEAN_MAX, shape), random.uniform(DEVIATION_MIN, DEVIATION_MAX, shape)


def file_rows(spec: ClusterSpec, file_index: int) -> int:
    """Rows of one of the files: equal shares, the first ones take the rest."""
    share, rest = divmod(spec.row_count, spec.file_count)
    return share + (file_index < rest)


def write_file(folder: Path, spec: ClusterSpec, file_index: int) -> Path:
    """Write one file of the data set, durable, so that its write-back does not disturb what is measured next."""
    path = folder / f"part-{file_index:03d}.parquet"
    rows = file_rows(spec, file_index)
    group_count = max(1, -(-rows * 8 * spec.dimension_count // ROW_GROUP_BYTES))
    random = np.random.Generator(np.random.SFC64([spec.seed, file_index]))
    means, deviations = clusters(spec)
    names = [f"f{dimension}" for dimension in range(spec.dimension_count)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    # Dictionaries cannot help numbers that never repeat; without them reading is as fast as Parquet can be.
    with pq.ParquetWriter(path, schema, use_dictionary=False) as writer:
        for group in range(group_count):
            count = rows * (group + 1) // group_count - rows * group // group_count
            columns = _samples(random, count, means, deviations)
            writer.write_table(pa.table(columns, schema=schema), row_group_size=max(1, count))
    with open(path, "rb") as written:
        os.fsync(written.fileno())
    return path


def _samples(random: np.random.Generator, count: int, means: np.ndarray, deviations: np.ndarray) -> list[np.ndarray]:
    labels = random.integers(0, len(means), count)
    columns = []
    for dimension in range(means.shape[1]):
        column = random.standard_normal(count)
        column *= deviations[labels, dimension]
        column += means[labels, dimension]
        columns.append(column)
    return columns
