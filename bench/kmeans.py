"""What does k-means cost over DRAM and (emulated) PMem, against the same kernel over plain NumPy arrays?

The executors, the kernel and the data are those of ``tierstore demo``; a quarter of the data fits into the DRAM tier.
Two teams of two processes hold the same pieces, one in the store and one in arrays, and do one iteration each in turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tierstore.service import demo_input, kmeans
from tierstore.service.datagen import spec_for
from tierstore.service.demo_executor import Share
from tierstore.service.demo_placement import PLACEMENTS, REFERENCE, Job, iterate, shares
from tierstore.service.demo_process import ProcessTeam

from .data import GIB, MIB
from .harness import Bench, at_most, in_turns, ratios
from .node import connected, folder, serving

EXECUTORS, CENTROIDS, DIMENSIONS = 2, 10, 20
PLACEMENT = next(placement for placement in PLACEMENTS if placement.name == "dram+pmem")


def run(bench: Bench) -> None:
    """Iterations of both in turns."""
    size = bench.parameter("bytes", 64 * MIB, GIB + GIB // 2)
    iterations = bench.parameter("iterations", 2, 15)
    whole = size + size // 6 + 256 * MIB
    options = ("--dram", str(size // 4), "--pmem", f"{{memory}}/pmem:{whole}", "--pmem-profile", "none")
    ours, theirs = ProcessTeam(EXECUTORS), ProcessTeam(EXECUTORS)
    try:
        with folder() as files, serving(*options) as node, connected(node) as store:
            job = prepare(ours, files, size)
            load(ours, shares(PLACEMENT, job.data, EXECUTORS, node.socket), shared=True)
            load(theirs, shares(REFERENCE, job.data, EXECUTORS, ""), shared=False)
            node.settle(store)
            measure(bench, job, {"store": ours, "arrays": theirs}, iterations)
            tiers = store.stats()["tiers"]
            bench.report("bytes of the data in PMem", tiers["pmem"]["live_bytes"] / MIB, "MiB", emulated="pmem: tmpfs")
    finally:
        ours.close()
        theirs.close()


def prepare(team: ProcessTeam, files: Path, size: int) -> Job:
    """Gaussian clusters in Parquet files, and the centroids to start from."""
    spec = spec_for(size, DIMENSIONS)
    team.call("warm_up", [()])
    team.call("warm_up", [()] * team.size)
    paths: list[str] = []
    for first in range(0, spec.file_count, team.size):
        numbers = range(first, min(first + team.size, spec.file_count))
        paths += [path for answer in team.call("write", [(str(files), spec, [n]) for n in numbers]) for path in answer]
    planned = demo_input.plan(paths, (), size, size // 4)
    (surveys,) = team.call("survey", [(list(planned.groups), planned.columns, spec.seed)])
    data = demo_input.number_pieces(planned, [survey.group for survey in surveys])
    start = demo_input.choose_start([survey.candidates for survey in surveys], CENTROIDS, spec.seed)
    return Job(data, start, 1)


def load(team: ProcessTeam, mine: Sequence[Share], shared: bool) -> None:
    """Bring the pieces to where they are worked on: into a store each once, into memory by everyone who needs them."""
    team.call("open", [(share,) for share in mine])
    groups = sorted({group for share in mine for group in share.groups}, key=lambda group: group.first_piece)
    for first in range(0, len(groups), team.size):
        part = groups[first : first + team.size]
        team.call("load", [([group],) for group in part] if shared else [(part,)] * team.size)


def measure(bench: Bench, job: Job, teams: dict[str, ProcessTeam], iterations: int) -> None:
    """One iteration each in turns, from the same centroids; both must find the same."""
    centroids: dict[str, kmeans.Floats] = dict.fromkeys(teams, job.start)

    def one(name: str) -> float:
        step = job._replace(start=centroids[name])
        centroids[name], seconds, _ = iterate(step, teams[name], lambda what, done, total: None)
        return seconds[0]

    for name in teams:
        one(name)
    samples = in_turns({name: partial(one, name) for name in teams}, iterations)
    difference = kmeans.relative_difference(centroids["store"], centroids["arrays"])
    emulated = "pmem: tmpfs, profile none"
    bench.report("seconds per iteration, DRAM + PMem", samples["store"], "s", emulated=emulated)
    bench.report("seconds per iteration, plain NumPy", samples["arrays"], "s")
    bench.report(
        "DRAM + PMem / plain NumPy",
        ratios(samples["store"], samples["arrays"]),
        "x",
        at_most(1.10),
        "the same kernel over NumPy arrays in two processes, in turns",
        emulated,
    )
    bench.report("largest relative difference of centroids", difference, "", at_most(1e-9), "plain NumPy")
