"""`dask scheduler` and `dask worker` as programs, with the preload: they are killed, and what they had goes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierstore.emulation.procs import Daemon

psutil = pytest.importorskip("psutil")
dask = pytest.importorskip("dask")
pytest.importorskip("distributed")

from distributed import Client, Future  # noqa: E402

import tierstore.dask  # noqa: E402
from tierstore.emulation.dask_cluster import SETTINGS, WAIT_S, apps, nothing_left, ports, serving, until  # noqa: E402
from tierstore.emulation.dask_jobs import Witness, check, notes, shuffled  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.soak]

LEASE_S = 120.0


class Programs:
    """A scheduler at one address, and workers; what is started ends with the test."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack, socket: str):
        self._folder, self._stack = folder, stack
        (self._port,) = ports(1)
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._environment = {**os.environ, "TIERSTORE_SOCKET": socket}

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *words, "--preload", "tierstore.dask"]
        with open(self._folder / "programs.log", "ab") as log:
            made = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment)
        self._stack.callback(end, made)
        return made

    def scheduler(self) -> subprocess.Popen[bytes]:
        return self._start("scheduler", "--host", "127.0.0.1", "--port", str(self._port), "--dashboard-address", ":0")

    def workers(self) -> list[subprocess.Popen[bytes]]:
        """Two nannies, each with a worker of one thread."""
        words = ["worker", self.address, "--nthreads", "1", "--local-directory", str(self._folder / "workers")]
        return [self._start(*words, "--dashboard-address", ":0") for _ in range(2)]

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.address, timeout=WAIT_S) as client:
            tierstore.dask.register(client)
            client.wait_for_workers(2, timeout=WAIT_S)
            client.register_plugin(Witness(str(self._folder)))
            yield client


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path) as made:
        yield made


@pytest.fixture
def programs(tmp_path: Path, daemon: Daemon) -> Iterator[Programs]:
    with dask.config.set(SETTINGS), contextlib.ExitStack() as stack:
        yield Programs(tmp_path, stack, daemon.socket)


def held_by(folder: Path) -> list[int]:
    return [line.pid for line in notes(folder) if line.what == "held"]


def outcome(future: Future) -> str:
    try:
        future.result(timeout=WAIT_S)
    except Exception as error:
        return type(error).__name__
    return "finished"


def test_scheduler_killed(programs: Programs, daemon: Daemon, tmp_path: Path) -> None:
    """The client is told, workers end, the next scheduler at the address computes it again; the first's data go with the lease."""
    scheduler, nannies = programs.scheduler(), programs.workers()
    with programs.client() as client:
        (tmp_path / "hold read").touch()
        future = client.compute(shuffled(tmp_path))
        until(lambda: held_by(tmp_path))
        pids = [child.pid for nanny in nannies for child in psutil.Process(nanny.pid).children(recursive=True)]
        (left,) = apps(daemon)
        scheduler.kill()
        (tmp_path / "hold read").unlink()
        assert outcome(future) == "FutureCancelledError"
    for nanny in nannies:
        nanny.wait(WAIT_S)
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))
    programs.scheduler()
    programs.workers()
    with programs.client() as client:
        check(client.compute(shuffled(tmp_path)).result(timeout=WAIT_S))
        until(lambda: apps(daemon) in ([left], []))
        until(lambda: not apps(daemon), LEASE_S + WAIT_S)
        nothing_left(client, daemon)


@pytest.mark.parametrize("step", ["write", "read"])
def test_nanny_killed(programs: Programs, daemon: Daemon, tmp_path: Path, step: str) -> None:
    """Its worker ends with it, in the middle of a task, and nobody replaces it."""
    programs.scheduler()
    nannies = programs.workers()
    with programs.client() as client:
        (tmp_path / f"hold {step}").touch()
        future = client.compute(shuffled(tmp_path))
        until(lambda: held_by(tmp_path))
        pid = held_by(tmp_path)[0]
        nanny = next(
            n for n in nannies if pid in {child.pid for child in psutil.Process(n.pid).children(recursive=True)}
        )
        os.kill(nanny.pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(pid))
        (tmp_path / f"hold {step}").unlink()
        check(future.result(timeout=WAIT_S))
        del future
        nothing_left(client, daemon)
