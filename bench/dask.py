"""Is Dask faster with its shuffles, and what its workers hold, in the store?

Two workers of one thread, processes with a memory limit. Shuffles: of data that fit, and of three times the workers' memory,
the latter also with little DRAM and PMem below it. K-means: map and reduce over persisted NumPy chunks, against Dask's own
spilling, and against workers without a limit; of 1.8 times what Dask keeps in memory, and of three times.

Nothing may take longer than a limit: where Dask alone does not finish, that is what its row says.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .harness import Bench, Target, at_least, at_most, in_turns, ratios
from .node import folder, serving

MIB = 1 << 20
K = 8
PMEM = "tierstore, PMem"
UNFINISHED = math.inf  # seconds of what did not end within its limit
SAMPLE_S = 0.1
DIMENSIONS = 20


def run(bench: Bench) -> None:
    """Shuffles by both methods, then k-means with three kinds of worker data, in turns."""
    try:
        import dask.dataframe
        import distributed
    except ImportError as error:
        bench.skip("shuffle, k-means", f"{error}: pip install 'tierstore[dask]'")
        return
    assert dask.dataframe and distributed
    rounds = bench.parameter("rounds", smoke=1, real=3)
    limit_s = bench.parameter("limit s", smoke=60, real=300)
    with folder() as path:
        size = bench.parameter("shuffle MiB, fits", smoke=4, real=2048)
        _shuffles(bench, Case(path, "fits", size, 0, rounds, limit_s), ("p2p", "tierstore"))
        size = bench.parameter("shuffle MiB, 3 times the memory", smoke=6, real=3072)
        limit = 0 if bench.smoke else 512
        _shuffles(bench, Case(path, "3 times the memory", size, limit, rounds, limit_s), ("p2p", "tierstore", PMEM))
        limit = bench.parameter("k-means limit MiB", smoke=1024, real=880)
        size = bench.parameter("k-means MiB", smoke=8, real=1900)
        small = _kmeans(bench, Case(path, "", size, limit, rounds, limit_s))
        size = bench.parameter("k-means MiB, 3 times", smoke=12, real=3168)
        large = _kmeans(bench, Case(path, "3 times: ", size, limit, rounds, limit_s))
    figure = "k-means, 3 times: time of a MiB"
    _report_ratio(bench, figure, large, small, at_most(1.25), "with 1.8 times; no cliff", limit_s)


class Case(NamedTuple):
    """What is measured in one way or another. limit_mib: of each worker; 0: none."""

    path: Path
    name: str
    size_mib: int
    limit_mib: int
    rounds: int
    limit_s: float


def _store_options(kind: str, size_mib: int) -> list[str]:
    """Room for all: in DRAM, or most of it in PMem."""
    if kind == PMEM:
        return ["--dram", f"{max(64, size_mib // 4)}MiB", "--pmem", f"{{memory}}/pmem:{max(256, 2 * size_mib)}MiB"]
    return ["--dram", f"{max(256, 2 * size_mib)}MiB"]


@contextmanager
def _cluster(case: Case, kind: str, limit_mib: int) -> Iterator[Any]:
    """A client of two workers of one thread; with a daemon that has room for all."""
    import dask
    from distributed import Client, LocalCluster

    import tierstore.dask

    settings: dict[str, Any] = {"distributed.worker.preload": ["tierstore.dask"] if kind in ("tierstore", PMEM) else []}
    settings["distributed.worker.memory.terminate"] = False  # else Dask's own spilling is killed before it has begun
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    options |= {"local_directory": str(case.path / "workers"), "memory_limit": limit_mib * MIB or 0}
    with ExitStack() as stack:
        store = stack.enter_context(serving(*_store_options(kind, case.size_mib)))
        os.environ["TIERSTORE_SOCKET"] = store.socket
        stack.callback(os.environ.pop, "TIERSTORE_SOCKET")
        stack.enter_context(dask.config.set(settings))
        client = stack.enter_context(Client(stack.enter_context(LocalCluster(**options))))
        tierstore.dask.register(client)
        stack.callback(tierstore.dask.unregister)
        yield client


class LocalBytes:
    """The most that lay in the workers' directories at one time, as far as one look every 0.1 s shows it."""

    def __init__(self, path: Path):
        self.most, self._path, self._stop = 0, path / "workers", threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bench-local", daemon=True)

    def __enter__(self) -> LocalBytes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.most = max(self.most, sum(map(_size, self._path.rglob("*"))))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        return path.stat().st_size if path.is_file() else 0
    return 0


def _report_times(bench: Bench, figure: str, samples: list[float], case: Case, note: str = "") -> None:
    """Seconds; or that it did not finish."""
    if UNFINISHED in samples:
        bench.skip(figure, f"did not finish in {case.limit_s:g} s", "unfinished")
    else:
        bench.report(figure, samples, "s", None, note)


def _report_ratio(
    bench: Bench, figure: str, above: list[float], below: list[float], target: Target, note: str, limit_s: float
) -> None:
    """Times by which one is longer than the other, where both finished."""
    if UNFINISHED in above or UNFINISHED in below:
        bench.skip(figure, f"one did not finish in {limit_s:g} s", "unfinished")
    else:
        bench.report(figure, ratios(above, below), "times", target, note)


