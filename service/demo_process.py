"""The demo's child processes: executors behind pipes, and a daemon of its own for each placement that has a store.

Children run in sessions of their own: a Ctrl-C in the terminal reaches the driver alone, which then ends them in order.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, cast

from tierstore.ringbuf.errors import PeerLost, TierstoreError

from .config import RESERVED
from .demo_executor import Store, Worker, connect

ANSWER_SECONDS_MAX = 300.0
READY_SECONDS_MAX = 60.0
STOP_SECONDS_MAX = 20.0  # a daemon may have much to unlink
GOODBYE_SECONDS_MAX = 2.0  # an executor in the middle of a load is not worth waiting for
_POLL_S = 0.5
_REMOVE_DEAD = "from tierstore.service import config, layout; layout.remove_dead(config.StoreConfig())"
# Not -m: the module would be called __main__ there, and its results could not be unpickled here.
_EXECUTOR = "from tierstore.service.demo_executor import main; main()"


class DemoError(TierstoreError):
    """The demo could not go on; the message says which part failed and how."""


class Team(Protocol):
    """Executors that do the same command, each with arguments of its own; the first ones if there are fewer."""

    size: int

    def call(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]: ...
    def pids(self) -> list[int]: ...
    def watch(self, daemon: Daemon | None) -> None: ...
    def close(self) -> None: ...


class LocalTeam:
    """Executors in this process, one after the other."""

    def __init__(self, size: int, connect: Callable[[str], Store] = connect):
        self.size = size
        self._workers = [Worker(connect) for _ in range(size)]

    def call(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [worker.handle(command, one) for worker, one in zip(self._workers, arguments, strict=False)]

    def pids(self) -> list[int]:
        return [os.getpid()]

    def watch(self, daemon: Daemon | None) -> None:
        """Nothing to watch."""

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class ProcessTeam:
    """Executors in processes of their own.

    An executor that dies, or a daemon that dies while they work, ends the call with a DemoError.
    """

    def __init__(self, size: int, roots: Sequence[Path] = ()):
        self.size = size
        self._members: list[tuple[subprocess.Popen[bytes], Connection]] = []
        self._daemon: Daemon | None = None
        try:
            for _ in range(size):
                self._members.append(_start_executor(roots))
        except BaseException:
            self.close()
            raise

    def call(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send the command to all, then collect the answers; order as the arguments."""
        waiting: dict[Connection, int] = {}
        for index, ((_, pipe), one) in enumerate(zip(self._members, arguments, strict=False)):
            try:
                pipe.send((command, one))
            except OSError as error:
                raise self._lost(index) from error
            waiting[pipe] = index
        answers: list[Any] = [None] * len(waiting)
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while waiting:
            for pipe in cast(list[Connection], wait(list(waiting), _POLL_S)):
                index = waiting.pop(pipe)
                answers[index] = self._answer(index, command, pipe)
            if self._daemon is not None:
                self._daemon.check()
            if time.monotonic() > deadline:
                raise DemoError(f"executors did not finish {command!r} within {ANSWER_SECONDS_MAX:.0f} s")
        return answers

    def _answer(self, index: int, command: str, pipe: Connection) -> Any:
        try:
            kind, value = pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost(index) from error
        if kind == "error":
            if self._daemon is not None:
                self._daemon.check()
            raise DemoError(f"executor {index} failed in {command!r}:\n{value}")
        return value

    def _lost(self, index: int) -> DemoError:
        process = self._members[index][0]
        try:
            code: int | None = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            code = None
        return DemoError(f"executor {index} (process {process.pid}) ended: {_ending(code)}")

    def pids(self) -> list[int]:
        return [process.pid for process, _ in self._members]

    def watch(self, daemon: Daemon | None) -> None:
        """The daemon whose death ends a call; None for none."""
        self._daemon = daemon

    def close(self) -> None:
        """Say goodbye, wait, and kill who does not go."""
        for _, pipe in self._members:
            try:
                pipe.send(("goodbye", ()))
            except OSError:
                pass
            pipe.close()
        deadline = time.monotonic() + GOODBYE_SECONDS_MAX
        for process, _ in self._members:
            _end(process, max(0.0, deadline - time.monotonic()))
        self._members = []


def _start_executor(roots: Sequence[Path]) -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", _EXECUTOR, str(theirs.fileno())]
        process = subprocess.Popen(
            [*command, *map(str, roots)], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        return process, Connection(ours.detach())


class Daemon:
    """A daemon for one placement, ended by close() or by the death of this process."""

    def __init__(self, arguments: Sequence[str], folder: Path):
        self.socket = str(folder / "socket")
        self._log = folder / "daemon.log"
        command = [sys.executable, "-m", "tierstore.service.cli", "serve", "--socket", self.socket, "--ephemeral"]
        command += ["--config", os.devnull]  # what the user configured for a store of his own must not change this one
        guard = [sys.executable, "-S", str(Path(__file__).with_name("demo_guard.py")), str(os.getpid())]
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*guard, *command, *arguments],
                env={name: value for name, value in os.environ.items() if not _is_setting(name)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self, connect: Callable[[str], Store] = connect) -> Store:
        """A client of the daemon, as soon as it accepts one."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while True:
            self.check()
            try:
                return connect(self.socket)
            except (PeerLost, OSError) as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"the daemon is not ready after {READY_SECONDS_MAX:.0f} s: {error}") from error
            time.sleep(0.02)

    def check(self) -> None:
        """Raise DemoError if the daemon has ended."""
        code = self._process.poll()
        if code is not None:
            raise DemoError(f"the daemon (process {self.pid}) ended: {_ending(code)}\n{self._last_words()}")

    def _last_words(self) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        except OSError:
            return ""

    def close(self) -> None:
        """SIGTERM, wait, and SIGKILL if it does not end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _end(self._process, STOP_SECONDS_MAX)
        if self._process.returncode < 0:  # it could not remove its memory itself
            # In a process of its own: this one was a client, whose lock makes the store look alive.
            subprocess.run([sys.executable, "-c", _REMOVE_DEAD], check=False, timeout=STOP_SECONDS_MAX)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_setting(name: str) -> bool:
    return name.startswith("TIERSTORE_") and name not in RESERVED


def _ending(code: int | None) -> str:
    if code is None:
        return "its pipe closed, but it still runs"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
