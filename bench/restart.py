"""How long after kill -9 of the daemon does it serve everything again?

The clock starts at the kill and stops when a new client has read the first and the last key and found all the others;
the daemon is started again at once. Blocks are KEEP objects of 1 MiB in ``dram`` and ``pmem``.
"""

from __future__ import annotations

import time

import tierstore

from .data import GIB, MIB, batch, same_sum, sum_table
from .harness import Bench, at_most
from .node import Node, build_kernels, connected, serving


def run(bench: Bench) -> None:
    """Fill, then kill and restart some times."""
    size = bench.parameter("bytes", 64 * MIB, 4 * GIB)
    rounds = bench.parameter("rounds", 1, 5)
    dram = size // 2 + 64 * MIB
    pmem = dram + size // 8  # partly filled segments, and free ones to move blocks through
    build_kernels()
    options = ("--dram", str(dram), "--pmem", f"{{memory}}/pmem:{pmem}")
    with serving(*options, ephemeral=False) as node:
        with connected(node) as store:
            keys, sums = fill(store, size)
            node.settle(store)
            tiers = {name: found["live_bytes"] / MIB for name, found in store.stats()["tiers"].items()}
        ready, whole, lost = [], [], 0.0
        for _ in range(rounds):
            first, last, missing = kill_and_restart(node, keys, sums)
            ready.append(first)
            whole.append(last)
            lost += missing
    note = ", ".join(f"{name} {live:.0f} MiB" for name, live in tiers.items())
    emulated = "pmem: tmpfs, profile none"
    bench.report(f"kill -9 until all {size // MIB} MiB are served again", whole, "s", at_most(2), "", emulated, note)
    bench.report("of which until a client was accepted", ready, "s", emulated=emulated)
    bench.report("objects lost or changed", lost, "objects", at_most(0), emulated=emulated)


def fill(store: tierstore.Store, size: int) -> tuple[list[str], tuple[float, float]]:
    """Put KEEP blocks of 1 MiB; their keys, and the sums of the first and the last."""
    data = [batch(MIB, seed) for seed in range(7)]
    keys = [f"block/{index:06d}" for index in range(size // MIB)]
    for index, key in enumerate(keys):
        store.put(key, data[index % 7], keep=True)
    return keys, (sum_table(data[0]), sum_table(data[(len(keys) - 1) % 7]))


def kill_and_restart(node: Node, keys: list[str], sums: tuple[float, float]) -> tuple[float, float, int]:
    """Seconds until a client is accepted and until all is there, and how many objects are not."""
    began = time.perf_counter()
    node.kill()
    node.start()
    store = node.connect(poll_s=0.002)
    try:
        accepted = time.perf_counter() - began
        same = [
            same_sum(sum_table(store.get(key)), total) for key, total in zip((keys[0], keys[-1]), sums, strict=True)
        ]
        missing = sum(key not in store for key in keys)
        elapsed = time.perf_counter() - began
    finally:
        store.close()
    return accepted, elapsed, missing + same.count(False)
