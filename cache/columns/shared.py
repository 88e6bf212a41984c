"""What all datasets of one store share: the threads that fill, parsed footers, rules, and the report to the daemon."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from typing import Any

from tierstore.ringbuf.errors import TierstoreError

from .dataset import Dataset
from .filling import Filler
from .footers import Footers
from .holding import HOLD_SHARE, Budget
from .ledger import Rules

# Counts that handles left behind and that no daemon took; older ones go.
UNTOLD_MAX = 4096


class ColumnCache:
    """One per store. Callers: any thread."""

    def __init__(self, store: Any):
        grant, self._control = store._session.grant, store._control
        # Datasets keep the store open; what the store itself keeps must not.
        self.filler, self.footers = Filler(weakref.proxy(store)), Footers()
        self.budget = Budget(int(HOLD_SHARE * grant.arenas[0].segment_count * grant.segment_bytes))
        self.rules = Rules(*store._control.call("column_rules"))
        self._datasets: weakref.WeakSet[Dataset] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.left: deque[tuple[str, list[str], dict[str, float]]] = deque(maxlen=UNTOLD_MAX)

    def dataset(self, store: Any, paths: Any, **options: Any) -> Dataset:
        """See Store.dataset()."""
        made = Dataset(store, self, paths, **options)
        with self._lock:
            self._datasets.add(made)
        return made

    def tell(self, table: str, patterns: list[str], counters: dict[str, float]) -> None:
        """Tell the daemon what was counted, if it is there; and what handles that are gone had not told yet."""
        self.left.append((table, patterns, counters))
        with contextlib.suppress(TierstoreError, OSError, IndexError):
            while self._control.answers():
                name, paths, counted = self.left.popleft()
                if counted:
                    self._control.call("count_table", table=name, patterns=paths, counters=counted)

    def close(self) -> None:
        """End the threads; before the store closes."""
        self.filler.close()
        with self._lock:
            open_now = list(self._datasets)
        for dataset in open_now:
            dataset.close()
        if self.left:
            self.tell(*self.left.popleft())
