"""The processes that a benchmark needs: a daemon of its own, and clients in other processes.

Whatever happens, they end with the benchmark and leave no file: each daemon has a private folder in memory and one on
disk, is stopped by SIGTERM (SIGKILL after 10 s), and dies with this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tierstore
from tierstore.ringbuf.errors import PeerLost, TierstoreError

from .environment import ROOT

READY_S = 60.0  # the first start on a machine compiles the kernels
STOP_S = 10.0
MEMORY = Path("/dev/shm")
KERNEL_CACHE = "TIERSTORE_KERNEL_CACHE"
PREFIX = "tsbench-"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class BenchError(Exception):
    """A process of the benchmark failed."""


def child_environment(**more: str) -> dict[str, str]:
    """Our environment without the user's settings of tierstore, with ``bench`` and ``tierstore`` importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIERSTORE_") or k == KERNEL_CACHE}
    package = Path(tierstore.__file__).absolute().parent.parent
    paths = [str(package), str(ROOT), *filter(None, kept.get("PYTHONPATH", "").split(os.pathsep))]
    return kept | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))} | more


def join_group(group: Path | None) -> Callable[[], None]:
    """What a child does before it becomes a program: die with us, and enter a control group."""

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    return prepare


@contextlib.contextmanager
def folder(root: Path | None = None) -> Iterator[Path]:
    """A temporary folder, in the system's place for them or under ``root``; those of killed runs are removed first."""
    parent = root or Path(tempfile.gettempdir())
    for left in parent.glob(f"{PREFIX}*"):
        pid = left.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def end(process: subprocess.Popen[Any], patience_s: float = STOP_S) -> None:
    """SIGTERM, wait, SIGKILL."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Node:
    """One daemon. Use through serving(); start() and kill() are for benchmarks of starting."""

    def __init__(self, memory: Path, disk: Path, options: Sequence[str], ephemeral: bool, group: Path | None):
        self.memory, self.disk, self.group = memory, disk, group
        self.socket = str(disk / "socket")
        self._log = disk / "daemon.log"
        config = disk / "config.toml"
        config.write_text(f"dram_dir = {json.dumps(str(memory))}\n")
        self._command = [sys.executable, "-m", "tierstore.service.cli", "serve", "--socket", self.socket]
        self._command += ["--config", str(config), *options, *(["--ephemeral"] if ephemeral else [])]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Spawn the daemon; returns at once."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=join_group(self.group),  # noqa: PLW1509 (two system calls)
            )

    def connect(self, patience_s: float = READY_S, poll_s: float = 0.005) -> tierstore.Store:
        """A client, as soon as the daemon takes one."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                return tierstore.connect(self.socket)
            except (PeerLost, OSError) as error:
                code = self._process.poll() if self._process else 0
                if code is not None or time.monotonic() > deadline:
                    raise BenchError(f"no daemon ({error}; exit code {code}):\n{self.last_words()}") from error
            time.sleep(poll_s)

    def settle(self, store: tierstore.Store, quiet_s: float = 0.3, limit_s: float = 60.0) -> None:
        """Wait until the daemon has reserved its memory and moves nothing any more."""
        deadline, before = time.monotonic() + limit_s, ""
        while time.monotonic() < deadline:
            now = repr([(t["live_bytes"], t["free_segments"], t["blocks"]) for t in store.stats()["tiers"].values()])
            if now == before:
                return
            before = now
            time.sleep(quiet_s)

    def last_words(self) -> str:
        """The end of the daemon's log."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:]) if self._log.exists() else ""

    def kill(self) -> None:
        """As kill -9 does it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the daemon in order."""
        if self._process is not None:
            end(self._process)


@contextlib.contextmanager
def serving(
    *options: str, ephemeral: bool = True, group: Path | None = None, disk_gib: float = 0.0, started: bool = True
) -> Iterator[Node]:
    """A daemon with these options of ``tierstore serve``; "{memory}" and "{disk}" in them are its private folders.

    disk_gib: refuse if the disk has less free room.
    """
    if not MEMORY.is_dir():
        raise BenchError(f"{MEMORY} is needed")
    with folder(MEMORY) as memory, folder() as disk:
        if shutil.disk_usage(disk).free < disk_gib * 2**30:
            raise BenchError(f"{disk.parent} has less than {disk_gib} GiB free")
        filled = [option.replace("{memory}", str(memory)).replace("{disk}", str(disk)) for option in options]
        node = Node(memory, disk, filled, ephemeral, group)
        try:
            if started:
                node.start()
            yield node
        finally:
            node.stop()


@contextlib.contextmanager
def connected(node: Node) -> Iterator[tierstore.Store]:
    """A client of a daemon that is ready and quiet."""
    store = node.connect()
    try:
        node.settle(store)
        yield store
    finally:
        with contextlib.suppress(TierstoreError):
            store.close()


class Client:
    """A process that runs the methods of one class; see worker.py."""

    def __init__(self, name: str, group: Path | None = None):
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name],
            env=child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=join_group(group),  # noqa: PLW1509 (two system calls)
        )

    def send(self, command: str, **arguments: Any) -> None:
        """Ask without waiting."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"command": command, "arguments": arguments}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """The answer to the last question."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._name} ended with {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self._name}: {answer['error']}")
        return answer["result"]

    def call(self, command: str, **arguments: Any) -> Any:
        """Ask and wait."""
        self.send(command, **arguments)
        return self.receive()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            end(self._process, 1.0)
        self._process.stdout.close()


@contextlib.contextmanager
def clients(name: str, count: int, group: Path | None = None) -> Iterator[list[Client]]:
    """Several processes of one class."""
    found: list[Client] = []
    try:
        for _ in range(count):
            found.append(Client(name, group))
        yield found
    finally:
        for client in found:
            client.close()


def together(members: Sequence[Client], command: str, **arguments: Any) -> list[Any]:
    """The same command in all of them at once."""
    for member in members:
        member.send(command, **arguments)
    return [member.receive() for member in members]


def rate(spans: Sequence[dict[str, float]]) -> float:
    """Things per second of processes that worked at once: all things, from the first start to the last end."""
    elapsed = max(span["end"] for span in spans) - min(span["begin"] for span in spans)
    return sum(span["count"] for span in spans) / elapsed


def build_kernels() -> None:
    """Have the kernels ready, so that no start that is measured compiles them."""
    code = "from tierstore.ringbuf.native import daemon_kernels; daemon_kernels()"
    subprocess.run([sys.executable, "-c", code], env=child_environment(), check=True, timeout=300)
