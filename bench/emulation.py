"""Does a tier that plays a slower device have that device's speed, for one process and for two together?

Blocks lie in the emulated tier. Processes take them with ``store.get`` and touch every page; the achieved rate is held
against the profile's. (Summing every value would measure this machine's memory for the faster profiles.) Latency is what
one look at a 64-byte value takes more than without a profile. Profiles that this machine cannot outrun are skipped:
nothing can be slowed down to be faster.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import tierstore
from tierstore.emulation import profiles

from .cgroup import NotPermittedError, disk_group
from .data import KIB, MIB, batch
from .harness import Bench, at_least, at_most
from .node import clients, folder, rate, serving, together

NAMES = ("optane100-1", "optane100-6", "optane200", "cxl-asic", "cxl-fpga", "cxl-x16", "numa-remote", "eadr")
DISKS = ("sata-ssd", "hdd")
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

    def fill(self, block_bytes: int, tier: str) -> None:
        """Put blocks and one small value into the tier."""
        for number in range(BLOCKS):
            self._store.put(f"block/{number}", batch(block_bytes, number), keep=True)
            self._store.pin(f"block/{number}", tier)
        self._store.put_bytes("value", b"v" * 64, keep=True)
        self._store.pin("value", tier)

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
    run_disks(bench, block_bytes, seconds, rounds)


def run_disks(bench: Bench, block_bytes: int, seconds: float, rounds: int) -> None:
    """The slow disks, played by waiting, and by the kernel's throttle for all processes of a control group."""
    plain = measure_disk((), None, block_bytes, seconds, rounds)
    for name in DISKS if not bench.smoke else DISKS[:1]:
        profile = profiles.load(name)
        target, label = profile.read_bytes_per_s, f"disk: {profiles.label(profile)}"
        for way in ("injected", "control group"):
            what = f"{name}: rate / {target / 1e9:.2f} GB/s, two processes, {way}"
            if max(plain) < REACH * target / 1e9:
                bench.skip(what, f"this disk reaches {max(plain):.2f} GB/s, too little to be slowed down")
                continue
            try:
                if way == "injected":
                    found = measure_disk(("--disk-profile", name), None, block_bytes, seconds, rounds)
                else:
                    with folder() as place, disk_group(name, place, target) as group:
                        found = measure_disk((), group, block_bytes, seconds, rounds)
            except NotPermittedError as error:
                bench.skip(what, str(error))
                continue
            bench.report(
                what, [value * 1e9 / target for value in found], "x", at_least(0.95), "the profile's rate", label
            )


def measure_disk(
    options: tuple[str, ...], group: Path | None, block_bytes: int, seconds: float, rounds: int
) -> list[float]:
    """Rates in GB/s at which two processes together read from the disk tier."""
    segment = max(MIB, 2 * block_bytes)  # each block in one piece: one access
    size = 2 * BLOCKS * block_bytes + 8 * segment
    tiers = ("--dram", str(max(64 * MIB, 8 * segment)), "--disk", f"{{disk}}/blocks:{size}", "--segment", str(segment))
    with serving(*tiers, *options, group=group) as node:
        node.connect().close()
        with clients("emulation.EmulatedReader", 2, group) as members:
            together(members, "open", socket=node.socket)
            members[0].call("fill", block_bytes=block_bytes, tier="disk")
            together(members, "scan", seconds=seconds)  # what may be read at once at first is used up
            return [rate(together(members, "scan", seconds=seconds)) / 1e9 for _ in range(rounds)]


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
            members[0].call("fill", block_bytes=block_bytes, tier="pmem")
            together(members, "scan", seconds=0.1)
            for _ in range(rounds):
                samples["one"].append(rate([members[0].call("scan", seconds=seconds)]) / 1e9)
                samples["two"].append(rate(together(members, "scan", seconds=seconds)) / 1e9)
                samples["look"].append(members[0].call("look", times=looks))
    return samples
