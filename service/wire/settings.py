"""The settings of the network: what each may be, and what they may not be together. No file is opened here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from tierstore.ringbuf.errors import ConfigError

from .address import check_node, is_loopback, parse_address

if TYPE_CHECKING:
    from ..config import StoreConfig

NODES_MAX = 1024


class TlsSettings(Protocol):
    """What a configuration and a Security have in common."""

    @property
    def tls_cert(self) -> str | None: ...
    @property
    def tls_key(self) -> str | None: ...
    @property
    def tls_ca(self) -> str | None: ...
    @property
    def tls_client_auth(self) -> bool: ...


def listen(value: object, key: str) -> str:
    """ "HOST:PORT"; port 0 lets the kernel choose."""
    if not isinstance(value, str):
        raise ConfigError(key, value, "HOST:PORT in quotes")
    parse_address(value, key, port_min=0)
    return value.strip()


def advertise(value: object, key: str) -> str:
    """ "HOST:PORT" as other nodes reach it."""
    if not isinstance(value, str):
        raise ConfigError(key, value, "HOST:PORT in quotes")
    return str(parse_address(value, key))


def nodes(value: object, key: str) -> tuple[str, ...]:
    """A list of "HOST:PORT" and "dns:NAME:PORT", or one string of them with commas."""
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise ConfigError(key, value, 'a list of "HOST:PORT" and "dns:NAME:PORT"')
    if len(value) > NODES_MAX:
        raise ConfigError(key, f"{len(value)} nodes", f"up to {NODES_MAX}")
    return tuple(dict.fromkeys(check_node(part, key) for part in value))


def check(config: StoreConfig) -> None:
    """Raise ConfigError for settings that contradict each other, or that expose a store."""
    check_pairs(config)
    if config.listen is not None:
        host = parse_address(config.listen, "listen", port_min=0).host
        check_exposure(config, config.token_file is not None, config.listen, host)
    if config.flight is not None:
        host = parse_address(config.flight, "flight", port_min=0).host
        check_exposure(config, config.token_file is not None, config.flight, host, "flight")


def check_pairs(settings: TlsSettings) -> None:
    """Raise ConfigError for files that are not given together."""
    if bool(settings.tls_cert) != bool(settings.tls_key):
        key = "tls_key" if settings.tls_cert else "tls_cert"
        raise ConfigError(key, None, "a PEM file: tls_cert and tls_key are set together")
    if settings.tls_client_auth and not (settings.tls_cert and settings.tls_ca):
        raise ConfigError("tls_client_auth", True, "only together with tls_cert, tls_key and tls_ca")


def check_exposure(settings: TlsSettings, token: bool, listen: str, host: str, key: str = "listen") -> None:
    """Raise ConfigError if a daemon with these settings may not listen on a host: beyond loopback it needs TLS and a token.

    listen, key: the setting that names the host.
    """
    if settings.tls_ca and not settings.tls_cert:
        raise ConfigError("tls_cert", None, f"a PEM file: {key} is {listen!r}, and tls_ca asks for TLS")
    needed = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key, "token_file": token}
    missing = [key for key, value in needed.items() if not value]
    if missing and not is_loopback(host):
        allowed = f"a loopback address such as 127.0.0.1:9101; for any other, set {' and '.join(missing)} too"
        raise ConfigError(key, listen, allowed)
