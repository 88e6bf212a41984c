"""Look-up and pin against everything the mutator does to the item: remove, replace, move, reuse, restart.

The programs follow reader.find() and what of index.py, segments.py and core.py it meets, step by step. An item is written as
its tag and its segment ("k7"); a segment has one place for a record: a key and two words of value, so that a torn value shows.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from tierstore.emulation.interleave import Model, Op, Program, add, fence, load, store, until

Steps = Generator[Op, Any, Any]
Index = Sequence[tuple[str, Sequence[str]]]  # buckets in the order of the probe: overflow count, items

ONE_ITEM: Index = [("count", ["item"])]
TWO_BUCKETS: Index = [("count0", ["item0", "item1"]), ("count1", ["item2", "item3"])]
OLD_INDEX: Index = [("old count", ["old item"])]
ROWS = ("a", "b")  # of the hazard matrix: two clients


# --- programs -------------------------------------------------------------------------------------------------------------


def find(variant: str, row: str, index: Index = ONE_ITEM, epoch: int = 1) -> Steps:
    """reader.find() for key K of tag k: the segment, pinned; "miss"; or "stale"."""
    for count, items in index:
        slot = 0
        while slot < len(items):
            item = yield load(items[slot])
            if item == 0 or item[0] != "k":
                slot += 1
                continue
            segment = item[1:]
            if variant == "pin after the second look" and (yield load(items[slot])) != item:
                continue
            if variant == "epoch before the pin" and (yield load("epoch")) != epoch:
                return "stale"
            if variant == "pin by load and store":
                yield store(f"pin{segment}{row}", (yield load(f"pin{segment}{row}")) + 1)
            else:
                yield add(f"pin{segment}{row}", 1)
            if variant not in ("no epoch", "epoch before the pin") and (yield load("epoch")) != epoch:
                yield add(f"pin{segment}{row}", -1)
                return "stale"
            if variant in ("no second look", "pin after the second look") or (yield load(items[slot])) == item:
                if variant == "no comparison of the key" or (yield load(f"key{segment}")) == "K":
                    return segment
                slot += 1
            elif variant == "a changed item is passed over":
                slot += 1
            yield add(f"pin{segment}{row}", -1)
        if variant == "the overflow count is not looked at" or (yield load(count)) == 0:
            break
    if variant != "a miss does not ask for the epoch" and (yield load("epoch")) != epoch:
        return "stale"
    return "miss"


def read(row: str, found: str) -> Steps:
    """Read the value that find() found, and unpin."""
    if found in ("miss", "stale"):
        return found
    value = (yield load(f"first{found}")) + (yield load(f"second{found}"))
    yield add(f"pin{found}{row}", -1)
    return value


def reader(variant: str, row: str, index: Index = ONE_ITEM, after: str = "") -> Program:
    """One get(); it begins when ``after`` is 1."""

    def run() -> Steps:
        if after:
            yield until(after, 1)
        return (yield from read(row, (yield from find(variant, row, index))))

    return run


def pins_on(variant: str, segment: str) -> Steps:
    """segments.pins_on()."""
    if variant != "no fence before the sum":
        yield fence()
    total = 0
    for row in ROWS[:1] if variant == "the sum leaves out a row" else ROWS:
        total += yield load(f"pin{segment}{row}")
    return total


def drain(variant: str, segment: str) -> Steps:
    """segments.drain(), again and again until no pin is left."""
    while (yield from pins_on(variant, segment)) != 0:
        for row in ROWS:
            yield until(f"pin{segment}{row}", 0)


def free(variant: str, segment: str) -> Steps:
    """segments.retire(), drain(), release()."""
    yield store(f"word{segment}", "evicting")
    if variant != "the sum comes before the removal":
        yield from drain(variant, segment)
    yield store(f"word{segment}", "free")


def change(variant: str, item: str, then: str = "") -> Program:
    """core.publish_record(), relink() or delete() (no item) of K in segment 7, which is freed then. When somebody has
    written there, that is published."""

    def run() -> Steps:
        if variant == "the sum comes before the removal":
            yield from drain(variant, "7")
        yield store("item", item or 0)
        yield store("acknowledged", 1)
        yield from free(variant, "7")
        yield until("committed", 1)
        if then:
            yield store("item", then)
            yield from free(variant, "8")

    return run


def writer(key: str, value: str) -> Program:
    """A client that is granted segment 7 once it is free, and fills it."""

    def run() -> Steps:
        yield until("word7", "free")
        yield store("key7", key)
        yield store("first7", value)
        yield store("second7", value)
        yield store("committed", 1)

    return run


def insert_and_remove(variant: str) -> Program:
    """index.insert() of K into the second bucket, the first being full, then index.remove() of another key there."""

    def run() -> Steps:
        late = variant == "the overflow count is raised after the item"
        if late:
            yield store("item2", "k7")
        if variant != "the overflow count is not raised":
            yield store("count0", (yield load("count0")) + 1)
        if not late:
            yield store("item2", "k7")
        yield store("acknowledged", 1)
        yield store("item3", 0)
        yield store("count0", 0 if variant == "the overflow count is cleared" else (yield load("count0")) - 1)

    return run


def recover(variant: str, changes: Sequence[Op]) -> Program:
    """A starting daemon, Mutator.recover(): epoch, index, then it serves. Changes follow, and segment 7 is freed."""

    def run() -> Steps:
        if variant != "the epoch is stored last":
            yield store("epoch", 2)
        yield store("item", "k7")
        yield store("serving", 1)
        yield from changes
        yield from free(variant, "7")
        if variant == "the epoch is stored last":
            yield store("epoch", 2)

    return run


def lookup(variant: str, after: str = "") -> Program:
    """Reader.find() in the index of the daemon before; where that is stale, in the new one."""

    def run() -> Steps:
        if after:
            yield until(after, 1)
        found = yield from read("a", (yield from find(variant, "a", OLD_INDEX, 1)))
        if found == "stale":
            yield until("serving", 1)
            found = yield from read("a", (yield from find(variant, "a", ONE_ITEM, 2)))
        return found

    return run


def lookup_in_thread() -> Steps:
    """The kernel's find() as one thread sees them between whose calls others run: "stale" until renewed."""
    return "stale" if (yield load("mapped")) != (yield load("epoch")) else "11"


