"""Slowing a tier down to the speed of the device it plays: one token bucket per arena, shared by all processes.

The bucket is one word: the time until which the device is busy. Who reads or writes takes his share of its time with one
compare-and-swap and waits for the end of it, so several processes share a device's bandwidth, and reads and writes too.
While nobody waits the device may run ahead by BURST_NS, because a reader that works on what it was given would have had the
next bytes fetched meanwhile. A process that dies has taken no more than its share of time.
"""

from __future__ import annotations

from .atomic import compare_exchange, load, load_acquire, pause, store
from .jit import helper, kernel
from .layout import (
    A_COUNT,
    A_FIRST,
    A_READ_NS,
    A_READ_PS,
    A_WRITE_NS,
    A_WRITE_PS,
    ARENA_MAX,
    B_BUSY,
    C_ARENAS,
    C_TIER_COUNT,
)
from .records import now_ns, system_call

SYS_NANOSLEEP = 35
BURST_NS = 20_000_000
# What looking at the clock and leaving the loop take by themselves.
OVERHEAD_NS = 60
# The kernel wakes a sleeper this much late at worst, mostly; the rest is spun.
SPIN_NS = 120_000


@kernel(nogil=True)
def charge(control, clients, segment, size, write, scratch):
    """Take the device's time for ``size`` bytes read from (write: written to) a segment, and wait for its end; ns waited for.

    control, clients: addresses of the regions. scratch: 16 bytes of the caller's own. Nothing where the arena has no cost.
    """
    for number in range(min(load(control + C_TIER_COUNT), ARENA_MAX)):
        arena = control + C_ARENAS + 64 * number
        first = load(arena + A_FIRST)
        if first <= segment and segment < first + load(arena + A_COUNT):
            rate = load(arena + A_WRITE_PS) if write != 0 else load(arena + A_READ_PS)
            delay = load(arena + A_WRITE_NS) if write != 0 else load(arena + A_READ_NS)
            if rate == 0 and delay == 0:
                return 0
            return take_time(clients + B_BUSY + 64 * number, size * rate // 1000, delay, scratch)
    return 0


@helper
def take_time(busy, cost, delay, scratch):
    """Reserve ``cost`` ns of a device and wait until they, and ``delay`` ns from now, are over."""
    began = now_ns(scratch)
    while True:
        seen = load_acquire(busy)  # SYNC device.busy: pairs with the swap of another process
        end = max(seen, began - BURST_NS) + cost
        if compare_exchange(busy, seen, end) == seen:
            break
    deadline = max(end, began + delay - OVERHEAD_NS)
    now = now_ns(scratch)
    while now < deadline:
        if deadline - now > 2 * SPIN_NS:
            store(scratch, 0)
            store(scratch + 8, min(deadline - now - SPIN_NS, 999999999))
            system_call(SYS_NANOSLEEP, scratch, 0, 0, 0, 0, 0)
        else:
            pause()
        now = now_ns(scratch)
    return deadline - began
