"""What the column cache did for each table, over all processes: kept by the daemon, told by its clients."""

from __future__ import annotations

import fnmatch
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

TABLES_MAX = 1024


class Rules:
    """Which files may be cached: those that match a pattern of ``allow`` (if there is any), and none of ``deny``."""

    def __init__(self, allow: Sequence[str] = (), deny: Sequence[str] = ()):
        self.allow, self.deny = list(allow), list(deny)

    def admit(self, path: str) -> bool:
        """Whether a file may be cached. path: canonical."""
        if any(matches(path, pattern) for pattern in self.deny):
            return False
        return not self.allow or any(matches(path, pattern) for pattern in self.allow)


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern names a file: as it is, as a directory above it, or with *, ? and []."""
    return path == pattern or path.startswith(pattern.rstrip("/") + "/") or fnmatch.fnmatchcase(path, pattern)


class Ledger:
    """Counters by table; the table that was told of longest ago goes first. Callers: any thread."""

    def __init__(self) -> None:
        self._tables: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, table: str, patterns: Sequence[str], counters: dict[str, float]) -> None:
        """Add what a client counted since it told last."""
        with self._lock:
            row = self._tables.setdefault(table, {"patterns": list(patterns)})
            for name, value in counters.items():
                row[name] = row.get(name, 0) + value
            self._tables.move_to_end(table)
            while len(self._tables) > TABLES_MAX:
                self._tables.popitem(last=False)

    def rows(self, cached: Iterable[tuple[str, str, int]]) -> list[dict[str, Any]]:
        """One row a table. cached: path, tier and bytes of each chunk; what belongs to no known table is a row a file."""
        with self._lock:
            rows = {name: {"table": name, **values, "chunks": 0, "bytes": {}} for name, values in self._tables.items()}
        owners: dict[str, str] = {}
        for path, tier, size in cached:
            owner = owners.get(path)
            if owner is None:
                known = (name for name, row in rows.items() if any(matches(path, one) for one in row["patterns"]))
                owner = owners[path] = next(known, path)
            row = rows.setdefault(owner, {"table": owner, "patterns": [path], "chunks": 0, "bytes": {}})
            row["chunks"] += 1
            row["bytes"][tier] = row["bytes"].get(tier, 0) + size
        return [{name: value for name, value in row.items() if name != "patterns"} for row in rows.values()]
