"""Is reading through the store as fast as reading plain NumPy arrays?

Two processes each sum half of the data, block by block: through ``store.get`` of each block, and over arrays of the same
shapes in the process's own memory, in turns. Ten arrays a block are what the store hands out; one array of ten rows a
block, which NumPy asks the kernel to put on huge pages, is shown beside it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

import tierstore

from .data import GIB, MIB, batch_of, columns_of, same_sum, sum_arrays, sum_table
from .harness import Bench, at_least, in_turns, ratios
from .node import clients, serving, together

EXECUTORS = 2


class Scanner:
    """A process with its half of the blocks in the store, and copies of them in its own memory."""

    def __init__(self) -> None:
        self._store: Any = None
        self._keys: list[str] = []
        self._arrays: list[list[Any]] = []
        self._huge: list[Any] = []

    def load(self, socket: str, block_bytes: int, count: int, number: int) -> float:
        """Put the blocks and copy them; their sum."""
        self._store = tierstore.connect(socket)
        total = 0.0
        for index in range(count):
            key, columns = f"scan/{number}/{index}", columns_of(block_bytes, number * 10_000 + index)
            self._store.put(key, batch_of(columns), keep=True)
            self._keys.append(key)
            self._arrays.append([column.copy() for column in columns])
            self._huge.append(np.array(columns))
            total += sum_arrays(columns)
        return total

    def store(self) -> dict[str, float]:
        """Sum through the store."""
        begin = time.perf_counter()
        total = sum(sum_table(self._store.get(key)) for key in self._keys)
        return {"begin": begin, "end": time.perf_counter(), "sum": total}

    def arrays(self) -> dict[str, float]:
        """Sum ten arrays a block."""
        begin = time.perf_counter()
        total = sum(sum_arrays(columns) for columns in self._arrays)
        return {"begin": begin, "end": time.perf_counter(), "sum": total}

    def huge(self) -> dict[str, float]:
        """Sum one array of ten rows a block."""
        begin = time.perf_counter()
        total = sum(sum_arrays(list(block)) for block in self._huge)
        return {"begin": begin, "end": time.perf_counter(), "sum": total}


def run(bench: Bench) -> None:
    """The three ways in turns."""
    size = bench.parameter("bytes", 64 * MIB, 2 * GIB)
    block_bytes = bench.parameter("block_bytes", 4 * MIB, 16 * MIB)
    rounds = bench.parameter("rounds", 2, 25)
    count = size // block_bytes // EXECUTORS
    with serving("--dram", str(size + size // 4 + 128 * MIB)) as node:
        node.connect().close()
        with clients("scan.Scanner", EXECUTORS) as members:
            for number, member in enumerate(members):
                member.send("load", socket=node.socket, block_bytes=block_bytes, count=count, number=number)
            sums = [member.receive() for member in members]

            def scan(command: str) -> float:
                spans = together(members, command)
                for span, expected in zip(spans, sums, strict=True):
                    assert same_sum(span["sum"], expected), f"{command}: another sum than was put"
                elapsed = max(span["end"] for span in spans) - min(span["begin"] for span in spans)
                return float(size / elapsed / 1e9)

            for command in ("store", "arrays", "huge"):
                scan(command)
            samples = in_turns({name: partial(scan, name) for name in ("store", "arrays", "huge")}, rounds)
    bench.report(f"sum through the store, {EXECUTORS} processes", samples["store"], "GB/s")
    bench.report(
        "store / ten plain arrays a block",
        ratios(samples["store"], samples["arrays"]),
        "x",
        at_least(0.95),
        "the same sum over NumPy arrays of equal shapes, in turns",
    )
    bench.report(
        "store / one plain array a block, on huge pages",
        ratios(samples["store"], samples["huge"]),
        "x",
        None,
        "the same sum over NumPy arrays of ten rows, in turns",
    )
