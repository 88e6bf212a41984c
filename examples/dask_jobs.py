"""Three jobs of Dask, with tierstore and without: k-means, a merge of two tables, set_index.

    python examples/dask_jobs.py kmeans                # with
    python examples/dask_jobs.py kmeans --plain        # as Dask does it alone
    python examples/dask_jobs.py merge --mib 2000

K-means persists more points than the workers' memory holds; the tables of the others are made as they are read. With
tierstore a daemon of the node is used, or started and ended; what it may take is said by TIERSTORE_DRAM, TIERSTORE_PMEM, ...
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
from dask.distributed import Client, LocalCluster

import tierstore.dask

K, DIMENSIONS, ROWS = 8, 20, 200_000


def kmeans(mib: int) -> Any:
    """Lloyd's algorithm over a persisted array."""
    rows = (mib << 20) // (8 * DIMENSIONS)
    points = da.random.default_rng(1).random((rows, DIMENSIONS), chunks=(ROWS, DIMENSIONS)).persist()
    centres = np.random.default_rng(2).random((K, DIMENSIONS))
    for iteration in range(5):
        began = time.perf_counter()
        sums = points.map_blocks(_sums, centres, dtype=float, chunks=(K, DIMENSIONS + 1)).to_delayed().ravel()
        total = sum(computed(sums))
        centres = total[:, :-1] / total[:, -1:]
        print(f"iteration {iteration + 1}: {time.perf_counter() - began:.2f} s")
    return centres.sum()


def computed(values: Any) -> list[np.ndarray]:
    """Results of delayed values."""
    import dask

    return list(dask.compute(*values))


def _sums(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """For each centre, the sum of its points and their number."""
    nearest = ((centres**2).sum(1)[:, None] - 2 * centres @ points.T).argmin(0)
    sums = np.stack([np.bincount(nearest, column, K) for column in points.T], 1)
    return np.hstack([sums, np.bincount(nearest, minlength=K)[:, None]])


def _table(number: int, rows: int, name: str) -> pd.DataFrame:
    generator = np.random.default_rng(number)
    return pd.DataFrame({"key": generator.integers(0, 1 << 40, rows) % 1_000_003, name: generator.random(rows)})


def table(mib: int, name: str) -> Any:
    """A table of keys and one value, in parts of about 3 MiB."""
    return dd.from_map(_table, range(max(2, (mib << 20) // (16 * ROWS))), rows=ROWS, name=name)


def merge(mib: int) -> Any:
    """Rows of two tables that have the same key."""
    joined = table(mib * 9 // 10, "x").merge(table(mib // 10, "y").drop_duplicates("key"), on="key")
    return (joined["x"] * joined["y"]).sum().compute()


def set_index(mib: int) -> Any:
    """A table ordered by its keys."""
    ordered = table(mib, "x").set_index("key")
    return ordered.map_partitions(lambda part: part["x"].iloc[::1000]).sum().compute()


JOBS: dict[str, Callable[[int], Any]] = {"kmeans": kmeans, "merge": merge, "set_index": set_index}


def main() -> None:
    """Run one job and say how long it took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--plain", action="store_true", help="without tierstore")
    parser.add_argument("--mib", type=int, default=1000, help="size of the data")
    parser.add_argument("--limit", default="600MiB", help="memory of each of the two workers")
    options = parser.parse_args()
    terms: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": options.limit}
    terms["dashboard_address"] = ":0"
    with contextlib.ExitStack() as stack:
        make = LocalCluster if options.plain else tierstore.dask.cluster
        client = stack.enter_context(Client(stack.enter_context(make(**terms))))
        if not options.plain:
            import dask

            tierstore.dask.register(client)
            stack.enter_context(dask.config.set({"dataframe.shuffle.method": "tierstore"}))
        began = time.perf_counter()
        found = JOBS[options.job](options.mib)
        print(f"{options.job}: {found:.6f} in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
