"""What the shuffle store needs to know of other nodes; made by the service above."""

from __future__ import annotations

from typing import Any, Protocol

from tierstore.ringbuf.errors import PeerLost


class Peer(Protocol):
    """A connection to another node; see service/wire/client.py."""

    def call(self, name: str, /, **arguments: Any) -> Any:
        """A call without data."""

    def fetch(self, name: str, arguments: dict[str, Any], sink: Any, arrived: Any = None) -> Any:
        """A call answered with data."""

    def push(self, name: str, arguments: dict[str, Any], items: Any, sink: Any = None, arrived: Any = None) -> Any:
        """A call with data."""


class Network(Protocol):
    """The other nodes.

    node: "host:port" at which they reach this one; "" if they do not.  replicas: how many nodes must hold each commit.
    """

    node: str
    replicas: int

    def names(self) -> list[str]:
        """The configured nodes as "host:port", without this one."""

    def peer(self, node: str) -> Peer:
        """The connection to one. Raises PeerLost, ConfigError."""

    def close(self) -> None:
        """Close all connections."""


class Alone:
    """No other nodes."""

    node = ""
    replicas = 1

    def names(self) -> list[str]:
        """None."""
        return []

    def peer(self, node: str) -> Peer:
        """Nobody."""
        raise PeerLost(f"{node} cannot be asked: this store has no network")

    def close(self) -> None:
        """Nothing to close."""
