"""The simulated cluster: runs repeat, every kind of fault happens when asked for and never else, and nodes keep what is durable."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tierstore.emulation.cluster import (
    Agenda,
    Cancel,
    Cluster,
    Crash,
    Event,
    Faults,
    Instruction,
    Link,
    Mishap,
    Note,
    NotQuiet,
    Open,
    Partition,
    Persist,
    Persisted,
    Plain,
    Received,
    Send,
    Started,
    Wake,
    Woke,
    check_repeatable,
    plain,
    scheduled,
)
from tierstore.ringbuf.errors import ConfigError

COUNT, STEP_S = 300, 0.001

Said = Iterator[Instruction | tuple[str, Any]]


def talker(node: Plain, event: Event, now_s: float) -> Said:
    """Sends a number to b each STEP_S, and keeps what comes back."""
    match event:
        case Started() | Woke():
            number = node.memory["next"] = node.memory.get("next", -1) + 1
            if number < COUNT:
                yield "b", number
                yield Wake("next", STEP_S)
        case Received(_, _, body):
            node.memory.setdefault("heard", []).append(body)


def listener(node: Plain, event: Event, now_s: float) -> Said:
    """Keeps what comes, with the time, and sends it back."""
    match event:
        case Received(_, source, body):
            node.memory.setdefault("heard", []).append(body)
            node.memory.setdefault("times_s", []).append(now_s)
            yield source, body


def flood(faults: Faults, seed: int = 1) -> Cluster:
    cluster = Cluster({"a": plain(talker), "b": plain(listener)}, faults, seed)
    cluster.run_until_quiet()
    return cluster


def heard(cluster: Cluster, name: str) -> list[Any]:
    return cluster.process(name).memory.get("heard", [])


def kinds(cluster: Cluster) -> set[str]:
    return {fault.kind if isinstance(fault, Mishap) else type(fault).__name__ for fault in cluster.happened}


# --- each fault: what shows it; with it, that is so for some seed, and without, never

ALL = list(range(COUNT))
SIGNS: dict[str, tuple[Faults, Callable[[Cluster], bool]]] = {
    "drop": (Faults(drop=0.1), lambda run: set(heard(run, "b")) < set(ALL)),
    "duplicate": (Faults(duplicate=0.1), lambda run: len(heard(run, "b")) > len(set(heard(run, "b")))),
    "reorder": (Faults(reorder=0.1), lambda run: heard(run, "b") != sorted(heard(run, "b"))),
    "Partition": (
        Faults(partitions=[(0.1, 0.2, {"a"}, {"b"})]),
        lambda run: {120, 150, 180}.isdisjoint(heard(run, "b")) and {50, 250} <= set(heard(run, "b")),
    ),
    "Crash": (
        Faults(crashes=[(0.1, "b", 0.2)]),
        lambda run: heard(run, "b") == ALL[-len(heard(run, "b")) :] and len(heard(run, "b")) < COUNT,
    ),
}


@pytest.mark.parametrize("kind", SIGNS)
def test_a_fault_happens_when_asked_for_and_only_then(kind: str) -> None:
    faults, sign = SIGNS[kind]
    run = flood(faults)
    assert kinds(run) == {kind} and sign(run)
    calm = flood(Faults())
    assert not sign(calm) and calm.happened == () and heard(calm, "b") == heard(calm, "a") == ALL


def test_rates_mean_what_they_say() -> None:
    for kind in ("drop", "duplicate", "reorder"):
        hits = [fault for fault in flood(Faults(**{kind: 0.2})).happened if fault.source == "a"]
        assert 0.12 * COUNT < len(hits) < 0.28 * COUNT, kind
        assert len([fault for fault in flood(Faults(**{kind: 1.0})).happened if fault.source == "a"]) == COUNT
    assert len(heard(flood(Faults(duplicate=1.0, drop=0.0)), "b")) == 2 * COUNT
    assert heard(flood(Faults(drop=1.0)), "b") == []


def test_rates_end() -> None:
    run = flood(Faults(drop=1.0, until_s=0.1))
    assert heard(run, "b") == [number for number in ALL if number * STEP_S >= 0.1 - 1e-9]


def test_a_partition_may_be_one_way_and_stops_what_is_on_the_way() -> None:
    faults = Faults(delay_s=(0.01, 0.01), partitions=[Partition(0.1, 0.2, {"b"}, {"a"}, one_way=True)])
    run = flood(faults)
    assert heard(run, "b") == ALL, "from a to b nothing is cut off"
    # Answers leave b 10 ms after a sent the number. Those on the way when it begins are lost, and those sent during it.
    lost = sorted(set(ALL) - set(heard(run, "a")))
    assert lost[0] in (80, 81) and lost[-1] in (189, 190) and lost == list(range(lost[0], lost[-1] + 1))
    other = flood(Faults(partitions=[Partition(0.1, 0.2, {"a"}, {"b"}, one_way=True)]))
    assert heard(other, "a") == heard(other, "b") != ALL


def test_a_partition_is_over_at_its_end() -> None:
    """Streams look again exactly then; if it still held they would look for ever."""
    cut = Partition(0.1, 0.2, {"a"}, {"b"})
    assert [cut.cuts("a", "b", now_s) for now_s in (0.09, 0.1, 0.19, 0.2)] == [False, True, True, False]


def test_links_differ() -> None:
    run = flood(Faults(links={("b", "a"): Link(drop=1.0)}))
    assert heard(run, "b") == ALL and heard(run, "a") == []
    slow = flood(Faults(delay_s=(0.001, 0.001), links={("a", "b"): Link(delay_s=(0.5, 0.5))}))
    assert slow.process("b").memory["times_s"] == pytest.approx([number * STEP_S + 0.5 for number in ALL])


def delays(faults: Faults) -> list[float]:
    """Seconds on the way, of messages that do not wait for each other."""
    times_s = flood(faults).process("b").memory["times_s"]
    return sorted(time_s - number * STEP_S for number, time_s in enumerate(times_s))


def test_delays_are_between_their_bounds() -> None:
    uniform = delays(Faults(delay_s=(0.0001, 0.0009)))
    assert 0.0001 <= uniform[0] < 0.0002 and 0.0008 < uniform[-1] <= 0.0009 + 1e-9
    assert 0.0004 < uniform[COUNT // 2] < 0.0006


def test_a_second_copy_comes_later() -> None:
    run = flood(Faults(duplicate=1.0, delay_s=(0.001, 0.001), late_s=0.2))
    first_s: dict[int, float] = {}
    for number, time_s in zip(heard(run, "b"), run.process("b").memory["times_s"]):
        first_s.setdefault(number, time_s)
    last_s = dict(zip(heard(run, "b"), run.process("b").memory["times_s"]))
    gaps_s = sorted(last_s[number] - first_s[number] for number in ALL)
    assert 0 <= gaps_s[0] < 0.02 and 0.18 < gaps_s[-1] <= 0.2 + 1e-9


def test_messages_are_values() -> None:
    """What one side does to a body the other does not see; nor does a second copy of the same message."""
    seen: list[list[int]] = []

    def sender(node: Plain, event: Event, now_s: float) -> Said:
        if isinstance(event, Started):
            body = [1]
            yield "b", body
            body.append(2)

    def changer(node: Plain, event: Event, now_s: float) -> Said:
        if isinstance(event, Received):
            seen.append(list(event.body))
            event.body.append(3)
        yield from ()

    Cluster({"a": plain(sender), "b": plain(changer)}, Faults(duplicate=1.0)).run_until_quiet()
    assert seen == [[1], [1]]


# --- runs repeat


BUSY = Faults(drop=0.1, duplicate=0.1, reorder=0.1)


def busy(seed: int) -> Faults:
    return scheduled(BUSY, seed, ("a", "b"), 0.3, crashes=2, partitions=2)


@pytest.mark.slow
def test_the_seed_decides_everything() -> None:
    traces = [check_repeatable(lambda seed=seed: flood(busy(seed), seed)).trace for seed in range(8)]
    assert len({trace.digest() for trace in traces}) == 8, "and different seeds decide differently"
    # With the schedule fixed, the network alone differs.
    assert len({flood(BUSY, seed).trace.digest() for seed in range(8)}) == 8


def test_changing_one_rate_moves_no_other_fault() -> None:
    def drops(faults: Faults) -> set[Mishap]:
        return {fault for fault in flood(faults).happened if fault.source == "a" and fault.kind == "drop"}

    some = drops(Faults(drop=0.2))
    assert some < drops(Faults(drop=0.4)) and some == drops(Faults(drop=0.2, reorder=0.5))


@pytest.mark.slow
def test_a_run_is_the_same_in_another_process() -> None:
    """Hashes of text differ between processes; nothing may hang on them."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_cluster as t\n"
        "print(t.flood(t.busy(5), 5).trace.digest(), repr(t.busy(5)))"
    )
    said = set()
    for salt in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": salt, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", program, os.path.dirname(__file__)]
        said.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert said == {f"{flood(busy(5), 5).trace.digest()} {busy(5)!r}\n"}


