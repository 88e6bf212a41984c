"""Keys of everything a shuffle keeps in the store.

shuffle/APP                               the application: lease, quota, pool
shuffle/APP/SHUFFLE                       one shuffle: its number of partitions
shuffle/APP/SHUFFLE/MAP/ATTEMPT           the manifest of a committed attempt
shuffle/APP/SHUFFLE/MAP/ATTEMPT/RUN       one run: its number, a point, and its writer's nonce, which tells
                                              writers apart that use one attempt's name
"""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "shuffle/"
# What the daemon serves, see registry.py.
CALLS = tuple(
    f"shuffle_{name}"
    for name in ("open", "touch", "reserve", "commit", "abort", "drop", "end", "why", "list", "drain", "move", "count")
)
NUMBER_MAX = (1 << 31) - 1
# Shuffles from here on are caches of an engine: their attempts are never committed, and can be computed again.
CACHE_FIRST = 1 << 30
# A manifest crosses the socket as text of at most 64 MiB.
PARTITIONS_MAX = 1 << 21
MANIFEST_BYTES_MAX = 46 << 20
RUNS_MAX = 1 << 20
_RUN = re.compile(r"([0-9]{1,7})\.([0-9a-f]{16})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+=-]{0,199}")


class Attempt(NamedTuple):
    """One try of one map task."""

    app: str
    shuffle: int
    map_index: int
    attempt: str

    @property
    def key(self) -> str:
        """Of its manifest."""
        return f"{shuffle_key(self.app, self.shuffle)}/{self.map_index}/{self.attempt}"

    def run(self, sequence: int, nonce: str) -> str:
        """The key of a run of one of its writers."""
        return f"{self.key}/{sequence}.{nonce}"


def app_key(app: str) -> str:
    """The key of an application."""
    return PREFIX + app


def shuffle_key(app: str, shuffle: int) -> str:
    """The key of a shuffle."""
    return f"{PREFIX}{app}/{shuffle}"


def check_name(what: str, name: object) -> str:
    """A name that keys can hold. Raises ValueError with what is allowed."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{what} {name!r:.80} cannot be used: 1 to 200 letters, digits and . _ : @ + = -, the first a letter or digit"
        )
    return name


def check_number(what: str, number: object, limit: int = NUMBER_MAX) -> int:
    """An integer from 0 to a limit. Raises ValueError."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= limit:
        raise ValueError(f"{what} {number!r:.80} cannot be used: an integer from 0 to {limit}")
    return number


def check_attempt(app: object, shuffle: object, map_index: object, attempt: object) -> Attempt:
    """An attempt of checked parts. Raises ValueError."""
    return Attempt(
        check_name("app", app),
        check_number("shuffle", shuffle),
        check_number("map_index", map_index),
        check_name("attempt", attempt),
    )


class Parsed(NamedTuple):
    """The parts of a key; what it does not have is None."""

    app: str
    shuffle: int | None = None
    map_index: int | None = None
    attempt: str | None = None
    sequence: int | None = None
    nonce: str | None = None


def parse(key: str) -> Parsed | None:
    """The parts of a key of ours; None for any other."""
    if not key.startswith(PREFIX):
        return None
    parts = key[len(PREFIX) :].split("/")
    if len(parts) == 5:
        run, head = _RUN.fullmatch(parts[4]), parse(key.rpartition("/")[0])
        return head._replace(sequence=int(run[1]), nonce=run[2]) if run is not None and head is not None else None
    numbers = [part for position, part in enumerate(parts) if position in (1, 2)]
    if len(parts) not in (1, 2, 4) or not all(n.isascii() and n.isdigit() and len(n) < 11 for n in numbers):
        return None
    values: list[object] = [int(part) if position in (1, 2) else part for position, part in enumerate(parts)]
    return Parsed(*values)  # type: ignore[arg-type]
