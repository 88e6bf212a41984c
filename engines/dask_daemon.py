"""A daemon that Dask's workers started: as ``tierstore serve --ephemeral``, and it ends when it has had no client for a while.

python -m tierstore.engines.dask_daemon SECONDS
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time

from tierstore.service.config import load_config
from tierstore.service.daemon import Daemon, serve


def _watch(daemon: Daemon, idle_s: float) -> None:
    used = time.monotonic()
    while time.monotonic() - used < idle_s:
        time.sleep(min(1.0, idle_s / 4))
        if daemon._connections:
            used = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Serve until nobody has been connected for as long as the argument says."""
    config = dataclasses.replace(load_config().resolve(), ephemeral=True)
    idle_s = float(sys.argv[1])

    def ready(daemon: Daemon) -> None:
        threading.Thread(target=_watch, args=(daemon, idle_s), name="tierstore-idle", daemon=True).start()

    serve(config, ready)


if __name__ == "__main__":
    main()
