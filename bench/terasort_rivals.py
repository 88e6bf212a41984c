"""Others that sort a file of gensort's records, each in a process of its own and in the form that suits it best.

DuckDB scans a mapped Arrow table (key as two integers, record as bytes), sorts by the integers and streams the records,
which are written as they come: faster here than COPY to Parquet, or than reading Parquet. Dask reads parts of the file into
data frames (key as an integer, record as Arrow bytes), sorts by the first eight bytes of the key only, and writes one
file a partition.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .data import MIB
from .gensort import RECORD_BYTES, Records, high_words, low_words, opened

DUCKDB_ROWS = 122_880  # of its row groups
DASK_PART_BYTES = 32 * MIB


def bytes_array(records: Records) -> pa.Array:
    """Records as bytes of any length, which is what both have."""
    raw = np.ascontiguousarray(records)
    offsets = np.arange(0, raw.size + 1, RECORD_BYTES, dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), len(raw), [None, pa.py_buffer(offsets), pa.py_buffer(raw)])


def bytes_of(array: pa.Array) -> memoryview:
    """All values of an array of bytes, one behind the other, in place."""
    offsets = np.frombuffer(array.buffers()[1], np.int32, len(array) + 1, 4 * array.offset)
    return memoryview(array.buffers()[2])[int(offsets[0]) : int(offsets[-1])]


class DuckSort:
    """ORDER BY."""

    def __init__(self) -> None:
        self._connection: Any = None

    def prepare(self, folder: str, threads: int) -> None:
        """A database in memory that may spill to this folder."""
        import duckdb

        self._connection = duckdb.connect()
        self._connection.execute(f"SET threads = {threads}; SET temp_directory = '{folder}'")

    def sort(self, source: str, target: str, memory_bytes: int) -> float:
        """Seconds."""
        self._connection.execute(f"SET memory_limit = '{memory_bytes // MIB}MiB'")
        began = time.perf_counter()
        records = opened(Path(source))
        batches = []
        for first in range(0, len(records), DUCKDB_ROWS):
            some = records[first : first + DUCKDB_ROWS]
            record = pa.Array.from_buffers(pa.binary(RECORD_BYTES), len(some), [None, pa.py_buffer(some)])
            batches.append(pa.record_batch({"high": high_words(some), "low": low_words(some), "record": record}))
        self._connection.register("records", pa.Table.from_batches(batches))
        found = self._connection.sql("SELECT record FROM records ORDER BY high, low").to_arrow_reader(DUCKDB_ROWS)
        with open(Path(target) / "00000", "wb") as file:
            for batch in found:
                file.write(bytes_of(batch.column(0)))
        self._connection.unregister("records")
        return time.perf_counter() - began


def dask_part(source: str, span: tuple[int, int]) -> Any:
    """Records of a part of the file as a data frame."""
    import pandas as pd

    some = opened(Path(source))[slice(*span)]
    record = pd.arrays.ArrowExtensionArray(bytes_array(some))
    return pd.DataFrame({"high": high_words(some), "record": record})


def dask_save(frame: Any, target: str, partition_info: dict[str, Any] | None = None) -> Any:
    """Write one partition."""
    import pandas as pd

    number = partition_info["number"] if partition_info else 0
    with open(Path(target) / f"{number:05}", "wb") as file:
        for chunk in pa.chunked_array(frame["record"].array.__arrow_array__()).chunks if len(frame) else []:
            file.write(bytes_of(chunk))
    return pd.DataFrame({"count": [len(frame)]})


class DaskSort:
    """sort_values by a peer-to-peer shuffle."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def prepare(self, folder: str, workers: int) -> None:
        """A cluster of processes."""
        import dask
        from distributed import Client, LocalCluster

        settings = {"dataframe.convert-string": False, "dataframe.shuffle.method": "p2p"}
        self._stack.enter_context(dask.config.set(settings))
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            local_directory=folder,
            memory_limit="5GiB",
        )
        self._stack.enter_context(cluster)
        self._stack.enter_context(Client(cluster))

    def sort(self, source: str, target: str) -> float:
        """Seconds."""
        import dask.dataframe as dd

        began = time.perf_counter()
        step, total = DASK_PART_BYTES // RECORD_BYTES, len(opened(Path(source)))
        spans = [(first, min(total, first + step)) for first in range(0, total, step)]
        frame = dd.from_map(lambda span: dask_part(source, span), spans, meta=dask_part(source, (0, 0)))
        ordered = frame.sort_values("high")
        ordered.map_partitions(dask_save, target, meta={"count": "i8"}).compute()
        return time.perf_counter() - began
