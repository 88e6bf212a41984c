"""Errors by what the caller can do about them.

TierstoreError
├── Full              try again later, free something, or raise the limit it names
├── NotFound          not here (also a KeyError); recompute or read the source
│   └── Expired       was here until its owner's lease ended; start over
├── LostMaps          output of map tasks is gone; run these maps again
├── Conflict          committed before, with other contents; draw a new attempt
├── Refused           not yours; give the right secret (also a PermissionError)
├── Closed            this handle was closed by you
├── PeerLost          the daemon is gone or too old; start it, or reconnect
├── ConfigError       change the setting it names (also a ValueError)
├── InvalidKey        change the key (also a ValueError)
└── CorruptionError   bytes are not what was written; never retry
"""

from __future__ import annotations

from collections.abc import Sequence


class TierstoreError(Exception):
    """Anything tierstore raises on purpose."""


class Full(TierstoreError):
    """No room within a stated limit; the message names the limit."""


class NotFound(TierstoreError, KeyError):
    """The key is not in the store."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0]) if self.args else ""


class Expired(NotFound):
    """An application's data went with its lease, or was dropped."""


class LostMaps(TierstoreError):
    """Output of map tasks cannot be read any more, from anywhere. maps: their indexes, sorted; all that are known."""

    def __init__(self, message: str, maps: Sequence[int] = ()):
        super().__init__(message)
        self.maps = sorted(maps)


class Conflict(TierstoreError):
    """What is committed cannot be changed."""


class Refused(TierstoreError, PermissionError):
    """What belongs to somebody else."""


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
