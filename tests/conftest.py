"""Fixtures of every test; the one that acts unasked refuses leaks.

A test fails when it leaves behind a file descriptor, a file `tierstore*` in /dev/shm, or a process. What wider fixtures
(module, session) hold was there before the test and does not count. A module whose tests must leave something
overrides the fixture: define `no_leaks` in it, autouse, with a comment that says why.
"""

from __future__ import annotations

import gc
import os
import signal
import time
import uuid
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from tierstore.cache.store import Store
    from tierstore.emulation.procs import Daemon

GRACE_S = 2.0
SHM = Path("/dev/shm")
PREFIX = "tierstore"

# Inherited by every program a test starts, so that one which outlived its parent is still known as ours.
os.environ["LEAKCHECK_RUN"] = uuid.uuid4().hex
RUN_TOKEN = f"LEAKCHECK_RUN={os.environ['LEAKCHECK_RUN']}".encode()

CALL_FAILED = pytest.StashKey[bool]()

# Children must be interruptible also where the tests run in the background of a shell, which ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Process(NamedTuple):
    """A process, told apart from a later one with the same pid by its start time."""

    pid: int
    start_ticks: int


class Snapshot(NamedTuple):
    """What this test run holds at one moment."""

    descriptors: dict[tuple[int, int, int], str]  # (fd, device, inode): what it points to
    shm_names: frozenset[str]
    processes: dict[Process, str]


@pytest.fixture
def store() -> Iterator[Store]:
    """An embedded store: 32 MiB of memory in segments of 1 MiB. Verified after the test."""
    import tierstore

    yield from verified(tierstore.open(dram="32MiB", segment="1MiB"))


@pytest.fixture
def tier_options(tmp_path: Path) -> Iterator[dict[str, str]]:
    """What open() needs for three small tiers; pmem is a file in memory."""
    pmem = SHM / f"{PREFIX}-test-{uuid.uuid4().hex[:12]}"
    (tmp_path / "disk").mkdir()
    yield {"dram": "8MiB", "pmem": f"{pmem}:16MiB", "disk": f"{tmp_path / 'disk'}:32MiB", "segment": "1MiB"}
    pmem.unlink(missing_ok=True)


@pytest.fixture
def tiered(tier_options: dict[str, str]) -> Iterator[Store]:
    """An embedded store with three tiers. Verified after the test."""
    import tierstore

    yield from verified(tierstore.open(**tier_options))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon that removes its data when it ends. Verified after the test."""
    from tierstore.emulation.procs import Daemon

    made = Daemon(tmp_path, "--dram", "32MiB", "--ephemeral")
    try:
        made.start()
        yield made
        if made.running:
            with made.connect() as store:
                report = store.verify(payloads=True)
            assert report["ok"], report["problems"]
    finally:
        made.end()


def verified(store: Store) -> Iterator[Store]:
    """Yield a store, then check it (unless the test closed it) and close it."""
    try:
        yield store
        if not store._closed:
            report = store.verify(payloads=True)
            assert report["ok"], report["problems"]
    finally:
        store.close()


def pytest_unconfigure() -> None:
    """At the end everything may go in the usual way."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Remember a test that raised (also where that is expected): its traceback keeps its variables, and so their
    descriptors, alive."""
    report: Any = yield
    if call.when == "call":
        item.stash[CALL_FAILED] = call.excinfo is not None
    return report


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the test that leaves a descriptor, a shared memory file or a process; wait up to GRACE_S for it to go."""
    before = snapshot()
    yield
    check_descriptors = not request.node.stash.get(CALL_FAILED, False)
    deadline = time.monotonic() + GRACE_S
    while leaks := leaked(before, snapshot(), check_descriptors):
        if time.monotonic() > deadline:
            pytest.fail("the test leaks " + "; ".join(leaks) + ": close, unlink or join it in the test", pytrace=False)
        gc.collect()
        time.sleep(0.02)


@pytest.fixture(autouse=True, scope="module")
def old_objects() -> None:
    """What earlier modules left alive stays: not looking through it again makes each gc.collect() hundredfold faster."""
    gc.collect()
    gc.freeze()


