"""Who holds a slot: a client that attaches against a daemon that gives the slots of dead clients away.

The programs follow Session._map() (lock, then look at state and nonce), Engine.reap_dead(), recovery._find_slots() and finish(),
Mutator.reap(). The lock is the kernel's: taken and dropped in one step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from tierstore.emulation.interleave import Model, Op, Program, exchange, load, store, until

Steps = Generator[Op, Any, Any]


def attach() -> Steps:
    """A client that was granted the slot: lock it, look whether it still is the client's, submit a message."""
    if (yield exchange("lock", 0, "client")) != 0:
        return "connect again"
    if (yield load("state")) != "active":
        yield exchange("lock", "client", 0)
        return "connect again"
    yield store("tail", 1)
    yield until("head", 1)
    return "served"


def reap(variant: str, locked: bool) -> Steps:
    """Mutator.reap(). locked: whether the slot was, some time before."""
    holds = variant != "a look at the lock"
    if locked if not holds else (yield exchange("lock", 0, "daemon")) != 0:
        return
    yield store("state", "free")
    if holds:
        yield exchange("lock", "daemon", 0)


def serve() -> Steps:
    """core.visit_all(): only active slots are served."""
    yield until("tail", 1)
    if (yield load("state")) == "active":
        yield store("head", 1)


def running(variant: str) -> Program:
    """Engine.reap_dead() once, then the message. The client's connection stays open until it has attached."""

    def run() -> Steps:
        held = variant != "open connections do not count" and (yield load("connected")) == 1
        locked = (yield load("lock")) != 0
        if not held:
            yield from reap(variant, locked)
        yield from serve()

    return run


def starting(variant: str) -> Program:
    """A daemon after one that died: recovery._find_slots(), then finish(), then the message. No connection is open."""

    def run() -> Steps:
        locked = (yield load("lock")) != 0
        yield store("recovered", 1)
        yield from reap(variant, locked)
        yield from serve()

    return run


def outcome(words: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """What became of the client: served, told to connect again, or waiting for ever."""
    return str(got["client"])


def _slot(daemon: Program) -> Model:
    words = {"state": "active", "lock": 0, "connected": 1, "recovered": 0, "tail": 0, "head": 0}
    return Model(words, {"client": attach, "daemon": daemon}, outcome)


def attach_to_running(variant: str) -> Model:
    """The daemon looks for dead clients while one attaches."""
    return _slot(running(variant))


def attach_at_restart(variant: str) -> Model:
    """The daemon that granted the slot dies before the client has locked it; the next one looks who is dead."""
    return _slot(starting(variant))


SCENARIOS = (attach_to_running, attach_at_restart)
