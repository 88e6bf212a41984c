"""Where the pieces are while k-means runs over them, and how one such run is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from . import kmeans
from .demo_executor import Share, Steps, Store
from .demo_input import Group, Input
from .demo_process import Daemon, DemoError, Team
from .demo_report import TIERS, Measured

MARGIN_BYTES = 256 << 20  # of a tier that must hold everything: partly filled segments, and free ones to move blocks
SETTLE_SECONDS_MAX = 30.0
_SETTLE_POLL_S = 0.1


@dataclass(frozen=True)
class Placement:
    """One way to keep the data. tiers: of the store, fastest first; empty without a store."""

    name: str
    label: str
    kind: str  # "store", "parquet" or "arrays", as in demo_executor.Share
    tiers: tuple[str, ...] = ()


PLACEMENTS = (
    Placement("dram", "all in DRAM", "store", ("dram",)),
    Placement("dram+pmem", "DRAM + PMem (emulated)", "store", ("dram", "pmem")),
    Placement("dram+disk", "DRAM + disk", "store", ("dram", "disk")),
    Placement("parquet", "no store (Parquet)", "parquet"),
)
REFERENCE = Placement("numpy", "plain NumPy arrays", "arrays")


class Job(NamedTuple):
    """What is computed, the same for every placement."""

    data: Input
    start: kmeans.Floats
    iterations: int


class Service(NamedTuple):
    """A store to measure: its client, where executors connect, and the processes that do its work."""

    client: Store
    socket: str
    pids: list[int]
    daemon: Daemon | None


Progress = Callable[[str, int, int], None]  # what, done, of how many


def serve_arguments(placement: Placement, job: Job, fast: Path, slow: Path) -> list[str]:
    """Tiers of the daemon; the last one holds everything, those above it only the DRAM budget."""
    whole = job.data.data_bytes + job.data.data_bytes // 6 + MARGIN_BYTES
    sizes = {"dram": job.data.dram_bytes if len(placement.tiers) > 1 else whole, "pmem": whole, "disk": whole}
    arguments = ["--dram", str(sizes["dram"])]
    if "pmem" in placement.tiers:
        arguments += ["--pmem", f"{fast / 'pmem'}:{sizes['pmem']}", "--pmem-profile", "none"]
    if "disk" in placement.tiers:
        (slow / "disk").mkdir(exist_ok=True)
        arguments += ["--disk", f"{slow / 'disk'}:{sizes['disk']}"]
    return arguments


def shares(placement: Placement, data: Input, size: int, socket: str) -> list[Share]:
    """Pieces of each executor: every size-th one; without a store to hold pieces, every size-th row group."""
    result = []
    for member in range(size):
        if placement.kind == "parquet":
            groups = data.groups[member::size]
            pieces = frozenset(piece for group in groups for piece in _pieces_of(group))
        else:
            pieces = frozenset(range(member, data.piece_count, size))
            groups = tuple(group for group in data.groups if pieces.intersection(_pieces_of(group)))
        result.append(Share(placement.kind, data.columns, groups, pieces, socket))
    return result


def _pieces_of(group: Group) -> range:
    return range(group.first_piece, group.first_piece + len(group.piece_rows))


def measure(placement: Placement, job: Job, team: Team, service: Service | None, progress: Progress) -> Measured:
    """Load the pieces, iterate, and count what was read from where; executors forget their pieces afterwards."""
    mine = shares(placement, job.data, team.size, service.socket if service else "")
    with ExitStack() as stack:
        team.watch(service.daemon if service else None)
        stack.callback(team.watch, None)
        team.call("open", [(share,) for share in mine])
        began = time.perf_counter()
        if placement.kind != "parquet":
            _load(placement, mine, team, progress)
        if service is not None:
            _settle(service.client)
        load_seconds = time.perf_counter() - began
        pids = team.pids() + (service.pids if service else [])
        disk_before, tiers_before = disk_bytes(pids), _tier_bytes(service)
        centroids, seconds, empty = iterate(job, team, progress)
        disk_after, tiers_after = disk_bytes(pids), _tier_bytes(service)
        team.call("close", [()] * team.size)
    served = {tier: tiers_after[tier] - tiers_before[tier] for tier in TIERS} if service else None
    return Measured(
        placement.name,
        placement.label,
        tuple(seconds),
        load_seconds,
        served,
        disk_after[0] - disk_before[0],
        disk_after[1] - disk_before[1],
        centroids,
        empty,
    )


def _load(placement: Placement, mine: Sequence[Share], team: Team, progress: Progress) -> None:
    """Row group by row group: into a store each once, into memory by everyone who has pieces of it."""
    groups = sorted({group for share in mine for group in share.groups}, key=lambda group: group.first_piece)
    for first in range(0, len(groups), team.size):
        part = groups[first : first + team.size]
        progress("load", first, len(groups))
        if placement.kind == "store":
            team.call("load", [([group],) for group in part])
        else:
            team.call("load", [(part,)] * team.size)
    progress("load", len(groups), len(groups))


def iterate(job: Job, team: Team, progress: Progress) -> tuple[kmeans.Floats, list[float], bool]:
    """Final centroids, seconds of each iteration, and whether a centroid was ever without rows."""
    centroids, seconds, empty = job.start, [], False
    for iteration in range(job.iterations):
        progress("iterate", iteration, job.iterations)
        began = time.perf_counter()
        answers = team.call("step", [(centroids,)] * team.size)
        total = kmeans.combine(_in_order(answers, job.data.piece_count), *centroids.shape)
        centroids = kmeans.moved_centroids(centroids, total)
        seconds.append(time.perf_counter() - began)
        empty = empty or bool((total.counts == 0).any())
        if int(total.counts.sum()) != job.data.row_count:
            raise DemoError(
                f"{int(total.counts.sum())} rows were seen in iteration {iteration}, "
                f"but the input has {job.data.row_count}"
            )
    progress("iterate", job.iterations, job.iterations)
    return centroids, seconds, empty


def _in_order(answers: Sequence[Steps], piece_count: int) -> Iterator[kmeans.Partial]:
    """Partial results by number of piece: the order of summation must not depend on who computed what."""
    by_piece = {
        piece: kmeans.Partial(sums, counts)
        for answer in answers
        for piece, sums, counts in zip(answer.pieces, answer.sums, answer.counts, strict=True)
    }
    if sorted(by_piece) != list(range(piece_count)):
        raise DemoError(f"results came for {len(by_piece)} of {piece_count} pieces")
    return (by_piece[piece] for piece in range(piece_count))


def disk_bytes(pids: Sequence[int]) -> tuple[int, int]:
    """Bytes these processes have fetched from and sent to block devices so far; a page-cache hit is neither."""
    read, written = 0, 0
    for pid in pids:
        try:
            fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
        except OSError as error:
            raise DemoError(f"process {pid} of the demo is gone ({error})") from error
        read += int(fields["read_bytes"])
        written += int(fields["write_bytes"])
    return read, written


def tier_bytes_read(stats: Any) -> dict[str, int]:
    """Bytes served to readers by each tier so far, all clients together; 0 for a tier that the store lacks."""
    tiers = stats["tiers"]
    return {tier: int(tiers[tier]["bytes_read"]) if tier in tiers else 0 for tier in TIERS}


def _tier_bytes(service: Service | None) -> dict[str, int]:
    return tier_bytes_read(service.client.stats()) if service else dict.fromkeys(TIERS, 0)


def _settle(client: Store) -> None:
    """Wait until no block moves between tiers any more, so that moving is not measured as reading."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    before = None
    while time.monotonic() < deadline:
        now = repr(client.stats()["tiers"])
        if now == before:
            return
        before = now
        time.sleep(_SETTLE_POLL_S)
