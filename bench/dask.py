"""Is Dask faster with its shuffles, and what its workers hold, in the store?

Two workers of one thread, processes with a memory limit. Shuffles: of data that fit, and of three times the workers' memory.
K-means: map and reduce over persisted NumPy chunks, against Dask's own spilling, and against workers without a limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .harness import Bench, at_least, at_most, in_turns, ratios
from .node import folder, serving

MIB = 1 << 20
K = 8
WAIT_S = 600
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
    with folder() as path:
        for name, smoke, real, limit in (("fits", 4, 2048, 0), ("3 times the memory", 6, 3072, 512)):
            size = bench.parameter(f"shuffle MiB, {name}", smoke=smoke, real=real)
            _shuffles(bench, path, name, size, 0 if bench.smoke else limit, rounds)
        size = bench.parameter("k-means MiB", smoke=8, real=1900)
        _kmeans(bench, path, size, bench.parameter("k-means limit MiB", smoke=1024, real=880), rounds)


@contextmanager
def _cluster(path: Path, limit_mib: int, ours: bool, size_mib: int) -> Iterator[Any]:
    """A client of two workers of one thread; with a daemon that has room for all."""
    import dask
    from distributed import Client, LocalCluster

    import tierstore.dask

    settings: dict[str, Any] = {"distributed.worker.preload": ["tierstore.dask"] if ours else []}
    settings["distributed.worker.memory.terminate"] = False  # else Dask's own spilling is killed before it has begun
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    options |= {"local_directory": str(path / "workers"), "memory_limit": limit_mib * MIB or 0}
    with ExitStack() as stack:
        store = stack.enter_context(serving("--dram", f"{max(256, 2 * size_mib)}MiB"))
        os.environ["TIERSTORE_SOCKET"] = store.socket
        stack.callback(os.environ.pop, "TIERSTORE_SOCKET")
        stack.enter_context(dask.config.set(settings))
        client = stack.enter_context(Client(stack.enter_context(LocalCluster(**options))))
        tierstore.dask.register(client)
        stack.callback(tierstore.dask.unregister)
        yield client


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


def _shuffles(bench: Bench, path: Path, name: str, size_mib: int, limit_mib: int, rounds: int) -> None:
    import dask.dataframe as dd

    parts = max(4, size_mib // 48)
    rows = size_mib * MIB // (8 * (DIMENSIONS + 1)) // parts
    written: dict[str, int] = {}
    expected: set[tuple[int, int]] = set()

    def once(method: str) -> float:
        with _cluster(path, limit_mib, method == "tierstore", size_mib) as client:
            frame = dd.from_map(part_of, range(parts), rows=rows)
            meta = {"rows": "i8", "keys": "i8"}
            result = frame.shuffle("k", npartitions=parts, shuffle_method=method).map_partitions(checked, meta=meta)
            small = dd.from_map(part_of, range(2), rows=10).shuffle("k", npartitions=2, shuffle_method=method)
            assert len(small) == 20  # connections, imports
            before, began = _written(client), time.perf_counter()
            found = result.compute()
            took = time.perf_counter() - began
            written[method] = _written(client) - before
        expected.add((int(found["rows"].sum()), int(found["keys"].sum())))
        assert len(expected) == 1 and {found for found, _ in expected} == {rows * parts}, expected
        return took

    samples = in_turns({method: lambda method=method: once(method) for method in ("p2p", "tierstore")}, rounds)
    bench.report(f"shuffle, {name}: tierstore", samples["tierstore"], "s", None, "with making the input")
    bench.report(f"shuffle, {name}: p2p", samples["p2p"], "s", None, "with making the input")
    faster = ratios(samples["p2p"], samples["tierstore"])
    bench.report(f"shuffle, {name}: times p2p's speed", faster, "times", at_least(1.5), "p2p, in turns")
    bench.report(
        f"shuffle, {name}: written by workers", written["tierstore"], "B", at_most(0), f"p2p: {written['p2p']} B"
    )


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


def _kmeans(bench: Bench, path: Path, size_mib: int, limit_mib: int, rounds: int) -> None:
    chunks = 32
    rows = size_mib * MIB // (8 * DIMENSIONS) // chunks
    iterations = bench.parameter("iterations", smoke=1, real=5)
    written: dict[str, int] = {}
    answers: list[np.ndarray] = []

    def once(kind: str) -> float:
        with _cluster(path, 0 if kind == "memory" else limit_mib, kind == "tierstore", size_mib) as client:
            from distributed import wait

            before = _written(client)
            points = client.map(points_of, range(chunks), rows=rows, pure=False)
            wait(points, timeout=WAIT_S)
            centres = points_of(99, K)[:, :DIMENSIONS]
            times = []
            for _ in range(iterations + 1):
                began = time.perf_counter()
                found = client.gather(client.map(step, points, centres=centres, pure=False))
                centres = sum(sums for sums, _ in found) / sum(counts for _, counts in found)[:, None]
                times.append(time.perf_counter() - began)
            written[kind] = _written(client) - before
            answers.append(centres)
            del points
        assert np.allclose(answers[0], centres)
        return sum(times[1:]) / iterations

    kinds = ("spill", "tierstore", "memory")
    samples = in_turns({kind: lambda kind=kind: once(kind) for kind in kinds}, rounds)
    for kind in kinds:
        bench.report(f"k-means, an iteration: {kind}", samples[kind], "s")
    faster = ratios(samples["spill"], samples["tierstore"])
    bench.report(
        "k-means: times the speed of spilling", faster, "times", at_least(1.6), "Dask's own spilling, in turns"
    )
    slower = ratios(samples["tierstore"], samples["memory"])
    bench.report(
        "k-means: times the time in memory", slower, "times", at_most(1.15), "workers without a limit, in turns"
    )
    note = f"spilling: {written['spill']} B"
    bench.report("k-means: written by workers", written["tierstore"], "B", None, note)
