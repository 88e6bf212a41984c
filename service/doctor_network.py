"""What the network's settings amount to, for `tierstore doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from tierstore.ringbuf.errors import ConfigError

from .config import StoreConfig
from .doctor import BAD, NOTE, Finding
from .wire.security import Security


def examine_network(config: StoreConfig) -> Iterator[Finding]:
    """Findings of ``listen``, ``nodes``, and the files of token and certificates; none where nothing of it is set."""
    if not (config.listen or config.nodes or config.token_file or config.tls_cert or config.tls_ca):
        return
    yield Finding("network", "listen", config.listen or "not for other nodes")
    yield Finding("network", "nodes", str(len(config.nodes)))
    try:
        security = Security.of(config)
        security.server_context()
        security.client_context()
    except ConfigError as error:
        yield Finding("network", error.key, str(error.value), BAD, remedy=error.allowed)
        return
    shown = "certificate and key fit" if security.tls_cert else "as a client only" if security.tls else "off"
    yield Finding("network", "TLS", shown)
    if security.token:
        yield Finding("network", "token", "readable by its owner only")
    elif config.listen:
        remedy = "set token_file if other users have accounts on this machine"
        yield Finding("network", "token", "none: every process of this machine may call", NOTE, remedy=remedy)
