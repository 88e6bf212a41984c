"""Filling ahead what queries keep reading: row groups of such columns that filters left out, or that were evicted."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tierstore.ringbuf.errors import TierstoreError

if TYPE_CHECKING:
    from .dataset import Dataset

# A column is read again and again if so many of the last scans read it.
WINDOW, OFTEN = 8, 4
EVERY_S = 5.0
# Nothing is filled ahead unless at least this share of the fastest tier's segments is free: it must evict nothing.
FREE_SHARE = 0.25


class Prefetcher:
    """One per dataset. Callers: any thread."""

    def __init__(self, dataset: Dataset, store: Any):
        self._dataset, self._store = dataset, store
        self._scans: deque[frozenset[str]] = deque(maxlen=WINDOW)
        self._lock = threading.Lock()
        self._again_at = time.monotonic() + EVERY_S
        self._running = False

    def hot(self) -> list[str]:
        """The columns that queries keep reading."""
        with self._lock:
            counts = Counter(name for names in self._scans for name in names)
        return sorted(name for name, count in counts.items() if count >= OFTEN)

    def note(self, names: Iterable[str]) -> None:
        """A scan has read these columns. Now and then this begins to fill ahead, in another thread."""
        with self._lock:
            self._scans.append(frozenset(names))
            if self._running or time.monotonic() < self._again_at:
                return
            self._running = True
        try:
            self._dataset.background(self.run)
        except (RuntimeError, TierstoreError):  # the threads were ended: the store closes
            self._running = False

    def run(self) -> None:
        """Fill what is missing of the hot columns while there is room. A fault ends it: nobody asked for this."""
        with contextlib.suppress(TierstoreError, OSError, pa.ArrowException):
            names = self.hot()
            while names and self._has_room() and self._dataset.fill_one(names):
                pass
        with self._lock:
            self._running, self._again_at = False, time.monotonic() + EVERY_S

    def _has_room(self) -> bool:
        tiers = self._store.stats()["tiers"]
        fastest = next(iter(tiers.values()))
        return bool(fastest["free_segments"] >= FREE_SHARE * sum(fastest["segments"].values()))
