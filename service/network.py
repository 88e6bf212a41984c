"""The network of a configuration: the daemon's listener, and what its nodes answer."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tierstore.ringbuf.errors import TierstoreError

from .config import StoreConfig
from .wire.address import Address, parse_address, resolve
from .wire.client import Peer
from .wire.security import Security
from .wire.server import Call, Listener, ListenerConfig

log = logging.getLogger("tierstore")

ASKED_AT_ONCE = 16
NAMES_S = 10.0  # between look-ups of names behind "dns:"
WILDCARDS = ("0.0.0.0", "::")


class Nodes:
    """The other nodes of a configuration, as the shuffle store uses them (shuffle/network.py). Any thread.

    listener: of this node's daemon, if there is one.
    """

    def __init__(self, config: StoreConfig, listener: Listener | None = None):
        self.replicas = config.replicas
        self.node = ""
        if listener is not None:
            self.node = config.advertise or advertised(listener.address)
        self._config, self._lock = config, threading.Lock()
        self._security: Security | None = None
        self._peers: dict[str, Peer] = {}
        self._names: list[str] = []
        self._looked_up = -NAMES_S

    def names(self) -> list[str]:
        """The configured nodes as "host:port", without this one."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked_up >= NAMES_S:
                try:
                    found = [str(address) for address in resolve(self._config.nodes)]
                    self._names = [name for name in dict.fromkeys(found) if name != self.node]
                except OSError as error:  # the nodes known before are as good as any
                    log.warning("the names of nodes cannot be looked up now: %s", error)
                self._looked_up = now
            return list(self._names)

    def peer(self, node: str) -> Peer:
        """The connection to one. Raises ConfigError."""
        with self._lock:
            if self._security is None:
                self._security = Security.of(self._config)
            if node not in self._peers:
                self._peers[node] = Peer(node, self._security)
            return self._peers[node]

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            peer.close()


def advertised(address: Address) -> str:
    """What other nodes call an address that this one listens at."""
    return str(Address(socket.getfqdn(), address.port)) if address.host in WILDCARDS else str(address)


def listener_of(config: StoreConfig, handlers: Mapping[str, Callable[[Call], Any]]) -> Listener | None:
    """The listener that a configuration asks for, bound and not started; None if it asks for none. Raises ConfigError."""
    if config.listen is None:
        return None
    address = parse_address(config.listen, "listen", port_min=0)
    return Listener(ListenerConfig(address.host, address.port, Security.of(config)), handlers)


def survey(config: StoreConfig, timeout_s: float) -> list[dict[str, Any]]:
    """Each configured node as it answers now; names behind "dns:" give a row for each address.

    Rows: node, address, reachable, version, store_id, epoch, latency_ms (of a call on an open connection), error.
    """
    security = Security.of(config)
    asked: list[tuple[str, Address | None, str]] = []
    for node in config.nodes:
        try:
            found = resolve([node])
            asked += [(node, address, "") for address in found]
            if not found:
                asked.append(
                    (node, None, "the name stands for no address; correct it in nodes, or its entry in the DNS")
                )
        except OSError as error:
            asked.append((node, None, f"the name cannot be looked up now ({error.strerror})"))
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return list(pool.map(lambda entry: _ask(entry[0], entry[1], entry[2], security, timeout_s), asked))


def _ask(node: str, address: Address | None, trouble: str, security: Security, timeout_s: float) -> dict[str, Any]:
    row: dict[str, Any] = {"node": node, "address": str(address or ""), "reachable": False, "version": None}
    row |= {"store_id": None, "epoch": None, "latency_ms": None, "error": trouble or None}
    if address is None:
        return row
    try:
        with Peer(address, security, timeout_s) as peer:
            peer.call("ping")
            began = time.perf_counter()
            answer = peer.call("ping")
            latency = (time.perf_counter() - began) * 1e3
        row |= {"reachable": True, "latency_ms": round(latency, 3)}
        row |= {key: answer.get(key) for key in ("version", "store_id", "epoch")}
    except TierstoreError as error:
        row["error"] = str(error)
    return row
