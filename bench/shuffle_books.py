"""Part of the shuffle benchmark: what commits and manifests cost where there are many partitions and many maps."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import tierstore
from tierstore.shuffle.partition import hash_partitions

from .data import GIB, KIB, MIB
from .harness import Bench, at_most
from .node import BenchError, connected, serving

KEY = "key"


def private_bytes(pid: int) -> int:
    """Memory of a process that is neither a file nor shared."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * KIB
    raise BenchError(f"/proc/{pid}/status has no RssAnon")


def rows_of(keys: npt.NDArray[np.int64], map_index: int) -> pa.RecordBatch:
    """What one map writes: the keys, and its number beside each."""
    return pa.record_batch({KEY: keys, "map": np.full(len(keys), map_index)})


def time_books(bench: Bench) -> None:
    """Commit so many maps of so many tiny partitions, then read all of them."""
    partitions = bench.parameter("books_partitions", 1000, 10_000)
    maps = bench.parameter("books_maps", 20, 1000)
    rows = bench.parameter("books_rows_a_partition", 2, 2)
    dram = bench.parameter("books_dram_bytes", 64 * MIB, 2 * GIB)
    keys = np.random.default_rng(rows).integers(0, 1 << 40, partitions * rows)
    receipts, commits = [], []
    with serving("--dram", str(dram)) as node, connected(node) as store:
        with store.shuffle("books", 0, partitions) as shuffle:  # what is loaded on demand is there
            with shuffle.writer(0) as writer:
                writer.write(rows_of(keys, 0), by=[KEY])
            shuffle.drop()
        with store.shuffle("books", 1, partitions) as shuffle:
            before = private_bytes(node.pid)
            for number in range(maps):
                writer = shuffle.writer(number)
                writer.write(rows_of(keys, number), by=[KEY])
                began = time.perf_counter()
                receipts.append(writer.close())
                commits.append(1e3 * (time.perf_counter() - began))
            grown = private_bytes(node.pid) - before
            manifests = sum(len(store.get_bytes(receipt.name.key)) for receipt in receipts)
            elapsed = read_all(shuffle, receipts, keys, partitions)
    pairs, what = partitions * maps, f"{maps:,} maps of {partitions:,} tiny partitions"
    note = "writing the only run included"
    bench.report(f"{what}: commit of a map", commits, "ms", at_most(50), note=note)
    bench.report(
        f"{what}: books",
        (manifests + max(0, grown)) / pairs,
        "bytes per map and partition",
        at_most(64),
        note=f"manifests {manifests / pairs:.3g}, growth of the daemon's own memory {grown / pairs:.3g}",
    )
    bench.report(f"{what}: read by one process", elapsed / pairs * 1e9, "ns per map and partition")


def read_all(
    shuffle: tierstore.Shuffle, receipts: list[tierstore.Receipt], keys: npt.NDArray[np.int64], partitions: int
) -> float:
    """Seconds of reading all; raises where a row is missing, twice there, or in another partition."""
    ids, maps = hash_partitions([pa.array(keys)], partitions), len(receipts)
    counts = np.bincount(ids, minlength=partitions)
    sums = np.zeros(partitions, np.int64)
    np.add.at(sums, ids, keys)
    began, wrong = time.perf_counter(), 0
    for partition, table in shuffle.read_partitions(receipts=receipts):
        found, numbers = (column.to_numpy() for column in table.columns)
        wanted = counts[partition] * maps, sums[partition] * maps, counts[partition] * (maps * (maps - 1) // 2)
        wrong += (len(found), found.sum(), numbers.sum()) != wanted
    if wrong:
        raise BenchError(f"{wrong} of {partitions} partitions are not what was written")
    return time.perf_counter() - began
