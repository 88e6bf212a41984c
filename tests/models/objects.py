"""Objects of several blocks: the root comes last, and whoever reads them while they are replaced gets one version or the other.

The programs follow ObjectWriter._publish(), core.publish_record(), bury_object(), withdraw_orphans() and Store._blocks().
One look stands for find(), which has a model of its own. Pins keep bytes, not items: a block may be withdrawn while
its root is pinned.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from tierstore.emulation.interleave import Model, Op, Program, either, load, store, until

Steps = Generator[Op, Any, Any]
RETRIES = 3


def assemble(variant: str) -> Steps:
    """Store._blocks(), one look: the version, "miss", or "replaced"."""
    root = yield load("root")
    if root == 0:
        return "miss"
    if (yield load(f"block of {root}")):
        return str(root)
    if variant == "blocks are not told apart by version" and (yield load("block of 2")):
        return "mixed"
    return "replaced"


def get(variant: str) -> Program:
    """Store.get() and get_bytes(), a bounded number of times."""

    def run() -> Steps:
        for _ in range(1 if variant == "one look" else RETRIES):
            found = yield from assemble(variant)
            if found != "replaced":
                return found
        return "miss"

    return run


def writer(variant: str) -> Program:
    """ObjectWriter._publish() of version 2: its block, then its root."""

    def run() -> Steps:
        order = ("root", "block") if variant == "the root before the block" else ("block", "root")
        for part in order:
            yield store(f"publish {part}", 1)
            yield until(f"publish {part}", 2)
        return "done"

    return run


def publish(variant: str, part: str) -> Steps:
    """core.publish_record(): a block beside the old one; a root in the old one's place, whose blocks are then withdrawn."""
    if part == "block":
        yield store("block of 2", 1)
    else:
        if variant == "the old blocks go first":
            yield store("block of 1", 0)
        yield store("root", 2)
        yield store("block of 1", 0)
    yield store(f"publish {part}", 2)


def withdraw_orphans(variant: str) -> Steps:
    """core.withdraw_orphans() in reap()."""
    if variant != "orphans stay" and (yield load("root")) != 2:
        yield store("block of 2", 0)


def mutator(variant: str) -> Program:
    """Serves the writer, and reaps it when it is dead."""

    def run() -> Steps:
        pending = ["publish block", "publish root"]
        while pending:
            asked = yield either(("alive.client", 0), *((word, 1) for word in pending))
            if asked == "alive.client":
                break
            pending.remove(asked)
            yield from publish(variant, asked.removeprefix("publish "))
        yield until("alive.client", 0)
        yield from withdraw_orphans(variant)
        return "reaped"

    return run


def outcome(words: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """The version that the reader got, and whether anything is left that no root names."""
    orphans = [version for version in (1, 2) if words[f"block of {version}"] and words["root"] != version]
    left = orphans and (got["writer"] == "done" or got["mutator"] == "reaped")
    return f"{got['reader']}, an orphan is left" if left else got["reader"]


def replaced(variant: str) -> Model:
    """An object of two blocks is replaced while it is read; the writer may die at every step."""
    words = {"root": 1, "block of 1": 1, "block of 2": 0, "publish block": 0, "publish root": 0}
    programs = {"reader": get(variant), "writer": writer(variant), "mutator": mutator(variant)}
    return Model(words, programs, outcome, {"client": ["writer"]})


SCENARIOS = (replaced,)
