"""What a registry tells the other nodes: leases renewed, shuffles dropped, applications over. In the background."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tierstore.ringbuf.errors import NotFound

from .network import Network

log = logging.getLogger("tierstore")

THREADS = 4


class Teller:
    """Calls all other nodes, as far as they can be reached; what one is not told ends there with its lease."""

    def __init__(self, network: Network):
        self._network = network
        self._pool = ThreadPoolExecutor(THREADS, "tierstore-tell")

    def tell(self, call: str, **arguments: Any) -> None:
        """Returns at once."""
        for node in self._network.names():
            self._pool.submit(self._tell, node, call, arguments)

    def _tell(self, node: str, call: str, arguments: dict[str, Any]) -> None:
        try:
            self._network.peer(node).call(call, **arguments)
        except NotFound:
            pass  # nothing of it is there
        except Exception as error:
            log.info("%s could not be told %s of %s: %s", node, call, arguments.get("app"), error)

    def close(self) -> None:
        """What was not begun is not told."""
        self._pool.shutdown(wait=True, cancel_futures=True)
