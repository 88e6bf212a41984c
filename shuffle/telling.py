"""What a registry tells the other nodes: leases renewed, shuffles dropped, applications over. In the background."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from tierstore.ringbuf.errors import NotFound

from .network import Network

log = logging.getLogger("tierstore")

LINGER_S = 2.0  # that close() waits for what is being told
Name = tuple[str, str, Any, Any]


class Teller:
    """Calls other nodes, as far as they can be reached; what one is not told ends there with its lease.

    A thread for each node, and for each node one message of a kind about a thing: a dead node delays nobody else, and
    nothing grows.
    """

    def __init__(self, network: Network):
        self._network = network
        self._lock = threading.Condition()
        self._waiting: dict[str, OrderedDict[Name, tuple[float, dict[str, Any]]]] = {}
        self._threads: dict[str, threading.Thread] = {}
        self._closed = False

    def tell(self, call: str, nodes: Sequence[str] | None = None, **arguments: Any) -> None:
        """Returns at once. nodes: default all others. Who is told learns as ``age_s`` how long ago this was asked for."""
        name = (call, arguments["app"], arguments.get("shuffle"), arguments.get("attempt"))
        for node in self._network.names() if nodes is None else nodes:
            with self._lock:
                if self._closed:
                    return
                self._waiting.setdefault(node, OrderedDict())[name] = (time.monotonic(), arguments)
                if node not in self._threads:
                    thread = threading.Thread(target=self._run, args=[node], name="tierstore-tell", daemon=True)
                    self._threads[node] = thread
                    thread.start()
                self._lock.notify_all()

    def _run(self, node: str) -> None:
        while True:
            with self._lock:
                while not self._waiting[node] and not self._closed:
                    self._lock.wait()
                if self._closed:
                    return
                (call, *_), (asked, arguments) = self._waiting[node].popitem(last=False)
            try:
                self._network.peer(node).call(call, age_s=time.monotonic() - asked, **arguments)
            except NotFound:
                pass  # nothing of it is there
            except Exception as error:
                log.info("%s could not be told %s of %s: %s", node, call, arguments["app"], error)

    def close(self) -> None:
        """What was not begun is not told."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
            threads = list(self._threads.values())
        deadline = time.monotonic() + LINGER_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
