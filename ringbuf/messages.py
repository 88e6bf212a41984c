"""A client's own ring of messages to the mutator: push one, ring the doorbell, wait for the result.

One producer, one consumer, counts that never go back. Nobody is woken who does not sleep: each side says that it is about to
sleep, fences, and looks once more.
"""

from __future__ import annotations

from .atomic import fence, fetch_add32, load, load_acquire, pause, store, store_release
from .codes import RING_FULL, WAIT_TIMED_OUT
from .jit import helper, kernel
from .layout import (
    B_DOORBELL,
    B_SLEEPING,
    M_ARG,
    M_END,
    M_OFFSET,
    M_OP,
    M_RESULT,
    M_SEGMENT,
    MESSAGE_BYTES,
    MESSAGE_COUNT,
    P_HEAD,
    P_TAIL,
    P_WAITING,
    SLOT_PAGE_BYTES,
)
from .records import step, system_call
from .steps import MESSAGE_ANSWERED, MESSAGE_PUSHED

SYS_FUTEX = 202
FUTEX_WAIT, FUTEX_WAKE = 0, 1
SPINS = 2000


@helper
def ring_doorbell(clients):
    """Wake the daemon if it sleeps. The caller's store of the tail comes before (fence), its sleep check after."""
    fence()
    if load(clients + B_SLEEPING) != 0:
        fetch_add32(clients + B_DOORBELL, 1)
        system_call(SYS_FUTEX, clients + B_DOORBELL, FUTEX_WAKE, 1, 0, 0, 0)


@kernel()
def nudge(clients):
    """Wake the daemon now, because a message will come when a copy is done: it wakes up meanwhile."""
    ring_doorbell(clients)
    return 0


@helper
def message_at(slot, position):
    """Where the message of a position lies."""
    return slot + SLOT_PAGE_BYTES + (position & (MESSAGE_COUNT - 1)) * MESSAGE_BYTES


@helper
def push_message(slot, operation, segment, offset, end, argument):
    """Put a message into the ring: its position, -1 where the ring is full."""
    tail = load(slot + P_TAIL)
    if tail - load_acquire(slot + P_HEAD) >= MESSAGE_COUNT:  # SYNC slot.head: pairs with store_release in serve()
        return -1
    message = message_at(slot, tail)
    store(message + M_OP, operation)
    store(message + M_SEGMENT, segment)
    store(message + M_OFFSET, offset)
    store(message + M_END, end)
    store(message + M_ARG, argument)
    store_release(slot + P_TAIL, tail + 1)  # SYNC slot.tail: pairs with load_acquire in waiting_messages()
    return tail


@kernel(nogil=True)
def submit(slot, clients, operation, segment, offset, end, argument, trap):
    """Push one message and wait for its result for about a second; WAIT_TIMED_OUT: ask await_result() again.

    RING_FULL: nothing was pushed, as nobody has carried out the messages before (their senders gave up in an outage).
    Caller:     one thread of the slot's process at a time (the session holds a lock around it).
    Linearizes: at the release store of the tail.
    Dies:       after that store the daemon carries the message out all the same.
    """
    position = push_message(slot, operation, segment, offset, end, argument)
    if position < 0:
        return RING_FULL
    step(trap, MESSAGE_PUSHED)
    ring_doorbell(clients)
    result = wait_for(slot, clients, position)
    step(trap, MESSAGE_ANSWERED)
    return result


@kernel(nogil=True)
def await_result(slot, clients):
    """Go on waiting for the last message pushed."""
    ring_doorbell(clients)
    return wait_for(slot, clients, load(slot + P_TAIL) - 1)


@helper
def wait_for(slot, clients, position):
    """Spin shortly, then sleep on the head; the daemon wakes us when it sees that we wait."""
    for _ in range(SPINS):
        if load_acquire(slot + P_HEAD) > position:  # SYNC slot.head: pairs with store_release in serve()
            return result_of(slot, position)
        pause()
    time = slot + P_WAITING + 16  # the rest of the line that only this client writes
    store(time, 0)
    store(time + 8, 100000000)
    for _ in range(10):
        store(slot + P_WAITING, 1)
        fence()
        seen = load_acquire(slot + P_HEAD)  # SYNC slot.head
        if seen <= position:
            system_call(SYS_FUTEX, slot + P_HEAD, FUTEX_WAIT, seen & 0xFFFFFFFF, time, 0, 0)
        store(slot + P_WAITING, 0)
        if load_acquire(slot + P_HEAD) > position:  # SYNC slot.head
            return result_of(slot, position)
    return WAIT_TIMED_OUT


@helper
def result_of(slot, position):
    """What the daemon answered to the message at this position."""
    return load(message_at(slot, position) + M_RESULT)
