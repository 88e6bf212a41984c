"""For the benchmarks of Dask: a cluster of two workers of one thread, what it wrote, and rows of what may not finish."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .harness import Bench, Target, at_least, ratios
from .node import serving

MIB = 1 << 20
PMEM = "tierstore, PMem"  # kind of a cluster, beside "spill", "memory", "p2p" and "tierstore"
UNFINISHED = math.inf  # seconds of what did not end within its limit
SAMPLE_S = 0.1
DIMENSIONS = 20


def missing() -> str:
    """Why there is no Dask here; empty if there is."""
    try:
        import dask.dataframe
        import distributed
    except ImportError as error:
        return f"{error}: pip install 'tierstore[dask]'"
    assert dask.dataframe and distributed
    return ""


class Case(NamedTuple):
    """What is measured in one way or another. limit_mib: of each worker; 0: none."""

    path: Path
    name: str
    size_mib: int
    limit_mib: int
    rounds: int
    limit_s: float


def _store_options(kind: str, size_mib: int) -> list[str]:
    """Room for all: in DRAM, or most of it in PMem."""
    if kind == PMEM:
        return ["--dram", f"{max(64, size_mib // 4)}MiB", "--pmem", f"{{memory}}/pmem:{max(256, 2 * size_mib)}MiB"]
    return ["--dram", f"{max(256, 2 * size_mib)}MiB"]


@contextmanager
def cluster(case: Case, kind: str, limit_mib: int) -> Iterator[Any]:
    """A client of two workers of one thread; with a daemon that has room for all."""
    import dask
    from distributed import Client, LocalCluster

    import tierstore.dask

    settings: dict[str, Any] = {"distributed.worker.preload": ["tierstore.dask"] if kind in ("tierstore", PMEM) else []}
    settings["distributed.worker.memory.terminate"] = False  # else Dask's own spilling is killed before it has begun
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    options |= {"local_directory": str(case.path / "workers"), "memory_limit": limit_mib * MIB or 0}
    with ExitStack() as stack:
        store = stack.enter_context(serving(*_store_options(kind, case.size_mib)))
        os.environ["TIERSTORE_SOCKET"] = store.socket
        stack.callback(os.environ.pop, "TIERSTORE_SOCKET")
        stack.enter_context(dask.config.set(settings))
        client = stack.enter_context(Client(stack.enter_context(LocalCluster(**options))))
        tierstore.dask.register(client)
        stack.callback(tierstore.dask.unregister)
        yield client


class LocalBytes:
    """The most that lay in the workers' directories at one time, as far as one look every 0.1 s shows it."""

    def __init__(self, path: Path):
        self.most, self._path, self._stop = 0, path / "workers", threading.Event()
        self._thread = threading.Thread(target=self._watch, name="bench-local", daemon=True)

    def __enter__(self) -> LocalBytes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            self.most = max(self.most, sum(map(_size, self._path.rglob("*"))))


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        return path.stat().st_size if path.is_file() else 0
    return 0


def report_times(bench: Bench, figure: str, samples: list[float], case: Case, note: str = "") -> None:
    """Seconds; or that it did not finish."""
    if UNFINISHED in samples:
        bench.skip(figure, f"did not finish in {case.limit_s:g} s", "unfinished")
    else:
        bench.report(figure, samples, "s", None, note)


def report_ratio(
    bench: Bench, figure: str, above: list[float], below: list[float], target: Target, note: str, limit_s: float
) -> None:
    """Times by which one is longer than the other, where both finished."""
    if UNFINISHED in above or UNFINISHED in below:
        bench.skip(figure, f"one did not finish in {limit_s:g} s", "unfinished")
    else:
        bench.report(figure, ratios(above, below), "times", target, note)


def report_faster(
    bench: Bench, figure: str, theirs: list[float], ours: list[float], limit_s: float, least: float, note: str
) -> None:
    """How many times faster than Dask alone; at least, where that did not finish."""
    if UNFINISHED in ours:
        bench.skip(figure, f"ours did not finish in {limit_s:g} s", "failed")
        return
    if UNFINISHED in theirs:
        note = f"{note}; which did not finish in {limit_s:g} s: at least so many times"
    bench.report(figure, ratios([min(sample, limit_s) for sample in theirs], ours), "times", at_least(least), note)


def written_by(client: Any) -> int:
    """Bytes that the workers have written so far, to files and sockets, as the kernel counts them."""

    def written() -> int:
        with open("/proc/self/io", encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("write_bytes")).split()[1])

    return sum(client.run(written).values())