def gambler(node: Plain, event: Event, now_s: float) -> Said:
    """A node that is not a function of its events."""
    yield Note(f"draws {random.random()}")


def rambler(node: Plain, event: Event, now_s: float) -> Said:
    """Another, which goes on longer each time it is played."""
    PLAYED.append(1)
    for _ in PLAYED:
        yield Note("again")


PLAYED: list[int] = []


@pytest.mark.parametrize(("node", "message"), [(gambler, "from line 1 on"), (rambler, "in length")])
def test_a_node_with_chance_of_its_own_is_noticed(node: Any, message: str) -> None:
    def play() -> Cluster:
        cluster = Cluster({"a": plain(node)})
        cluster.run_until_quiet()
        return cluster

    with pytest.raises(AssertionError, match=message):
        check_repeatable(play)


def test_the_trace_is_a_table() -> None:
    run = flood(Faults(drop=0.1, crashes=[(0.1, "b", 0.2)]))
    table = str(run.trace)
    assert table.splitlines()[0].split() == ["time", "from", "to", "what"]
    for words in (
        "a     b     #1 sent: 0",
        "dropped",
        "finds nobody",
        "b           crashes",
        "b           starts again",
    ):
        assert words in table, words
    short = run.trace.table(last=5, node="b").splitlines()
    assert len(short) == 7 and "earlier lines" in short[1] and all(" b " in row for row in short[2:])


