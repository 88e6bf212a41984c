"""The clock of a simulated cluster: a value in virtual seconds, moved by what is due next."""

from __future__ import annotations

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Agenda:
    """What is to be done, by virtual time; what is due at the same time is done in the order it was entered.

    now_s: virtual seconds since the start. It moves only in pop() and advance().
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._heap: list[tuple[float, int]] = []
        self._actions: dict[int, Action] = {}
        self._entered = 0

    def at(self, time_s: float, action: Action) -> int:
        """Enter an action; the number of its entry. Raises ValueError for a time that is past or not a number."""
        self.check(time_s)
        self._entered += 1
        self._actions[self._entered] = action
        heapq.heappush(self._heap, (time_s, self._entered))
        return self._entered

    def after(self, delay_s: float, action: Action) -> int:
        """Enter an action that is due in delay_s."""
        return self.at(self.now_s + delay_s, action)

    def cancel(self, entry: int) -> None:
        """Take an entry out; one that was done, or taken out before, is none."""
        self._actions.pop(entry, None)

    def due_s(self) -> float | None:
        """When the next action is due; None if there is none."""
        while self._heap and self._heap[0][1] not in self._actions:
            heapq.heappop(self._heap)  # cancelled
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Action:
        """The next action; it is now its time. Raises IndexError if there is none."""
        if self.due_s() is None:
            raise IndexError("nothing is due")
        self.now_s, entry = heapq.heappop(self._heap)
        return self._actions.pop(entry)

    def advance(self, time_s: float) -> None:
        """Let time pass up to time_s. Raises ValueError as at() does, or if something is due before."""
        self.check(time_s)
        due_s = self.due_s()
        if due_s is not None and due_s < time_s:
            raise ValueError(f"it cannot become {time_s} s: something is due at {due_s} s")
        self.now_s = time_s

    def check(self, time_s: float) -> None:
        """Raises ValueError for a time that is past or not a number."""
        if not self.now_s <= time_s < float("inf"):
            raise ValueError(f"nothing can be done at {time_s} s: it is {self.now_s} s, and time only goes on")
