"""How fast is a put, against the plain copy of the same bytes?

After a warm-up that goes round the whole arena, a batch is put under a new key and the one before deleted, in turns with
``np.copyto`` of its columns into a shared mapping that was touched before. The mapping is as large as the arena and is
gone through in order, so that, as in a put, each copy goes to memory that is in no cache; the copy to one place over and
over, which stays in the cache, is shown beside it. Byte values are put while the store evicts.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import tierstore
from tierstore.ringbuf.native import batch_kernels

from .data import GIB, KIB, MIB, Floats, batch_of, columns_of, size_text
from .harness import Bench, at_least, at_most, in_turns, ratios
from .node import Node, clients, connected, rate, serving, together

TARGETS = {MIB: 0.9, 16 * MIB: 1.3, 256 * MIB: 0.85}
VALUE_BYTES = 4 * KIB
LIST_LENGTH = 10_000


def run(bench: Bench) -> None:
    """Batches over one daemon, values over a smaller one."""
    dram = bench.parameter("dram_bytes", 256 * MIB, 2 * GIB)
    with serving("--dram", str(dram)) as node, connected(node) as store:
        time_batches(bench, store, dram)
    dram = bench.parameter("values_dram_bytes", 64 * MIB, 512 * MIB)
    with serving("--dram", str(dram)) as node:
        node.connect().close()
        time_values(bench, node, dram)


# --- batches --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shared_mapping(size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A shared mapping of memory, every page of it touched."""
    fd = os.memfd_create("tsbench")
    os.ftruncate(fd, size)
    memory = mmap.mmap(fd, size)
    os.close(fd)
    view = np.frombuffer(memory, "u1")
    view[::4096] = 1
    try:
        yield view
    finally:
        del view
        with contextlib.suppress(BufferError):  # a sample still refers to it: it goes with that
            memory.close()


class Copier:
    """np.copyto of columns into a mapping, at one place or going through it."""

    def __init__(self, target: npt.NDArray[np.uint8], rotate: bool):
        self._target, self._rotate, self._at = target, rotate, 0

    def __call__(self, columns: list[Floats]) -> float:
        """Seconds of one copy of all columns."""
        size = sum(column.nbytes for column in columns)
        if not self._rotate or self._at + size > len(self._target):
            self._at = 0
        places = []
        for column in columns:
            places.append(self._target[self._at : self._at + column.nbytes].view(np.float64))
            self._at += column.nbytes
        began = time.perf_counter()
        for place, column in zip(places, columns, strict=True):
            np.copyto(place, column)
        return time.perf_counter() - began