def _report_faster(
    bench: Bench, figure: str, theirs: list[float], ours: list[float], limit_s: float, least: float, note: str
) -> None:
    """How many times faster than Dask alone; at least, where that did not finish."""
    if UNFINISHED in ours:
        bench.skip(figure, f"ours did not finish in {limit_s:g} s", "failed")
        return
    if UNFINISHED in theirs:
        note = f"{note}; which did not finish in {limit_s:g} s: at least so many times"
    bench.report(figure, ratios([min(sample, limit_s) for sample in theirs], ours), "times", at_least(least), note)


def _written(client: Any) -> int:
    """Bytes that the workers have written so far, to files and sockets, as the kernel counts them."""

    def written() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("write_bytes")).split()[1])

    return sum(client.run(written).values())


# --- shuffles -----------------------------------------------------------------------------------------------------------------


def part_of(number: int, rows: int) -> Any:
    """An input partition: a key and 20 columns of numbers."""
    import pandas as pd

    generator = np.random.default_rng(number)
    frame = pd.DataFrame(generator.random((rows, DIMENSIONS)), columns=[f"x{n}" for n in range(DIMENSIONS)])
    frame["k"] = generator.integers(0, 1 << 30, rows)
    return frame


def checked(part: Any) -> Any:
    """Rows and a sum of keys of an output partition: small, and enough to see a wrong row."""
    import pandas as pd

    return pd.DataFrame({"rows": [len(part)], "keys": [int(part["k"].sum())]})


def _shuffles(bench: Bench, case: Case, kinds: tuple[str, ...]) -> None:
    import dask.dataframe as dd
    from distributed import TimeoutError as TookTooLong

    parts = max(4, case.size_mib // 48)
    rows = case.size_mib * MIB // (8 * (DIMENSIONS + 1)) // parts
    written: dict[str, int] = {}
    local: dict[str, int] = {}
    expected: set[tuple[int, int]] = set()
    unfinished: set[str] = set()

    def once(kind: str) -> float:
        if kind in unfinished:
            return UNFINISHED
        method = "p2p" if kind == "p2p" else "tierstore"
        with _cluster(case, kind, case.limit_mib) as client, LocalBytes(case.path) as files:
            frame = dd.from_map(part_of, range(parts), rows=rows)
            meta = {"rows": "i8", "keys": "i8"}
            result = frame.shuffle("k", npartitions=parts, shuffle_method=method).map_partitions(checked, meta=meta)
            small = dd.from_map(part_of, range(2), rows=10).shuffle("k", npartitions=2, shuffle_method=method)
            assert len(small) == 20  # connections, imports
            before, began = _written(client), time.perf_counter()
            try:
                found = client.compute(result).result(timeout=case.limit_s)
            except TookTooLong:
                unfinished.add(kind)
                return UNFINISHED
            took = time.perf_counter() - began
            written[kind] = _written(client) - before
        local[kind] = files.most
        expected.add((int(found["rows"].sum()), int(found["keys"].sum())))
        assert len(expected) == 1 and {found for found, _ in expected} == {rows * parts}, expected
        return took

    samples = in_turns({kind: lambda kind=kind: once(kind) for kind in kinds}, case.rounds)
    for kind in kinds:
        _report_times(bench, f"shuffle, {case.name}: {kind}", samples[kind], case, "with making the input")
    for kind in kinds[1:]:
        figure = f"shuffle, {case.name}: {kind}: times p2p's speed"
        _report_faster(bench, figure, samples["p2p"], samples[kind], case.limit_s, 1.5, "p2p, in turns")
        if kind in written:
            note = f"p2p: {written['p2p']} B" if "p2p" in written else "p2p did not finish"
            bench.report(f"shuffle, {case.name}: {kind}: written by workers", written[kind], "B", None, note)
            note = f"p2p: {local['p2p']} B" if "p2p" in local else "p2p did not finish"
            figure = f"shuffle, {case.name}: {kind}: bytes in workers' directories"
            bench.report(figure, local[kind], "B", at_most(0), note)


# --- k-means ------------------------------------------------------------------------------------------------------------------


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
        with _cluster(case, kind, 0 if kind == "memory" else case.limit_mib) as client:
            before = _written(client)
            try:
                times, centres = _iterations(client, chunks, rows, iterations, case.limit_s)
            except TookTooLong:
                unfinished.add(kind)
                return UNFINISHED
            written[kind] = _written(client) - before
        answers.append(centres)
        assert np.allclose(answers[0], centres)
        return sum(times[1:]) / iterations

    kinds = ("spill", "tierstore", "memory")
    samples = in_turns({kind: lambda kind=kind: once(kind) for kind in kinds}, case.rounds)
    name = f"k-means, {case.name}"
    for kind in kinds:
        _report_times(bench, f"{name}an iteration: {kind}", samples[kind], case)
    spilling = "Dask's own spilling, in turns"
    figure = f"{name}times the speed of spilling"
    _report_faster(bench, figure, samples["spill"], samples["tierstore"], case.limit_s, 1.6, spilling)
    target, unlimited = at_most(1.15), "workers without a limit, in turns"
    figure = f"{name}times the time in memory"
    _report_ratio(bench, figure, samples["tierstore"], samples["memory"], target, unlimited, case.limit_s)
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
