"""Is a store whose data are four times its memory faster than mapped files under the same limit?

Daemon and client share one memory control group; the process that reads the files has another of the same limit: the
DRAM budget and 250 MiB for everything else (interpreters, page cache, private copies). Blocks are read in rounds that
alternate between the two, all columns summed, first by uniform and then by Zipf-distributed choice. The Zipf reads are
shown twice: the first ones, while both find out what is hot, and as many after them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import tierstore
from tierstore.ringbuf.errors import Full

from .cgroup import NotPermittedError, memory_group, oom_kills, peak_bytes
from .data import GIB, MIB, batch, same_sum, sum_table
from .harness import Bench, at_least, at_most, ratios
from .node import build_kernels, clients, folder, serving

FIGURES = ("blocks lost or changed", "uniform reads: store / mapped files", "zipf reads: store / mapped files")
PATIENCE_S = 120.0


class Reader:
    """A process that writes all blocks to one place and reads them from there."""

    def __init__(self) -> None:
        self._store: Any = None
        self._folder = Path()
        self._sums: list[float] = []

    def write_store(self, socket: str, count: int, block_bytes: int) -> None:
        """Put all blocks; while memory empties to disk, wait."""
        self._store = tierstore.connect(socket)
        for index in range(count):
            data = batch(block_bytes, index)
            self._sums.append(sum_table(data))
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    self._store.put(f"block/{index}", data, keep=True)
                    break
                except Full:
                    if time.monotonic() > deadline:
                        raise

    def write_files(self, path: str, count: int, block_bytes: int) -> None:
        """Write one Arrow IPC file a block, and have the disk take them."""
        self._folder = Path(path)
        for index in range(count):
            data = batch(block_bytes, index)
            self._sums.append(sum_table(data))
            with open(self._folder / f"{index}.arrow", "wb") as file:
                with pa.ipc.new_file(file, data.schema) as writer:
                    writer.write_batch(data)
                file.flush()
                os.fsync(file.fileno())

    def read(self, indices: list[int]) -> dict[str, float]:
        """Read blocks and sum all their columns; the time, and how many sums were wrong."""
        began, wrong = time.perf_counter(), 0
        for index in indices:
            if self._store is not None:
                total = sum_table(self._store.get(f"block/{index}"))
            else:
                with pa.memory_map(str(self._folder / f"{index}.arrow")) as source:
                    total = sum_table(pa.ipc.open_file(source).read_all())
            wrong += not same_sum(total, self._sums[index])
        return {"seconds": time.perf_counter() - began, "wrong": wrong}

    def lost(self) -> int:
        """Read every block once: how many are not what was written."""
        wrong = 0
        for index in range(len(self._sums)):
            try:
                wrong += int(self.read([index])["wrong"])
            except tierstore.NotFound:
                wrong += 1
        return wrong


def choices(kind: str, count: int, reads: int, rounds: int) -> list[list[int]]:
    """Block numbers of each round."""
    random = np.random.default_rng(7)
    weights = np.ones(count) if kind == "uniform" else random.permutation(1.0 / np.arange(1, count + 1))
    picked = random.choice(count, reads, p=weights / weights.sum())
    return [part.tolist() for part in np.array_split(picked, rounds)]


def run(bench: Bench) -> None:
    """Both places in turns, in control groups of the same limit."""
    dram = bench.parameter("dram_bytes", 64 * MIB, GIB)
    limit = dram + bench.parameter("other_memory_bytes", 250 * MIB, 250 * MIB)
    block_bytes = bench.parameter("block_bytes", 4 * MIB, 16 * MIB)
    size = bench.parameter("bytes", 128 * MIB, 4 * GIB)
    build_kernels()
    try:
        with memory_group("store", limit) as ours, memory_group("files", limit) as theirs:
            measure(bench, (ours, theirs), dram, size, block_bytes)
    except NotPermittedError as error:
        for figure in FIGURES:
            bench.skip(figure, str(error))


def measure(bench: Bench, groups: tuple[Path, Path], dram: int, size: int, block_bytes: int) -> None:
    """Write to both, then read from both."""
    count, reads = size // block_bytes, bench.parameter("reads", 20, 500)
    rounds = bench.parameter("rounds", 2, 5)
    disk = f"{{disk}}:{size + size // 4 + 256 * MIB}"
    options = ("--dram", str(dram), "--disk", disk)
    with (
        serving(*options, group=groups[0], disk_gib=2.5 * size / GIB) as node,
        folder() as files,
        clients("overflow.Reader", 1, groups[0]) as (store,),
        clients("overflow.Reader", 1, groups[1]) as (mapped,),
    ):
        node.connect().close()
        store.call("write_store", socket=node.socket, count=count, block_bytes=block_bytes)
        mapped.call("write_files", path=str(files), count=count, block_bytes=block_bytes)
        with_limit = "Arrow IPC files, mapped, in a control group of the same limit, in turns"
        wrong = 0.0
        zipf = choices("zipf", count, 2 * reads, 2 * rounds)  # the first half warms both up
        phases = (
            ("uniform", at_least(1.15), choices("uniform", count, reads, rounds)),
            ("first zipf", None, zipf[:rounds]),
            ("zipf", at_least(1.5), zipf[rounds:]),
        )
        for kind, target, parts in phases:
            speeds: dict[str, list[float]] = {"store": [], "files": []}
            for part in parts:
                for name, member in (("store", store), ("files", mapped)):
                    found = member.call("read", indices=part)
                    wrong += found["wrong"]
                    speeds[name].append(len(part) * block_bytes / MIB / found["seconds"])
            bench.report(f"{kind} reads of {block_bytes // MIB} MiB blocks from the store", speeds["store"], "MiB/s")
            bench.report(f"{kind} reads of {block_bytes // MIB} MiB blocks from mapped files", speeds["files"], "MiB/s")
            bench.report(
                f"{kind} reads: store / mapped files",
                ratios(speeds["store"], speeds["files"]),
                "x",
                target,
                with_limit,
            )
        bench.report("blocks lost or changed", store.call("lost") + wrong, "blocks", at_most(0), note="sums of columns")
        report_memory(bench, groups[0])


def report_memory(bench: Bench, group: Path) -> None:
    """What daemon and client needed together."""
    peak, kills = peak_bytes(group), oom_kills(group)
    if peak is not None:
        note = "the limit also bounds page cache, which fills what is left"
        bench.report("most memory in the store's control group", peak / MIB, "MiB", note=note)
    if kills is not None:
        bench.report("processes killed for want of memory", kills, "processes", at_most(0))
