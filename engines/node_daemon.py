"""A daemon that workers of an engine start on their node: once, whoever asks first. It ends when it is not used any more.

python -m tierstore.engines.node_daemon SECONDS     as ``tierstore serve --ephemeral``, until so long without use
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from tierstore.ringbuf.errors import PeerLost
from tierstore.service.client import SocketControl
from tierstore.service.config import load_config
from tierstore.service.daemon import Daemon, serve

IDLE_S = 30.0
START_S = 120.0  # kernels may have to be compiled first


def started(path: str, idle_s: float = IDLE_S, **sizes: str) -> bool:
    """Start this node's daemon if none answers at a socket; whether it was started. Any process, at once with others.

    sizes:  settings by name, such as dram="4GiB"; the rest is the configuration's (TIERSTORE_CONFIG, TIERSTORE_PMEM, ...).
    idle_s: how long it stays without clients, and without data of an application.
    Raises: PeerLost if it does not come up.
    """
    if answers(path):
        return False
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.starting", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if answers(path):
            return False
        command = [sys.executable, "-m", "tierstore.engines.node_daemon", str(idle_s)]
        told = {f"TIERSTORE_{name.upper()}": size for name, size in sizes.items()}
        environment = {**os.environ, **told, "TIERSTORE_SOCKET": path}
        with open(f"{path}.log", "ab") as log:
            quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, env=environment, start_new_session=True, **quiet)
        deadline = time.monotonic() + START_S
        while not answers(path):
            if process.poll() is not None or time.monotonic() > deadline:
                raise PeerLost(f"the daemon at {path} did not start: see {path}.log")
            time.sleep(0.05)
    process.returncode = 0  # it is on its own from here on, and nobody waits for it
    return True


def answers(path: str) -> bool:
    """Whether a daemon listens at a socket."""
    try:
        SocketControl(path).close()
    except (PeerLost, OSError):
        return False
    return True


def _watch(daemon: Daemon, idle_s: float) -> None:
    used = time.monotonic()
    while time.monotonic() - used < idle_s:
        time.sleep(min(1.0, idle_s / 4))
        if daemon._connections or daemon.shuffles.used():
            used = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve until nobody has used it for as long as the argument says."""
    config = dataclasses.replace(load_config().resolve(), ephemeral=True)
    idle_s = float(sys.argv[1])

    def ready(daemon: Daemon) -> None:
        threading.Thread(target=_watch, args=(daemon, idle_s), name="tierstore-idle", daemon=True).start()

    serve(config, ready)


if __name__ == "__main__":
    main()
