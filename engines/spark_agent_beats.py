"""What an agent says to its JVM while it works on a request: so that a long request is not taken for an agent that hangs.

Each second a frame {"working": true} goes to each connection whose request is under way, until the request has taken longer
than any of its kind may. Then the agent is silent, and after spark.tierstore.timeout the JVM kills it (engines/java/Watch.java).
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from .spark_agent_wire import framed

BEAT_S = 1.0
# How long a request may take. Most wait for a daemon that comes back (10 s) or for room (20 s) at the most.
PATIENCE_S = 60.0
# These wait for other nodes and for what these send, and for files that may be far away; a commit may have to reach the disk.
LONG_S = dict.fromkeys(("read", "next", "commit", "scan_plan", "scan_open", "scan_next"), 600.0)
_FRAME = framed({"working": True})


class Beats:
    """Of all connections of an agent. Any thread."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._until: dict[socket.socket, float] = {}

    @contextlib.contextmanager
    def during(self, connection: socket.socket, op: str) -> Iterator[None]:
        """While a request is under way. No beat is sent after it."""
        with self._turn:
            self._until[connection] = time.monotonic() + LONG_S.get(op, PATIENCE_S)
        try:
            yield
        finally:
            with self._turn:
                del self._until[connection]

    def run(self) -> None:
        """Beat for ever."""
        while True:
            time.sleep(BEAT_S)
            self.beat(time.monotonic())

    def beat(self, now: float) -> None:
        """Tell all that wait and whose request may take longer still."""
        with self._turn:  # so no answer begins meanwhile
            for connection in [connection for connection, until in self._until.items() if now < until]:
                try:
                    if connection.send(_FRAME, socket.MSG_DONTWAIT) < len(_FRAME):
                        connection.shutdown(socket.SHUT_RDWR)  # the rest would be taken for another frame
                except OSError:  # it is full of beats that are not read, or was closed
                    continue
