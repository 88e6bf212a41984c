"""One simulated node: its process, if it runs, and what outlives it."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Any

from .events import Make, SimulatedNode


class Life:
    """A node's process and its disk.

    process:  None while it is down.
    starts:   how often it was started; tells one life from the next.
    durable:  what survives a crash. writes: asked for but not yet durable, by number: (entry in the agenda, key, value).
    timers:   entries in the agenda, of this life.
    """

    def __init__(self, name: str, make: Make):
        self.name = name
        self.process: SimulatedNode | None = None
        self.starts = 0
        self.durable: dict[Any, Any] = {}
        self.writes: dict[int, tuple[int, Hashable, Any]] = {}
        self.written_s = 0.0
        self.timers: dict[Hashable, int] = {}
        self._make = make

    def start(self) -> None:
        """A new process finds what is durable, and nothing else."""
        self.starts += 1
        self.process = self._make(self.name, copy.deepcopy(self.durable))

    def stop(self) -> None:
        """The process is gone, with everything that waited for it."""
        self.process = None
        self.timers.clear()
        self.writes.clear()

    def keep(self, key: Hashable, value: Any) -> None:
        """A value is durable now; None removes the key."""
        if value is None:
            self.durable.pop(key, None)
        else:
            self.durable[key] = value
