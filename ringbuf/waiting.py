"""Waiting for a segment: how often a writer asks, how long, and what it says when none became free."""

from __future__ import annotations

import time

from . import layout
from .errors import Full

LEASE_POLL_S = 0.002
_FIRST_PAUSE_S = 0.0002


class LeaseWait:
    """One writer's wait for a lease. Callers: one thread, which holds no lock while it pauses."""

    def __init__(self, wait_s: float):
        self._wait_s, self._deadline, self._pause_s = wait_s, time.monotonic() + wait_s, _FIRST_PAUSE_S

    def pause(self, result: int, pool: int) -> None:
        """Sleep until it is time to ask again; result: why there was no segment. Raises Full after the time given."""
        if time.monotonic() > self._deadline:
            raise self._full(result, pool)
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, LEASE_POLL_S)

    def _full(self, result: int, pool: int) -> Full:
        if result == layout.RESULT_QUOTA:
            return Full(
                f"pool number {pool} holds all the segments its quota allows, and nothing in it may be evicted; "
                "delete objects or raise the pool's quota"
            )
        return Full(
            f"no segment became free within {self._wait_s:g} s: all tiers are full of objects that must be "
            "kept, pinned or being read; delete some, or give a tier more room"
        )
