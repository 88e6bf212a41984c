"""Shuffle-heavy Spark jobs with the store and with Spark's own sort shuffle: applications in turns, the same settings.

Tasks' CPU is what Spark counts. Beside it stands the CPU of all processes that work for the application (driver, executors,
agents), because agents do a part of the work, and of the daemon.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from .data import MIB
from .harness import Bench, at_most, ratios
from .node import child_environment, folder, join_group, serving

OURS, SORT = "the store", "Spark's sort shuffle"
JOBS = ("groupBy", "join", "sort", "repartition")
ROW_BYTES = 72


def measure(bench: Bench) -> None:
    """Both in turns, each round in the other order."""
    if shutil.which("javac") is None:
        bench.skip("shuffles in the store", "there is no JDK: apt install openjdk-17-jdk-headless")
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


def _run(data: Path, master: str, rows: int, partitions: int, socket: str) -> dict[str, Any]:
    local = data / "local"
    local.mkdir()
    command = [sys.executable, "-m", "bench.spark_shuffle_job", master, str(rows), str(partitions), str(local)]
    try:
        done = subprocess.run(
            [*command, *filter(None, [socket])],
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
            start_new_session=True,
            preexec_fn=join_group(None),
        )
    finally:
        shutil.rmtree(local, ignore_errors=True)
    made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return made


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
