"""What does the daemon cost when nothing happens: to start, in memory, in CPU time, and in tables?

Its memory is the proportional share of every mapping but the arenas, so the index and the tables are part of it. Tables
are measured as what the file system gave them after the store was filled with 64 KiB values.
"""

from __future__ import annotations

import time
from pathlib import Path

import tierstore

from .data import GIB, KIB, MIB
from .harness import Bench, at_most
from .node import Node, build_kernels, connected, serving

VALUE_BYTES = 64 * KIB
ARENA = ".arena"
TABLES = ("control", "clients", "index-")  # counted by a figure of their own


def run(bench: Bench) -> None:
    """Starts, then one daemon empty, then full."""
    dram = bench.parameter("dram_bytes", 64 * MIB, 4 * GIB)
    build_kernels()
    starts = [time_start(dram) for _ in range(bench.parameter("starts", 2, 9))]
    bench.report(f"spawn until a client is accepted, {dram // MIB} MiB of dram", starts, "s", at_most(0.5))
    with serving("--dram", str(dram)) as node, connected(node) as store:
        report_memory(bench, node, "memory beyond arenas, empty", ())
        report_cpu(bench, node)
        fill(store, dram)
        report_memory(bench, node, "memory beyond arenas, index and tables, full of 64 KiB values", TABLES)
        blocks = sum(tier["blocks"] for tier in store.stats()["tiers"].values())
        size = table_bytes(node)
        bench.report(
            "index and tables / capacity, 64 KiB values",
            100 * size / dram,
            "%",
            at_most(2),
            f"{dram // MIB} MiB of capacity, {blocks} values in it",
        )


def time_start(dram: int) -> float:
    """Seconds from spawn to the first accepted client."""
    with serving("--dram", str(dram), started=False) as node:
        began = time.perf_counter()
        node.start()
        store = node.connect(poll_s=0.002)
        elapsed = time.perf_counter() - began
        store.close()
        return elapsed


def report_memory(bench: Bench, node: Node, figure: str, but: tuple[str, ...]) -> None:
    """Memory of the daemon beyond arenas; its share of what it shares with others, and beside it all of that."""
    share, whole = beyond_arenas(node.pid, "Pss:", but), beyond_arenas(node.pid, "Rss:", but)
    note = f"PSS; RSS {whole / MIB:.0f} MiB, with libraries that other processes map too"
    bench.report(figure, share / MIB, "MiB", at_most(100), note=note)


def beyond_arenas(pid: int, field: str, but: tuple[str, ...]) -> int:
    """Sum of one field of smaps over all mappings of a process but the arenas, and files named ``but``, in bytes."""
    total, counted = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            name = fields[5].rpartition("/")[2] if len(fields) > 5 else ""
            counted = not name.endswith(ARENA) and not (name and name.startswith(but))
        elif fields[0] == field and counted:
            total += int(fields[1]) * KIB
    return total


def cpu_s(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def report_cpu(bench: Bench, node: Node) -> None:
    """Share of a core over some seconds with one connected client that does nothing."""
    span = bench.parameter("idle_seconds", 1.0, 10.0)
    shares = []
    for _ in range(bench.parameter("idle_rounds", 1, 3)):
        before, began = cpu_s(node.pid), time.perf_counter()
        time.sleep(span)
        shares.append(100 * (cpu_s(node.pid) - before) / (time.perf_counter() - began))
    bench.report("CPU of the idle daemon, one client connected", shares, "%", at_most(1), "one core")


def fill(store: tierstore.Store, dram: int) -> None:
    """Put 64 KiB values until the store has begun to evict."""
    value = bytes(VALUE_BYTES)
    count = dram // VALUE_BYTES + dram // VALUE_BYTES // 8
    for first in range(0, count, 256):
        store.put_many([(f"value/{index}", value) for index in range(first, min(first + 256, count))])


def table_bytes(node: Node) -> int:
    """What the file system holds of the store's files but the arenas."""
    files = [path for path in node.memory.rglob("*") if path.is_file() and not path.name.endswith(ARENA)]
    return sum(path.stat().st_blocks * 512 for path in files)
