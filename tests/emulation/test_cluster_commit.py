"""The commit protocol of shuffle attempts on three simulated nodes: the right one holds for every seed, each broken one shows.

A task PUTs blocks and COMMITs a manifest, at least once, until answered. The store answers a COMMIT again as before and refuses
another manifest. The driver takes the first receipt and reads that attempt, three times. The task is a harsh client: after a
crash it runs its attempts again under the same name, with other rows. The protocol is a model; its terms are in docs.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tierstore.emulation.cluster import (
    Cancel,
    Cluster,
    Event,
    Faults,
    Instruction,
    Make,
    NotQuiet,
    Persist,
    Persisted,
    Received,
    Send,
    Started,
    Wake,
    Woke,
    check_repeatable,
    framed,
    scheduled,
)

BLOCKS = 3
RETRY_S, ATTEMPT_S, AGAIN_S = 0.06, 0.5, 0.4
ATTEMPTS_MAX = 12
NODES = ("task", "store", "driver")
SEEDS = 200

Ledger = list[tuple[str, int, str]]  # every answer to a COMMIT: attempt, CRC of its manifest, answer


def manifest_of(blocks: dict[Any, str]) -> dict[str, int]:
    """Count and CRC of blocks in the order of their numbers."""
    data = "".join(blocks[number] for number in sorted(blocks, key=str))
    return {"blocks": len(blocks), "crc": zlib.crc32(data.encode())}


class Store:
    """The daemon's side: blocks private to their attempt until its manifest is durable; then they are sealed."""

    def __init__(self, name: str, durable: dict[Any, Any], flaw: str, ledger: Ledger):
        self.flaw, self.ledger = flaw, ledger
        self.blocks: dict[str, dict[Any, str]] = {}
        self.manifests: dict[str, dict[str, int]] = {}
        self.writing: dict[Any, tuple[Any, list[tuple[str, dict[str, Any]]]]] = {}  # key -> value, who waits for what
        self.copies = 0
        for key, value in durable.items():
            self.keep(key, value)

    def keep(self, key: tuple[Any, ...], value: Any) -> None:
        if key[0] == "block":
            self.blocks.setdefault(key[1], {})[key[2]] = value
        else:
            self.manifests[key[1]] = value

    def handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Received(_, source, {"do": "put"} as body):
                yield from self.put(source, body)
            case Received(_, source, {"do": "commit"} as body):
                yield from self.commit(source, body)
            case Received(_, source, {"do": "read"} as body):
                yield self.read(source, body)
            case Persisted(_, key) if key in self.writing:
                value, askers = self.writing.pop(key)
                self.keep(key, value)
                for source, answer in askers:
                    yield self.answer(source, answer)

    def put(self, source: str, body: dict[str, Any]) -> Iterator[Instruction]:
        attempt, number = body["attempt"], body["number"]
        answer = {"did": "put", "attempt": attempt, "number": number, "answer": "stored"}
        held = self.blocks.get(attempt, {})
        sealed = attempt in self.manifests or ("manifest", attempt) in self.writing
        if self.flaw == "every put is appended":
            self.copies += 1
            number = f"{number}+{self.copies}"
        elif self.flaw == "a late put replaces":
            sealed, held = False, {}
        if sealed and number not in held:
            yield Send(source, answer | {"answer": "sealed"})
        elif number in held:
            yield Send(source, answer)
        else:
            yield from self.write(("block", attempt, number), body["data"], source, answer)

    def commit(self, source: str, body: dict[str, Any]) -> Iterator[Instruction]:
        attempt, manifest = body["attempt"], body["manifest"]
        key = ("manifest", attempt)
        answer = {"did": "commit", "attempt": attempt, "manifest": manifest, "answer": "committed"}
        known = self.manifests.get(attempt) or self.writing.get(key, (None,))[0]
        if self.flaw == "the last manifest wins":
            known = None
        refused = known != manifest if known else manifest != manifest_of(self.blocks.get(attempt, {}))
        if self.flaw in ("the manifest is not checked", "the last manifest wins") and not known:
            refused = False
        if self.flaw == "a second commit is an error" and known:
            refused = True
        if refused:
            yield self.answer(source, answer | {"answer": "refused"})
        elif attempt in self.manifests and known:
            yield self.answer(source, answer)
        else:
            yield from self.write(key, manifest, source, answer)

    def write(self, key: Any, value: Any, source: str, answer: dict[str, Any]) -> Iterator[Instruction]:
        """Make it durable, and only then answer."""
        if self.flaw == "acknowledged before durable":
            self.keep(key, value)
            yield Persist(key, value)
            yield self.answer(source, answer)
            return
        if key in self.writing:
            self.writing[key][1].append((source, answer))
            return
        self.writing[key] = (value, [(source, answer)])
        yield Persist(key, value)

    def read(self, source: str, body: dict[str, Any]) -> Instruction:
        attempt = body["attempt"]
        here = attempt in self.manifests
        held = self.blocks.get(attempt, {})
        data = [held[number] for number in sorted(held, key=str)] if here else []
        return Send(source, {"did": "read", "attempt": attempt, "answer": "here" if here else "lost", "data": data})

    def answer(self, source: str, answer: dict[str, Any]) -> Instruction:
        if answer["did"] == "commit":
            self.ledger.append((answer["attempt"], answer["manifest"]["crc"], answer["answer"]))
        return Send(source, answer)


