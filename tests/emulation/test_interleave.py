"""The enumerator: litmus tests of the x86-TSO paper (Sewell and others, 2010), futexes, deaths, and a naive twin."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tierstore.emulation.interleave import (
    Model,
    Op,
    TooManyStates,
    add,
    either,
    explore,
    fence,
    load,
    store,
    store_fence,
    stream,
    until,
    wait,
    wake,
)


def program(*ops: Op) -> Callable[[], Generator[Op, Any, str]]:
    """Carries out the steps in order and returns what its loads and adds gave."""

    def run() -> Generator[Op, Any, str]:
        got = ""
        for op in ops:
            value = yield op
            got += str(value) if op.kind in ("load", "add") else ""
        return got or "-"

    return run


def model_of(programs: list[tuple[Op, ...]], last: str = "", mortal: bool = False) -> Model:
    """Programs over words x, y, z (all 0). Outcome: what each returns, then the words of ``last`` at the end."""
    return Model(
        dict.fromkeys("xyz", 0),
        {f"p{number}": program(*ops) for number, ops in enumerate(programs)},
        lambda memory, got: " ".join([*got.values(), "".join(str(memory[word]) for word in last)]).strip(),
        {"first": ["p0"]} if mortal else {},
    )


def outcomes(programs: list[tuple[Op, ...]], buffered: bool, last: str = "", mortal: bool = False) -> set[str]:
    return set(explore(model_of(programs, last, mortal), buffered).outcomes)


CROSSED = {f"- - {a} {b}" for a in ("00", "01", "10", "11") for b in ("00", "01", "10", "11")} - {"- - 10 10"}

# Name, programs, words looked at in the end, outcomes without store buffers, and those that come with them.
LITMUS: list[tuple[str, list[tuple[Op, ...]], str, set[str], set[str]]] = [
    (
        "SB: a load overtakes a store",
        [(store("x", 1), load("y")), (store("y", 1), load("x"))],
        "",
        {"0 1", "1 0", "1 1"},
        {"0 0"},
    ),
    (
        "SB with fences",
        [(store("x", 1), fence(), load("y")), (store("y", 1), fence(), load("x"))],
        "",
        {"0 1", "1 0", "1 1"},
        set(),
    ),
    (
        "SB with one fence",
        [(store("x", 1), fence(), load("y")), (store("y", 1), load("x"))],
        "",
        {"0 1", "1 0", "1 1"},
        {"0 0"},
    ),
    (
        "SB with locked adds of the words themselves",
        [(add("x", 1), load("y")), (add("y", 1), load("x"))],
        "",
        {"00 01", "01 00", "01 01"},
        set(),
    ),
    (
        "SB with store fences",
        [(store("x", 1), store_fence(), load("y")), (store("y", 1), store_fence(), load("x"))],
        "",
        {"0 1", "1 0", "1 1"},
        {"0 0"},
    ),
    (
        "MP: stores arrive in order",
        [(store("x", 1), store("y", 1)), (load("y"), load("x"))],
        "",
        {"- 00", "- 01", "- 11"},
        set(),
    ),
    (
        "MP with a stream",
        [(stream("x", 1), store("y", 1)), (load("y"), load("x"))],
        "",
        {"- 00", "- 01", "- 11"},
        {"- 10"},
    ),
    (
        "MP with a stream and a store fence",
        [(stream("x", 1), store_fence(), store("y", 1)), (load("y"), load("x"))],
        "",
        {"- 00", "- 01", "- 11"},
        set(),
    ),
    (
        "LB: no load sees the future",
        [(load("x"), store("y", 1)), (load("y"), store("x", 1))],
        "",
        {"0 0", "0 1", "1 0"},
        set(),
    ),
    (
        "IRIW: all agree on the order of two stores",
        [(store("x", 1),), (store("y", 1),), (load("x"), load("y")), (load("y"), load("x"))],
        "",
        CROSSED,
        set(),
    ),
    (
        "n6: the own store is seen before others see it",
        [(store("x", 1), load("x"), load("y")), (store("y", 2), store("x", 2))],
        "xy",
        {"10 - 22", "12 - 12", "12 - 22", "22 - 22"},
        {"10 - 12"},
    ),
    (
        "no add is lost",
        [(add("x", 1),), (add("x", 1),)],
        "x",
        {"0 1 2", "1 0 2"},
        set(),
    ),
    (
        "a sum by load and store is",
        [(load("x"), store("x", 1)), (load("x"), store("x", 2))],
        "x",
        {"0 0 1", "0 0 2", "0 1 2", "2 0 1"},
        set(),
    ),
    (
        "a futex wakes who slept on the old value",
        [(wait("x", 0), load("x")), (store("x", 1), wake("x"))],
        "",
        {"1 -"},
        set(),
    ),
    (
        "nobody is woken before he sleeps",
        [(wait("x", 0), load("x")), (wake("x"), store("x", 1))],
        "",
        {"0 -", "1 -", "asleep -"},
        set(),
    ),
    (
        "one of two sleepers is woken",
        [(wait("x", 0),), (wait("x", 0),), (wake("x"),)],
        "",
        {"- asleep -", "asleep - -", "asleep asleep -"},
        set(),
    ),
    (
        "either of two words",
        [(store("x", 1),), (store("y", 1),), (either(("x", 1), ("y", 1)), load("x"), load("y"))],
        "",
        {"- - 01", "- - 10", "- - 11"},
        set(),
    ),
    ("what never comes", [(until("x", 1),)], "", {"waiting"}, set()),
]


@pytest.mark.parametrize(
    ("programs", "last", "plain", "more"), [case[1:] for case in LITMUS], ids=[case[0] for case in LITMUS]
)
def test_litmus(programs: list[tuple[Op, ...]], last: str, plain: set[str], more: set[str]) -> None:
    assert outcomes(programs, False, last) == plain
    assert outcomes(programs, True, last) == plain | more


def test_death_at_every_step() -> None:
    """Stores of the dead arrive in order or not at all; who waits for the death goes on."""
    two = [(store("x", 1), store("y", 1)), (until("alive.first", 0), load("y"), load("x"))]
    assert outcomes(two, True, mortal=True) == {"- waiting"} | {"dead " + seen for seen in ("00", "01", "11")}
    assert outcomes(two, False, mortal=True) == outcomes(two, True, mortal=True)


def test_a_process_dies_with_all_its_programs() -> None:
    model = model_of([(store("x", 1),), (wait("y", 0),)])
    dying = Model(model.memory, model.programs, model.outcome, {"both": ["p0", "p1"]})
    assert set(explore(dying).outcomes) == {"- asleep", "dead dead"}


def test_order_is_the_shortest_and_readable() -> None:
    found = explore(model_of([(store("x", 1), load("y")), (add("y", 1), load("x"))]))
    assert found.order("0 01").splitlines() == [
        "        p0: x = 1",
        "        p0: load y = 0",
        "        p1: y += 1, was 0",
        "        p1: load x = 1",
    ]


def test_mistakes_in_models_are_named() -> None:
    with pytest.raises(KeyError, match="no word 'w'"):
        outcomes([(load("w"),)], True)
    with pytest.raises(KeyError, match="no word 'w'"):
        outcomes([(store("w", 1),)], True)
    with pytest.raises(TypeError, match="p0 yielded"):
        outcomes([(Op("jump"),)], True)


def test_too_many_states_is_an_error() -> None:
    with pytest.raises(TooManyStates, match="shorten a program"):
        explore(model_of([tuple(add(word, 1) for word in "xyz")] * 3), states_max=50)


# --- a naive twin: every step is a choice, nothing is pruned ---------------------------------------------------------------


def naive(programs: list[tuple[Op, ...]], mortal: bool) -> set[str]:
    """All outcomes with store buffers, by plain recursion. A store is a step of its own; a death lets the buffer leave."""
    found: set[str] = set()

    def go(memory: dict[str, int], places: list[int], buffers: list[list[Op]], got: list[str], alive: bool) -> None:
        moved = False
        for who, ops in enumerate(programs):
            first = next((n for n, op in enumerate(buffers[who]) if op.kind == "store_fence"), len(buffers[who]))
            stores = [n for n in range(first) if buffers[who][n].kind == "store"][:1]
            for n in sorted({*stores, *(n for n in range(first) if buffers[who][n].kind == "stream")}):
                moved = True
                op, rest = buffers[who][n], buffers[who][:n] + buffers[who][n + 1 :]
                while rest and rest[0].kind == "store_fence":
                    rest = rest[1:]
                go({**memory, op.word: op.value}, places, put(buffers, who, rest), got, alive)
            if (who == 0 and not alive) or places[who] == len(ops):
                continue
            op = ops[places[who]]
            after = put(places, who, places[who] + 1)
            if op.kind in ("store", "stream") or (op.kind == "store_fence" and buffers[who]):
                go(memory, after, put(buffers, who, [*buffers[who], op]), got, alive)
            elif op.kind == "store_fence":
                go(memory, after, buffers, got, alive)
            elif op.kind == "load":
                own = [each.value for each in buffers[who] if each.word == op.word]
                value = own[-1] if own else memory[op.word]
                go(memory, after, buffers, put(got, who, got[who] + str(value)), alive)
            elif buffers[who]:
                continue
            elif op.kind == "add":
                old = memory[op.word]
                go({**memory, op.word: old + op.value}, after, buffers, put(got, who, got[who] + str(old)), alive)
            else:
                go(memory, after, buffers, got, alive)
            moved = True
        if mortal and alive:
            left = dict(memory)
            for op in buffers[0]:
                left.update({op.word: op.value} if op.kind != "store_fence" else {})
            go(left, places, put(buffers, 0, []), got, False)
        if not moved:
            returned = ["dead" if who == 0 and not alive else text or "-" for who, text in enumerate(got)]
            found.add(" ".join([*returned, "".join(str(memory[word]) for word in "xyz")]))

    count = len(programs)
    go(dict.fromkeys("xyz", 0), [0] * count, [[] for _ in programs], [""] * count, True)
    return found


def put(items: list[Any], at: int, item: Any) -> list[Any]:
    return [*items[:at], item, *items[at + 1 :]]


@pytest.mark.slow
def test_pruning_loses_nothing() -> None:
    """Random programs end in the same outcomes as without pruning, with and without deaths."""
    generator = random.Random(7)

    def step() -> Op:
        word = generator.choice("xyz")
        choices = [
            load(word),
            load(word),
            store(word, generator.randrange(1, 4)),
            stream(word, generator.randrange(4, 7)),
        ]
        return generator.choice([*choices, add(word, 7), fence(), store_fence()])

    different = 0
    for _ in range(60):
        programs = [tuple(step() for _ in range(generator.randrange(1, 5))) for _ in range(2)]
        for mortal in (False, True):
            expected = naive(programs, mortal)
            assert outcomes(programs, True, "xyz", mortal) == expected
            different += expected != outcomes(programs, False, "xyz", mortal)
    assert different > 5, "the programs do not tell store buffers from none"
