"""How fast are rows numbered by partition, scattered into a record and checked, on one core, against the plain copy?

A run as a map task makes it: an int64 key and five float64 columns, as many rows as fit a segment, in several batches.
Numbering, planning and filling go, in turns with ``np.copyto`` of the same columns, through a shared mapping larger than
any cache, every page of which was touched before. The checks are computed over data that stays in the cache, and over a
whole run right after it was filled. All times are the CPU time of the one thread that does the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tierstore.cache.block import decode_batch
from tierstore.shuffle.checks import partition_checks
from tierstore.shuffle.partition import hash_partitions
from tierstore.shuffle.run import RunPlan

from .data import KIB, MIB
from .harness import Bench, at_least, at_most, in_turns, ratios
from .put import shared_mapping

COLUMN_COUNT = 6
ROW_BYTES = 8 * COLUMN_COUNT
PARTITIONS = 200
MANY = 10_000


def batches_of(rows: int, count: int) -> list[pa.RecordBatch]:
    """So many rows of random keys and numbers, in so many batches."""
    random = np.random.Generator(np.random.SFC64(rows))
    made = []
    for part in np.array_split(np.arange(rows), count):
        key = random.integers(0, 1 << 60, len(part))
        columns = [pa.array(key), *(pa.array(random.random(len(part))) for _ in range(COLUMN_COUNT - 1))]
        made.append(pa.RecordBatch.from_arrays(columns, ["key", *(f"v{i}" for i in range(1, COLUMN_COUNT))]))
    return made


def numbered(batches: list[pa.RecordBatch], partitions: int) -> list[npt.NDArray[Any]]:
    """The partition numbers of each batch by its key."""
    return [hash_partitions([batch.column(0)], partitions) for batch in batches]


def seconds(action: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.thread_time()
    action()
    return time.thread_time() - began


class Copier:
    """np.copyto of columns, at the next place of a mapping each time."""

    def __init__(self, target: npt.NDArray[np.uint8], columns: list[npt.NDArray[Any]]):
        self._target, self._columns, self._at = target, columns, 0
        self.size = sum(column.nbytes for column in columns)

    def __call__(self) -> float:
        """Seconds."""
        if self._at + self.size > len(self._target):
            self._at = 0
        places = []
        for column in self._columns:
            places.append(self._target[self._at : self._at + column.nbytes].view(column.dtype))
            self._at += column.nbytes
        began = time.thread_time()
        for place, column in zip(places, self._columns, strict=True):
            np.copyto(place, column)
        return time.thread_time() - began


class Filler:
    """Numbers, plans and fills a run, at the next place of a mapping each time; the parts of the last one are kept."""

    def __init__(self, target: npt.NDArray[np.uint8], batches: list[pa.RecordBatch], partitions: int):
        self._target, self._batches, self._partitions, self._at = target, batches, partitions, 0
        self.plan: RunPlan | None = None
        self.place = 0
        self.shares: dict[str, list[float]] = {"ids": [], "plan": [], "fill": []}

    def __call__(self) -> float:
        """Seconds."""
        began = time.thread_time()
        ids = numbered(self._batches, self._partitions)
        had_ids = time.thread_time()
        plan = RunPlan(self._batches[0].schema, self._batches, ids, self._partitions)
        planned = time.thread_time()
        if self._at + plan.payload_bytes > len(self._target):
            self._at = 0
        plan.fill(self._target.ctypes.data + self._at)
        ended = time.thread_time()
        self.plan, self.place = plan, self._at
        self._at += plan.payload_bytes
        for name, value in zip(self.shares, (had_ids - began, planned - had_ids, ended - planned), strict=True):
            self.shares[name].append(value / plan.rows * 1e9)
        return ended - began

    def read(self) -> pa.RecordBatch:
        """The run filled last, in place."""
        assert self.plan is not None
        payload = pa.py_buffer(self._target)[self.place : self.place + self.plan.payload_bytes]
        return decode_batch(payload, self.plan.schema, self.plan.schema_bytes)

    def check(self) -> float:
        """Seconds to check the run filled last."""
        found, plan = self.read(), self.plan
        assert plan is not None
        return seconds(lambda: partition_checks(found, plan.starts))


def run(bench: Bench) -> None:
    """Numbers alone; whole runs of 200 and 2,000 partitions; checks."""
    rows = bench.parameter("rows", 20_000, 690_000)
    rounds = bench.parameter("rounds", 3, 41)
    batches = batches_of(rows, bench.parameter("batches", 3, 11))
    time_numbers(bench, batches, rows, rounds)
    with shared_mapping(bench.parameter("mapping_bytes", 8 * MIB, 1024 * MIB)) as target:
        for partitions in (PARTITIONS, 2000):
            time_runs(bench, target, batches, partitions, rounds)
    time_checks(bench, rounds)
    time_many(bench, rounds)


def time_numbers(bench: Bench, batches: list[pa.RecordBatch], rows: int, rounds: int) -> None:
    """The partition numbers alone."""
    numbered(batches, PARTITIONS)
    samples = [rows / seconds(lambda: numbered(batches, PARTITIONS)) / 1e6 for _ in range(5 * rounds)]
    bench.report(
        f"partition numbers of an int64 key, {PARTITIONS} partitions", samples, "million rows/s", at_least(150)
    )


def time_runs(
    bench: Bench, target: npt.NDArray[np.uint8], batches: list[pa.RecordBatch], partitions: int, rounds: int
) -> None:
    """The whole way of a run, against the copy of its columns."""
    filler = Filler(target, batches, partitions)
    copier = Copier(target, [column.to_numpy() for batch in batches for column in batch.columns])
    filler()
    assert filler.plan is not None and filler.read().equals(filler.plan.batch())
    for shares in filler.shares.values():
        shares.clear()
    samples = in_turns({"run": filler, "copy": copier, "again": filler, "check": filler.check}, rounds)
    what = f"{partitions:,} partitions"
    bench.report(
        f"numbers, plan and fill, {what}",
        ratios(samples["copy"], samples["run"]),
        "x",
        at_least(0.35),
        "speed of np.copyto of the same columns through a touched mapping, in turns",
    )
    bench.report(f"numbers, plan and fill, {what}", [copier.size / value / 1e9 for value in samples["run"]], "GB/s")
    for name, shares in filler.shares.items():
        bench.report(f"{name} of it, {what}", shares, "ns/row", note=f"rows of {ROW_BYTES} bytes")
    bench.report(
        f"checks of a run just filled, {what}", [copier.size / value / 1e9 for value in samples["check"]], "GB/s", None
    )


def time_checks(bench: Bench, rounds: int) -> None:
    """Checks of columns that stay in the cache."""
    size = bench.parameter("cached_bytes", 96 * KIB, 768 * KIB)
    (batch,) = batches_of(size // ROW_BYTES, 1)
    starts = np.linspace(0, batch.num_rows, PARTITIONS + 1).astype(np.uint32)
    samples = repeated(lambda: partition_checks(batch, starts), 20, rounds)
    speed = [batch.nbytes / value / 1e9 for value in samples]
    bench.report(f"checks of cached int64 and float64, {PARTITIONS} partitions", speed, "GB/s", at_least(10))


def time_many(bench: Bench, rounds: int) -> None:
    """What does not depend on the number of rows."""
    (batch,) = batches_of(3 * MANY, 1)
    ids = numbered([batch], MANY)
    plan = RunPlan(batch.schema, [batch], ids, MANY)
    target = np.empty(plan.payload_bytes + 64, np.uint8)
    address = (target.ctypes.data + 63) & ~63

    def whole() -> None:
        RunPlan(batch.schema, [batch], ids, MANY).fill(address)

    ordered, what = plan.batch(), f"{MANY:,} partitions of 3 rows"
    bench.report(f"plan and fill, {what}", [1e3 * v for v in repeated(whole, 1, rounds)], "ms", at_most(5))
    checks = repeated(lambda: partition_checks(ordered, plan.starts), 1, rounds)
    bench.report(f"checks, {what}", [1e3 * v for v in checks], "ms", at_most(5))


def repeated(action: Callable[[], object], times: int, rounds: int) -> list[float]:
    """Seconds of one call, from several at a time."""

    def several() -> None:
        for _ in range(times):
            action()

    several()
    return [seconds(several) / times for _ in range(rounds)]
