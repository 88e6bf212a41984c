"""Is a scan of what Dask's workers hold faster with the store than with Dask's spilling, and how near to all in memory?

K-means: map and reduce over persisted NumPy chunks, with Dask's own spilling, with the store, and by workers without a limit;
of 1.8 times what Dask keeps in memory, and of three times. Two workers of one thread, processes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .dask_cluster import (
    DIMENSIONS,
    MIB,
    UNFINISHED,
    Case,
    cluster,
    missing,
    report_faster,
    report_ratio,
    report_times,
    written_by,
)
from .harness import Bench, at_most, in_turns
from .node import folder

K = 8


def run(bench: Bench) -> None:
    """K-means of two sizes with three kinds of worker data, in turns."""
    if missing():
        bench.skip("k-means", missing())
        return
    rounds = bench.parameter("rounds", smoke=1, real=3)
    limit_s = bench.parameter("limit s", smoke=60, real=300)
    with folder() as path:
        limit = bench.parameter("k-means limit MiB", smoke=1024, real=880)
        size = bench.parameter("k-means MiB", smoke=8, real=1900)
        small = _kmeans(bench, Case(path, "", size, limit, rounds, limit_s))
        size = bench.parameter("k-means MiB, 3 times", smoke=12, real=3168)
        large = _kmeans(bench, Case(path, "3 times: ", size, limit, rounds, limit_s))
    figure = "k-means, 3 times: time of a MiB"
    report_ratio(bench, figure, large, small, at_most(1.25), "with 1.8 times; no cliff", limit_s)


def points_of(number: int, rows: int) -> np.ndarray:
    """A chunk of points."""
    return np.random.default_rng(number).random((rows, DIMENSIONS))


def step(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts of the points nearest to each centre."""
    nearest = (centres @ points.T * -2 + (centres**2).sum(1)[:, None]).argmin(0)
    counts = np.bincount(nearest, minlength=K)
    sums = np.stack([np.bincount(nearest, column, K) for column in points.T], 1)
    return sums, counts


def _kmeans(bench: Bench, case: Case) -> list[float]:
    """Rows of one size; returns the seconds that our iterations took for a MiB."""
    chunks = 32
    rows = case.size_mib * MIB // (8 * DIMENSIONS) // chunks
    iterations = bench.parameter("iterations", smoke=1, real=5)
    written: dict[str, int] = {}
    answers: list[np.ndarray] = []
    unfinished: set[str] = set()

    def once(kind: str) -> float:
        from distributed import TimeoutError as TookTooLong

        if kind in unfinished:
            return UNFINISHED
        with cluster(case, kind, 0 if kind == "memory" else case.limit_mib) as client:
            before = written_by(client)
            try:
                times, centres = _iterations(client, chunks, rows, iterations, case.limit_s)
            except TookTooLong:
                unfinished.add(kind)
                return UNFINISHED
            written[kind] = written_by(client) - before
        answers.append(centres)
        assert np.allclose(answers[0], centres)
        return sum(times[1:]) / iterations

    kinds = ("spill", "tierstore", "memory")
    samples = in_turns({kind: lambda kind=kind: once(kind) for kind in kinds}, case.rounds)
    name = f"k-means, {case.name}"
    for kind in kinds:
        report_times(bench, f"{name}an iteration: {kind}", samples[kind], case)
    spilling = "Dask's own spilling, in turns"
    figure = f"{name}times the speed of spilling"
    report_faster(bench, figure, samples["spill"], samples["tierstore"], case.limit_s, 1.6, spilling)
    target, unlimited = at_most(1.15), "workers without a limit, in turns"
    figure = f"{name}times the time in memory"
    report_ratio(bench, figure, samples["tierstore"], samples["memory"], target, unlimited, case.limit_s)
    if "tierstore" in written:
        note = f"spilling: {written['spill']} B" if "spill" in written else "spilling did not finish"
        bench.report(f"{name}written by workers", written["tierstore"], "B", None, note)
    return [sample / case.size_mib for sample in samples["tierstore"]]


def _iterations(client: Any, chunks: int, rows: int, iterations: int, limit_s: float) -> tuple[list[float], np.ndarray]:
    """The seconds of each iteration, the first of which only warms up, and where the centres end. Raises TimeoutError."""
    deadline = time.monotonic() + limit_s
    points = client.map(points_of, range(chunks), rows=rows, pure=False)
    _wait(points, deadline)
    centres = points_of(99, K)[:, :DIMENSIONS]
    times = []
    for _ in range(iterations + 1):
        began = time.perf_counter()
        steps = client.map(step, points, centres=centres, pure=False)
        _wait(steps, deadline)
        found = client.gather(steps)
        centres = sum(sums for sums, _ in found) / sum(counts for _, counts in found)[:, None]
        times.append(time.perf_counter() - began)
    return times, centres


def _wait(futures: Any, deadline: float) -> None:
    from distributed import wait

    wait(futures, timeout=max(0.1, deadline - time.monotonic()))
