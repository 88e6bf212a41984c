"""How fast is a file of random records sorted by two processes that shuffle through the store, against Dask and DuckDB?

Each map process takes half of the mapped file and writes it by ranges of the key, cut by a sample; each reduce process
sorts its partitions with NumPy's argsort (on eight bytes of the key; pyarrow's sort_indices takes six times as long) and
writes one file. See gensort.py for the records and terasort_rivals.py for the others, which read the same file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import tierstore
from tierstore.shuffle.partition import sample_bounds
from tierstore.shuffle.receipt import Receipt

from .data import GIB, MIB
from .gensort import RECORD_BYTES, Records, Summary, generate, high_words, low_words, opened, summary
from .harness import Bench, Target, at_least, in_turns, ratios
from .node import BenchError, Client, Node, clients, connected, folder, serving, together
from .shuffle_tasks import Task

KEY, RECORD = "high", "record"
TASKS = 2
BATCH_RECORDS = 1 << 16
SAMPLES_A_PARTITION = 500
DASK, DUCKDB, DUCKDB_LARGE = "Dask", "DuckDB's external sort", "DuckDB with as much memory as the store"


def as_array(records: Records) -> pa.Array:
    """Records as an Arrow column, in place."""
    return pa.Array.from_buffers(pa.binary(RECORD_BYTES), len(records), [None, pa.py_buffer(records)])


def as_records(column: pa.Array) -> Records:
    """An Arrow column as records, in place."""
    start = column.offset * RECORD_BYTES
    raw = np.frombuffer(column.buffers()[1], np.uint8, len(column) * RECORD_BYTES, start)
    return raw.reshape(-1, RECORD_BYTES)


def order_of(high: npt.NDArray[np.uint64], records: Records) -> npt.NDArray[np.intp]:
    """The order of records by key. high: the first eight bytes of each; the other two count where those are equal."""
    order = np.argsort(high)
    in_order = high[order]
    if (in_order[1:] == in_order[:-1]).any():
        order = np.lexsort((low_words(records), high))
    return order


class SortTask(Task):
    """A process that maps, and then reduces."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = [np.empty((0, RECORD_BYTES), np.uint8)] * 2

    def map(self, socket: str, number: int, path: str, index: int, bounds: list[int]) -> dict[str, Any]:
        """Write one task's share of the file by ranges."""
        split = pa.record_batch({KEY: pa.array(bounds, pa.uint64())})
        records = opened(Path(path))
        first, last = len(records) * index // TASKS, len(records) * (index + 1) // TASKS
        with self._stores[socket].shuffle("terasort", number, len(bounds) + 1) as shuffle:
            with shuffle.writer(index) as writer:
                for begin in range(first, last, BATCH_RECORDS):
                    some = records[begin : min(last, begin + BATCH_RECORDS)]
                    writer.write(pa.record_batch({KEY: high_words(some), RECORD: as_array(some)}), by_range=split)
        assert writer.receipt is not None
        return writer.receipt.to_dict()

    def reduce(
        self, socket: str, number: int, partitions: int, index: int, receipts: list[dict[str, Any]], path: str
    ) -> int:
        """Sort one task's share of the partitions into a file; how many records."""
        first, last = partitions * index // TASKS, partitions * (index + 1) // TASKS
        count = 0
        with self._stores[socket].shuffle("terasort", number, partitions) as shuffle, open(path, "wb") as file:
            chosen = [Receipt.from_dict(receipt) for receipt in receipts]
            for _, table in shuffle.read_partitions(range(first, last), chosen):
                count += table.num_rows
                file.write(self._sorted(table))
        return count

    def _sorted(self, table: pa.Table) -> Records:
        """The records of a table in order, in memory that is used again."""
        if table.num_rows > len(self._memory[0]):
            self._memory = [np.empty((table.num_rows * 5 // 4, RECORD_BYTES), np.uint8) for _ in range(2)]
        joined, result = (memory[: table.num_rows] for memory in self._memory)
        if table.num_rows == 0:
            return result
        np.concatenate([as_records(chunk) for chunk in table[RECORD].chunks], out=joined)
        high = np.concatenate([chunk.to_numpy() for chunk in table[KEY].chunks])
        kind = np.dtype((np.void, RECORD_BYTES))
        order = order_of(high, joined)
        np.take(joined.view(kind).ravel(), order, out=result.view(kind).ravel(), mode="clip")
        return result


class StoreSort:
    """Sorts through the store."""

    def __init__(self, node: Node, store: tierstore.Store, tasks: list[Client], partitions: int):
        self._node, self._store, self._tasks, self._partitions = node, store, tasks, partitions
        self._number = 0
        self.phases: dict[str, list[float]] = {"sample and map": [], "reduce": []}

    def __call__(self, source: Path, target: Path) -> float:
        """Seconds from the sample to the last byte written."""
        self._number += 1
        began = time.perf_counter()
        bounds = self._bounds(source)
        place = {"socket": self._node.socket, "number": self._number}
        with self._store.shuffle("terasort", self._number, self._partitions) as shuffle:
            receipts = self._all("map", [{"bounds": bounds, "path": str(source)}] * TASKS, **place)
            mapped = time.perf_counter()
            place |= {"partitions": self._partitions, "receipts": receipts}
            self._all("reduce", [{"path": str(target / f"{index:05}")} for index in range(TASKS)], **place)
            ended = time.perf_counter()
            shuffle.drop()
        self._node.settle(self._store)
        self.phases["sample and map"].append(mapped - began)
        self.phases["reduce"].append(ended - mapped)
        return ended - began

    def _bounds(self, source: Path) -> list[int]:
        """Where ranges of equal size begin, by a sample of the file's keys."""
        records = opened(source)
        step = max(1, len(records) // (SAMPLES_A_PARTITION * self._partitions))
        keys = pa.array(high_words(records[::step]))
        return [int(bound) for bound in sample_bounds([keys], self._partitions)[0].to_numpy()]

    def _all(self, command: str, own: Sequence[dict[str, Any]], **common: Any) -> list[Any]:
        for index, (member, arguments) in enumerate(zip(self._tasks, own, strict=True)):
            member.send(command, index=index, **common, **arguments)
        return [member.receive() for member in self._tasks]


class Checked:
    """A way to sort, whose output is compared with its input every time and then deleted."""

    def __init__(self, sort: Callable[[Path, Path], float], source: Path, wanted: Summary, place: Path):
        self._sort, self._source, self._wanted, self._place = sort, source, wanted, place

    def __call__(self) -> float:
        """Seconds of one sort."""
        self._place.mkdir()
        elapsed = self._sort(self._source, self._place)
        found = summary(sorted(self._place.iterdir()))
        for path in self._place.iterdir():
            path.unlink()
        self._place.rmdir()
        if found != self._wanted:
            raise BenchError(f"the output has {found}, not {self._wanted}")
        return elapsed


def call_sort(rival: Client, source: Path, target: Path, **arguments: Any) -> float:
    """Seconds of one sort by another process."""
    return float(rival.call("sort", source=str(source), target=str(target), **arguments))


def run(bench: Bench) -> None:
    """All ways in turns."""
    size = bench.parameter("bytes", 20_000_000, 2 * GIB)
    rounds = bench.parameter("rounds", 1, 3)
    partitions = bench.parameter("partitions", 8, 128)
    dram = bench.parameter("dram_bytes", 96 * MIB, 3 * GIB)
    duckdb_bytes = bench.parameter("duckdb_memory_bytes", 256 * MIB, GIB)
    count = size // RECORD_BYTES
    with (
        folder() as place,
        serving("--dram", str(dram)) as node,
        connected(node) as store,
        clients("terasort.SortTask", TASKS) as tasks,
        clients("terasort_rivals.DuckSort", 1) as (duck,),
        clients("terasort_rivals.DaskSort", 1) as (dask,),
    ):
        source = place / "input"
        generate(source, count)
        unsorted = summary([source])
        wanted = Summary(count, unsorted.checksum, 0)
        together(tasks, "connect", socket=node.socket)
        ours = StoreSort(node, store, tasks, partitions)
        ways: dict[str, Callable[[Path, Path], float]] = {"store": ours}
        if find_spec("duckdb"):
            duck.call("prepare", folder=str(place / "duckdb"), threads=TASKS)
            for name, limit in ((DUCKDB, duckdb_bytes), (DUCKDB_LARGE, dram)):
                ways[name] = partial(call_sort, duck, memory_bytes=limit)
        if find_spec("distributed") and find_spec("dask"):
            dask.call("prepare", folder=str(place / "dask"), workers=TASKS)
            ways[DASK] = partial(call_sort, dask)
        checked = {name: Checked(way, source, wanted, place / "output") for name, way in ways.items()}
        checked["store"]()  # enters the arena into page tables
        for times in ours.phases.values():
            times.clear()
        samples = in_turns(checked, rounds)
        together(tasks, "disconnect", socket=node.socket)
    report(bench, samples, ours, size)


def report(bench: Bench, samples: dict[str, list[float]], ours: StoreSort, size: int) -> None:
    """The rows."""
    rivals: dict[str, tuple[Target, str]] = {
        DASK: (at_least(3), "p2p sort_values of the same file, 2 workers of 1 thread, in turns"),
        DUCKDB: (at_least(0.5), "ORDER BY of the same file, 2 threads, in turns"),
        DUCKDB_LARGE: (at_least(0.5), "ORDER BY of the same file, 2 threads, in turns"),
    }
    for name, (target, baseline) in rivals.items():
        figure = f"sort of {size / GIB:.2g} GiB, two processes: speed / {name}"
        if name in samples:
            bench.report(figure, ratios(samples[name], samples["store"]), "x", target, baseline)
        else:
            bench.skip(figure, "it is not installed")
    for name, values in samples.items():
        label = "through the store" if name == "store" else f"by {name}"
        bench.report(f"sort {label}", values, "s")
    for name, values in ours.phases.items():
        bench.report(f"{name} of the sort through the store", values, "s")