class KernelCopier(Copier):
    """The same places, filled by the store's kernel, which hashes on the way: a put without all that is around its copy."""

    def __call__(self, columns: list[Floats]) -> float:
        """Seconds for all columns."""
        copy, state = batch_kernels().copy_hash, np.zeros(16, "<u8")
        if self._at + sum(column.nbytes + 64 for column in columns) > len(self._target):
            self._at = 0
        jobs = []
        for column in columns:
            place = self._target.ctypes.data + self._at
            jobs.append((place, column.ctypes.data, column.nbytes // 64 * 64, state.ctypes.data))
            self._at += -(-column.nbytes // 64) * 64
        began = time.perf_counter()
        for job in jobs:
            copy(*job)
        return time.perf_counter() - began


class Putter:
    """Puts of one batch under new keys; the one before is deleted outside the measured time."""

    def __init__(self, store: tierstore.Store, columns: list[Floats]):
        self._store, self._batch, self._number = store, batch_of(columns), 0
        self._name = f"put/{self._batch.nbytes}"

    def __call__(self) -> float:
        """Seconds of one put."""
        key = f"{self._name}/{self._number}"
        began = time.perf_counter()
        self._store.put(key, self._batch)
        elapsed = time.perf_counter() - began
        self.forget()
        self._number += 1
        return elapsed

    def forget(self) -> None:
        """Delete the batch before the last."""
        if self._number > 0:
            self._store.delete(f"{self._name}/{self._number - 1}")


def warm_up(store: tierstore.Store, dram: int) -> None:
    """Put and delete until every segment was written at least once."""
    putter = Putter(store, columns_of(4 * MIB, 0))
    for _ in range(2 * dram // (4 * MIB)):
        putter()


def time_batches(bench: Bench, store: tierstore.Store, dram: int) -> None:
    """Speed of a put as a multiple of the copy's, by size; and the latency of a small one."""
    warm_up(store, dram)
    sizes = bench.parameter("batch_bytes", [64 * KIB, MIB, 16 * MIB], [64 * KIB, MIB, 16 * MIB, 64 * MIB, 256 * MIB])
    volume = bench.parameter("bytes_per_size", 64 * MIB, 12 * GIB)
    with shared_mapping(max(dram, *sizes)) as target:
        for size in sizes:
            columns = columns_of(size, size)
            copiers = {
                "through": Copier(target, True),
                "fixed": Copier(target, False),
                "kernel": KernelCopier(target, True),
            }
            variants = {name: partial(copier, columns) for name, copier in copiers.items()}
            samples = in_turns({"put": Putter(store, columns), **variants}, max(2, min(2000, volume // size)))
            report_batches(bench, size, samples)


def report_batches(bench: Bench, size: int, samples: dict[str, list[float]]) -> None:
    """Rows of one size."""
    name, target = size_text(size), TARGETS.get(size)
    if size < MIB:
        micros = [value * 1e6 for value in samples["put"]]
        bench.report(f"store.put of {name}, 10 columns", micros, "us", at_most(25), "peers: LMDB 57 to 67 us")
    elif size in (MIB, 64 * MIB) or target:
        speed = [size / value / 1e9 for value in samples["put"]]
        bench.report(f"store.put of {name}, 10 columns", speed, "GB/s")
    bench.report(
        f"put / memcpy, {name}",
        ratios(samples["through"], samples["put"]),
        "x",
        at_least(target) if target else None,
        "np.copyto going through a touched mapping as large as the arena, in turns",
    )
    bench.report(
        f"put / memcpy to one place, {name}",
        ratios(samples["fixed"], samples["put"]),
        "x",
        None,
        "np.copyto to the same touched place each time, in turns",
    )
    bench.report(
        f"the kernel alone (copy and hash) / memcpy, {name}",
        ratios(samples["through"], samples["kernel"]),
        "x",
        None,
        "the first of these copies; what is missing to it in a put is Python and the messages",
    )


# --- 4 KiB values -----------------------------------------------------------------------------------------------------------


class ValueWriter:
    """A process that puts 4 KiB values under keys that never repeat."""

    def __init__(self) -> None:
        self._store: Any = None
        self._lists: list[list[tuple[str, bytes]]] = []
        self._prefix, self._number = "", 0
        self._values = [os.urandom(VALUE_BYTES) for _ in range(256)]

    def open(self, socket: str, prefix: str) -> None:
        """Connect."""
        self._store, self._prefix = tierstore.connect(socket), prefix

    def prepare(self, list_count: int) -> None:
        """Make keys and lists, which are the application's and not the store's work."""
        self._lists = []
        for _ in range(list_count):
            numbers = range(self._number, self._number + LIST_LENGTH)
            self._lists.append([(f"{self._prefix}/{n:012d}", self._values[n % 256]) for n in numbers])
            self._number += LIST_LENGTH

    def put(self) -> dict[str, float]:
        """Put all lists."""
        begin = time.perf_counter()
        for pairs in self._lists:
            self._store.put_many(pairs)
        return {"begin": begin, "end": time.perf_counter(), "count": len(self._lists) * LIST_LENGTH}

    def evictions(self) -> int:
        """How often the store has evicted so far."""
        return int(self._store.stats()["daemon"].get("evictions", 0))


def time_values(bench: Bench, node: Node, dram: int) -> None:
    """Values per second with the store full, by one writer and by two, in turns."""
    lists, rounds = bench.parameter("value_lists", 2, 60), bench.parameter("value_rounds", 2, 7)
    warm = dram // (LIST_LENGTH * VALUE_BYTES) + 2
    with clients("put.ValueWriter", 2) as members:
        for number, member in enumerate(members):
            member.call("open", socket=node.socket, prefix=f"writer{number}")

        def measure(count: int) -> float:
            together(members[:count], "prepare", list_count=lists)
            return rate(together(members[:count], "put"))

        for member in members:  # fills the store, and enters its segments into each writer's page tables
            member.call("prepare", list_count=2 * warm)
            member.call("put")
        samples = in_turns({"one": lambda: measure(1), "two": lambda: measure(2)}, rounds)
    million = [value / 1e6 for value in samples["one"]]
    note = f"every round evicts: {lists * LIST_LENGTH * VALUE_BYTES // MIB} MiB into {dram // MIB} MiB that are full"
    what = f"4 KiB values put while the store evicts, put_many of {LIST_LENGTH}"
    bench.report(f"{what}, one writer", million, "million/s", at_least(0.7), note=note)
    bench.report(
        f"{what}, two writers", ratios(samples["two"], samples["one"]), "x", at_least(1.5), "one writer, in turns"
    )
