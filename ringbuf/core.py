"""The mutator: the one thread that changes the index, the segment states and the free rings.

It serves the clients' message rings in turn. Each handler is short, bounded by one segment, and safe to be repeated: a
daemon that died inside one is followed by another that handles the same message again on an index rebuilt from the
segments themselves.
"""

from __future__ import annotations

from .atomic import (
    fence,
    load,
    load32,
    load_acquire,
    pause,
    store,
    store32,
    store_release,
)
from .core_state import (
    D_CLIENTS,
    D_DRAIN_COUNT,
    D_PAGE,
    D_POLLS,
    D_SLOT_HIGH,
    D_SLOT_STRIDE,
    D_SLOTS,
    D_STOP,
    D_TRAP,
)
from .counters import daemon_index
from .drops import drop_range, drop_segment
from .index import tally
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
    MESSAGE_COUNT,
    OP_BACKED,
    OP_DELETE,
    OP_DROP,
    OP_LEASE,
    OP_MOVING,
    OP_PUBLISH,
    OP_QUARANTINE,
    OP_REAP,
    OP_RELINK,
    OP_RETIRE,
    OP_SEAL,
    P_HEAD,
    P_STATE,
    P_TAIL,
    P_WAITING,
    RESULT_REFUSED,
    SLOT_ACTIVE,
)
from .messages import FUTEX_WAIT, FUTEX_WAKE, SYS_FUTEX, message_at
from .operations import (
    back,
    delete,
    lease,
    publish,
    reap,
    relink,
    seal_lease,
    set_aside,
)
from .records import now_ns, step, system_call
from .segments import (
    drain,
    hold,
    retire,
)
from .steps import ANSWER_STORED

SYS_SCHED_YIELD = 24

COUNT_REFUSED = daemon_index("refused")
COUNT_MESSAGES = daemon_index("messages")
COUNT_SLEEPS = daemon_index("sleeps")

# About 60 us: a client that puts in a loop finds the mutator awake (0.6 us a message instead of 60).
IDLE_SPINS = 1500
# While messages come less than SHORT_SLEEP_NS apart, it then looks on for about a millisecond, giving the processor to anybody
# who wants it: being woken costs each of them up to 100 us.
BUSY_POLLS, SHORT_SLEEP_NS = 2500, 4_000_000
SLEEP_NS, DRAIN_NS = 500_000_000, 1_000_000
MESSAGES_PER_VISIT = 64


@helper
def carry_out(d, slot, operation, segment, offset, end, argument):
    """One message; the daemon's own slot may do more."""
    if operation == OP_LEASE:
        return lease(d, slot, segment, offset, end)
    if operation == OP_PUBLISH:
        return publish(d, slot, segment, offset, end)
    if operation == OP_DELETE:
        return delete(d, offset, argument)
    if operation == OP_SEAL:
        return seal_lease(d, slot, segment, offset, end)
    if slot != 0:
        return RESULT_REFUSED
    if operation == OP_RELINK:
        return relink(d, segment, offset, end, argument)
    if operation == OP_DROP:
        return drop_segment(d, segment, argument, end) if argument != 0 else drop_range(d, segment, offset, end)
    if operation == OP_RETIRE:
        retire(d, segment)
        return 1
    if operation == OP_BACKED:
        return back(d, segment)
    if operation == OP_REAP:
        return reap(d, offset)
    if operation == OP_QUARANTINE:
        return set_aside(d, segment)
    if operation == OP_MOVING:
        return hold(d, segment, offset)
    return RESULT_REFUSED


@helper
def waiting_messages(base):
    """How many messages of a slot wait; 0 where the client's count makes no sense."""
    waiting = load_acquire(base + P_TAIL) - load(
        base + P_HEAD
    )  # SYNC slot.tail: pairs with store_release in push_message()
    return waiting if waiting > 0 and waiting <= MESSAGE_COUNT else 0


