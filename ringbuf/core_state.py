"""Private words of the daemon's mutator, and the events it tells the policy thread. Not shared, not persistent."""

from __future__ import annotations

D_CONTROL = 0
D_INDEX = 8
D_MASK = 16
D_CLIENTS = 24
D_SLOTS = 32  # address of slot 0
D_SLOT_STRIDE = 40
D_SLOT_HIGH = 48  # slots below this may be in use
D_TABLE = 56
D_ADDRESSES = 64  # table: segment -> writable address, 0 where it is read by pread
D_SEGMENT_BYTES = 72
D_SEGMENT_COUNT = 80
D_STOP = 88
D_ROW_OFFSET = 96  # of the row of pins in a slot
D_ACCESS = 104
D_ACCESS_STRIDE = 112
D_GHOST = 120  # table of 32-bit fingerprints of dropped blocks
D_GHOST_MASK = 128
D_ARENAS = 136  # table: segment -> arena, one byte each
D_FILES = 144  # table: arena -> file descriptor for pread and pwrite
D_POOL_USED = 152  # table: pool -> segments held
D_POOL_QUOTA = 160  # table: pool -> segments allowed, 0 unlimited
D_RESERVE = 168  # free segments of an arena that only the daemon's own moves may take
D_DRAIN = 176  # table of segments waiting for their last pins
D_DRAIN_COUNT = 184
D_EVENT_FD = 192
D_EVENTS = 200  # ring of events
D_EVENT_HEAD = 208  # policy thread
D_EVENT_TAIL = 256  # mutator
D_SCRATCH = 264  # address of 16 KiB: records read by pread
D_PAGE = 272  # address of 4 KiB: a timespec, a segment header
D_POLLS = 280  # how often the mutator looks around, yielding, before it sleeps
D_HEADER_BYTES = 288  # where segment 0 of an arena begins in its file
D_TRAP = 304  # step at which tests end the daemon (steps.py), then how many passes are left
D_FREE_RINGS = 320  # per arena: head, tail, address of the ring of ids
FREE_RING_BYTES = 24
CORE_TOTAL_BYTES = 1024

EVENT_COUNT = 8192
EVENT_SEALED, EVENT_FREED, EVENT_PRESSURE = 1, 2, 3
DRAIN_MAX = 65536
SCRATCH_BYTES = 16384
