"""Addresses of nodes: "HOST:PORT", "[V6]:PORT", and "dns:NAME:PORT" for all that a name stands for."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from tierstore.ringbuf.errors import ConfigError

DNS = "dns:"
PORT_MAX = 65535
_HOST = re.compile(r"[A-Za-z0-9_.-]{1,253}")
ALLOWED = "HOST:PORT, for example 10.0.0.5:9101, store-1.example:9101 or [fd00::5]:9101"


@dataclass(frozen=True)
class Address:
    """Where a daemon listens.

    name: what its certificate must be for, where that is not host: host was found by looking the name up.
    """

    host: str
    port: int
    name: str = ""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, key: str, port_min: int = 1) -> Address:
    """The parts of "HOST:PORT". Raises ConfigError."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        sound = _is_v6(host)
    else:
        sound = bool(_HOST.fullmatch(host))
    if not colon or not sound or not re.fullmatch("[0-9]{1,5}", port) or not port_min <= int(port) <= PORT_MAX:
        raise ConfigError(key, text, f"{ALLOWED}; ports are {port_min} to {PORT_MAX}")
    return Address(host, int(port))


def check_node(text: str, key: str) -> str:
    """One entry of ``nodes``, unchanged. Raises ConfigError."""
    parse_address(text.strip().removeprefix(DNS), key)
    return text.strip()


def resolve(nodes: Iterable[str]) -> list[Address]:
    """The addresses of ``nodes``, each once. A name behind "dns:" is looked up now, and may stand for none.

    Raises: ConfigError (not an address), OSError (a name that cannot be looked up).
    """
    found: dict[Address, None] = {}
    for node in nodes:
        address = parse_address(node.strip().removeprefix(DNS), "nodes")
        if not node.strip().startswith(DNS):
            found[address] = None
            continue
        try:
            known = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                continue
            raise
        for host in sorted({str(entry[4][0]) for entry in known}):
            found[Address(host, address.port, address.host)] = None
    return list(found)


def is_loopback(host: str) -> bool:
    """Whether a host is surely this machine, as it is written; names other than localhost are not looked up."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def peer_name(connection: socket.socket) -> str:
    """ "host:port" of a connection's other side."""
    try:
        host, port = connection.getpeername()[:2]
    except OSError:  # gone already
        return "a peer that is gone"
    return str(Address(host.removeprefix("::ffff:"), port))


def _is_v6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
