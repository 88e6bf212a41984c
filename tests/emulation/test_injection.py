"""A store that plays a slower device: the time it takes, what it says of itself, and what it refuses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tierstore
from tierstore.emulation import profiles
from tierstore.service.emulated import emulated

SLOW = """
like = "optane100-1"
title = "a crawling device"
"""


@pytest.fixture
def pmem() -> Iterator[str]:
    path = f"/dev/shm/tierstore-test-{uuid.uuid4().hex[:12]}"
    yield path
    Path(path).unlink(missing_ok=True)


def open_with(pmem: str, **options: str) -> tierstore.Store:
    return tierstore.open(dram="32MiB", pmem=f"{pmem}:64MiB", segment="4MiB", **options)  # type: ignore[arg-type]


def test_reads_take_at_least_the_devices_time(pmem: str) -> None:
    """A lower bound only: a busy machine may always be slower."""
    profile = profiles.load("optane100-1")
    with open_with(pmem, pmem_profile="optane100-1") as store:
        store.put("t", pa.table({"a": np.arange(400_000), "b": np.arange(400_000)}), keep=True)
        store.pin("t", "pmem")
        times = 40
        began = time.perf_counter()
        for _ in range(times):
            store.get("t")
        whole = time.perf_counter() - began
        # The device may be 20 ms ahead when the first read comes.
        assert whole >= times * 6_400_000 / profile.read_bytes_per_s - 0.02
        store.put_bytes("v", b"v" * 64)
        store.pin("v", "pmem")
        began = time.perf_counter_ns()
        for _ in range(1000):
            store.get_bytes("v")
        assert (time.perf_counter_ns() - began) / 1000 >= 0.5 * profile.added_read_latency_ns


def test_the_output_says_what_is_played(pmem: str) -> None:
    with open_with(pmem, pmem_profile="cxl-fpga") as store:
        label = store.stats()["tiers"]["pmem"]["emulated"]
    assert "profile cxl-fpga" in label and "not modelled" in label and "cache residency" in label


def test_without_a_profile_nothing_is_charged(pmem: str) -> None:
    with open_with(pmem) as store:
        assert not store._session.injecting
    assert emulated("none", "pmem_profile") == ((0, 0, 0, 0), "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pmem_profile": "optane"}, ["pmem_profile", "optane100-1"]),
        ({"pmem_profile": "hdd"}, ["pmem_profile", "memory or pmem", "optane200"]),
        ({"disk_profile": "optane200"}, ["disk_profile", "nvme", "sata-ssd"]),
    ],
)
def test_profiles_that_do_not_fit_are_refused(options: dict[str, str], words: list[str], pmem: str) -> None:
    with pytest.raises(tierstore.ConfigError) as caught:
        open_with(pmem, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_real_device_is_not_slowed_down(pmem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.ringbuf.arena.map_sync_works", lambda fd: True)
    monkeypatch.setattr("tierstore.ringbuf.region._SHARED_VALIDATE_SYNC", 1)
    with pytest.raises(tierstore.ConfigError, match="real DAX device"):
        open_with(pmem, pmem_profile="optane200")
