"""Codes that kernels return, for processes that do not import the kernel modules."""

from __future__ import annotations

WAIT_TIMED_OUT = -100
MISS, MAPPED, UNMAPPED, STALE = 0, 1, 2, -1
LISTED_BYTES = 48
PIN_OBJECT_WORDS = 5
