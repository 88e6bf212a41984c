"""A link between nodes that can be cut or slow: a relay in front of a daemon's port, as threads of this process."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
import time

CHUNK_BYTES = 64 << 10
SLOW_S = 0.002  # a chunk


class Link:
    """Relays connections from ``address`` to a daemon. Modes: "whole", "slow", "down", and cut_soon() for what is open."""

    def __init__(self, target: tuple[str, int], seed: int = 0):
        self._target, self._generator = target, random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:" + str(self._listener.getsockname()[1])
        self.mode = "whole"
        self._budget: int | None = None  # bytes until everything is cut
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut_soon(self, most_bytes: int = 1 << 20) -> None:
        """Cut all connections after some more bytes."""
        with self._lock:
            self._budget = self._generator.randrange(most_bytes)

    def close(self) -> None:
        """Cut everything, and end the threads."""
        self._stopped.set()
        self._listener.close()
        self._cut()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self._stopped.is_set():
            if not select.select([self._listener], [], [], 0.1)[0]:
                continue
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.mode == "down":
                near.close()
                continue
            try:
                far = socket.create_connection(self._target, 2)
            except OSError:
                near.close()
                continue
            thread = threading.Thread(target=self._relay, args=(near, far), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _relay(self, near: socket.socket, far: socket.socket) -> None:
        with self._lock:
            self._open |= {near, far}
        try:
            while not self._stopped.is_set() and self.mode != "down":
                for source in select.select([near, far], [], [], 0.1)[0]:
                    data = source.recv(CHUNK_BYTES)
                    if not data or not self._allowed(len(data)):
                        return
                    if self.mode == "slow":
                        time.sleep(SLOW_S)
                    (far if source is near else near).sendall(data)
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open -= {near, far}
            near.close()
            far.close()

    def _allowed(self, size: int) -> bool:
        """Whether so many more bytes may pass; where not, all connections are cut."""
        with self._lock:
            if self._budget is None:
                return True
            self._budget -= size
            if self._budget >= 0:
                return True
            self._budget = None
        self._cut()
        return False

    def _cut(self) -> None:
        with self._lock:
            for entry in self._open:
                with contextlib.suppress(OSError):
                    entry.shutdown(socket.SHUT_RDWR)
