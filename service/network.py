"""The network of a configuration: the daemon's listener, and what its nodes answer."""

from __future__ import annotations

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

ASKED_AT_ONCE = 16


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
