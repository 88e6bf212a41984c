"""What all datasets of one store share: the threads that fill, parsed footers, rules, and the report to the daemon."""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Any

from tierstore.ringbuf.errors import TierstoreError

from .dataset import Dataset
from .filling import Filler
from .footers import Footers
from .holding import HOLD_SHARE, Budget
from .ledger import Rules


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

    def dataset(self, store: Any, paths: Any, **options: Any) -> Dataset:
        """See Store.dataset()."""
        made = Dataset(store, self, paths, **options)
        with self._lock:
            self._datasets.add(made)
        return made

    def tell(self, table: str, patterns: list[str], counters: dict[str, float]) -> None:
        """Tell the daemon what was counted, if it is there."""
        with contextlib.suppress(TierstoreError, OSError):
            if self._control.answers():
                self._control.call("count_table", table=table, patterns=patterns, counters=counters)

    def close(self) -> None:
        """End the threads; before the store closes."""
        self.filler.close()
        with self._lock:
            open_now = list(self._datasets)
        for dataset in open_now:
            dataset.close()
