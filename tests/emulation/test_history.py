"""The history checker: histories that are right, histories that are not, and a naive twin that tries every order."""

from __future__ import annotations

import itertools
import random

import pytest

from tierstore.emulation.history import ABSENT, NEVER, Call, Checker, number_in, value_of, violations


def history(*lines: str) -> list[Call]:
    """Calls written as "CLIENT ACTION NUMBER BEGUN ENDED"; NUMBER and ENDED may be "-" (absent, never)."""
    calls = []
    for line in lines:
        client, action, number, begun, ended = line.split()
        seen = ABSENT if number == "-" else int(number)
        calls.append(Call(int(client), action, "k", seen, int(begun), NEVER if ended == "-" else int(ended)))
    return calls


RIGHT = {
    "one after the other": ["1 get - 0 1", "1 put 7 2 3", "2 get 7 4 5", "2 delete 0 6 7", "1 get - 8 9"],
    "a get beside a put sees it or not": ["1 put 7 0 9", "2 get - 1 2", "2 get 7 3 4", "3 get 7 5 6"],
    "the order of overlapping puts is free": ["1 put 7 0 9", "2 put 8 0 9", "3 get 8 10 11", "3 get 8 12 13"],
    "a put that never ended, seen late": ["1 put 7 0 -", "2 get - 1 2", "2 get 7 8 9"],
    "a put that never ended, never seen": ["1 put 7 0 -", "2 get - 1 2", "1 get - 8 9"],
    "a put that never ended, after a later one": ["1 put 7 0 -", "1 put 8 1 2", "1 get 7 3 4"],
    "a delete that never ended": ["1 put 7 0 1", "2 delete 0 2 -", "1 get 7 3 4", "1 get - 5 6"],
    "two deletes, one finds it": ["1 put 7 0 1", "1 delete 0 2 9", "2 delete - 2 9"],
    "has": ["1 has - 0 1", "1 put 7 2 3", "2 has 0 4 5"],
}
WRONG = {
    "a stale get": ["1 put 7 0 1", "1 put 8 2 3", "2 get 7 4 5"],
    "back and forth": ["1 put 7 0 9", "2 get 7 1 2", "3 get - 3 4"],
    "two readers disagree": ["1 put 7 0 9", "2 put 8 0 9", "3 get 7 10 11", "3 get 8 12 13"],
    "out of nothing": ["1 get 7 0 1"],
    "from the future": ["1 get 7 0 1", "2 put 7 2 3"],
    "a KEEP key vanishes": ["1 put 7 0 1", "1 get - 2 3"],
    "back after a delete": ["1 put 7 0 1", "1 delete 0 2 3", "2 get 7 4 5"],
    "deleted twice": ["1 put 7 0 1", "1 delete 0 2 9", "2 delete 0 2 9"],
    "not found, but there": ["1 put 7 0 1", "2 delete - 2 3"],
    "has after a delete": ["1 put 7 0 1", "1 delete 0 2 3", "2 has 0 4 5"],
    "seen once, then lost": ["1 put 7 0 -", "2 get 7 1 2", "2 get - 3 4"],
}


@pytest.mark.parametrize("lines", RIGHT.values(), ids=RIGHT)
def test_right(lines: list[str]) -> None:
    assert Checker(history(*lines), keep=True).violation() == ""


@pytest.mark.parametrize("lines", WRONG.values(), ids=WRONG)
def test_wrong(lines: list[str]) -> None:
    assert "none of these can follow" in Checker(history(*lines), keep=True).violation()


def test_cache_may_vanish_but_not_come_back() -> None:
    vanished = history("1 put 7 0 1", "1 get - 2 3")
    assert Checker(vanished, keep=False).violation() == ""
    assert Checker([*vanished, *history("1 get 7 4 5")], keep=False).violation()
    replaced = history("1 put 7 0 1", "1 put 8 2 3", "1 get - 4 5", "1 get 7 6 7")
    assert Checker(replaced, keep=False).violation()
    assert Checker(history("1 put 7 0 1", "2 delete - 2 3", "1 get - 4 5"), keep=False).violation() == ""


def test_deleted_twice_across_a_restart() -> None:
    calls = history("1 put 7 0 1", "1 delete 0 2 9", "2 delete 0 2 9", "1 get - 10 11")
    assert Checker(calls, keep=True).violation() and not Checker(calls, keep=True, twice=True).violation()


def test_each_key_is_judged_by_its_class() -> None:
    calls = history("1 put 7 0 1", "1 get - 2 3")
    calls += [call._replace(key="c") for call in calls]
    found = violations(calls, keep=lambda key: key == "k")
    assert [story.splitlines()[0] for story in found] == ["k:"]
    assert "client 1 get k: absent [2, 3]" in found[0]


def test_values_tell_torn_from_whole() -> None:
    value = value_of("k", 7, 4096)
    assert number_in("k", memoryview(value)) == 7
    for broken in (value_of("l", 7, 4096), value[:2048] + value_of("k", 8, 2048), bytes(8)):
        with pytest.raises(AssertionError, match="foreign or torn"):
            number_in("k", memoryview(broken))


# --- a naive twin ---------------------------------------------------------------------------------------------------------


def explained(calls: list[Call], keep: bool) -> bool:
    """Whether one of all orders of all subsets (what never ended may be left out) is legal."""
    certain = [call for call in calls if call.ended < NEVER]
    open_ended = [call for call in calls if call.ended == NEVER]
    for count in range(len(open_ended) + 1):
        for more in itertools.combinations(open_ended, count):
            if any(legal(order, keep) for order in itertools.permutations([*certain, *more])):
                return True
    return False


def legal(order: tuple[Call, ...], keep: bool) -> bool:
    for earlier, later in itertools.combinations(order, 2):
        if later.ended < earlier.begun:
            return False
    values = {ABSENT}  # what the register may hold
    for call in order:
        if not keep:
            values = values | {ABSENT}
        if call.action == "put":
            values = {call.number}
        elif call.action == "delete" and call.ended == NEVER:
            values = {ABSENT}
        else:
            there = {value for value in values if value != ABSENT}
            exact = {value for value in there if value == call.number or call.action != "get"}
            values = values & {ABSENT} if call.number == ABSENT else exact
            if not values:
                return False
            values = {ABSENT} if call.action == "delete" else values
    return True


def some_history(generator: random.Random) -> list[Call]:
    """Calls of three clients with answers at random."""
    calls, clock = [], [0, 0, 0]
    for number in range(generator.randrange(2, 7)):
        client = generator.randrange(3)
        begun = clock[client] + generator.randrange(1, 4)
        clock[client] = ended = begun + generator.randrange(1, 6)
        action = generator.choice(("put", "put", "get", "get", "has", "delete"))
        puts = [call.number for call in calls if call.action == "put"] or [0]
        seen = generator.choice([ABSENT, generator.choice(puts)])
        if action in ("has", "delete"):
            seen = min(seen, 0)
        if action in ("put", "delete") and generator.random() < 0.2:
            ended = NEVER
        calls.append(Call(client, action, "k", number + 1 if action == "put" else seen, begun, ended))
    return calls


def test_same_verdict_as_every_order() -> None:
    generator, verdicts = random.Random(3), {True: 0, False: 0}
    for _ in range(400):
        calls, keep = some_history(generator), generator.random() < 0.6
        expected = explained(calls, keep)
        assert (Checker(calls, keep).violation() == "") == expected, "\n".join(map(str, calls))
        verdicts[expected] += 1
    assert min(verdicts.values()) > 50, f"the histories are too much alike: {verdicts}"
