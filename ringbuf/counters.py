"""Declared counters: name, unit, sentence. Clients count in their slot, the daemon in the control page."""

from __future__ import annotations

from typing import NamedTuple


class Counter(NamedTuple):
    """One counter: its place is its position in the tuple."""

    name: str
    unit: str
    sentence: str


CLIENT = (
    Counter("hits", "blocks", "look-ups that pinned a block"),
    Counter("misses", "keys", "look-ups that found nothing"),
    Counter("dram_bytes_read", "bytes", "payload bytes handed out from dram"),
    Counter("pmem_bytes_read", "bytes", "payload bytes handed out from pmem"),
    Counter("disk_bytes_read", "bytes", "payload bytes read from disk"),
    Counter("puts", "objects", "objects published"),
    Counter("bytes_put", "bytes", "payload bytes appended"),
    Counter("copies", "blocks", "reads that had to copy (compressed, cut in pieces)"),
    Counter("corrupt", "blocks", "blocks whose checksum did not match"),
    Counter("waits", "calls", "calls that waited for room or for the daemon"),
)
DAEMON = (
    Counter("published", "blocks", "blocks made visible"),
    Counter("deleted", "objects", "objects removed by users"),
    Counter("replaced", "objects", "objects overwritten"),
    Counter("dropped_blocks", "blocks", "CACHE blocks evicted from the last tier"),
    Counter("dropped_bytes", "bytes", "their record bytes"),
    Counter("relinked", "blocks", "blocks moved to another segment"),
    Counter("leases", "segments", "leases granted"),
    Counter("recalled", "segments", "idle leases taken back"),
    Counter("refused", "messages", "messages that did not pass the checks"),
    Counter("freed", "segments", "segments returned to the free ring"),
    Counter("messages", "messages", "messages handled"),
    Counter("sleeps", "times", "waits on the doorbell"),
    Counter("demoted_bytes", "bytes", "record bytes copied to a slower tier"),
    Counter("promoted_bytes", "bytes", "record bytes copied to a faster tier"),
    Counter("disk_bytes_written", "bytes", "bytes written to disk"),
    Counter("quarantined", "segments", "segments set aside after corruption"),
)


def client_index(name: str) -> int:
    """The place of a client counter."""
    return next(i for i, counter in enumerate(CLIENT) if counter.name == name)


def daemon_index(name: str) -> int:
    """The place of a daemon counter."""
    return next(i for i, counter in enumerate(DAEMON) if counter.name == name)