def snapshot() -> Snapshot:
    return Snapshot(open_descriptors(), shm_names(), our_processes())


def leaked(before: Snapshot, after: Snapshot, check_descriptors: bool = True) -> list[str]:
    """One line for each thing that is there now and was not before."""
    leaks = [f"process {p.pid} ({name})" for p, name in after.processes.items() if p not in before.processes]
    shm = after.shm_names - before.shm_names
    if shm:
        foreign = held_by_others(after.processes)
        leaks += [f"/dev/shm/{name}" for name in sorted(shm) if name not in foreign]
    if check_descriptors:
        helpers = helper_descriptors()
        leaks += [
            f"descriptor {key[0]} ({target})"
            for key, target in after.descriptors.items()
            if key not in before.descriptors and key[0] not in helpers
        ]
    return leaks


def open_descriptors() -> dict[tuple[int, int, int], str]:
    """By inode as well as number: a number may be used again, and a path changes when its file is removed."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
            status = os.fstat(int(name))
        except OSError:  # the descriptor of this very listing
            continue
        if target not in ("/dev/null", "/dev/urandom"):  # libraries keep these open
            found[int(name), status.st_dev, status.st_ino] = target
    return found


def shm_names() -> frozenset[str]:
    return frozenset(name for name in os.listdir(SHM) if name.startswith(PREFIX)) if SHM.is_dir() else frozenset()


def our_processes() -> dict[Process, str]:
    """Every descendant, and every process that carries our token, except helpers of multiprocessing."""
    parents: dict[int, list[tuple[Process, str]]] = {}
    ours: dict[Process, str] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        stat = read(f"/proc/{entry}/stat").decode(errors="replace")
        name, _, rest = stat.partition("(")[2].rpartition(")")
        fields = rest.split()  # state, ppid, ...; start time is field 22 of the file
        if len(fields) < 20:
            continue
        process = Process(int(entry), int(fields[19]))
        parents.setdefault(int(fields[1]), []).append((process, name))
        if int(fields[1]) == 1 and RUN_TOKEN in read(f"/proc/{entry}/environ"):
            ours[process] = name
    helpers = helper_pids()
    pending = [os.getpid()]
    while pending:
        for process, name in parents.get(pending.pop(), ()):
            if process.pid not in helpers:
                ours[process] = name
                pending.append(process.pid)
    ours.pop(next((p for p in ours if p.pid == os.getpid()), Process(0, 0)), None)
    return ours


def held_by_others(ours: dict[Process, str]) -> set[str]:
    """Names in /dev/shm that a process outside this run has open or mapped: another run on this machine, not a leak."""
    own = {process.pid for process in ours} | {os.getpid()}
    names: set[str] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) in own:
            continue
        maps = read(f"/proc/{entry}/maps").decode(errors="replace")
        targets = [line.split(maxsplit=5)[-1] for line in maps.splitlines()]
        try:
            targets += [os.readlink(f"/proc/{entry}/fd/{fd}") for fd in os.listdir(f"/proc/{entry}/fd")]
        except OSError:  # gone, or not ours to look at
            pass
        names.update(Path(target).parts[3] for target in targets if target.startswith(f"{SHM}/{PREFIX}"))
    return names


def helper_pids() -> set[int]:
    """The processes multiprocessing starts once and keeps until the interpreter ends."""
    return {
        pid
        for pid in (
            getattr(resource_tracker._resource_tracker, "_pid", None),
            getattr(forkserver._forkserver, "_forkserver_pid", None),
        )
        if pid is not None
    }


def helper_descriptors() -> set[int]:
    """The descriptors by which multiprocessing talks to those processes."""
    return {
        fd
        for fd in (
            getattr(resource_tracker._resource_tracker, "_fd", None),
            getattr(forkserver._forkserver, "_forkserver_alive_fd", None),
        )
        if fd is not None
    }


def read(path: str) -> bytes:
    """The file's bytes; nothing when its process is gone or hidden."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
