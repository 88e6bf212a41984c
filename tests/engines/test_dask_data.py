"""Workers' data in the store: Dask's and zict's own rules for such mappings, read in place, nothing left behind."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import tierstore
from tierstore.service.store import Store

dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

import dask.array as da  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402
from distributed.spill import MaxSpillExceeded, PickleError, SpilledSize  # noqa: E402
from zict.tests import utils_test as zict_checks  # noqa: E402

import tierstore.dask  # noqa: E402
from tierstore.engines import dask_worker, node_daemon  # noqa: E402
from tierstore.engines.dask_data import TierBuffer, TierSlow  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def slow(tiered: Store) -> Iterator[TierSlow]:
    tiered.shuffle("first", 0, 1).end_app()
    made = TierSlow(lambda: tiered)
    yield made
    made.close()
    gc.collect()
    assert tiered.keys() == [] or tiered.keys() == ["incarnation"] or not tiered.keys("shuffle/")


ARRAY = np.random.default_rng(1).random(450_000)  # 3.6 MB: four segments

VALUES: dict[str, Any] = {
    "array": ARRAY,
    "columns": np.asfortranarray(ARRAY.reshape(1000, 450)),
    "small": np.arange(10),
    "empty": np.empty((0, 3)),
    "object": np.array([None, "x", 1], object),
    "strided": ARRAY[::3],
    "frame": pd.DataFrame({"x": ARRAY, "s": pd.array([f"v{n}" for n in range(len(ARRAY))], "string[pyarrow]"), "n": 1}),
    "arrow": pa.table({"x": ARRAY, "s": [str(n) for n in range(len(ARRAY))]}),
    "parts": [ARRAY[:200_000], ARRAY[200_000:], {"a": b"bytes" * 100_000}],
    "plain": {"a": (1, 2.5, None)},
    "lambda": (lambda x: x + 1),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(slow: TierSlow, name: str) -> None:
    value = VALUES[name]
    slow["k"] = value
    found = slow["k"]
    if name == "lambda":
        assert found(1) == 2
    elif isinstance(value, np.ndarray):
        np.testing.assert_array_equal(found, value)
    elif isinstance(value, pd.DataFrame):
        pd.testing.assert_frame_equal(found, value)
    elif name == "parts":
        assert all(np.array_equal(a, b) for a, b in zip(found[:2], value[:2])) and found[2] == value[2]
    else:
        assert found == value
    assert slow.total_weight == slow.weight_by_key["k"] and len(slow) == 1
    del slow["k"]
    assert slow.total_weight == SpilledSize(0, 0) and "k" not in slow


def test_large_arrays_are_contiguous_and_in_place(slow: TierSlow, tiered: Store) -> None:
    slow["a"] = ARRAY
    before = tiered.stats()["daemon"]
    one, two = slow["a"], slow["a"]
    assert one.flags.c_contiguous and not one.flags.writeable and not one.flags.owndata
    np.testing.assert_array_equal(one, ARRAY)
    for number in range(5):  # 18 MB more: what lies in dram moves to pmem, and to disk
        slow[number] = ARRAY + number
    for number in range(5):
        np.testing.assert_array_equal(slow[number], ARRAY + number)
    np.testing.assert_array_equal(one, ARRAY)
    del slow["a"]
    for number in range(5, 8):
        slow[number] = ARRAY + number
    np.testing.assert_array_equal(two, ARRAY)
    assert tiered.stats()["tiers"]["pmem"]["live_bytes"] > 0 and before
    del one, two


def test_a_full_store_is_an_oserror_and_leaves_nothing(slow: TierSlow, tiered: Store) -> None:
    tiered._session.lease_wait_s = 0.5
    slow["k"] = ARRAY
    taken = len(tiered.keys("shuffle/"))
    with pytest.raises(OSError, match="store took no value"):
        slow["huge"] = np.zeros(9_000_000)
    with pytest.raises(OSError, match="a moment ago"):
        slow["next"] = ARRAY
    assert "huge" not in slow and len(tiered.keys("shuffle/")) == taken
    np.testing.assert_array_equal(slow["k"], ARRAY)


def test_limits_and_values_that_cannot_be_pickled(slow: TierSlow) -> None:
    slow.max_weight = 1000
    with pytest.raises(MaxSpillExceeded):
        slow["k"] = ARRAY
    with pytest.raises(PickleError):
        slow["k"] = (n for n in range(3))
    assert not slow


def test_zicts_mapping_rules(slow: TierSlow, tiered: Store) -> None:
    zict_checks.check_mapping(slow)
    for target in (0, 20, 10_000):
        zict_checks.check_mapping(TierBuffer(TierSlow(lambda: tiered), target))


def test_zicts_thread_rules(slow: TierSlow, tiered: Store) -> None:
    zict_checks.check_different_keys_threadsafe(slow)
    zict_checks.check_same_key_threadsafe(slow)
    zict_checks.check_different_keys_threadsafe(TierBuffer(TierSlow(lambda: tiered), 100), allow_keyerror=True)
    # check_same_key_threadsafe() uses pop(), which Dask's own buffer refuses as well.


def test_buffer_reads_in_place_and_evicts(slow: TierSlow) -> None:
    buffer = TierBuffer(slow, 2 * ARRAY.nbytes + 1000)
    for number in range(4):
        buffer[number] = ARRAY + number
    assert sorted(buffer.disk) == [0, 1] and sorted(buffer.memory) == [2, 3]
    for _ in range(3):
        for number in range(4):
            np.testing.assert_array_equal(buffer[number], ARRAY + number)
    assert sorted(buffer.disk) == [0, 1]  # a scan over all moves nothing
    assert buffer.spilled_total.disk >= 2 * ARRAY.nbytes
    assert buffer.cumulative_metrics["disk-write", "count"] == 2
    assert buffer.cumulative_metrics["memory-read", "count"] == 6
    assert buffer.evict() > 0 and sorted(buffer.disk) == [0, 1, 2]
    held = buffer[2]
    assert buffer[2] is held
    buffer[0] = "new"
    assert buffer[0] == "new" and sorted(buffer.disk) == [1, 2]
    for key in list(buffer):
        del buffer[key]
    assert buffer.spilled_total == SpilledSize(0, 0)


def test_full_store_keeps_values_in_memory(slow: TierSlow) -> None:
    buffer = TierBuffer(slow, ARRAY.nbytes // 2)
    slow._make = lambda: (_ for _ in ()).throw(tierstore.Full("no room"))  # type: ignore[assignment]
    buffer["k"] = ARRAY
    assert list(buffer.memory) == ["k"] and buffer.evict() == -1
    np.testing.assert_array_equal(buffer["k"], ARRAY)


def test_own_memory_leaves_the_store_out(slow: TierSlow, tiered: Store) -> None:
    tierstore.dask.use(tiered)
    try:
        slow["k"] = ARRAY
        memory = dask_worker.OwnMemory(0)
        found = slow["k"]
        before, own = dask_worker._status()["RssShmem"], memory()
        found.sum()
        assert dask_worker._status()["RssShmem"] > before
        assert abs(memory() - own) < ARRAY.nbytes / 2
        limited = dask_worker.OwnMemory(1)
        limited._shared_max = 1
        limited()
        assert dask_worker._status()["RssShmem"] < before + ARRAY.nbytes / 2
        np.testing.assert_array_equal(found, ARRAY)
    finally:
        tierstore.dask.use(None)


def test_in_a_cluster(tmp_path: Path) -> None:
    store = tierstore.open(dram="160MiB", segment="1MiB")
    store.shuffle("first", 0, 1).end_app()
    tierstore.dask.use(store)
    settings = {f"distributed.worker.memory.{name}": False for name in ("spill", "pause", "terminate")}
    settings["distributed.worker.preload"] = ["tierstore.dask"]
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    options |= {"local_directory": str(tmp_path), "memory_limit": "10MB"}
    try:
        with dask.config.set(settings), LocalCluster(**options) as cluster, Client(cluster) as client:
            x = da.random.default_rng(1).random((100, 30_000), chunks=(10, 30_000)).persist()  # 24 MB
            total = x.sum().compute()
            for _ in range(2):
                assert x.sum().compute() == total
            y = x.T.rechunk((30_000, 50), method="tasks").persist()  # from worker to worker
            assert np.isclose(y.sum().compute(), total)
            workers = list(cluster.workers.values())
            assert all(isinstance(worker.data, TierBuffer) for worker in workers)
            assert sum(worker.data.spilled_total.disk for worker in workers) > 12e6
            assert not list(tmp_path.rglob("storage/*"))
            metrics = client.run(lambda dask_worker: dask_worker.data.spilled_total.disk)
            assert min(metrics.values()) > 0
            del x, y
            deadline = time.monotonic() + 10
            while sum(worker.data.spilled_total.disk for worker in workers):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            del workers
        assert not store._control.call("shuffle_list")
    finally:
        tierstore.dask.use(None)
        tierstore.dask.unregister()
        gc.collect()
        store.close()


@pytest.mark.slow
def test_daemon_is_started_and_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "s")
    monkeypatch.setenv("TIERSTORE_DRAM", "16MiB")
    assert node_daemon.started(path, idle_s=0.5, dram="32MiB")
    assert not node_daemon.started(path)
    with tierstore.connect(path) as store:
        pid = store.stats()["pid"]
        assert store.stats()["tiers"]["dram"]["capacity_bytes"] > 24 << 20
        store._control.call("shuffle_open", app="app", shuffle=0, partitions=1, lease_s=3)
    time.sleep(1.5)  # the application's data keep it
    with tierstore.connect(path) as store:
        assert store.stats()["pid"] == pid
    deadline = time.monotonic() + 20
    while True:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
        except ChildProcessError:
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