# --- processes: timers, crashes, what is durable


class Keeper:
    """Counts its starts durably, sets timers, and writes down all it is told."""

    def __init__(self, name: str, durable: dict[str, int], log: list[tuple[float, str]]):
        self.durable, self.log = durable, log

    def handle(self, event: Event) -> Iterator[Instruction]:
        self.log.append((round(event.now_s, 6), f"{type(event).__name__} {getattr(event, 'timer', '')}".strip()))
        match event:
            case Started():
                self.log.append((event.now_s, f"found {sorted(self.durable.items())}"))
                yield Persist("starts", event.starts)
                yield Wake("t", 0.5)
                yield Wake("never", 0.1)
                yield Cancel("never")
                yield Cancel("unknown")
                yield Wake("late", 0.2)
                yield Wake("late", 0.7)
            case Woke(_, "t"):
                yield Persist("starts", None)


def kept(faults: Faults) -> tuple[list[tuple[float, str]], Cluster]:
    log: list[tuple[float, str]] = []
    cluster = Cluster({"k": lambda name, durable: Keeper(name, durable, log)}, faults)
    cluster.run_until_quiet()
    return log, cluster


def test_timers_ring_once_and_a_crash_takes_them_away() -> None:
    log, cluster = kept(Faults(persist_s=(0.01, 0.01)))
    assert log == [
        *((0.0, "Started"), (0.0, "found []"), (0.01, "Persisted")),
        *((0.5, "Woke t"), (0.51, "Persisted"), (0.7, "Woke late")),
    ]
    assert cluster.durable("k") == {}
    log, cluster = kept(Faults(persist_s=(0.01, 0.01), crashes=[Crash(0.3, "k", 0.4)]))
    assert [what for _, what in log] == [
        *("Started", "found []", "Persisted", "Started", "found [('starts', 1)]", "Persisted"),
        *("Woke t", "Persisted", "Woke late"),
    ]
    assert log[-3][0] == pytest.approx(0.9), "the timer of the second life, not of the first"


