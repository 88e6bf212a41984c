"""Clients of one daemon put, get and delete the same keys at random: every key behaves like one register."""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tierstore.emulation.history import Call, Plan, record, violations
from tierstore.emulation.procs import Daemon

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("TEST_SEED", "1"))
CLIENTS = 3
ROUNDS = [1, pytest.param(60, marks=pytest.mark.soak)]
# Values in pieces (larger than a segment) are left out: get_bytes() may miss them, see test_known.py.
LARGE = (100, 20_000, 300_000)


@pytest.fixture
def tiers(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with three small tiers: what is put moves down, and segments are used again and again."""
    pmem, disk = Path(f"/dev/shm/tierstore-test-{uuid.uuid4().hex[:12]}"), tmp_path / "disk"
    disk.mkdir()
    try:
        yield from running(Daemon(tmp_path, "--dram", "16MiB", "--pmem", f"{pmem}:12MiB", "--disk", f"{disk}:48MiB"))
    finally:
        pmem.unlink(missing_ok=True)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with memory only."""
    yield from running(Daemon(tmp_path, "--dram", "16MiB"))


def running(daemon: Daemon) -> Iterator[Daemon]:
    try:
        yield daemon.start()
        with daemon.connect() as store:
            report = store.verify(payloads=True)
        assert report["ok"], report["problems"]
    finally:
        daemon.end()


def plans(daemon: Daemon, number: int, count: int, **options: object) -> list[Plan]:
    """The clients of a round, on keys that nobody used before."""
    keys = tuple(f"{name}{number}" for name in ("k", "keep", "c"))
    return [Plan(daemon.socket, client, SEED + number, count, keys, **options) for client in range(1, CLIENTS + 1)]


def keep(key: str) -> bool:
    return key.startswith("k")


def overlapping(calls: list[Call]) -> int:
    """Calls on a key that began before the one before them had ended: without them a history shows nothing."""
    ends: dict[str, int] = {}
    count = 0
    for call in sorted(calls, key=lambda call: call.begun):
        count += call.begun < ends.get(call.key, 0)
        ends[call.key] = max(ends.get(call.key, 0), call.ended)
    return count


@pytest.mark.parametrize("rounds", ROUNDS)
def test_small_values(rounds: int, memory: Daemon) -> None:
    """Three keys, overwritten in place all the time."""
    met = 0
    for number in range(rounds):
        calls = record(plans(memory, number, 3_000))
        assert violations(calls, keep) == []
        met += overlapping(calls)
    assert met > rounds * 300, "the clients hardly met"


@pytest.mark.parametrize("rounds", ROUNDS)
def test_under_pressure(rounds: int, tiers: Daemon) -> None:
    """Values move between three tiers, leases are recalled, segments freed and filled again."""
    for number in range(rounds):
        assert violations(record(plans(tiers, number, 600, sizes=LARGE, noise=0.3)), keep) == []
    with tiers.connect() as store:
        counters = store.stats()["daemon"]
    assert counters["relinked"] > 100 and counters["demoted_bytes"] > 10 << 20, f"nothing was moved: {counters}"


@pytest.mark.parametrize("rounds", ROUNDS)
def test_across_restarts(rounds: int, memory: Daemon) -> None:
    """The daemon is killed and started again while clients work: what was acknowledged stays, what was deleted stays away."""
    for number in range(rounds):
        calls = record(plans(memory, number, 0, pause_s=0.0003), restarting(memory, random.Random(SEED + number)))
        assert violations(calls, keep, twice=True) == []
        assert max(call.ended - call.begun for call in calls) > 20_000_000, "no call saw a restart"


def restarting(daemon: Daemon, generator: random.Random) -> Callable[[], None]:
    """Twice."""

    def kill_and_start() -> None:
        for _ in range(2):
            time.sleep(generator.uniform(0.05, 0.3))
            daemon.kill()
            daemon.start()
        time.sleep(0.1)

    return kill_and_start


def test_a_stale_read_is_seen(memory: Daemon) -> None:
    """A client that answers some gets from memory is found out."""
    found = violations(record(plans(memory, 0, 1_000, stale=True)), keep)
    assert found and "none of these can follow" in found[0]
