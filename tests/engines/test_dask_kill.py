"""Workers that are killed in the middle of a shuffle: right rows, and only what they were running is run again."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tierstore.emulation.procs import Daemon

psutil = pytest.importorskip("psutil")
dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask.dataframe as dd  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402

import tierstore.dask  # noqa: E402

# With the soak: now and then a killed worker is not replaced by its nanny, and the test waits for ever.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow, pytest.mark.soak]

PARTS, ROWS = 6, 400


def rows_of(number: int) -> pd.DataFrame:
    n = np.arange(number * ROWS, (number + 1) * ROWS)
    return pd.DataFrame({"k": n * 7919 % 101, "x": n * 3})


def input_of(number: int, folder: str) -> pd.DataFrame:
    """An input partition; notes that it was made, and kills its worker if that is asked for, once."""
    note(folder, f"input {number}")
    die(folder, f"input {number}")
    return rows_of(number)


def slow(part: pd.DataFrame, folder: str) -> pd.DataFrame:
    """What is done with an output partition."""
    note(folder, "output")
    die(folder, "output")
    time.sleep(0.05)
    return part


def note(folder: str, what: str) -> None:
    with open(Path(folder) / "notes", "a") as file:
        file.write(f"{what}\n")


def die(folder: str, when: str) -> None:
    if (Path(folder) / when).exists():
        (Path(folder) / when).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


def notes(folder: Path) -> Counter[str]:
    return Counter((folder / "notes").read_text().split("\n"))


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Nannies replace the workers that tests kill; all of them live until the module ends, which looks for what is left."""


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}, set(os.listdir("/dev/shm"))
    yield
    deadline = time.monotonic() + 10
    while True:
        gc.collect()
        left = {child.pid for child in psutil.Process().children(recursive=True)} - before[0] - helpers()
        files = {name for name in set(os.listdir("/dev/shm")) - before[1] if f"-{os.getpid()}-" in name}
        if not left and not files:
            return
        assert time.monotonic() < deadline, (left, files)
        time.sleep(0.1)


def helpers() -> set[int]:
    """Processes that multiprocessing keeps."""
    return {p.pid for p in psutil.Process().children() if "resource_tracker" in " ".join(p.cmdline())}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    made = Daemon(tmp_path_factory.mktemp("daemon"), "--dram", "32MiB", "--ephemeral")
    try:
        yield made.start()
    finally:
        made.end()


@pytest.fixture(scope="module")
def client(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Two workers that are processes, with nannies."""
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    options["local_directory"] = str(tmp_path_factory.mktemp("workers"))
    settings = {
        "distributed.worker.preload": ["tierstore.dask"],
        "dataframe.shuffle.method": "tierstore",
        "distributed.scheduler.worker-saturation": 1.0,
    }
    os.environ["TIERSTORE_SOCKET"] = daemon.socket
    try:
        with dask.config.set(settings), LocalCluster(**options) as cluster, Client(cluster) as made:
            tierstore.dask.register(made)
            yield made
    finally:
        del os.environ["TIERSTORE_SOCKET"]
        tierstore.dask.close()
        tierstore.dask.unregister()


def shuffled(folder: Path) -> Any:
    frame = dd.from_map(input_of, range(PARTS), folder=str(folder), meta=rows_of(0)[:0])
    return frame.shuffle("k", npartitions=4).map_partitions(slow, str(folder), meta=rows_of(0)[:0])


def check(found: pd.DataFrame) -> None:
    """Row count and checksum, then every row."""
    whole = pd.concat([rows_of(number) for number in range(PARTS)])
    assert len(found) == len(whole) and found["x"].sum() == whole["x"].sum()
    pd.testing.assert_frame_equal(found.sort_values("x").reset_index(drop=True), whole.reset_index(drop=True))


def gone(daemon: Daemon) -> bool:
    with daemon.connect() as store:
        return not store._control.call("shuffle_list")


def finish(daemon: Daemon) -> None:
    deadline = time.monotonic() + 20
    while not gone(daemon):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with daemon.connect() as store:
        report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


@pytest.mark.parametrize("number", [0, PARTS - 1])
def test_killed_before_a_transfer(client: Client, daemon: Daemon, tmp_path: Path, number: int) -> None:
    client.wait_for_workers(2)
    (tmp_path / f"input {number}").touch()
    check(shuffled(tmp_path).compute())
    found = notes(tmp_path)
    # What was running, and at most one input whose transfer had not begun on the killed worker.
    assert found[f"input {number}"] == 2
    assert sum(count for what, count in found.items() if what.startswith("input")) <= PARTS + 2
    finish(daemon)


def test_killed_at_the_barrier(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    client.wait_for_workers(2)
    frame = shuffled(tmp_path).persist()
    while (tmp_path / "notes").exists() is False or sum(c for w, c in notes(tmp_path).items() if "input" in w) < PARTS:
        time.sleep(0.005)
    (pid, *_) = client.run(os.getpid).values()
    os.kill(pid, signal.SIGKILL)
    check(frame.compute())
    found = notes(tmp_path)
    assert sum(count for what, count in found.items() if what.startswith("input")) <= PARTS + 1
    del frame
    finish(daemon)


def test_killed_in_an_unpack(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    client.wait_for_workers(2)
    (tmp_path / "output").touch()
    check(shuffled(tmp_path).compute())
    found = notes(tmp_path)
    assert {what: count for what, count in found.items() if what.startswith("input")} == {
        f"input {number}": 1 for number in range(PARTS)
    }
    finish(daemon)


def test_daemon_killed(client: Client, daemon: Daemon, tmp_path: Path) -> None:
    client.wait_for_workers(2)
    frame = shuffled(tmp_path).persist()
    while not (tmp_path / "notes").exists():
        time.sleep(0.005)
    daemon.kill()
    daemon.start()
    check(frame.compute())
    del frame
    finish(daemon)
