"""A daemon for the time of one Spark driver: configure(dram=...) starts it where none answers.

It reads its standard input, whose other end only the driver holds: when the driver ends, in whatever way, so does the daemon.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from tierstore.ringbuf.errors import PeerLost

from .node_daemon import START_S, answers

STOP_S = 20.0
_PROGRAM = "from tierstore.engines.spark_daemon import main; main()"

_started: list[subprocess.Popen[bytes]] = []


def running(path: str, dram_bytes: int) -> str:
    """The socket of a daemon: one that answers there already, or a new one. Raises PeerLost if it does not start."""
    if answers(path):
        return path
    arguments = ["serve", "--socket", path, "--dram", str(dram_bytes), "--ephemeral"]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    if not _started:
        atexit.register(stop)
    _started.append(process)
    deadline = time.monotonic() + START_S
    while not answers(path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise PeerLost(
                f"the daemon for this driver did not start (exit code {process.poll()}); try `tierstore serve`"
            )
        time.sleep(0.02)
    return path


def stop() -> None:
    """End the daemons that this process started, and wait for them; Spark before them, which has data there."""
    pyspark = sys.modules.get("pyspark")
    context = pyspark and pyspark.SparkContext._active_spark_context
    if context is not None:
        with contextlib.suppress(Exception):  # its JVM may be gone
            context.stop()
    while _started:
        process = _started.pop()
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """The daemon: as ``tierstore ARGUMENTS``, until standard input ends."""
    from tierstore.service import cli

    threading.Thread(target=_watch, daemon=True).start()
    cli.main(list(sys.argv[1:] if arguments is None else arguments))


def _watch() -> None:
    while os.read(0, 1):
        pass
    while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # it answers already, but would leave its files
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
