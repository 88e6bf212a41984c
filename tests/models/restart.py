"""The daemon dies at every step of a publish, a delete and a move; the next one rebuilds the index from the records.

The programs follow operations.publish_record(), bury_object() and relink(), moves.Mover, survey.recover_record() and
Store.delete(). Key K lies in segment 7 ("k7"), its copy in 8. A record is its publish number: 0 unpublished, 5 published, "dead"
buried, "dead, copied" buried during a move, "" not committed. Readers look in the old index, then in the new one; what one has
seen the next must not miss without a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from tierstore.emulation.interleave import Model, Op, Program, either, load, store, until

Steps = Generator[Op, Any, Any]
Outcome = Callable[[Mapping[str, Any], Mapping[str, Any]], str]
SEGMENTS = ("7", "8")


# --- programs: the daemon -------------------------------------------------------------------------------------------------


def publish(variant: str, item: str) -> Steps:
    """core.publish() of one committed record: how many."""
    if (yield load("number7")) != 0:
        return 0 if variant == "a number found there does not count" else 1
    if variant == "the item before the number":
        yield store(item, "k7")
    yield store("number7", 5)
    if variant != "the item before the number":
        yield store(item, "k7")
    return 1


def delete(variant: str, item: str) -> Steps:
    """operations.delete() of exactly the item that the message names: how many. bury_object() comes last."""
    named = yield load("argument")
    if (yield load(item)) != named:
        return 0
    moved = variant != "the mark does not tell of a copy" and (yield load("moving")) == named
    mark = store(f"number{named[1:]}", "dead, copied" if moved else "dead")
    if variant not in ("no dead mark", "the removal before the mark"):
        yield mark
    yield store(item, 0)
    if variant == "the removal before the mark":
        yield mark
    return 1


def relink(variant: str, item: str) -> Steps:
    """operations.relink() of the copy in segment 8."""
    if (yield load(item)) == "k7":
        if (yield load("number8")) == 0 and variant != "the copy gets no number":
            yield store("number8", 5)
        yield store(item, "k8")
        yield store("number7", "dead")
    else:
        yield store("number8", "dead")


def serve(variant: str, item: str, operations: Sequence[str]) -> Steps:
    """Carry out a client's message and the policy's, in the order in which they come."""
    pending = list(operations)
    while pending:
        asked = yield either(*((f"{operation} asked", 1) for operation in pending))
        operation = asked.removesuffix(" asked")
        pending.remove(operation)
        if operation == "move":
            yield store("moving", "k7")
            yield store("begun", 1)
            continue
        if operation == "relink":
            yield from relink(variant, item)
            continue
        done = yield from (publish(variant, item) if operation == "publish" else delete(variant, item))
        yield store("result", done)
        yield store("head", 1)


def mutator(variant: str, *operations: str) -> Program:
    """The daemon that may die."""
    return lambda: serve(variant, "item", operations)


def mover(variant: str, staged: bool) -> Program:
    """moves.Mover: tell that a move begins, list what is live, copy it, ask for the relink. staged: the copy goes to a file, its
    publish number with it. It dies with the mutator."""

    def run() -> Steps:
        if variant == "nobody is told of a move":
            yield store("begun", 1)
        else:
            yield store("move asked", 1)
        yield until("begun", 1)
        if (yield load("item")) != "k7":
            return
        number = yield load("number7")
        if variant == "the relink before the copy":
            yield store("relink asked", 1)
        yield store("number8", number if staged else 0)
        yield store("relink asked", 1)

    return run


def recover(variant: str) -> Steps:
    """survey.recover(): records that are published and not buried; the first found of one version is kept. bury_copies():
    the copy of what was deleted in a move is not."""
    kept, deleted = "", False
    for segment in SEGMENTS:
        number = yield load(f"number{segment}")
        deleted |= number == "dead, copied"
        if number in ("", 0) or (
            str(number).startswith("dead") and variant != "recovery does not look at the dead mark"
        ):
            continue
        if kept:
            yield store(f"number{segment}", "dead")
        else:
            kept = f"k{segment}"
            yield store("new item", kept)
    if deleted and kept and variant != "copies are not buried":
        yield store("new item", 0)


def next_daemon(variant: str, operation: str) -> Program:
    """Recovers, serves readers, and carries out the message that was not answered, unless its client is dead too."""

    def run() -> Steps:
        yield until("alive.daemon", 0)
        yield store("epoch", 2)
        yield from recover(variant)
        yield store("serving", 1)
        if (yield load("head")) == 0 and (yield load("alive.client")) == 1:
            yield from serve(variant, "new item", [operation])

    return run


# --- programs: clients ----------------------------------------------------------------------------------------------------


def putter() -> Steps:
    """A put of K; its record is committed."""
    yield store("publish asked", 1)
    yield until("head", 1)
    return "done" if (yield load("result")) == 1 else "refused"


def deleter() -> Steps:
    """Store.delete(): find K, name its item; where that was not there any more, look again."""
    item, epoch = (yield load("item")), 1
    yield store("argument", item)
    yield store("delete asked", 1)
    yield until("head", 1)
    if (yield load("result")) == 1:
        return "done"
    if (yield load("epoch")) == epoch:
        return "again"
    yield until("serving", 1)  # the look-up waits for the new index
    return "done" if (yield load("new item")) == 0 else "again"


def idle() -> Steps:
    """Nobody asks for anything."""
    yield from ()
    return "nobody"


def reader() -> Steps:
    """A look at the old index, and one at the new index once a daemon serves it."""
    first = yield load("item")
    yield until("serving", 1)
    return first != 0, (yield load("new item")) != 0


# --- scenarios ------------------------------------------------------------------------------------------------------------


def memory(number: Any, item: Any) -> dict[str, Any]:
    words = {"number7": number, "number8": "", "item": item, "new item": 0, "epoch": 1, "serving": 0, "argument": ""}
    words |= {"moving": "", "begun": 0}
    asked = {f"{operation} asked": 0 for operation in ("publish", "delete", "move", "relink")}
    return {**words, **asked, "head": 0, "result": 0}


def judged(before: bool, after: bool) -> Outcome:
    """Of a change that takes K from one state to the other: what the client was told and what is there in the end. What the
    reader saw and that must follow each other in this order."""

    def outcome(words: Mapping[str, Any], got: Mapping[str, Any]) -> str:
        if words["serving"] == 0:
            return "the daemon lives"
        last = words["new item"] != 0
        seen = [*got["reader"], last]
        if got["client"] == "done" and last != after:
            return "acknowledged, then undone"
        if any(seen[at] == after != before == seen[at + 1] for at in range(2)):
            return "seen, then undone"
        return f"{got['client']}, {'there' if last else 'gone'}"

    return outcome


BOTH_DIE = {"daemon": ["mutator"], "client": ["client"]}


def put_dies(variant: str) -> Model:
    """A put."""
    programs = {
        "client": putter,
        "mutator": mutator(variant, "publish"),
        "next": next_daemon(variant, "publish"),
        "reader": reader,
    }
    return Model(memory(0, 0), programs, judged(False, True), BOTH_DIE)


def delete_dies(variant: str) -> Model:
    """A delete."""
    programs = {
        "client": deleter,
        "mutator": mutator(variant, "delete"),
        "next": next_daemon(variant, "delete"),
        "reader": reader,
    }
    return Model(memory(5, "k7"), programs, judged(True, False), BOTH_DIE)


def move_dies(variant: str) -> Model:
    """A move."""
    programs = {
        "mutator": mutator(variant, "move", "relink"),
        "mover": mover(variant, staged=False),
        "next": next_daemon(variant, "relink"),
        "reader": reader,
        "client": idle,
    }
    return Model(memory(5, "k7"), programs, judged(True, False), {"daemon": ["mutator", "mover"], "client": []})


def delete_dies_in_a_move(variant: str) -> Model:
    """A delete of a key that is being moved."""
    programs = {
        "client": deleter,
        "mutator": mutator(variant, "move", "relink", "delete"),
        "mover": mover(variant, staged=True),
        "next": next_daemon(variant, "delete"),
        "reader": reader,
    }
    return Model(memory(5, "k7"), programs, judged(True, False), {"daemon": ["mutator", "mover"], "client": ["client"]})


SCENARIOS = (put_dies, delete_dies, move_dies, delete_dies_in_a_move)
