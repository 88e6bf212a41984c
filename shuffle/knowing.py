"""What was read before and is kept, up to so many bytes: manifests, which are the same for as long as they exist."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from .manifest import Manifest

KNOWN_BYTES = 64 << 20
Name = TypeVar("Name", bound=Hashable)


class Known(Generic[Name]):
    """Manifests by name; the least recently used go first. Any thread.

    They must not be over the store's memory: what is kept here would keep segments from being freed.
    """

    def __init__(self, bytes_max: int = KNOWN_BYTES):
        self.bytes_max, self._bytes = bytes_max, 0
        self._known: OrderedDict[Name, Manifest] = OrderedDict()
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: Name) -> Manifest | None:
        """One, if it is known."""
        with self._turn:
            found = self._known.get(name)
            if found is not None:
                self._known.move_to_end(name)
            return found

    def put(self, name: Name, manifest: Manifest) -> None:
        """Keep one; what is larger than all that may be kept is not."""
        size = size_of(manifest)
        with self._turn:
            if name in self._known or size > self.bytes_max:
                return
            self._known[name] = manifest
            self._bytes += size
            while self._bytes > self.bytes_max:
                self._bytes -= size_of(self._known.popitem(last=False)[1])

    def clear(self) -> None:
        """Forget all."""
        with self._turn:
            self._known.clear()
            self._bytes = 0


def size_of(manifest: Manifest) -> int:
    """About the bytes that one takes."""
    each = sum(run.starts.nbytes + run.checks.nbytes for run in manifest.runs)
    return each + len(manifest.schema_message) + 512 * (1 + len(manifest.runs))
