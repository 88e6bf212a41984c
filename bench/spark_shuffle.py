"""How much processor time and disk do shuffle-heavy Spark jobs take with the store, against Spark's own sort shuffle?

Applications in turns, the same settings. Tasks' CPU is what Spark counts. Beside it stands the CPU of all processes that work for
the application (driver, executors, agents), because agents do a part of the work, and of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .cgroup import NotPermittedError, disk_group
from .data import MIB
from .harness import Bench, at_least, at_most, ratios
from .node import folder, serving
from .spark import missing
from .spark_application import run_application

OURS, SORT = "the store", "Spark's sort shuffle"
JOBS = ("groupBy", "join", "sort", "repartition")
ROW_BYTES = 72
DROP_S = 0.2


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
    speed = bench.parameter("slow disk, bytes a second", 200e6, 200e6)
    rounds = bench.parameter("slow disk rounds", 0, 3)
    what = f"all jobs, wall time, disk at {speed / 1e6:.0f} MB/s, cold cache: {SORT} / {OURS}"
    found: dict[str, list[float]] = {OURS: [], SORT: []}
    if not rounds:
        bench.skip(what, "two more applications, which add nothing at smoke size")
        return
    try:
        with disk_group("spark", data, speed) as group:
            for number in range(rounds):
                for name in (OURS, SORT) if number % 2 else (SORT, OURS):
                    with _cold(data / "local"):
                        found[name].append(_of(run(name, group), "all", "wall_s"))
    except NotPermittedError as error:
        bench.skip(what, str(error))
        return
    bench.report(what, ratios(found[SORT], found[OURS]), "x", at_least(2), SORT)
    for name, samples in found.items():
        bench.report(f"all jobs, wall time, disk at {speed / 1e6:.0f} MB/s, cold cache, {name}", samples, "s")


@contextlib.contextmanager
def _cold(place: Path) -> Iterator[None]:
    """Have what is written below a folder go to the disk, and out of the page cache, again and again."""
    stop = threading.Event()

    def drop() -> None:
        while not stop.wait(DROP_S):
            for path in place.rglob("*"):
                with contextlib.suppress(OSError):
                    if path.is_file():
                        descriptor = os.open(path, os.O_RDONLY)
                        os.fdatasync(descriptor)
                        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                        os.close(descriptor)

    thread = threading.Thread(target=drop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


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