@pytest.mark.parametrize(("lose", "found"), [(1.0, "found []"), (0.0, "found [('starts', 1)]")])
def test_a_crash_may_lose_what_is_not_durable_yet(lose: float, found: str) -> None:
    log, cluster = kept(Faults(persist_s=(0.2, 0.2), lose=lose, crashes=[Crash(0.1, "k", 0.2)]))
    assert found in [what for _, what in log[2:]]
    assert (0.2, "Persisted") not in log, "nobody is told of a write of the life before"
    assert kinds(cluster) == ({"Crash", "lose"} if lose else {"Crash"})


def test_a_node_that_stays_down() -> None:
    log, cluster = kept(Faults(crashes=[Crash(0.1, "k"), Crash(0.2, "k", 0.3)]))
    assert not cluster.is_up("k") and cluster.durable("k") == {"starts": 1} and len(log) == 3
    assert cluster.happened == (Crash(0.1, "k"),), "who is down cannot crash"
    with pytest.raises(LookupError, match="k is down"):
        cluster.process("k")


def test_what_is_durable_is_a_value() -> None:
    """What is done to it after it was written, found or looked at does not reach the disk."""
    found: list[list[int]] = []

    def node(node: Plain, event: Event, now_s: float) -> Said:
        match event:
            case Started(_, 1):
                value = [1]
                yield Persist("key", value)
                value.append(2)
            case Started():
                found.append(list(node.durable["key"]))
                node.durable["key"].append(3)

    cluster = Cluster({"n": plain(node)}, Faults(crashes=[Crash(0.1, "n", 0.2), Crash(0.3, "n", 0.4)]))
    cluster.run_until(0.25)
    cluster.durable("n")["key"].append(4)
    cluster.run_until_quiet()
    assert found == [[1], [1]] and cluster.durable("n") == {"key": [1]}


def test_writes_become_durable_in_order() -> None:
    order: list[int] = []

    def node(node: Plain, event: Event, now_s: float) -> Said:
        if isinstance(event, Started):
            for number in range(50):
                yield Persist("key", number)
                yield Persist(number, number)
        elif isinstance(event, Persisted) and event.key != "key":
            order.append(event.key)

    cluster = Cluster({"n": plain(node)}, Faults(persist_s=(0.0, 1.0)))
    cluster.run_until_quiet()
    assert order == list(range(50)) and cluster.durable("n")["key"] == 49


# --- running, and being told what is wrong


def test_the_clock_is_a_value() -> None:
    cluster = Cluster({"a": plain(talker), "b": plain(listener)})
    cluster.run_until(0.05)
    assert cluster.now_s == 0.05 and 45 <= len(heard(cluster, "b")) <= 51
    cluster.run_until(0.05)
    cluster.inject("b", "hello")
    cluster.run_until(0.05)
    assert heard(cluster, "b")[-1] == "hello" and cluster.answers == [("b", "hello")], "the listener says it back"
    with pytest.raises(ValueError, match="the nodes are a, b"):
        cluster.inject("c", "hello")
    cluster.run_until_quiet()
    assert sorted(heard(cluster, "b"), key=str) == sorted([*ALL, "hello"], key=str)
    for time_s in (0.01, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="time only goes on"):
            cluster.run_until(time_s)


def test_agenda() -> None:
    agenda, done = Agenda(), []
    for name, time_s in (("c", 2.0), ("a", 1.0), ("d", 2.0), ("gone", 1.5), ("b", 1.0)):
        entry = agenda.at(time_s, lambda name=name: done.append(name))
        if name == "gone":
            agenda.cancel(entry)
            agenda.cancel(entry)
    times = []
    while agenda.due_s() is not None:
        agenda.pop()()
        times.append(agenda.now_s)
    assert done == ["a", "b", "c", "d"] and times == [1.0, 1.0, 2.0, 2.0]
    for time_s in (1.9, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="time only goes on"):
            agenda.at(time_s, lambda: None)
    with pytest.raises(IndexError):
        agenda.pop()
    agenda.after(1.0, lambda: None)
    with pytest.raises(ValueError, match="something is due at 3.0 s"):
        agenda.advance(3.5)
    agenda.advance(3.0)
    assert agenda.now_s == 3.0


