"""How much processor time and disk do shuffle-heavy Spark jobs take with the store, against Spark's own sort shuffle?

Applications in turns, the same settings. Tasks' CPU is what Spark counts. Beside it stands the CPU of all processes that work for
the application (driver, executors, agents), because agents do a part of the work, and of the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .data import MIB
from .harness import Bench, at_least, at_most, ratios
from .node import folder, serving
from .slow_disk import SPEED, slow_rounds
from .spark import missing
from .spark_application import run_application

OURS, SORT = "the store", "Spark's sort shuffle"
JOBS = ("groupBy", "join", "sort", "repartition")
ROW_BYTES = 72


def run(bench: Bench) -> None:
    """Both in turns, each round in the other order."""
    reason = missing(jdk=True)
    if reason:
        bench.skip("shuffles in the store", reason)
        return
    rows = bench.parameter("shuffle rows", 20_000, 28_000_000)
    rounds = bench.parameter("shuffle rounds", 1, 3)
    partitions = bench.parameter("shuffle partitions", 4, 16)
    master = bench.parameter("shuffle executors", "local[2,4]", "local-cluster[2,1,2048]")
    found: dict[str, list[dict[str, Any]]] = {OURS: [], SORT: []}
    with folder() as data, serving("--dram", str(rows * ROW_BYTES * 5 // 2 + 96 * MIB)) as node:
        for number in range(rounds):
            for name in (OURS, SORT) if number % 2 else (SORT, OURS):
                before = _cpu_of(node.pid)
                made = _run(data, master, rows, partitions, node.socket if name == OURS else "")
                found[name].append(made | {"daemon_cpu_s": _cpu_of(node.pid) - before})
        _report(bench, found)
        _measure_slow(
            bench,
            data,
            lambda name, group: _run(data, master, rows, partitions, node.socket if name == OURS else "", group),
        )


def _measure_slow(bench: Bench, data: Path, run: Callable[[str, Path], dict[str, Any]]) -> None:
    """The same where Spark's disk reads slowly, and what was written is not in the page cache any more when it is read."""
    disk = f"all jobs, wall time, disk at {SPEED / 1e6:.0f} MB/s, cold cache"
    what = f"{disk}: {SORT} / {OURS}"
    found = {
        name: [_of(made, "all", "wall_s") for made in rounds]
        for name, rounds in slow_rounds(bench, what, data / "local", (OURS, SORT), run).items()
    }
    if found:
        bench.report(what, ratios(found[SORT], found[OURS]), "x", at_least(2), SORT)
    for name, samples in found.items():
        bench.report(f"{disk}, {name}", samples, "s")


def _run(data: Path, master: str, rows: int, partitions: int, socket: str, group: Path | None = None) -> dict[str, Any]:
    local = data / "local"
    arguments = [master, str(rows), str(partitions), str(local)]
    return run_application("spark_shuffle_job", local, socket, *arguments, group=group)


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _report(bench: Bench, found: dict[str, list[dict[str, Any]]]) -> None:
    for job in (*JOBS, "all"):
        for figure, unit in (("task_cpu_s", "CPU s"), ("process_cpu_s", "CPU s"), ("wall_s", "s")):
            both = {name: [_of(made, job, figure) for made in rounds] for name, rounds in found.items()}
            if job == "all" or figure == "task_cpu_s":
                for name, samples in both.items():
                    bench.report(f"{job}, {figure}, {name}", samples, unit)
            target = at_most(1.0) if (job, figure) == ("all", "task_cpu_s") else None
            bench.report(f"{job}, {figure}: {OURS} / {SORT}", ratios(both[OURS], both[SORT]), "x", target, SORT)
    for name, rounds in found.items():
        most = [max(made[job]["local_bytes"] for job in JOBS) for made in rounds]
        bench.report(f"bytes of shuffles in SPARK_LOCAL_DIRS, {name}", most, "B", at_most(0) if name == OURS else None)
    bench.report("daemon_cpu_s", [made["daemon_cpu_s"] for made in found[OURS]], "CPU s")
    results = [[made[job]["result"] for job in JOBS] for rounds in found.values() for made in rounds]
    differing = sum(result != results[0] for result in results)
    bench.report("applications whose results differ", differing, "", at_most(0), SORT)


def _of(made: dict[str, Any], job: str, figure: str) -> float:
    return float(sum(made[name][figure] for name in (JOBS if job == "all" else (job,))))
