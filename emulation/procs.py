"""Daemons and client processes that tests run: ``Daemon`` starts real ones, ``Child`` a function of bodies.py.

A child is started as ``python -m tierstore.emulation.bodies NAME ARGUMENT...`` and talks by lines: it prints what it has
done, flushed, and where it is to wait it reads one line from its standard input.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import tierstore
from tierstore.service.store import Store

START_S = 60.0  # kernels may have to be compiled first


class Daemon:
    """A real daemon in a process of its own; its files are removed by end()."""

    def __init__(self, folder: Path, *arguments: str):
        self.socket = str(folder / "s")
        self.log = folder / "daemon.log"
        self.arguments = ["--socket", self.socket, "--segment", "1MiB", *arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self._memory: set[str] = set()

    def start(self) -> Daemon:
        """Start it, and return once it answers."""
        self.launch()
        return self.answering()

    def launch(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start it with more environment variables; returns at once."""
        command = [sys.executable, "-m", "tierstore.service.cli", "serve", *self.arguments]
        environment = {**os.environ, **environment}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, stdin=subprocess.DEVNULL, env=environment)
        return self.process

    def answering(self) -> Daemon:
        """Return once it answers."""
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while True:
            try:
                with self.connect() as store:
                    stats = store.stats()
                if stats["pid"] == self.process.pid:
                    self._memory.add(os.path.dirname(stats["tiers"]["dram"]["paths"][0]))
                    return self
            except tierstore.TierstoreError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not start: {self.log.read_text()}")
            time.sleep(0.01)

    def connect(self) -> Store:
        """A store of this process."""
        return tierstore.connect(self.socket)

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """Stop it however it is, and remove what it left in memory."""
        if self.running:
            self.stop()
        for folder in self._memory:
            shutil.rmtree(folder, ignore_errors=True)


class Child:
    """One child process: ``with Child("holder", socket, "k") as child: child.line(); child.go()``."""

    def __init__(self, name: str, *arguments: str):
        command = [sys.executable, "-m", "tierstore.emulation.bodies", name, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _open(pipe).close()

    def line(self) -> str:
        """What it says next."""
        return _open(self.process.stdout).readline().strip()

    def go(self) -> None:
        """Let it go on."""
        print("go", file=_open(self.process.stdin), flush=True)

    def wait(self, timeout: float = 60) -> int:
        """Its exit code."""
        return self.process.wait(timeout)


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


# --- bodies of children ---------------------------------------------------------------------------------------------------
