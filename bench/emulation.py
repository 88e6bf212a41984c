"""Does a tier that plays a slower device have that device's speed, for one process and for two together?

Blocks lie in the emulated tier. Processes take them with ``store.get`` and touch every page; the achieved rate is held
against the profile's. (Summing every value would measure this machine's memory for the faster profiles.) Latency is what
one look at a 64-byte value takes more than without a profile. Profiles that this machine cannot outrun are skipped:
nothing can be slowed down to be faster.
"""

from __future__ import annotations

import time
from typing import Any

import tierstore
from tierstore.emulation import profiles

from .data import KIB, MIB, batch
from .harness import Bench, at_least, at_most
from .node import clients, rate, serving, together

NAMES = ("optane100-1", "optane100-6", "optane200", "cxl-asic", "cxl-fpga", "cxl-x16", "numa-remote", "eadr")
BLOCKS = 16
PAGE_VALUES = 512
# What a machine must be faster than a device, to be slowed down to it.
REACH = 1.25


class EmulatedReader:
    """A process that reads blocks and values from the emulated tier."""

    def __init__(self) -> None:
        self._store: Any = None

    def open(self, socket: str) -> None:
        """Connect."""
        self._store = tierstore.connect(socket)

    def fill(self, block_bytes: int) -> None:
        """Put blocks and one small value into the tier."""
        for number in range(BLOCKS):
            self._store.put(f"block/{number}", batch(block_bytes, number), keep=True)
            self._store.pin(f"block/{number}", "pmem")
        self._store.put_bytes("value", b"v" * 64, keep=True)
        self._store.pin("value", "pmem")

    def scan(self, seconds: float) -> dict[str, float]:
        """Sum blocks, over and over, for so long."""
        begin, done = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            for number in range(BLOCKS):
                table = self._store.get(f"block/{number}")
                for column in table.columns:
                    column.chunk(0).to_numpy()[::PAGE_VALUES].sum()
                done += table.nbytes
        return {"begin": begin, "end": time.perf_counter(), "count": done}

    def look(self, times: int) -> float:
        """Nanoseconds that one look at the small value takes, the best of ten runs."""
        best = float("inf")
        for _ in range(10):
            began = time.perf_counter_ns()
            for _ in range(times // 10):
                self._store.get_bytes("value")
            best = min(best, (time.perf_counter_ns() - began) / (times // 10))
        return best


def run(bench: Bench) -> None:
    """First without a profile, then every profile that this machine can reach."""
    block_bytes = bench.parameter("block_bytes", 256 * KIB, 8 * MIB)
    seconds = bench.parameter("seconds", 0.2, 2.0)
    rounds = bench.parameter("rounds", 1, 5)
    looks = bench.parameter("looks", 1_000, 50_000)
    plain = measure(bench, "none", block_bytes, seconds, rounds, looks)
    for name in NAMES if not bench.smoke else NAMES[:1]:
        profile = profiles.load(name)
        target, label = profile.read_bytes_per_s, f"pmem: tmpfs, {profiles.label(profile)}"
        found = measure(bench, name, block_bytes, seconds, rounds, looks)
        added = min(found["look"]) - min(plain["look"])
        allowed = max(50.0, 0.15 * profile.added_read_latency_ns)
        what = f"{name}: added latency off its target of {profile.added_read_latency_ns:.0f} ns"
        bench.report(what, abs(added - profile.added_read_latency_ns), "ns", at_most(allowed), emulated=label)
        for processes in ("one", "two"):
            what = f"{name}: rate / {target / 1e9:.1f} GB/s, {processes} process{'es' if processes == 'two' else ''}"
            if max(plain[processes]) < REACH * target / 1e9:
                bench.skip(what, f"this machine reaches {max(plain[processes]):.1f} GB/s, too little to be slowed down")
                continue
            ratios = [value * 1e9 / target for value in found[processes]]
            bench.report(what, ratios, "x", at_least(0.95), "the profile's rate; at most 1.05", label)


def measure(
    bench: Bench, profile: str, block_bytes: int, seconds: float, rounds: int, looks: int
) -> dict[str, list[float]]:
    """Rates in GB/s of one process and of two, and nanoseconds of a look."""
    size = BLOCKS * block_bytes
    options = ("--dram", str(max(64 * MIB, 6 * block_bytes)), "--pmem-profile", profile)
    samples: dict[str, list[float]] = {"one": [], "two": [], "look": []}
    with serving(*options, "--pmem", f"{{memory}}/pmem:{2 * size + 64 * MIB}") as node:
        node.connect().close()
        with clients("emulation.EmulatedReader", 2) as members:
            together(members, "open", socket=node.socket)
            members[0].call("fill", block_bytes=block_bytes)
            together(members, "scan", seconds=0.1)
            for _ in range(rounds):
                samples["one"].append(rate([members[0].call("scan", seconds=seconds)]) / 1e9)
                samples["two"].append(rate(together(members, "scan", seconds=seconds)) / 1e9)
                samples["look"].append(members[0].call("look", times=looks))
    return samples