@helper
def serve(d, slot):
    """Handle up to MESSAGES_PER_VISIT messages of one slot; how many."""
    base = load(d + D_SLOTS) + slot * load(d + D_SLOT_STRIDE)
    waiting, done = waiting_messages(base), 0
    head = load(base + P_HEAD)
    while done < waiting and done < MESSAGES_PER_VISIT:
        message = message_at(base, head)
        result = carry_out(
            d,
            slot,
            load(message + M_OP),
            load(message + M_SEGMENT),
            load(message + M_OFFSET),
            load(message + M_END),
            load(message + M_ARG),
        )
        store(message + M_RESULT, result)
        step(d + D_TRAP, ANSWER_STORED)
        if result == RESULT_REFUSED:
            tally(d, COUNT_REFUSED, 1)
        head += 1
        done += 1
        store_release(base + P_HEAD, head)  # SYNC slot.head: pairs with load_acquire in wait_for()
    if done == 0:
        return 0
    fence()
    if load(base + P_WAITING) != 0:
        system_call(SYS_FUTEX, base + P_HEAD, FUTEX_WAKE, 1, 0, 0, 0)
    tally(d, COUNT_MESSAGES, done)
    return done


@helper
def visit_all(d):
    """One round over all slots."""
    work = 0
    for slot in range(load(d + D_SLOT_HIGH)):
        state = load_acquire(load(d + D_SLOTS) + slot * load(d + D_SLOT_STRIDE) + P_STATE)  # SYNC slot.state
        if slot == 0 or state == SLOT_ACTIVE:
            work += serve(d, slot)
    return work


@helper
def nap(d, nanoseconds):
    """Sleep on the doorbell unless a message came meanwhile; 1 if that was only for a short time."""
    clients, page = load(d + D_CLIENTS), load(d + D_PAGE)
    seen, slept = load32(clients + B_DOORBELL), 0
    store(clients + B_SLEEPING, 1)
    fence()
    if visit_all(d) == 0 and load(d + D_STOP) == 0:
        store(page, 0)
        store(page + 8, nanoseconds)
        tally(d, COUNT_SLEEPS, 1)
        began = now_ns(page + 16)
        system_call(SYS_FUTEX, clients + B_DOORBELL, FUTEX_WAIT, seen, page, 0, 0)
        slept = now_ns(page + 16) - began
    store(clients + B_SLEEPING, 0)
    return 1 if slept < SHORT_SLEEP_NS else 0


@kernel(nogil=True)
def run(d):
    """Serve until D_STOP is set. The daemon's mutator thread spends its life here, without the interpreter lock."""
    idle = 0
    while load_acquire(d + D_STOP) == 0:  # SYNC stop
        work = visit_all(d)
        if load(d + D_DRAIN_COUNT) > 0:
            drain(d)
        if work > 0:
            idle = 0
            continue
        idle += 1
        if idle <= IDLE_SPINS:
            pause()
        elif idle <= IDLE_SPINS + load(d + D_POLLS):
            system_call(SYS_SCHED_YIELD, 0, 0, 0, 0, 0, 0)
        else:
            short = nap(d, DRAIN_NS if load(d + D_DRAIN_COUNT) > 0 else SLEEP_NS)
            store(d + D_POLLS, BUSY_POLLS * short)
            idle = 0
    return 0


@kernel()
def one_round(d):
    """What run() does in one turn, in the caller's thread; for stores without a mutator thread. Messages handled."""
    work = visit_all(d)
    drain(d)
    return work


@kernel()
def wake(d):
    """Make the mutator look around; for the thread that set D_STOP."""
    clients = load(d + D_CLIENTS)
    store32(clients + B_DOORBELL, load32(clients + B_DOORBELL) + 1)
    system_call(SYS_FUTEX, clients + B_DOORBELL, FUTEX_WAKE, 1, 0, 0, 0)
    return 0
