"""Writing an attempt from another process: its bytes are filled in by whoever maps the arena, its runs are ours.

What comes of it is an ordinary attempt of opaque bytes. The other process orders each run by partition and says where
each partition begins and what its check is (checks.py over one column of uint8), so checks are made before the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tierstore.cache.placing import Placing, put_large_bytes, room_for

from .manifest import Run
from .receipt import Receipt
from .writer import BYTES_MAX, SHARE_MIN, MapWriter

if TYPE_CHECKING:
    from .handle import Shuffle


class PlacedWriter(MapWriter):
    """As MapWriter, for bytes that others put in place. Callers: one thread."""

    def __init__(self, shuffle: Shuffle, map_index: int, attempt: str, durable: bool = False):
        super().__init__(shuffle, map_index, attempt, None, durable)
        self._parts = []  # opaque bytes; nothing is ever held here
        self._placing: Placing | None = None

    def room(self) -> tuple[int, int]:
        """How many bytes the next run should have, so that no segment is left half empty; and the most it can have."""
        left, empty = room_for(self._shuffle.store, 512, self._shuffle.pool, self._group)
        return (left if left >= empty // SHARE_MIN else empty), empty

    def begin_run(self, size: int) -> Placing:
        """Room for a run of so many bytes. Then end_run(). Raises Full, Expired, ValueError."""
        self._check_open()
        if self._placing is not None:
            raise ValueError("the run before this one is not ended")
        key = self._begin(size)
        self._placing = Placing(self._shuffle.store, key, size, pool=self._shuffle.pool, group=self._group)
        self._size = size
        return self._placing

    def end_run(self, starts: np.ndarray, checks: np.ndarray) -> None:
        """The run is in place. starts: partitions + 1, from 0 to its size; checks: of each partition."""
        if self._placing is None:
            raise ValueError("no run was begun")
        self._check_shape(starts, checks, self._size)
        hashed = self._placing.finish()
        self._placing = None
        self._runs.append(Run(hashed, starts.astype("u4"), checks.astype("u8")))
        self._bytes += self._size

    def write_large(self, data: Any, starts: np.ndarray, checks: np.ndarray) -> None:
        """A run of any size below 4 GiB, which is copied from memory of this process."""
        self._check_open()
        view = memoryview(data).cast("B")
        self._check_shape(starts, checks, len(view))
        key, place = self._begin(len(view)), {"pool": self._shuffle.pool, "group": self._group}
        hashed = put_large_bytes(self._shuffle.store, key, view, **place)
        self._runs.append(Run(hashed, starts.astype("u4"), checks.astype("u8")))
        self._bytes += len(view)

    def commit(self, records: int) -> Receipt:
        """As close(). records: how many the caller wrote."""
        self._records = records
        return self.close()

    def abort(self) -> None:
        """As MapWriter.abort(). Nobody may write to a run that was begun any more."""
        if self._placing is not None:
            self._placing.abort()
            self._placing = None
        super().abort()

    def _flush(self) -> None:
        if self._placing is not None:
            raise ValueError("a run was begun and not ended")

    def _check_shape(self, starts: Sequence[int] | np.ndarray, checks: np.ndarray, size: int) -> None:
        partitions = self._shuffle.partitions
        if len(starts) != partitions + 1 or len(checks) != partitions or size > BYTES_MAX:
            raise ValueError(
                f"a run of {partitions} partitions, not {len(starts) - 1} and {len(checks)} ({size} bytes)"
            )
        if starts[0] != 0 or starts[-1] != size or (np.diff(np.asarray(starts, "i8")) < 0).any():
            raise ValueError(f"partitions must follow one another from 0 to {size}")
