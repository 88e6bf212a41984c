"""What shuffles did on this node since its daemon started: counters, summed over all applications.

The daemon counts what goes through it. Reads on this node do not; readers tell what they read, when they are done.
"""

from __future__ import annotations

import threading
from collections import Counter

from tierstore.ringbuf.errors import ConfigError

# By the daemon: attempts that were committed (here or as copies of other nodes'), given up, refused for a conflict; that went
# with a drop or a lease; leases that ended; runs that had to wait for a quota; copies stored on other nodes; frames sent to them.
DAEMON = (
    "attempts_committed",
    "bytes_committed",
    "attempts_aborted",
    "attempts_refused",
    "attempts_dropped",
    "leases_ended",
    "quota_waits",
    "copies_taken",
    "copies_given",
    "served_bytes",
)
# By readers: what they got from this node's memory or disk, and from other nodes; sources that failed them; lost maps.
READERS = ("bytes_read_here", "bytes_read_elsewhere", "sources_failed", "maps_lost")
NAMES = DAEMON + READERS


class Tally:
    """Counts by name. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, **counts: int) -> None:
        """Count some more of DAEMON or READERS."""
        with self._lock:
            self._counts.update(counts)

    def add_read(self, counts: dict[str, int]) -> None:
        """What a reader counted. Raises ConfigError for what is none of READERS, or no number."""
        for name, count in counts.items():
            if name not in READERS or type(count) is not int or count < 0:
                raise ConfigError("counts", {name: count}, f"numbers of {', '.join(READERS)}")
        self.add(**counts)

    def take(self) -> dict[str, int]:
        """What was counted since the last time, and begin anew."""
        with self._lock:
            found, self._counts = self._counts, Counter()
        return {name: count for name, count in found.items() if count}

    def counts(self) -> dict[str, int]:
        """All of them."""
        with self._lock:
            return {name: self._counts[name] for name in NAMES}
