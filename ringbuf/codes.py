"""Codes that kernels return, for processes that do not import the kernel modules."""

from __future__ import annotations

WAIT_TIMED_OUT, RING_FULL = -100, -101
MISS, MAPPED, UNMAPPED, STALE = 0, 1, 2, -1
LISTED_BYTES = 48
NOTE_DAMAGED, NOTE_COPIED = 1, 2
PIN_OBJECT_WORDS = 5
