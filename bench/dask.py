"""Is Dask faster with its shuffles in the store?

Two workers of one thread, processes with a memory limit: data that fit, and three times the workers' memory, the latter also with
little DRAM and PMem below it. Nothing may take longer than a limit: where Dask alone does not finish, that is what its row says.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .dask_cluster import (
    DIMENSIONS,
    MIB,
    PMEM,
    UNFINISHED,
    Case,
    LocalBytes,
    cluster,
    missing,
    report_faster,
    report_times,
    written_by,
)
from .harness import Bench, at_most, in_turns
from .node import folder


def run(bench: Bench) -> None:
    """Shuffles by each method in turns, of data that fit and of data that do not."""
    if missing():
        bench.skip("shuffle", missing())
        return
    rounds = bench.parameter("rounds", smoke=1, real=3)
    limit_s = bench.parameter("limit s", smoke=60, real=300)
    with folder() as path:
        size = bench.parameter("shuffle MiB, fits", smoke=4, real=2048)
        _shuffles(bench, Case(path, "fits", size, 0, rounds, limit_s), ("p2p", "tierstore"))
        size = bench.parameter("shuffle MiB, 3 times the memory", smoke=6, real=3072)
        limit = 0 if bench.smoke else 512
        _shuffles(bench, Case(path, "3 times the memory", size, limit, rounds, limit_s), ("p2p", "tierstore", PMEM))


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
        with cluster(case, kind, case.limit_mib) as client, LocalBytes(case.path) as files:
            frame = dd.from_map(part_of, range(parts), rows=rows)
            meta = {"rows": "i8", "keys": "i8"}
            result = frame.shuffle("k", npartitions=parts, shuffle_method=method).map_partitions(checked, meta=meta)
            small = dd.from_map(part_of, range(2), rows=10).shuffle("k", npartitions=2, shuffle_method=method)
            assert len(small) == 20  # connections, imports
            before, began = written_by(client), time.perf_counter()
            try:
                found = client.compute(result).result(timeout=case.limit_s)
            except TookTooLong:
                unfinished.add(kind)
                return UNFINISHED
            took = time.perf_counter() - began
            written[kind] = written_by(client) - before
        local[kind] = files.most
        expected.add((int(found["rows"].sum()), int(found["keys"].sum())))
        assert len(expected) == 1 and {found for found, _ in expected} == {rows * parts}, expected
        return took

    samples = in_turns({kind: lambda kind=kind: once(kind) for kind in kinds}, case.rounds)
    for kind in kinds:
        report_times(bench, f"shuffle, {case.name}: {kind}", samples[kind], case, "with making the input")
    for kind in kinds[1:]:
        figure = f"shuffle, {case.name}: {kind}: times p2p's speed"
        report_faster(bench, figure, samples["p2p"], samples[kind], case.limit_s, 1.5, "p2p, in turns")
        if kind in written:
            note = f"p2p: {written['p2p']} B" if "p2p" in written else "p2p did not finish"
            bench.report(f"shuffle, {case.name}: {kind}: written by workers", written[kind], "B", None, note)
            note = f"p2p: {local['p2p']} B" if "p2p" in local else "p2p did not finish"
            figure = f"shuffle, {case.name}: {kind}: bytes in workers' directories"
            bench.report(figure, local[kind], "B", at_most(0), note)
