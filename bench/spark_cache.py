"""How fast is MLlib's KMeans, as it is, on df.cache() in the store, against MEMORY_AND_DISK, and what lies where?

Applications in turns. The data are twice what Spark's storage memory has room for. At full size the store keeps a quarter of
them in memory and the rest in a file in memory that behaves like PMem.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .data import MIB
from .harness import Bench, at_most, ratios
from .node import folder, serving
from .slow_disk import SPEED, slow_rounds
from .spark import missing
from .spark_application import run_application

OURS, SPARK = "the store", "MEMORY_AND_DISK"
FILES, DIMENSIONS, CENTERS = 8, 20, 10
# A row of Spark's vectors in Arrow: the values, an offset, and the fields that dense ones do not use.
ROW_BYTES = DIMENSIONS * 8 + 16
PROFILE = "optane100-6"


def run(bench: Bench) -> None:
    """Both in turns, each round in the other order."""
    reason = missing(jdk=True)
    if reason:
        bench.skip("df.cache() in the store", reason)
        return
    rows = bench.parameter("cache rows", 20_000, 10_000_000)
    rounds = bench.parameter("cache rounds", 1, 3)
    iterations = bench.parameter("cache iterations", 2, 6)
    master = bench.parameter("cache executors", "local[2,4]", "local-cluster[2,1,2048]")
    size = rows * ROW_BYTES
    tiers = ["--dram", str(size * 5 // 4 + 96 * MIB)]
    if not bench.smoke:
        whole = f"{{memory}}/pmem:{size * 5 // 4 + 64 * MIB}"
        tiers = ["--dram", str(size // 4), "--pmem", whole, "--pmem-profile", PROFILE]
    found: dict[str, list[dict[str, Any]]] = {OURS: [], SPARK: []}
    with folder() as data, serving(*tiers) as node:
        _points(data, rows)
        for number in range(rounds):
            for name in (OURS, SPARK) if number % 2 else (SPARK, OURS):
                found[name].append(_run(data, master, iterations, node.socket if name == OURS else ""))
        emulated = "" if bench.smoke else f"pmem: tmpfs, profile {PROFILE}"
        _report(bench, found, emulated)
        what = f"MLlib, iteration, disk at {SPEED / 1e6:.0f} MB/s, cold cache"
        slow = slow_rounds(
            bench,
            f"{what}: {OURS} / {SPARK}",
            data / "local",
            (OURS, SPARK),
            lambda name, group: _run(data, master, iterations, node.socket if name == OURS else "", group),
        )
        _report_slow(bench, what, slow, emulated)


def _points(data: Path, rows: int) -> None:
    random = np.random.default_rng(7)
    centers = random.normal(scale=8, size=(CENTERS, DIMENSIONS))
    for number in range(FILES):
        points = centers[random.integers(CENTERS, size=rows // FILES)]
        points = points + random.normal(size=points.shape)
        columns = {f"f{column:02}": np.ascontiguousarray(points[:, column]) for column in range(DIMENSIONS)}
        pq.write_table(
            pa.table(columns), data / f"points-{number}.parquet", row_group_size=1 << 17, use_dictionary=False
        )


def _run(data: Path, master: str, iterations: int, socket: str, group: Path | None = None) -> dict[str, Any]:
    local = data / "local"
    arguments = [master, str(data), str(iterations), str(local)]
    return run_application("spark_cache_job", local, socket, *arguments, group=group)


def _report(bench: Bench, found: dict[str, list[dict[str, Any]]], emulated: str) -> None:
    for name, rounds in found.items():
        played = emulated if name == OURS else ""
        target = at_most(0) if name == OURS else None
        for figure, unit in (("fill_s", "s"), ("gc_s", "s"), ("cpu_s", "CPU s")):
            bench.report(f"MLlib, {figure}, {name}", [made[figure] for made in rounds], unit, emulated=played)
        bench.report(f"MLlib, seconds per iteration, {name}", _iterations(rounds), "s", emulated=played)
        bench.report(f"bytes of cached blocks on disk, {name}", [made["disk_bytes"] for made in rounds], "B", target)
        # What is left on the heap with the store are handles, so this is told as a share of the data.
        share = [made["heap_bytes"] / made["data_bytes"] for made in rounds]
        few = at_most(0.01) if name == OURS and not bench.smoke else None
        bench.report(f"cached blocks on the heap / data, {name}", share, "", few)
    for figure, limit in (("gc_s", 0.4), ("fill_s", 0.9)):
        both = [[max(made[figure], 1e-3) for made in found[name]] for name in (OURS, SPARK)]
        bench.report(f"MLlib, {figure}: {OURS} / {SPARK}", ratios(*both), "x", at_most(limit), SPARK, emulated)
    both = [_iterations(found[name]) for name in (OURS, SPARK)]
    bench.report(f"MLlib, iteration: {OURS} / {SPARK}", ratios(*both), "x", at_most(1.0), SPARK, emulated)
    centers = [np.array(made["centers"]) for rounds in found.values() for made in rounds]
    difference = max(float(np.abs(one - centers[0]).max()) for one in centers)
    bench.report("MLlib, largest difference of centers", difference, "", at_most(1e-6), SPARK)


def _report_slow(bench: Bench, what: str, found: dict[str, list[dict[str, Any]]], emulated: str) -> None:
    times = {name: _iterations(rounds) for name, rounds in found.items()}
    if times:
        both = ratios(times[OURS], times[SPARK])
        bench.report(f"{what}: {OURS} / {SPARK}", both, "x", at_most(0.6), SPARK, emulated)
    for name, samples in times.items():
        bench.report(f"{what}, {name}", samples, "s", emulated=emulated if name == OURS else "")


def _iterations(rounds: list[dict[str, Any]]) -> list[float]:
    return [statistics.median(made["iterations_s"]) for made in rounds]