def test_a_run_without_end_is_an_error_that_shows_it() -> None:
    def node(node: Plain, event: Event, now_s: float) -> Said:
        yield ("a" if node.name == "b" else "b"), "and you?"

    cluster = Cluster({"a": plain(node), "b": plain(node)}, seed=77)
    with pytest.raises(NotQuiet, match=r"(?s)after 500 steps, at .* seed 77.*and you\?"):
        cluster.run_until_quiet(500)
    with pytest.raises(NotQuiet):
        cluster.run_until(cluster.now_s + 1e3, 500)


def test_what_a_node_raises_says_where() -> None:
    def node(node: Plain, event: Event, now_s: float) -> Said:
        yield Note("all is well")
        raise KeyError("oh")

    with pytest.raises(KeyError) as caught:
        Cluster({"a": plain(node)}, seed=78).run_until_quiet()
    assert "seed 78" in caught.value.__notes__[0] and "all is well" in caught.value.__notes__[0]


def test_watch_ends_a_run_where_it_goes_wrong() -> None:
    def watch(cluster: Cluster) -> None:
        if cluster.is_up("b"):
            assert len(heard(cluster, "b")) < 10

    cluster = Cluster({"a": plain(talker), "b": plain(listener)}, watch=watch)
    with pytest.raises(AssertionError):
        cluster.run_until_quiet()
    assert len(heard(cluster, "b")) == 10


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (Send("nobody", 1), ValueError, "'nobody'.*the nodes are a"),
        (Open("a"), ValueError, "to itself"),
        (Wake("t", -0.1), ValueError, "time only goes on"),
        ("text", TypeError, "cluster.events"),
    ],
)
def test_what_a_node_cannot_ask_for(said: Any, error: type[Exception], message: str) -> None:
    cluster = Cluster({"a": plain(lambda node, event, now_s: [said])})
    with pytest.raises(error, match=message):
        cluster.run_until_quiet()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Faults(drop=1.1),
        lambda: Faults(lose=-0.1),
        lambda: Link(truncate=float("nan")),
        lambda: Faults(delay_s=(0.2, 0.1)),
        lambda: Faults(delay_s=(-1.0, 1.0)),
        lambda: Faults(persist_s=(0.1,)),
        lambda: Faults(piece_bytes=(0, 10)),
        lambda: Faults(crashes=[(0.2, "a", 0.1)]),
        lambda: Faults(crashes=[(-0.2, "a")]),
        lambda: Faults(late_s=-0.1),
        lambda: Faults(patience_s=float("inf")),
        lambda: Faults(until_s=float("nan")),
        lambda: Faults(partitions=[(0.1, 0.2, {"a"}, {"a", "b"})]),
        lambda: Faults(partitions=[(float("nan"), 1.0, {"a"}, {"b"})]),
        lambda: Cluster({"outside": plain(talker)}),
        lambda: Cluster({"a": plain(talker)}, Faults(crashes=[(0.1, "x", 0.2)])),
        lambda: Cluster({"a": plain(talker)}, Faults(partitions=[(0.1, 0.2, {"a"}, {"x"})])),
        lambda: Cluster({"a": plain(talker)}, Faults(links={("a", "x"): Link()})),
    ],
)
def test_impossible_faults_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_schedule_can_be_drawn() -> None:
    nodes = ("a", "b", "c")
    drawn = [scheduled(Faults(drop=0.1), seed, nodes, 2.0, crashes=3, partitions=4) for seed in range(30)]
    assert drawn[7] == scheduled(Faults(drop=0.1), 7, nodes, 2.0, crashes=3, partitions=4)
    assert len(set(map(repr, drawn))) == 30 and all(len(faults.schedule()) == 7 for faults in drawn)
    cuts = [cut for faults in drawn for cut in faults.partitions]
    assert {cut.one_way for cut in cuts} == {True, False}
    assert {len(cut.left) for cut in cuts} == {1, 2} == {len(cut.right) for cut in cuts}
    assert all(0 <= fault[0] <= 2.0 for faults in drawn for fault in faults.schedule())


def test_a_partition_may_last_for_ever() -> None:
    assert heard(flood(Faults(partitions=[(0.0, float("inf"), {"a"}, {"b"})])), "b") == []