def thread(variant: str) -> Program:
    """Reader.find() in one of two threads of a client; a new daemon runs, and K was there all the time."""

    def run() -> Steps:
        found = yield from lookup_in_thread()
        stale = found == "stale"
        if variant == "stale is asked after the look-up":
            stale = (yield from lookup_in_thread()) == "stale"
        if found == "stale" and stale:
            yield store("mapped", 2)  # renew(), under its lock
            found = yield from lookup_in_thread()
        return "miss" if found == "stale" else found

    return run


# --- scenarios ------------------------------------------------------------------------------------------------------------


def memory(item: Any = "k7") -> dict[str, Any]:
    """K lies in segment 7 with value 1, its second version in segment 8."""
    words: dict[str, Any] = {"item": item, "count": 0, "epoch": 1, "committed": 0, "acknowledged": 0, "serving": 0}
    for segment, value in (("7", "1"), ("8", "2")):
        words |= {f"key{segment}": "K", f"first{segment}": value, f"second{segment}": value}
        words |= {f"pin{segment}{row}": 0 for row in ROWS} | {f"word{segment}": "sealed"}
    return words


WHOLE = {"11": "first", "22": "second", "33": "third", "miss": "miss"}


def outcome(words: dict[str, Any], got: dict[str, Any]) -> str:
    """Which version each reader got; or that one got bytes of two, or another key's; or that a pin stayed."""
    read = [WHOLE.get(value, "foreign bytes") for name, value in got.items() if name.startswith("reader")]
    if "foreign bytes" in read:
        return "foreign bytes"
    if any(words[f"pin{segment}{row}"] for segment in "78" for row in ROWS) or words["word7"] == "evicting":
        return "never freed"
    return ", ".join(read)


def reuse(variant: str) -> Model:
    """K is removed, its segment freed, and a key of the same tag written to the same place: the same item comes back."""
    programs = {"mutator": change(variant, "", "k7"), "writer": writer("L", "f")}
    return Model(memory(), {f"reader {row}": reader(variant, row) for row in ROWS} | programs, outcome)


def replace(variant: str) -> Model:
    """K's second version in segment 8 takes the place of the first, whose segment another client fills."""
    programs = {
        "reader": reader(variant, "a"),
        "reader of the acknowledged": reader(variant, "b", after="acknowledged"),
        "mutator": change(variant, "k8"),
        "writer": writer("L", "f"),
    }
    return Model(memory(), programs, outcome)


def replace_twice(variant: str) -> Model:
    """The third version takes the place of the first in segment 7: the first item comes back, naming another version."""
    programs = {
        "reader": reader(variant, "a"),
        "mutator": change(variant, "k8", "k7"),
        "writer": writer("K", "3"),
    }
    return Model(memory(), programs, outcome)


def move(variant: str) -> Model:
    """A copy in segment 8 takes the place of the original, whose segment another client fills."""
    words = memory() | {"first8": "1", "second8": "1"}
    return Model(words, replace(variant).programs, outcome)


def overflow(variant: str) -> Model:
    """K is put into the second bucket, then another key there removed."""
    words = memory() | {"item0": "l3", "item1": "m4", "item2": 0, "item3": "n5", "count0": 1, "count1": 0}
    programs = {
        "reader": reader(variant, "a", TWO_BUCKETS),
        "reader of the acknowledged": reader(variant, "b", TWO_BUCKETS, "acknowledged"),
        "mutator": insert_and_remove(variant),
    }
    return Model(words, programs, outcome)


def restart(variant: str) -> Model:
    """A new daemon removes K, and another client fills its segment; the reader still has the old index."""
    words = memory(0) | {"old item": "k7", "old count": 0}
    programs = {
        "reader": lookup(variant),
        "daemon": recover(variant, [store("item", 0)]),
        "writer": writer("L", "f"),
    }
    return Model(words, programs, outcome)


def put_after_restart(variant: str) -> Model:
    """A key that was put after the restart is found also through the old index, where it is not."""
    words = memory(0) | {"old item": 0, "old count": 0}
    programs = {
        "reader": lookup(variant, "acknowledged"),
        "daemon": recover(variant, [store("item", "k8"), store("acknowledged", 1)]),
    }
    return Model(words, programs, outcome)


def two_threads(variant: str) -> Model:
    """Two threads of one client look K up after a restart; it was there before and after."""
    words = memory() | {"mapped": 1, "epoch": 2}
    return Model(words, {f"reader {row}": thread(variant) for row in ROWS}, outcome)


SCENARIOS = (reuse, replace, replace_twice, move, overflow, restart, put_after_restart, two_threads)
