"""The ring of messages: no message is lost, none is answered before it is carried out, and nobody sleeps for ever.

The programs follow messages.submit(), ring_doorbell(), wait_for() and core.serve(), nap(), run(). No time passes here: where a
wait only ends by its time limit, its program is "asleep". One look stands for a row of spins.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from tierstore.emulation.interleave import AGAIN, Model, Op, Program, add, either, fence, load, store, until, wait, wake

Steps = Generator[Op, Any, Any]
COUNT = 2  # messages in a ring


# --- programs: the client -------------------------------------------------------------------------------------------------


def push(variant: str, me: str, operation: str) -> Steps:
    """messages.submit() up to the doorbell: the message's position; -1 where the ring is full."""
    tail = yield load(f"{me}tail")
    if variant != "a full ring is not seen" and tail - (yield load(f"{me}head")) == COUNT:
        return -1
    if variant == "the tail before the message":
        yield store(f"{me}tail", tail + 1)
    yield store(f"{me}message{tail % COUNT}", operation)
    if variant != "the tail before the message":
        yield store(f"{me}tail", tail + 1)
    return tail


def ring_doorbell(variant: str) -> Steps:
    """messages.ring_doorbell()."""
    if variant != "no fence before the look at sleeping":
        yield fence()
    if (yield load("sleeping")) != 0:
        if variant == "the doorbell is a flag":
            yield store("doorbell", 1)
        elif variant != "no count on the doorbell":
            yield add("doorbell", 1)
        yield wake("doorbell")


def wait_for(variant: str, me: str, position: int) -> Steps:
    """messages.wait_for() and result_of()."""
    if (yield load(f"{me}head")) > position:
        return (yield load(f"{me}result{position % COUNT}"))
    while True:
        if variant == "the look at the head before waiting":
            seen = yield load(f"{me}head")
        if variant != "waiting is not stored":
            yield store(f"{me}waiting", 1)
        if variant != "no fence before the look at the head":
            yield fence()
        if variant != "the look at the head before waiting":
            seen = yield load(f"{me}head")
        if seen <= position:
            yield wait(f"{me}head", seen)
        yield store(f"{me}waiting", 0)
        if (yield load(f"{me}head")) > position:
            return (yield load(f"{me}result{position % COUNT}"))


def client(variant: str, operations: Sequence[str], me: str = "", after: str = "") -> Program:
    """Submits messages, each after the answer to the one before."""

    def run() -> Steps:
        got = []
        if after:
            yield until(after, 1)
        for operation in operations:
            while (position := (yield from push(variant, me, operation))) < 0:
                yield either((f"{me}head", 1), (f"{me}head", COUNT))  # Session.submit(): later again
            yield from ring_doorbell(variant)
            got.append((yield from wait_for(variant, me, position)))
        return ", ".join(got)

    return run


def giving_up(variant: str) -> Program:
    """Messages of a client for which no daemon answered: each await_result() ended in PeerLost."""

    def run() -> Steps:
        for _ in range(COUNT + 1):
            if (yield from push(variant, "", "a")) >= 0:
                yield from ring_doorbell(variant)
        yield store("given up", 1)

    return run


# --- programs: the mutator ------------------------------------------------------------------------------------------------


def serve(variant: str, me: str, life: str) -> Steps:
    """core.serve() for one slot: how many messages. What a life of the daemon carried out is noted under its name."""
    head, done = (yield load(f"{me}head")), 0
    tail = yield load(f"{me}tail")
    if head == tail or tail - head > COUNT:
        return 0
    if variant == "the look at waiting comes first":
        waiting = (yield load(f"{me}waiting")) != 0
    while head < tail:
        operation = yield load(f"{me}message{head % COUNT}")
        if variant == "the head before the result":
            yield store(f"{me}head", head + 1)
        yield store(f"{me}{life}", head + 1)
        yield store(f"{me}result{head % COUNT}", f"did {operation}")
        head += 1
        done += 1
        if variant != "the head before the result":
            yield store(f"{me}head", head)
    if variant != "no fence before the look at waiting":
        yield fence()
    if waiting if variant == "the look at waiting comes first" else (yield load(f"{me}waiting")) != 0:
        yield wake(f"{me}head")
    return done


def visit_all(variant: str, slots: Sequence[str], life: str) -> Steps:
    """core.visit_all()."""
    work = 0
    for me in slots:
        work += yield from serve(variant, me, life)
    return work


def nap(variant: str, slots: Sequence[str], life: str) -> Steps:
    """core.nap()."""
    seen, work = 0, 0
    if variant != "the doorbell is read after the visit":
        seen = yield load("doorbell")
    if variant == "sleeping after the visit":
        work = yield from visit_all(variant, slots, life)
    yield store("sleeping", 1)
    if variant != "no fence before the visit":
        yield fence()
    if variant not in ("no visit before the sleep", "sleeping after the visit"):
        work = yield from visit_all(variant, slots, life)
    if variant == "the doorbell is read after the visit":
        seen = yield load("doorbell")
    if work == 0:
        yield wait("doorbell", seen)
    yield store("sleeping", 0)


def run(variant: str, slots: Sequence[str] = ("",), after: tuple[str, int] | None = None) -> Program:
    """core.run(); of a daemon that starts when a word has a value."""

    def run() -> Steps:
        life = "first life"
        if after is not None:
            yield until(*after)
            life = "second life"
        if (yield from visit_all(variant, slots, life)) == 0:
            yield from nap(variant, slots, life)
        return AGAIN

    return run


# --- scenarios ------------------------------------------------------------------------------------------------------------


def memory(slots: Sequence[str] = ("",)) -> dict[str, Any]:
    words: dict[str, Any] = {"sleeping": 0, "doorbell": 0, "given up": 0}
    for me in slots:
        words |= {f"{me}{word}": 0 for word in ("tail", "head", "waiting", "first life", "second life")}
        words |= {f"{me}{word}{place}": "nothing" for word in ("message", "result") for place in range(COUNT)}
    return words


def outcome(words: dict[str, Any], got: dict[str, Any]) -> str:
    """What the clients were answered; then, if so, that something was carried out twice, or not at all."""
    answers = "; ".join(value for name, value in got.items() if name.startswith("client"))
    asked = sum(value for word, value in words.items() if word.endswith("tail"))
    done = sum(value for word, value in words.items() if word.endswith("life"))
    return answers if done == asked else f"{answers}; {done} of {asked} carried out"


def messages(variant: str) -> Model:
    """One client submits two messages."""
    return Model(memory(), {"client": client(variant, ["a", "b"]), "mutator": run(variant)}, outcome)


def two_clients(variant: str) -> Model:
    """Two clients share the doorbell."""
    slots = ("1 ", "2 ")
    clients = {f"client {me}": client(variant, [operation], me) for me, operation in zip(slots, "ab", strict=True)}
    return Model(memory(slots), {**clients, "mutator": run(variant, slots)}, outcome)


def restart(variant: str) -> Model:
    """The daemon dies at any step, and another follows it."""
    programs = {
        "client": client(variant, ["a"]),
        "mutator": run(variant),
        "next": run(variant, after=("alive.daemon", 0)),
    }
    return Model(memory(), programs, outcome, {"daemon": ["mutator"]})


def outage(variant: str) -> Model:
    """No daemon for so long that a client gives up more messages than its ring holds; then one starts."""
    programs = {
        "giving up": giving_up(variant),
        "client": client(variant, ["b"], after="given up"),
        "mutator": run(variant, after=("given up", 1)),
    }
    return Model(memory(), programs, outcome)


SCENARIOS = (messages, two_clients, restart, outage)
