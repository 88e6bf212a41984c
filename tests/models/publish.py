"""Publish against the death of a client: of a writer at every step of a put, of a reader that holds a pin.

The programs follow writer.claim(), fill_record(), submit() and core.publish(), publish_record(), reap(). One segment, leased to
client 1 in its second generation; what lies there is an older record of the first, buried. A record's payload is two words.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tierstore.emulation.interleave import (
    Model,
    Op,
    Program,
    add,
    either,
    fence,
    load,
    store,
    store_fence,
    stream,
    until,
)

Steps = Generator[Op, Any, Any]


# --- programs: clients ----------------------------------------------------------------------------------------------------


def claim(variant: str) -> Steps:
    """writer.claim()."""
    yield store("generation", 2)
    if variant != "the claim leaves the old publish mark":
        yield store("published", 0)
    yield store("length", -1)


def fill_record(variant: str) -> Steps:
    """writer.fill_record(): key, payload past the cache, header, commit."""
    if variant == "the commit before the payload":
        yield store("length", 1)
    yield store("key", "K")
    yield stream("first", "1")
    yield stream("second", "1")
    if variant != "no store fence before the commit":
        yield store_fence()
    if variant != "the commit before the payload":
        yield store("length", 1)


def push() -> Steps:
    """messages.submit() of a publish, up to the doorbell."""
    yield store("tail", 1)
    yield fence()


def answer() -> Steps:
    """messages.wait_for()."""
    yield until("head", 1)
    return "acknowledged" if (yield load("result")) == 1 else "refused"


def putter(variant: str) -> Program:
    """Appender.put_values()."""

    def run() -> Steps:
        yield from claim(variant)
        yield from fill_record(variant)
        yield from push()
        return (yield from answer())

    return run


def hasty_putter(variant: str) -> Program:
    """A client that is wrong: its message comes before its record."""

    def run() -> Steps:
        yield from claim(variant)
        yield from push()
        yield from fill_record(variant)
        return (yield from answer())

    return run


def reader() -> Steps:
    """get() of K: find() without what a new epoch and other tags are about, then the value, then unpin."""
    while (item := (yield load("item"))) != 0:
        yield add("pin", 1)
        if (yield load("item")) == item:
            same = (yield load("key")) == "K"
            value = ((yield load("first")) + (yield load("second"))) if same else "miss"
            yield add("pin", -1)
            return value
        yield add("pin", -1)
    return "miss"


def other() -> Steps:
    """Client 2: fills the segment once it is free."""
    yield until("word", "free")
    yield store("word", "leased to the other")
    yield store("generation", 3)
    yield store("key", "L")
    yield store("first", "2")
    yield store("second", "2")


# --- programs: the daemon -------------------------------------------------------------------------------------------------


def publish(variant: str) -> Steps:
    """core.publish() of a range of one record, publish_record() and insert(): how many records."""
    if (yield load("word")) != "leased":
        return -3
    length = yield load("length")
    if (yield load("generation")) != 2:
        return 0
    if length < 0 and variant != "the sign of the length is not looked at":
        return 0
    if (yield load("published")) == 0:
        yield store("published", 5)
        yield store("item", "k7")
        yield store("live", 1)
    return 1


def serve(variant: str) -> Steps:
    """core.serve()."""
    done = yield from publish(variant)
    yield store("result", done)
    yield store("head", 1)


def release() -> Steps:
    """segments.retire(), drain() until no pin is left, release()."""
    yield store("word", "evicting")
    while True:
        yield fence()
        if (yield load("pin")) == 0:
            break
        yield until("pin", 0)
    yield store("word", "free")


def reap(variant: str) -> Steps:
    """core.reap(): seal the leases; a segment without a live record is released."""
    if variant == "reap does not seal":
        return
    yield store("word", "sealed")
    if (yield load("live")) == 0:
        yield from release()


def mutator(variant: str) -> Program:
    """Serves the writer's message and reaps the writer, whichever is asked first; a reaped slot is not served any more."""

    def run() -> Steps:
        if (yield either(("tail", 1), ("reap", 1))) == "tail":
            yield from serve(variant)
            yield until("reap", 1)
        yield from reap(variant)

    return run


def policy(variant: str, client: str) -> Program:
    """Engine.reap_dead()."""

    def run() -> Steps:
        if variant != "reap after a time without a sign":
            yield until(f"alive.{client}", 0)
        yield store("reap", 1)

    return run


def remover(variant: str) -> Program:
    """core.delete() of K; drain() looks at the segment again and again, and reap() zeroes the row when it is asked to."""

    def run() -> Steps:
        yield store("item", 0)
        yield store("word", "evicting")
        yield fence()
        if (yield load("pin")) != 0 and (yield either(("pin", 0), ("reap", 1))) == "reap":
            if variant != "reap leaves the row":
                yield store("pin", 0)
            yield until("pin", 0)
        yield store("word", "free")

    return run


# --- scenarios ------------------------------------------------------------------------------------------------------------


def memory(**more: Any) -> dict[str, Any]:
    words = {"length": 1, "generation": 1, "published": "dead", "key": "L", "first": "0", "second": "0"}
    return {
        **words,
        "word": "leased",
        "item": 0,
        "live": 0,
        "pin": 0,
        "tail": 0,
        "head": 0,
        "result": 0,
        "reap": 0,
    } | more


def outcome(words: dict[str, Any], got: dict[str, Any]) -> str:
    """What the writer was told, what the reader saw, and what became of the segment."""
    if got["reader"] not in ("miss", "11"):
        return "foreign bytes"
    if words["head"] == 1 and words["result"] == 1 and words["item"] == 0:
        return "acknowledged and lost"
    if words["word"].endswith("other") and words["first"] + words["second"] != "22":
        return "two writers"
    return f"writer {got['writer']}, reader {got['reader'].replace('11', 'whole')}, segment {words['word']}"


def writer_dies(variant: str) -> Model:
    """A put whose writer may die at every step, a reader, and a client that gets the segment when it is free."""
    programs = {
        "writer": putter(variant),
        "mutator": mutator(variant),
        "policy": policy(variant, "client"),
        "reader": reader,
        "other": other,
    }
    return Model(memory(), programs, outcome, {"client": ["writer"]})


def writer_is_wrong(variant: str) -> Model:
    """A client that asks for its record to be published before it has written it: not visible, or whole."""
    programs = {"writer": hasty_putter(variant), "mutator": mutator(variant), "reader": reader}
    return Model(memory(), programs, outcome, {"client": ["writer"]})


def reader_dies(variant: str) -> Model:
    """K is removed while a reader, which may die at every step, pins it; another client gets the segment."""
    words = memory(generation=2, published=5, key="K", first="1", second="1", word="sealed", item="k7", live=1)
    programs = {
        "reader": reader,
        "remover": remover(variant),
        "policy": policy(variant, "client"),
        "other": other,
    }

    def after(words: dict[str, Any], got: dict[str, Any]) -> str:
        if got["reader"] not in ("miss", "11", "dead"):
            return "foreign bytes"
        return f"reader {got['reader'].replace('11', 'whole')}, segment {words['word']}"

    return Model(words, programs, after, {"client": ["reader"]})


SCENARIOS = (writer_dies, writer_is_wrong, reader_dies)
