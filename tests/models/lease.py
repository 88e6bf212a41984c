"""Who may write into a segment: an idle lease taken back, a lease given back, and a daemon that dies in between.

The programs follow writer.lease_enter(), core.recall(), seal_lease(), publish() and recovery's _settle_state(). There is one
segment; its word is "leased OWNER.GENERATION", "sealed" or "free". Client 1 owns it, client 2 wants it. Two words of record show
who wrote there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from tierstore.emulation.interleave import Model, Op, Program, add, either, fence, load, store, until

Steps = Generator[Op, Any, Any]


# --- programs -------------------------------------------------------------------------------------------------------------


def lease_enter(variant: str, lease: str) -> Steps:
    """writer.lease_enter()."""
    if variant == "the word before busy":
        word = yield load("word")
    if variant == "busy by load and store":
        yield store("busy", (yield load("busy")) + 1)
    else:
        yield add("busy", 1)
    if variant != "the word before busy":
        word = yield load("word")
    if word == lease:
        return True
    yield add("busy", -1)
    return False


def owner(variant: str, lease: str) -> Program:
    """Appender.put_values() of client 1: enter, append, publish, leave."""

    def run() -> Steps:
        if not (yield from lease_enter(variant, lease)):
            return "elsewhere"
        yield store("first", "1")
        yield store("second", "1")
        yield store("publish", "asked")
        answer = yield either(("publish", "done"), ("publish", "refused"))
        yield add("busy", -1)
        return "published" if answer == "publish" and (yield load("publish")) == "done" else "refused"

    return run


def giver(variant: str, lease: str) -> Program:
    """Appender.lease_with() in another thread of client 1, over a lease that does not hold any more: retire() it."""

    def run() -> Steps:
        if not (yield from lease_enter(variant, lease)):
            yield store("seal", "asked")

    return run


def other() -> Steps:
    """Client 2: asks for a segment, and fills it if one is granted."""
    yield store("lease", "asked")
    yield either(("lease", "granted"), ("lease", "none"))
    if (yield load("lease")) == "none":
        return "none"
    yield store("first", "2")
    yield store("second", "2")
    return "granted"


def seal() -> Steps:
    """segments.seal(): without a live record the segment is free at once (nobody reads here)."""
    yield store("word", "sealed")
    if (yield load("live")) == 0:
        yield store("word", "free")


def recall(variant: str, lease: str) -> Steps:
    """core.recall()."""
    if (yield load("busy")) != 0:
        return
    yield store("word", "sealed" if variant == "the sealed word has no owner" else f"sealed {lease}")
    if variant != "no fence in recall":
        yield fence()
    if variant != "no second look at busy" and (yield load("busy")) != 0:
        yield store("word", lease)
        return
    yield from seal()


def grant(variant: str) -> Steps:
    """core.lease() for client 2."""
    word = yield load("word")
    if word.startswith("leased 1"):
        yield from recall(variant, word)
        word = yield load("word")
    if word in ("free", "leased 2.9"):  # the latter by a daemon that died before it answered
        yield store("word", "leased 2.9")
        yield store("lease", "granted")
    else:
        yield store("lease", "none")


def publish(lease: str) -> Steps:
    """core.publish()."""
    if (yield load("word")) == lease:
        yield store("live", 1)
        yield store("publish", "done")
    else:
        yield store("publish", "refused")


def seal_lease(variant: str) -> Steps:
    """core.seal_lease() for client 1."""
    word = yield load("word")
    if word == "leased 1.1" or (word == "leased 1.2" and variant == "the message names no generation"):
        yield from seal()
    yield store("seal", "done")


def serve(variant: str, lease: str, asks: Sequence[str]) -> Steps:
    """Carry out the messages that are not answered, in the order in which they come."""
    pending = list(asks)
    while pending:
        ask = yield either(*((word, "asked") for word in pending))
        pending.remove(ask)
        if ask == "publish":
            yield from publish(lease)
        elif ask == "lease":
            yield from grant(variant)
        else:
            yield from seal_lease(variant)


def mutator(variant: str, lease: str, asks: Sequence[str]) -> Program:
    """The daemon."""
    return lambda: serve(variant, lease, asks)


def next_daemon(variant: str, lease: str) -> Program:
    """recovery._settle_state() and finish(), then the messages that the dead daemon did not answer. Client 1 lives."""

    def run() -> Steps:
        yield until("alive.daemon", 0)
        word = yield load("word")
        if word == f"sealed {lease}":
            yield store("word", lease)
        elif word == "sealed" and (yield load("live")) == 0:
            yield store("word", "free")
        asks = []
        for ask in ("publish", "lease"):
            if (yield load(ask)) in ("", "asked"):
                asks.append(ask)
        yield from serve(variant, lease, asks)

    return run


# --- scenarios ------------------------------------------------------------------------------------------------------------


def memory(lease: str) -> dict[str, Any]:
    return {"word": lease, "live": 0, "busy": 0, "first": "", "second": "", "publish": "", "lease": "", "seal": ""}


def outcome(words: dict[str, Any], got: dict[str, Any]) -> str:
    """What both clients were told; then, if so, that one wrote over what the other had been promised."""
    told = f"owner {got['owner']}, other {got['other']}"
    wrote = words["first"] + words["second"]
    if (got["owner"] == "published" and wrote != "11") or (got["other"] == "granted" and wrote != "22"):
        return f"{told}, overwritten"
    return told


def recalled(variant: str) -> Model:
    """The owner begins a put while its idle lease is taken back."""
    programs = {
        "owner": owner(variant, "leased 1.1"),
        "mutator": mutator(variant, "leased 1.1", ["publish", "lease"]),
        "other": other,
    }
    return Model(memory("leased 1.1"), programs, outcome)


def recalled_by_the_dying(variant: str) -> Model:
    """The same, and the daemon may die at every step; another follows it."""
    model = recalled(variant)
    programs = {**model.programs, "next": next_daemon(variant, "leased 1.1")}
    return Model(model.memory, programs, outcome, {"daemon": ["mutator"]})


def given_back(variant: str) -> Model:
    """Client 1 lost its lease of generation 1 to a recall, and was granted the segment again for another class. While one
    of its threads fills it, another finds that the first lease does not hold any more, and gives it back."""
    programs = {
        "owner": owner(variant, "leased 1.2"),
        "giver": giver(variant, "leased 1.1"),
        "mutator": mutator(variant, "leased 1.2", ["publish", "lease", "seal"]),
        "other": other,
    }
    return Model(memory("leased 1.2"), programs, outcome)


SCENARIOS = (recalled, recalled_by_the_dying, given_back)
