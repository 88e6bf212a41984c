"""Map and reduce tasks of the shuffle benchmark, each a process: over a store, and over plain files in memory.

Both use the same kernels: rows wait until there are enough for a run of a segment, are numbered and planned the same way
(partition.py, run.py), and are handed out by partition the same way (windows.py). Only where the runs lie differs: in
leased segments, with checks and a commit; or in one file of Arrow IPC messages a run, without any of that, beside an index of
where its partitions begin. Files are written by filling a buffer that is used again and one write(), which is the fastest way
there is here: filling a mapping of a new file takes a page fault for every 4 KiB.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import tierstore
from tierstore.cache.block import decode_batch
from tierstore.cache.buffers import Buffers
from tierstore.shuffle.output import Piece
from tierstore.shuffle.partition import hash_partitions
from tierstore.shuffle.receipt import Receipt
from tierstore.shuffle.run import RunPlan
from tierstore.shuffle.windows import by_partition

from .data import MIB
from .partition import batches_of

KEY = "key"
ROW_BYTES = 48
RUN_BYTES = 31 * MIB
Words = npt.NDArray[np.uint64]


def written_bytes(pid: int | str = "self") -> int:
    """What a process has had written to storage."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["write_bytes"])


def bit_sum(batches: list[pa.RecordBatch]) -> int:
    """The sum of all values' bits, modulo 2**64: exact whatever the order."""
    total = 0
    for batch in batches:
        for column in batch.columns:
            total += int(column.to_numpy().view(np.uint64).sum())
    return total & (1 << 64) - 1


class Task:
    """A process with stores."""

    def __init__(self) -> None:
        self._stores: dict[str, Any] = {}

    def connect(self, socket: str) -> None:
        """A store that is used from now on."""
        self._stores[socket] = tierstore.connect(socket)

    def disconnect(self, socket: str) -> None:
        """Done with a store, while its daemon still runs."""
        self._stores.pop(socket).close()


class MapTask(Task):
    """Writes the same batches over and over, as often as it takes; they are more than caches hold."""

    def __init__(self) -> None:
        super().__init__()
        self._batches: list[pa.RecordBatch] = []
        self._buffer = mmap.mmap(-1, RUN_BYTES + MIB)

    def prepare(self, seed: int, pool_bytes: int, batch_bytes: int) -> int:
        """Make the batches; their rows."""
        self._batches = batches_of(pool_bytes // ROW_BYTES + seed, max(1, pool_bytes // batch_bytes))
        np.frombuffer(self._buffer, "u1")[:] = 1
        return sum(batch.num_rows for batch in self._batches)

    def expected(self, partitions: int, times: int) -> dict[str, list[int]]:
        """What each partition must hold when all batches were written so many times: rows, and the sum of the bits."""
        rows, sums = np.zeros(partitions, np.int64), np.zeros(partitions, np.uint64)
        for batch in self._batches:
            ids = hash_partitions([batch.column(KEY)], partitions)
            rows += np.bincount(ids, minlength=partitions)
            for column in batch.columns:
                np.add.at(sums, ids, column.to_numpy().view(np.uint64))
        return {"rows": (rows * times).tolist(), "sums": (sums * np.uint64(times)).tolist()}

    def write_store(self, socket: str, number: int, partitions: int, map_index: int, times: int) -> dict[str, Any]:
        """One map task over the store, with its commit."""
        before = written_bytes()
        began = time.perf_counter()
        with self._stores[socket].shuffle("bench", number, partitions) as shuffle:
            with shuffle.writer(map_index) as writer:
                for _ in range(times):
                    for batch in self._batches:
                        writer.write(batch, by=[KEY])
            ended = time.perf_counter()
        assert writer.receipt is not None
        return {
            "begin": began,
            "end": ended,
            "disk": written_bytes() - before,
            "receipt": writer.receipt.to_dict(),
        }

    def write_files(self, folder: str, partitions: int, map_index: int, times: int) -> dict[str, Any]:
        """One map task over files."""
        began = time.perf_counter()
        for number, plan in enumerate(self.runs(partitions, times)):
            plan.fill(np.frombuffer(self._buffer, "u1").ctypes.data)
            with open(f"{folder}/{map_index}-{number}.arrow", "wb", buffering=0) as file:
                file.write(memoryview(self._buffer)[: plan.payload_bytes])
            with open(f"{folder}/{map_index}-{number}.index", "wb", buffering=0) as file:
                file.write(np.append(np.uint32(plan.schema_bytes), plan.starts))
        return {"begin": began, "end": time.perf_counter()}

    def runs(self, partitions: int, times: int) -> Iterator[RunPlan]:
        """The same rows as the store's writer gets, planned run by run."""
        held: list[pa.RecordBatch] = []
        ids: list[Any] = []
        size = 0
        for _ in range(times):
            for batch in self._batches:
                if size + batch.nbytes > RUN_BYTES:
                    yield RunPlan(batch.schema, held, ids, partitions)
                    held, ids, size = [], [], 0
                held.append(batch)
                ids.append(hash_partitions([batch.column(KEY)], partitions))
                size += batch.nbytes
        yield RunPlan(held[0].schema, held, ids, partitions)


class ReduceTask(Task):
    """Reads a range of partitions of all maps, one partition after the other, and sums all their bits."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers = Buffers()

    def read_store(
        self,
        socket: str,
        number: int,
        partitions: int,
        first: int,
        last: int,
        receipts: list[dict[str, Any]],
        verify: bool = True,
    ) -> dict[str, Any]:
        """One reduce task over the store."""
        began = time.perf_counter()
        rows, sums = [], []
        with self._stores[socket].shuffle("bench", number, partitions) as shuffle:
            chosen = [Receipt.from_dict(receipt) for receipt in receipts]
            for _, table in shuffle.read_partitions(range(first, last), chosen, verify=verify):
                rows.append(table.num_rows)
                sums.append(bit_sum(table.to_batches()))
            del table
            ended = time.perf_counter()
        return {"begin": began, "end": ended, "rows": rows, "sums": sums}

    def read_files(self, folder: str, partitions: int, first: int, last: int) -> dict[str, Any]:
        """One reduce task over files."""
        began = time.perf_counter()
        pieces = []
        for sequence, path in enumerate(sorted(Path(folder).glob("*.arrow"))):
            index = np.fromfile(path.with_suffix(".index"), np.uint32)
            schema_bytes, starts = int(index[0]), index[1:]
            mapped = pa.memory_map(str(path)).read_buffer()
            run = decode_batch(mapped, pa.ipc.read_schema(mapped), schema_bytes)
            start, end = int(starts[first]), int(starts[last])
            pieces.append(Piece(sequence, run.slice(start, end - start), starts[first : last + 1] - starts[first]))
        rows, sums = [], []
        for _, batches in by_partition(pieces, last - first, self._buffers):
            rows.append(sum(batch.num_rows for batch in batches))
            sums.append(bit_sum(batches))
        return {"begin": began, "end": time.perf_counter(), "rows": rows, "sums": sums}


def remove_runs(folder: Path) -> None:
    """Delete the files of a shuffle."""
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            os.unlink(path)
