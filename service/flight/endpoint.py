"""The life of the Flight endpoint: checked and bound with the daemon, started with it, and ended within a stated time.

pyarrow's server can neither limit how long its end takes nor end a call whose client is silent. So calls see between two
batches that the daemon stops, and a connection in which nothing moves is cut from outside (connections.py).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from tierstore.cache.engine import Engine
from tierstore.cache.inside import store_inside
from tierstore.cache.requests import Requests
from tierstore.cache.store import Store
from tierstore.ringbuf.errors import ConfigError
from tierstore.shuffle.late import Late
from tierstore.shuffle.network import Network

from ..config import StoreConfig
from ..wire import settings
from ..wire.address import Address, parse_address
from ..wire.security import Security
from ..wire.server import bound
from .connections import cut_connections, plain_name

if TYPE_CHECKING:
    from .server import Gate, Server

log = logging.getLogger("tierstore")

CALLS_MAX = 64
IDLE_S = 300.0  # between two batches of a stream
GRACE_S = 2.0  # at the end, for streams that move
STOP_S = 10.0  # at the end, for all
TICK_S = 1.0


class Endpoint:
    """Takes connections from the moment it is made, answers from start() to stop(). See endpoint_of()."""

    def __init__(self, config: StoreConfig, security: Security, calls_max: int, idle_s: float):
        assert config.flight is not None
        server, gate = _import(config.flight)
        asked = parse_address(config.flight, "flight", port_min=0)
        settings.check_exposure(security, security.token is not None, str(asked), asked.host, "flight")
        security.server_context()  # refuses files that cannot be used, by name
        with bound(asked, "flight") as probe:  # gRPC does not say why it could not
            host, port = probe.getsockname()[:2]
        settings.check_exposure(security, security.token is not None, str(asked), host, "flight")
        self.security, self._idle_s = security, idle_s
        self.gate: Gate = gate(security, calls_max)
        self._server: Server = _serve(server, Address(host, port), security, self.gate)
        self.address = Address(host, self._server.port)
        self._store: Store | None = None
        self._watching = threading.Thread(target=self._watch, name="tierstore-flight", daemon=True)

    def start(self, engine: Engine, requests: Requests, late: Late, network: Network) -> None:
        """Begin to answer."""
        from .objects import Objects
        from .shuffles import Shuffles

        mutator = engine.mutator
        self._store = store_inside(engine, requests)

        def ping() -> dict[str, Any]:
            from tierstore import __version__

            return {"store_id": mutator.store_id.hex(), "version": __version__, "epoch": mutator.epoch}

        self._server.open(Objects(self._store, requests), Shuffles(self._store, late, network), ping)
        self._watching.start()
        self.gate.serving.set()

    def stop(self) -> None:
        """End all streams: those that move at their next batch, the others after GRACE_S by cutting their connections."""
        self.gate.stopping.set()
        self.gate.serving.set()
        ending = threading.Thread(target=self._server.shutdown, name="tierstore-flight-end", daemon=True)
        ending.start()
        ending.join(GRACE_S)
        deadline = time.monotonic() + STOP_S - GRACE_S
        while ending.is_alive() and time.monotonic() < deadline:
            cut_connections(self.address.port)
            ending.join(0.1)
        if ending.is_alive():
            log.warning("%d Flight calls did not end within %g s", len(self.gate.calls), STOP_S)
        if self._watching.ident is not None:
            self._watching.join()
        if self._store is not None:
            self._store.close()

    def _watch(self) -> None:
        """Cut the connections of clients that are gone without a word."""
        while not self.gate.stopping.wait(min(TICK_S, self._idle_s / 4)):
            silent = self.gate.silent(self._idle_s)
            if silent:
                log.info("nothing moved for %g s in Flight streams of %s: cut", self._idle_s, ", ".join(sorted(silent)))
                cut_connections(self.address.port, {plain_name(peer) for peer in silent})

    def stats(self) -> dict[str, Any]:
        """Address, calls and counters since the start."""
        return {
            "address": str(self.address),
            "tls": bool(self.security.tls_cert),
            "token": self.security.token is not None,
            "client_auth": self.security.tls_client_auth,
            **self.gate.stats(),
        }


def endpoint_of(config: StoreConfig, calls_max: int = CALLS_MAX, idle_s: float = IDLE_S) -> Endpoint | None:
    """The endpoint that a configuration asks for, bound and not started; None if it asks for none. Raises ConfigError."""
    return Endpoint(config, Security.of(config), calls_max, idle_s) if config.flight is not None else None


def _import(value: str) -> tuple[type[Server], type[Gate]]:
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else strangers fill the log with failed handshakes
    try:
        from .server import Gate, Server
    except ImportError as error:
        if "flight" not in str(error):
            raise
        allowed = (
            "only where pyarrow has Flight: install pyarrow's wheel (pip install pyarrow), or conda's libarrow-flight"
        )
        raise ConfigError("flight", value, allowed) from None
    return Server, Gate


def _serve(server: type[Server], address: Address, security: Security, gate: Gate) -> Server:
    from .server import CALL

    host = f"[{address.host}]" if ":" in address.host else address.host
    options: dict[str, Any] = {"middleware": {CALL: gate}}
    if security.tls_cert:
        options["tls_certificates"] = [(_read(security.tls_cert), _read(security.tls_key))]
    if security.tls_client_auth:
        options |= {"verify_client": True, "root_certificates": _read(security.tls_ca)}
    try:
        return server((host, address.port), **options)
    except Exception as error:  # of several kinds, all of pyarrow
        allowed = f"an address of this machine with a free port ({error})"
        raise ConfigError("flight", str(address), allowed) from None


def _read(path: str | None) -> bytes:
    assert path is not None
    with open(path, "rb") as file:
        return file.read()
