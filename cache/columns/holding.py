"""Columns of the last queries, held for a moment, so that the next query does not look all their chunks up again.

What is held stays pinned, as if the query were still running: for HOLD_S, and no more than a share of memory.
"""

from __future__ import annotations

import threading
import time
from typing import Any

HOLD_S = 1.0
# Of the fastest tier's capacity, over all datasets of a store.
HOLD_SHARE = 0.5


class Budget:
    """How many bytes may be held. Callers: any thread."""

    def __init__(self, limit_bytes: int):
        self.limit_bytes, self.held_bytes = limit_bytes, 0
        self.lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Whether so many bytes more may be held; then they are."""
        with self.lock:
            if self.held_bytes + size > self.limit_bytes:
                return False
            self.held_bytes += size
            return True

    def give(self, size: int) -> None:
        """They are not held any more."""
        with self.lock:
            self.held_bytes -= size


class Held:
    """Values by name, each for HOLD_S after its last use. All belong to one owner: another owner's are dropped."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._owner: Any = None
        self._values: dict[Any, tuple[float, int, Any]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def get(self, owner: Any, name: Any) -> tuple[Any, int] | None:
        """A value and its size, or None."""
        with self._lock:
            found = self._values.get(name) if owner is self._owner else None
            if found is not None:
                self._values[name] = (time.monotonic() + HOLD_S, *found[1:])
        return None if found is None else (found[2], found[1])

    def put(self, owner: Any, name: Any, value: Any, size: int) -> None:
        """Hold a value, if the budget allows."""
        with self._lock:
            if owner is not self._owner:
                self._drop(list(self._values))
                self._owner = owner
            if name in self._values or not self._budget.take(size):
                return
            self._values[name] = (time.monotonic() + HOLD_S, size, value)
            if self._timer is None:
                self._arm()

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._drop(list(self._values))
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _arm(self) -> None:
        self._timer = threading.Timer(HOLD_S, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            now = time.monotonic()
            self._drop([name for name, (deadline, _, _) in self._values.items() if deadline <= now])
            self._timer = None
            if self._values:
                self._arm()

    def _drop(self, names: list[Any]) -> None:
        for name in names:
            self._budget.give(self._values.pop(name)[1])