class Task:
    """Runs the attempts it is told to run. phases: "put", "commit", then "done" or "failed" until the driver knows."""

    def __init__(self, name: str, durable: dict[Any, Any], flaw: str):
        self.flaw, self.life = flaw, 0
        self.phases: dict[str, str] = {}
        self.stored: dict[str, set[int]] = {}
        self.durable = durable

    def handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Started():
                self.life = event.starts
                for attempt in self.durable:
                    yield from self.begin(attempt)
            case Received(_, _, {"do": "run", "attempt": attempt}) if attempt not in self.phases:
                yield Persist(attempt, "known")
                yield from self.begin(attempt)
            case Received(_, _, {"do": "rest", "attempt": attempt}) if attempt in self.phases:
                self.phases[attempt] = "over"
                yield Cancel(attempt)
            case Received(_, _, {"did": "put"} as body) if self.phases.get(body["attempt"]) == "put":
                yield from self.on_put(body["attempt"], body["number"], body["answer"])
            case Received(_, _, {"did": "commit"} as body) if self.phases.get(body["attempt"]) == "commit":
                if body["manifest"] == manifest_of(self.rows(body["attempt"])):
                    self.phases[body["attempt"]] = "done" if body["answer"] == "committed" else "failed"
                    yield from self.step(body["attempt"])
            case Woke(_, attempt) if self.phases[attempt] != "over":
                yield from self.step(attempt)

    def rows(self, attempt: str) -> dict[int, str]:
        return {number: f"<{attempt} {number} of life {self.life}>" for number in range(BLOCKS)}

    def begin(self, attempt: str) -> Iterator[Instruction]:
        self.phases[attempt], self.stored[attempt] = "put", set()
        yield from self.step(attempt)

    def on_put(self, attempt: str, number: int, answer: str) -> Iterator[Instruction]:
        self.stored[attempt].add(number)
        if answer == "sealed":
            self.phases[attempt] = "failed"
            yield from self.step(attempt)
        elif len(self.stored[attempt]) == BLOCKS:
            self.phases[attempt] = "commit"
            yield from self.step(attempt)

    def step(self, attempt: str) -> Iterator[Instruction]:
        """Ask for what is not answered yet, and again after a while."""
        rows, phase = self.rows(attempt), self.phases[attempt]
        if phase == "put":
            for number in sorted(set(rows) - self.stored[attempt]):
                yield Send("store", {"do": "put", "attempt": attempt, "number": number, "data": rows[number]})
        elif phase == "commit":
            yield Send("store", {"do": "commit", "attempt": attempt, "manifest": manifest_of(rows)})
        else:
            yield Send("driver", {"did": "run", "attempt": attempt, "answer": phase, "manifest": manifest_of(rows)})
        if self.flaw != "nobody asks again":
            yield Wake(attempt, RETRY_S)


class Driver:
    """Starts attempts until one has a receipt, then reads exactly that one. It is the only arbiter."""

    def __init__(self, name: str, durable: dict[Any, Any], flaw: str):
        self.flaw = flaw
        self.attempts = 0
        self.winner: tuple[str, dict[str, int]] | None = None
        self.reads: list[list[str]] = []
        self.trouble = ""

    def handle(self, event: Event) -> Iterator[Instruction]:
        match event:
            case Started() | Woke(_, "attempt") if self.winner is None and self.attempts < ATTEMPTS_MAX:
                self.attempts += 1
                yield Send("task", {"do": "run", "attempt": f"a{self.attempts}"})
                if self.flaw != "nobody asks again":
                    yield Wake("attempt", ATTEMPT_S)
            case Received(_, _, {"did": "run"} as body):
                yield Send("task", {"do": "rest", "attempt": body["attempt"]})
                if body["answer"] == "done" and self.winner is None:
                    self.winner = (body["attempt"], body["manifest"])
                    yield from self.ask()
            case Received(_, _, {"did": "read"} as body) if body["answer"] == "lost":
                self.trouble = f"{body['attempt']} was committed and is lost"
            case Received(_, _, {"did": "read"} as body):
                assert self.winner is not None
                if manifest_of(dict(enumerate(body["data"]))) != self.winner[1]:
                    self.trouble = f"what was read is not what {body['attempt']} committed"
                self.reads.append(body["data"])
            case Woke(_, "read") if len(self.reads) < 3 and not self.trouble:
                yield from self.ask()

    def ask(self) -> Iterator[Instruction]:
        assert self.winner is not None
        yield Send("store", {"do": "read", "attempt": self.winner[0]})
        yield Wake("read", AGAIN_S)


