"""Errors by what the caller can do about them.

TierstoreError
├── Full              try again later, free something, or raise the limit it names
├── NotFound          not here (also a KeyError); recompute or read the source
├── Closed            this handle was closed by you
├── PeerLost          the daemon is gone or too old; start it, or reconnect
├── ConfigError       change the setting it names (also a ValueError)
├── InvalidKey        change the key (also a ValueError)
└── CorruptionError   bytes are not what was written; never retry
"""

from __future__ import annotations


class TierstoreError(Exception):
    """Anything tierstore raises on purpose."""


class Full(TierstoreError):
    """No room within a stated limit; the message names the limit."""


class NotFound(TierstoreError, KeyError):
    """The key is not in the store."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class Closed(TierstoreError):
    """The store, writer or session was closed before this call."""


class PeerLost(TierstoreError):
    """The daemon does not answer."""


class ConfigError(TierstoreError, ValueError):
    """A setting cannot be used.

    key, value: what was given; allowed: what would be accepted, in words.
    """

    def __init__(self, key: str, value: object, allowed: str):
        super().__init__(f"{key} = {value!r} cannot be used: {allowed}")
        self.key, self.value, self.allowed = key, value, allowed


class InvalidKey(TierstoreError, ValueError):
    """A key that is empty, too long or not text."""


class CorruptionError(TierstoreError):
    """Stored bytes differ from what was written.

    region: file or tier; offset: byte position there; expected, found: what disagreed; remedy: what can be done.
    """

    def __init__(
        self,
        region: str,
        offset: int,
        expected: object,
        found: object,
        remedy: str = "the block is set aside and reported by `tierstore verify`",
    ):
        super().__init__(f"{region} at byte {offset}: expected {expected}, found {found}; {remedy}")
        self.region, self.offset, self.expected, self.found = region, offset, expected, found
