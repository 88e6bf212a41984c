"""Tiers on a file system that is smaller than they were told: right rows or a clear error, and nothing is left behind."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import tierstore
from tierstore.service.store import Store

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask.dataframe as dd  # noqa: E402

import tierstore.dask  # noqa: E402
from tierstore.emulation.dask_cluster import until  # noqa: E402
from tierstore.engines.dask_data import TierBuffer, TierSlow  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")

MIB = 1 << 20
ROOM_BYTES = 24 * MIB  # of the file system; tiers on it are told twice that
WAIT_S = 2.0  # for a segment, before a store is full
ARRAY = np.random.default_rng(1).random(2 * MIB // 8)


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(command)}: {done.stderr.strip()}")


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own."""
    if os.geteuid():
        pytest.skip("mounting a file system takes root")
    folder, image = tmp_path / "small", tmp_path / "image"
    folder.mkdir()
    if request.param == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tierstore-test", str(folder))
    else:
        with open(image, "wb") as file:
            file.truncate(ROOM_BYTES)
        run("mkfs.ext4", "-q", "-F", str(image))
        run("mount", "-o", "loop", str(image), str(folder))
    try:
        yield folder
    finally:
        gc.collect()  # mappings of files there
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(params=["pmem", "disk"])
def store(request: pytest.FixtureRequest, small: Path) -> Iterator[Store]:
    """A store whose last tier is larger than its file system. Verified after the test, and empty of shuffles."""
    place = small / ("arena" if request.param == "pmem" else "")
    made = tierstore.open(**{"dram": "8MiB", "segment": "1MiB", request.param: f"{place}:{2 * ROOM_BYTES}"})
    made.shuffle("first", 0, 1).end_app()
    made._session.lease_wait_s = WAIT_S
    tierstore.dask.use(made)
    try:
        yield made
        assert gone(made) and not made.keys("shuffle/")
        report = made.verify(payloads=True)
        assert report["ok"], report["problems"]
    finally:
        tierstore.dask.use(None)
        tierstore.dask.unregister()
        made.close()


@pytest.fixture
def slow(store: Store) -> Iterator[TierSlow]:
    made = TierSlow(lambda: store)
    yield made
    made.close()


def test_worker_data(slow: TierSlow, caplog: pytest.LogCaptureFixture) -> None:
    """What fits is in the store, the rest stays in the worker's memory; all of it comes back. Room that is freed is used."""
    caplog.set_level("CRITICAL", "distributed.spill")  # what is logged of an error holds the store
    buffer = TierBuffer(slow, ARRAY.nbytes // 2)
    count = 2 * ROOM_BYTES // ARRAY.nbytes
    for number in range(count):
        buffer[number] = ARRAY + number
    assert buffer.memory and buffer.disk and len(buffer) == count
    assert sum(value.nbytes for value in buffer.memory.values()) > ROOM_BYTES // 2
    for number in range(count):
        np.testing.assert_array_equal(buffer[number], ARRAY + number)
    for key in list(buffer.disk):
        del buffer[key]
    gc.collect()
    slow._full_until = 0.0
    assert buffer.evict() > 0
    for key in list(buffer):
        np.testing.assert_array_equal(buffer[key], ARRAY + key)


def part_of(number: int, rows: int) -> pd.DataFrame:
    """An input partition: keys, and a number of each row."""
    n = np.arange(number * rows, (number + 1) * rows)
    return pd.DataFrame({"k": n * 7919 % 101, "n": n, "x": np.random.default_rng(number).random(rows)})


def gone(store: Store) -> bool:
    """Whether the store has no shuffle. The one that failed goes with its last task and the frames of its errors."""
    gc.collect()
    return not store._control.call("shuffle_list")


def shuffled(parts: int, rows: int) -> Any:
    return dd.from_map(part_of, range(parts), rows=rows).shuffle("k", npartitions=4, shuffle_method="tierstore")


def all_rows(parts: int, rows: int) -> None:
    found = shuffled(parts, rows).compute().sort_values("n").reset_index(drop=True)
    expected = pd.concat([part_of(number, rows) for number in range(parts)], ignore_index=True)
    pd.testing.assert_frame_equal(found, expected)


def test_shuffles(store: Store) -> None:
    """One that fits has all rows; one that does not says so, and takes no room from the next."""
    tierstore.dask.register()
    with dask.config.set(scheduler="threads", num_workers=2):
        all_rows(4, 100_000)  # 10 MB
        with pytest.raises(tierstore.Full, match="no segment became free"):
            shuffled(24, 100_000).compute()
        until(lambda: gone(store))
        all_rows(4, 100_000)
