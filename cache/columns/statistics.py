"""What the cache did for one table, in one process."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa


def _nbytes(groups: Iterable[list[pa.Array]]) -> int:
    return sum(array.get_total_buffer_size() for arrays in groups for array in arrays)  # 0.2 us each


@dataclass
class Counters:
    """Chunks and bytes. One column chunk asked for by one scan is one hit or one miss, whatever is done with it.

    fill_s:  seconds spent reading and decoding, over all threads.
    """

    scans: int = 0
    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    fill_bytes: int = 0
    fill_s: float = 0.0
    admitted: int = 0
    refused: int = 0  # could not be admitted: no room, or no daemon
    untrusted: int = 0  # read through because the file is too young to tell its versions apart
    prefetched: int = 0  # filled ahead of any query
    pruned: int = 0  # row groups that statistics excluded
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **amounts: int) -> None:
        """Add to counters by name."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def hit(self, groups: Iterable[list[pa.Array]]) -> None:
        """Chunks were found."""
        groups = list(groups)
        with self._lock:
            self.hits += len(groups)
            self.hit_bytes += _nbytes(groups)

    def filled(self, arrays: Iterable[pa.Array], seconds: float) -> None:
        """Chunks were read from a file."""
        arrays = list(arrays)
        with self._lock:
            self.misses += len(arrays)
            self.fill_bytes += _nbytes([arrays])
            self.fill_s += seconds

    def seconds_saved(self) -> float:
        """What the hits would have taken, at the rate at which this table's fills went."""
        return self.hit_bytes * self.fill_s / self.fill_bytes if self.fill_bytes else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Names and values."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if not each.name.startswith("_")}
        return {**values, "seconds_saved": self.seconds_saved()}
