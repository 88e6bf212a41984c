"""Is a shuffle through the store as fast as one through files in memory, and how near is the network to a bare socket?

Two map processes write, then two reduce processes read back, partition by partition; a daemon in its own process. See
shuffle_tasks.py for what the processes do and for the files they are compared with, shuffle_push.py for writing against
pushing, shuffle_remote.py for reading from another node, shuffle_books.py for what manifests cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tierstore

from .data import GIB, MIB
from .harness import Bench, Target, at_least, at_most, ratios
from .node import MEMORY, Client, Node, clients, connected, folder, serving, together
from .shuffle_books import time_books
from .shuffle_push import time_push
from .shuffle_remote import time_remote
from .shuffle_tasks import ROW_BYTES, remove_runs, written_bytes

TASKS = 2
PLAYED = "PMem played by tmpfs, profile none"
FILES = "Arrow IPC files in /dev/shm by the same kernels, without checks, in turns"


class WrongRowsError(Exception):
    """What was read is not what was written."""


@dataclass
class Phases:
    """Seconds of each round."""

    write: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)

    @property
    def whole(self) -> list[float]:
        """Both."""
        return [a + b for a, b in zip(self.write, self.read, strict=True)]


@dataclass
class Teams:
    """The processes, and what they must find."""

    maps: list[Client]
    reduces: list[Client]
    times: int  # how often each map task writes its batches
    bytes: int = 0
    oracles: dict[int, dict[str, list[int]]] = field(default_factory=dict)
    number: int = 0  # of the next shuffle
    disk: int = 0  # bytes that the map tasks had written to storage

    def oracle(self, partitions: int) -> dict[str, list[int]]:
        """Rows and sums of each partition, over all maps."""
        if partitions not in self.oracles:
            found = together(self.maps, "expected", partitions=partitions, times=self.times)
            rows = [sum(values) for values in zip(*(one["rows"] for one in found), strict=True)]
            sums = [sum(values) & (1 << 64) - 1 for values in zip(*(one["sums"] for one in found), strict=True)]
            self.oracles[partitions] = {"rows": rows, "sums": sums}
        return self.oracles[partitions]

    @contextmanager
    def connected(self, node: Node) -> Iterator[tierstore.Store]:
        """All processes, and this one, with one daemon."""
        members = [*self.maps, *self.reduces]
        with connected(node) as store:
            together(members, "connect", socket=node.socket)
            yield store
            together(members, "disconnect", socket=node.socket)

    def map(self, command: str, **arguments: Any) -> list[dict[str, Any]]:
        """All map tasks at once."""
        for index, member in enumerate(self.maps):
            member.send(command, map_index=index, times=self.times, **arguments)
        return [member.receive() for member in self.maps]

    def reduce(self, command: str, partitions: int, **arguments: Any) -> list[dict[str, Any]]:
        """All reduce tasks at once, each its share of the partitions; raises where anything is missing or wrong."""
        cuts = [partitions * index // len(self.reduces) for index in range(len(self.reduces) + 1)]
        for index, member in enumerate(self.reduces):
            member.send(command, partitions=partitions, first=cuts[index], last=cuts[index + 1], **arguments)
        found = [member.receive() for member in self.reduces]
        for name, expected in self.oracle(partitions).items():
            if [value for one in found for value in one[name]] != expected:
                raise WrongRowsError(f"{command}: {name} of partitions differ from those written")
        return found


def span(found: list[dict[str, Any]]) -> float:
    """From the first start to the last end."""
    return float(max(one["end"] for one in found) - min(one["begin"] for one in found))


def over_store(teams: Teams, node: Node, store: tierstore.Store, partitions: int, phases: Phases) -> None:
    """One shuffle through a daemon, dropped afterwards."""
    teams.number += 1
    with store.shuffle("bench", teams.number, partitions) as shuffle:
        written = teams.map("write_store", socket=node.socket, number=teams.number, partitions=partitions)
        receipts = [one["receipt"] for one in written]
        read = teams.reduce("read_store", partitions, socket=node.socket, number=teams.number, receipts=receipts)
        shuffle.drop()
    teams.disk += sum(one["disk"] for one in written)
    node.settle(store)
    phases.write.append(span(written))
    phases.read.append(span(read))


def over_files(teams: Teams, place: Path, partitions: int, phases: Phases) -> None:
    """One shuffle through files, deleted afterwards."""
    try:
        written = teams.map("write_files", folder=str(place), partitions=partitions)
        read = teams.reduce("read_files", partitions, folder=str(place))
    finally:
        remove_runs(place)
    phases.write.append(span(written))
    phases.read.append(span(read))


@contextmanager
def teams_of(bench: Bench) -> Iterator[Teams]:
    """Two processes of maps and two of reduces, with their batches."""
    size = bench.parameter("bytes", 64 * MIB, 4 * GIB)
    pool = bench.parameter("batches_bytes", 16 * MIB, 512 * MIB) // TASKS
    batch = bench.parameter("batch_bytes", 2 * MIB, 4 * MIB)
    with ExitStack() as stack:
        maps = stack.enter_context(clients("shuffle_tasks.MapTask", TASKS))
        reduces = stack.enter_context(clients("shuffle_tasks.ReduceTask", TASKS))
        times = size // TASKS // pool
        rows = [
            member.call("prepare", seed=seed, pool_bytes=pool, batch_bytes=batch) for seed, member in enumerate(maps)
        ]
        yield Teams(maps, reduces, times, sum(rows) * ROW_BYTES * times)


def run(bench: Bench) -> None:
    """Rows against files, then what only the store has."""
    rounds = bench.parameter("rounds", 1, 5)
    with teams_of(bench) as teams:
        time_dram(bench, teams, rounds)
        time_pmem(bench, teams, rounds)
    time_push(bench, rounds)
    time_remote(bench, rounds)
    time_books(bench)


def report_phases(
    bench: Bench, what: str, ours: Phases, theirs: Phases, target: Target, baseline: str, **more: Any
) -> None:
    """The whole against the target, and its two parts."""
    bench.report(f"{what}: write, commit, read back", ratios(theirs.whole, ours.whole), "x", target, baseline, **more)
    bench.report(f"{what}: write and commit alone", ratios(theirs.write, ours.write), "x", None, baseline, **more)
    bench.report(f"{what}: read back alone", ratios(theirs.read, ours.read), "x", None, baseline, **more)


def time_dram(bench: Bench, teams: Teams, rounds: int) -> None:
    """All data in dram, against files."""
    dram = bench.parameter("dram_bytes", 128 * MIB, 5 * GIB)
    with serving("--dram", str(dram)) as node, teams.connected(node) as store, folder(MEMORY) as place:
        for partitions in (200, 2000):
            ours, theirs = Phases(), Phases()
            over_store(teams, node, store, partitions, Phases())  # enters the arena into page tables
            for _ in range(rounds):
                over_store(teams, node, store, partitions, ours)
                over_files(teams, place, partitions, theirs)
            what = f"dram, {partitions:,} partitions"
            report_phases(bench, what, ours, theirs, at_least(1.0), FILES)
            for name, phases in (("store", ours), ("files", theirs)):
                speed = [teams.bytes / value / 1e9 for value in phases.whole]
                bench.report(f"{what}: bytes shuffled a second, {name}", speed, "GB/s")


def time_pmem(bench: Bench, teams: Teams, rounds: int) -> None:
    """Data four times the dram budget with pmem below, against all of them in dram."""
    dram, partitions = teams.bytes // 4 // MIB * MIB, 200
    below = f"{{memory}}/pmem:{teams.bytes + teams.bytes // 4 + 64 * MIB}"
    # By default a segment is larger where there is more dram: runs of another size, for another reason than the tiers.
    segment = ("--segment", str(bench.parameter("pmem_segment_bytes", MIB, 32 * MIB)))
    enough = str(bench.parameters["dram_bytes"])
    warm = bench.parameter("pmem_warm_rounds", 1, 3)
    with (
        serving("--dram", enough, *segment) as large,
        serving("--dram", str(dram), "--pmem", below, *segment) as small,
        teams.connected(large) as all_dram,
        teams.connected(small) as tiered,
    ):
        all_in_dram, four_times = Phases(), Phases()
        for _ in range(warm):  # enters both arenas into page tables
            over_store(teams, large, all_dram, partitions, Phases())
            over_store(teams, small, tiered, partitions, Phases())
        before, teams.disk = written_bytes(small.pid), 0
        for _ in range(rounds):
            over_store(teams, large, all_dram, partitions, all_in_dram)
            over_store(teams, small, tiered, partitions, four_times)
        disk = written_bytes(small.pid) - before + teams.disk
    what = "data 4 times dram, pmem below, 200 partitions"
    baseline = "the same data all in dram, segments of the same size, in turns"
    report_phases(bench, what, four_times, all_in_dram, at_least(0.8), baseline, emulated=PLAYED)
    bench.report(f"{what}: written to disk", disk, "bytes", at_most(0), "by daemon and map tasks", emulated=PLAYED)