def play(
    seed: int, flaw: str = "", faults: Faults | None = None, wrap: Callable[[Make], Make] = lambda make: make
) -> Cluster:
    """One run to its end."""
    ledger: Ledger = []
    makes = {
        "task": wrap(partial(Task, flaw=flaw)),
        "store": wrap(partial(Store, flaw=flaw, ledger=ledger)),
        "driver": wrap(partial(Driver, flaw=flaw)),
    }
    cluster = Cluster(makes, storm(seed) if faults is None else faults, seed)
    with contextlib.suppress(NotQuiet):  # then too little was read, or it does no harm
        cluster.run_until_quiet(20_000)
    return cluster


def inner(cluster: Cluster, name: str) -> Any:
    process = cluster.process(name)
    return getattr(process, "inner", process)


def wrong(cluster: Cluster) -> str:
    """What must never be, or empty."""
    driver, ledger = inner(cluster, "driver"), inner(cluster, "store").ledger
    if driver.trouble or len(driver.reads) < 3:
        return driver.trouble or "nothing was read in the end"
    answers: dict[tuple[str, int], set[str]] = {}
    for attempt, crc, answer in ledger:
        answers.setdefault((attempt, crc), set()).add(answer)
    if any(len(given) > 1 for given in answers.values()):
        return "the same COMMIT was answered in two ways"
    committed = [attempt for (attempt, _), given in answers.items() if "committed" in given]
    if len(committed) != len(set(committed)):
        return "two manifests of one attempt were committed"
    return ""


def storm(seed: int) -> Faults:
    """Every kind of fault; rates end after 3 s, so that there is an end. The driver does not crash: it is the arbiter."""
    faults = Faults(drop=0.08, duplicate=0.15, reorder=0.2, late_s=0.3, persist_s=(0.005, 0.12), lose=0.7, until_s=3.0)
    faults = scheduled(faults, seed, ("task", "store"), 1.0, crashes=3)
    return scheduled(faults, seed + 1_000_000, NODES, 1.0, partitions=1)


def storm_of_bytes(seed: int) -> Faults:
    """The same for streams: they break in the middle of frames, and hand over a few bytes at a time."""
    faults = Faults(truncate=0.05, piece_bytes=(1, 90), persist_s=(0.005, 0.12), lose=0.7, patience_s=0.3, until_s=3.0)
    faults = scheduled(faults, seed, ("task", "store"), 1.0, crashes=3)
    return scheduled(faults, seed + 1_000_000, NODES, 1.0, partitions=1)


@pytest.mark.slow
def test_the_protocol_holds() -> None:
    kinds: set[str] = set()
    for seed in range(SEEDS):
        cluster = play(seed)
        assert not wrong(cluster), f"seed {seed}: {wrong(cluster)}\n{cluster.trace}"
        kinds.update(getattr(fault, "kind", type(fault).__name__) for fault in cluster.happened)
    assert kinds == {"drop", "duplicate", "reorder", "lose", "Crash", "Partition"}, "some fault never happened"


@pytest.mark.slow
def test_the_protocol_holds_in_frames_over_streams() -> None:
    kinds: set[str] = set()
    for seed in range(SEEDS // 4):
        cluster = play(seed, faults=storm_of_bytes(seed), wrap=framed)
        assert not wrong(cluster), f"seed {seed}: {wrong(cluster)}\n{cluster.trace}"
        kinds.update(getattr(fault, "kind", type(fault).__name__) for fault in cluster.happened)
    assert kinds == {"truncate", "lose", "Crash", "Partition"}, "some fault never happened"


FLAWS = {
    "a second commit is an error": "answered in two ways",
    "the last manifest wins": "two manifests|is not what",
    "the manifest is not checked": "is not what",
    "acknowledged before durable": "is lost|is not what",
    "every put is appended": "nothing was read|is not what",
    "a late put replaces": "is not what",
    "nobody asks again": "nothing was read",
}


def first_failure(flaw: str) -> int:
    """The first seed that shows a flaw. Fails if none does."""
    for seed in range(SEEDS):
        if wrong(play(seed, flaw)):
            return seed
    pytest.fail(f"no seed of {SEEDS} shows that {flaw}")


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_broken_protocol_shows(flaw: str) -> None:
    found = wrong(play(first_failure(flaw), flaw))
    assert any(words in found for words in FLAWS[flaw].split("|")), found


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_broken_protocol_is_right_in_fair_weather(flaw: str) -> None:
    assert not wrong(play(0, flaw, Faults())), "then it is the simulated faults that show it"


def test_runs_repeat() -> None:
    assert check_repeatable(lambda: play(3)).trace != play(4).trace
    assert check_repeatable(lambda: play(3, faults=storm_of_bytes(3), wrap=framed)).happened
