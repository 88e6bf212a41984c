"""Does the store grow slower with use: after minutes of values of all sizes coming and going, at 95 % full?

One process puts, gets and deletes values from 1 KiB to 64 MiB (sizes log-uniform) at random, and keeps the values it
believes alive at 95 % of the capacity; the store may evict. Time counts from when the store is full. Copies of 16 MiB,
made once a second, say whether the machine itself became slower.
"""

from __future__ import annotations

import math
import random
import statistics
import time

import numpy as np

import tierstore

from .data import GIB, KIB, MIB
from .harness import Bench, at_least, at_most
from .node import connected, serving

SMALLEST, FILL = KIB, 0.95
PROBE_S = 1.0


class Churn:
    """The values believed alive, and one random operation at a time."""

    def __init__(self, store: tierstore.Store, capacity: int, largest: int):
        self._store, self._goal, self._largest = store, int(FILL * capacity), largest
        self._random = random.Random(3)
        self._source = memoryview(self._random.randbytes(largest))
        self._alive: list[tuple[str, int]] = []
        self.live_bytes, self._number = 0, 0
        self.hits = self.misses = self.bytes_put = 0

    def step(self) -> None:
        """Get twice out of three times; else put one, and delete until there is room for it."""
        if self._alive and self._random.random() < 2 / 3:
            self._get()
            return
        size = int(math.exp(self._random.uniform(math.log(SMALLEST), math.log(self._largest))))
        while self.live_bytes + size > self._goal:
            self._delete()
        key = f"churn/{self._number}"
        self._number += 1
        self._store.put_bytes(key, self._source[:size])
        self._alive.append((key, size))
        self.live_bytes += size
        self.bytes_put += size

    def full(self) -> bool:
        """Whether the store has been filled."""
        return self.live_bytes >= 0.98 * self._goal

    def _get(self) -> None:
        key, size = self._random.choice(self._alive)
        try:
            view = self._store.get_bytes(key)
        except tierstore.NotFound:
            self.misses += 1
            return
        self.hits += 1
        if len(view) != size or view[0] != self._source[0] or view[-1] != self._source[size - 1]:
            raise AssertionError(f"{key}: other bytes than were put")

    def _delete(self) -> None:
        index = self._random.randrange(len(self._alive))
        self._alive[index], self._alive[-1] = self._alive[-1], self._alive[index]
        key, size = self._alive.pop()
        self.live_bytes -= size
        try:
            self._store.delete(key)
        except tierstore.NotFound:
            self.misses += 1


def copy_speed(target: np.ndarray, source: np.ndarray) -> float:
    """GB/s of one plain copy."""
    began = time.perf_counter()
    np.copyto(target, source)
    return source.nbytes / (time.perf_counter() - began) / 1e9


def run(bench: Bench) -> None:
    """Fill, churn, compare the last tenth with the first, verify."""
    capacity = bench.parameter("capacity_bytes", 256 * MIB, 2 * GIB)
    span = bench.parameter("seconds", 2.0, 600.0)
    largest = bench.parameter("largest_bytes", 4 * MIB, 64 * MIB)
    with serving("--dram", str(capacity)) as node, connected(node) as store:
        churn = Churn(store, capacity, largest)
        deadline = time.perf_counter() + max(30.0, span)
        while not churn.full() and time.perf_counter() < deadline:
            churn.step()
        windows = [Window() for _ in range(10)]
        occupied = record(churn, store, capacity, span, windows)
        verified = store.verify()
    report(bench, windows, churn, occupied, verified["ok"])


class Window:
    """What was done in one tenth of the time."""

    def __init__(self) -> None:
        self.operations, self.bytes_put, self.busy_s = 0, 0, 0.0
        self.copies: list[float] = []

    @property
    def rate(self) -> float:
        return self.operations / self.busy_s

    @property
    def put_speed(self) -> float:
        return self.bytes_put / self.busy_s / MIB


def record(churn: Churn, store: tierstore.Store, capacity: int, span: float, windows: list[Window]) -> list[float]:
    """Churn for so many seconds; the shares of the capacity that held live values, once a second."""
    target, source = np.zeros(2 * MIB), np.ones(2 * MIB)
    begin, occupied, probed = time.perf_counter(), [], 0.0
    while (now := time.perf_counter() - begin) < span:
        window = windows[min(9, int(10 * now / span))]
        if now >= probed:
            probed = now + min(PROBE_S, span / 20)
            window.copies.append(copy_speed(target, source))
            occupied.append(100 * store.stats()["tiers"]["dram"]["live_bytes"] / capacity)
        before, began = churn.bytes_put, time.perf_counter()
        for _ in range(16):
            churn.step()
        window.busy_s += time.perf_counter() - began
        window.operations += 16
        window.bytes_put += churn.bytes_put - before
    return occupied


def report(bench: Bench, windows: list[Window], churn: Churn, occupied: list[float], verified: bool) -> None:
    """Throughput by time, and what else happened."""
    first, last = windows[0], windows[-1]
    speed = [statistics.median(window.copies) for window in (first, last)]
    bench.report("operations per second, by tenth of the time", [window.rate for window in windows], "1/s")
    bench.report("MiB put per second, by tenth of the time", [window.put_speed for window in windows], "MiB/s")
    bench.report("operations per second, last tenth / first", last.rate / first.rate, "x", at_least(0.9))
    bench.report("MiB put per second, last tenth / first", last.put_speed / first.put_speed, "x")
    bench.report("plain copies of 16 MiB, last tenth / first", speed[1] / speed[0], "x", None, "the machine itself")
    bench.report("share of the capacity that holds live values", occupied, "%", None, f"{FILL:.0%} asked for")
    found = churn.hits + churn.misses
    bench.report("values found again", 100 * churn.hits / max(1, found), "%", None, "the others were evicted")
    bench.report("problems that verify() found", 0 if verified else 1, "problems", at_most(0))
