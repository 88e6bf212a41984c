"""Was it linearizable? Histories of real clients, key by key, against a register that can be deleted.

``record`` starts clients that put, get and delete a few keys at random and say when each call began and ended and which put it
saw; ``Checker`` looks for an order of a key's calls that explains all answers and keeps the order of calls that did not overlap
(Wing and Gong 1993, with the memory of Lowe 2017: a place per client and the register's value is all that matters).

A KEEP key is a plain register: it misses only when it was deleted. A CACHE key may vanish at any time, but what vanished or was
replaced does not come back.

A client is started as ``python -m tierstore.emulation.history OPTIONS`` (a Plan as JSON).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import tierstore
from tierstore.cache.store import Store

ABSENT = -1
NEVER = 1 << 62
SHOWN = 6  # calls that a message shows
NUMBERS = 1_000_000  # puts that one client may number
NOISE_KEYS = 100
HELD = 2  # views a client keeps, and looks at again later


class Call(NamedTuple):
    """One call of one client. Times are CLOCK_MONOTONIC in nanoseconds, the same clock in all processes."""

    client: int
    action: str  # put, get, has, delete
    key: str
    number: int  # of the put made or seen; has, delete: 0 if it was there; ABSENT
    begun: int
    ended: int  # NEVER: it failed or its client died, so it may have been carried out, or may be later, or never

    def __str__(self) -> str:
        seen = "absent" if self.number == ABSENT else self.number if self.action in ("put", "get") else "there"
        ended = "never" if self.ended == NEVER else self.ended
        return f"client {self.client} {self.action} {self.key}: {seen} [{self.begun}, {ended}]"


# --- checking -------------------------------------------------------------------------------------------------------------


class Checker:
    """Looks for one legal order of the calls on one key.

    keep: the key must not vanish by itself. twice: a delete may succeed although the key was gone (after a restart a client
    cannot know whose delete was carried out).
    """

    def __init__(self, calls: Iterable[Call], keep: bool, twice: bool = False):
        self.keep, self.twice = keep, twice
        lanes: dict[int, list[Call]] = {}
        for call in sorted(calls, key=lambda call: call.begun):
            # What never ended is concurrent with all that its client did later.
            lane = call.client if call.ended < NEVER else -2 - len(lanes)
            lanes.setdefault(lane, []).append(call)
        self.lanes = list(lanes.values())
        self.certain = [at for at, lane in enumerate(self.lanes) if lane[0].ended < NEVER]

    def violation(self) -> str:
        """Why no order explains the answers; "" if one does."""
        start = (tuple(0 for _ in self.lanes), ABSENT)
        seen, stack, furthest = {start}, [start], start
        while stack:
            state = stack.pop()
            if all(state[0][at] == len(self.lanes[at]) for at in self.certain):
                return ""
            furthest = max(furthest, state, key=self._done)
            for following in self._following(*state):
                if following not in seen:
                    seen.add(following)
                    stack.append(following)
        return self._story(*furthest)

    def _done(self, state: tuple[tuple[int, ...], int]) -> int:
        return sum(state[0][at] for at in self.certain)

    def _following(self, places: tuple[int, ...], value: int) -> Iterable[tuple[tuple[int, ...], int]]:
        """States after one more call: one that began before any other of those left has ended."""
        ahead = [(at, lane[place]) for at, (lane, place) in enumerate(zip(self.lanes, places)) if place < len(lane)]
        first_end = min(call.ended for _, call in ahead)
        for at, call in ahead:
            if call.begun <= first_end:
                for after in self._after(call, value):
                    yield (*places[:at], places[at] + 1, *places[at + 1 :]), after

    def _after(self, call: Call, value: int) -> Iterable[int]:
        """What the register may hold after a call that is carried out now; nothing if its answer is impossible."""
        if call.action == "put":
            return (call.number,)
        if call.action == "delete":
            possible = call.ended == NEVER or self.twice or (value == ABSENT) == (call.number == ABSENT)
            return (ABSENT,) if possible or (call.number == ABSENT and not self.keep) else ()
        if call.number == ABSENT:
            return (ABSENT,) if value == ABSENT or not self.keep else ()
        return (value,) if value == call.number or (call.action == "has" and value != ABSENT) else ()

    def _story(self, places: tuple[int, ...], value: int) -> str:
        done = sorted((call for lane, place in zip(self.lanes, places) for call in lane[:place]), key=lambda c: c.ended)
        left = sorted((call for lane, place in zip(self.lanes, places) for call in lane[place:]), key=lambda c: c.begun)
        holds = "nothing" if value == ABSENT else value
        lines = [*map(str, done[-SHOWN:]), f"--- here the key holds {holds}, and none of these can follow:"]
        return "\n".join([*lines, *map(str, left[:SHOWN])])


def violations(calls: Iterable[Call], keep: Callable[[str], bool], twice: bool = False) -> list[str]:
    """One story for each key whose history no order explains."""
    keys: dict[str, list[Call]] = {}
    for call in calls:
        keys.setdefault(call.key, []).append(call)
    stories = ((key, Checker(found, keep(key), twice).violation()) for key, found in sorted(keys.items()))
    return [f"{key}:\n{story}" for key, story in stories if story]


# --- clients --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What a client does. Keys that begin with k are KEEP, others CACHE.

    count: of calls; 0: until it is told to stop. pause_s: between two calls.
    sizes: bytes of a value, one of them at random. noise: share of the calls that put other keys, which nobody reads, to press on
    memory. stale: now and then answer a get from memory of an earlier one, to show that the checker sees it.
    """

    socket: str
    client: int
    seed: int
    count: int
    keys: tuple[str, ...] = ("k1", "k2", "c1")
    sizes: tuple[int, ...] = (8, 4096)
    pause_s: float = 0.0
    noise: float = 0.0
    noise_bytes: int = 300_000
    stale: bool = False


def value_of(key: str, number: int, size: int) -> bytes:
    """The value of a put: one word that names key and number, again and again."""
    return (zlib.crc32(key.encode()) << 32 | number).to_bytes(8, "little") * max(1, size // 8)


def number_in(key: str, value: memoryview) -> int:
    """Which put a value is of. Raises AssertionError if it is not one whole value of this key."""
    found = bytes(value)
    number = int.from_bytes(found[:4], "little")
    assert found == value_of(key, number, len(found)), f"{key} holds foreign or torn bytes: {found[:16].hex()}..."
    return number


class Client:
    """One client at work."""

    def __init__(self, plan: Plan):
        self.plan, self.store = plan, tierstore.connect(plan.socket)
        self.generator = random.Random(f"{plan.seed}/{plan.client}")
        self.calls: list[Call] = []
        self._held: list[tuple[str, memoryview, int]] = []
        self._known: dict[str, int] = {}

    def work(self, stop: threading.Event) -> None:
        """All calls of the plan."""
        for number in range(1, self.plan.count + 1) if self.plan.count else itertools.count(1):
            if stop.wait(self.plan.pause_s) if self.plan.pause_s else stop.is_set():
                break
            if self.generator.random() < self.plan.noise:
                self.store.put_bytes(f"noise {self.generator.randrange(NOISE_KEYS)}", bytes(self.plan.noise_bytes))
                continue
            key, chance = self.generator.choice(self.plan.keys), self.generator.random()
            action = "put" if chance < 0.3 else "get" if chance < 0.8 else "has" if chance < 0.88 else "delete"
            self._call(action, key, self.plan.client * NUMBERS + number)
        for key, view, seen in self._held:
            assert number_in(key, view) == seen, f"a view of {key} changed while it was held"
        self._held.clear()

    def _call(self, action: str, key: str, number: int) -> None:
        size = self.generator.choice(self.plan.sizes)
        value = value_of(key, number, size) if action == "put" else b""
        begun = time.monotonic_ns()
        view: memoryview | None = None
        try:
            view, seen = self._carry_out(self.store, action, key, value)
            ended = time.monotonic_ns()
        except tierstore.PeerLost:
            seen, ended = 0, NEVER
        if view is not None:
            seen = self._look(key, view)
        if action in ("put", "delete") or ended < NEVER:
            self.calls.append(Call(self.plan.client, action, key, number if action == "put" else seen, begun, ended))

    @staticmethod
    def _carry_out(store: Store, action: str, key: str, value: bytes) -> tuple[memoryview | None, int]:
        try:
            if action == "get":
                return store.get_bytes(key), 0
            if action == "has":
                return None, 0 if key in store else ABSENT
            if action == "put":
                store.put_bytes(key, value, keep=key.startswith("k"))
            else:
                store.delete(key)
        except KeyError:
            return None, ABSENT
        return None, 0

    def _look(self, key: str, view: memoryview) -> int:
        """The number in a view, which is kept for a while and looked at again."""
        seen = number_in(key, view)
        self._held.append((key, view, seen))
        if len(self._held) > HELD:
            old, held, expected = self._held.pop(0)
            assert number_in(old, held) == expected, f"a view of {old} changed while it was held"
        known = self._known.setdefault(key, seen)
        if self.plan.stale and self.generator.random() < 0.02:
            return known
        if self.generator.random() < 0.05:
            self._known[key] = seen
        return seen


def record(plans: Iterable[Plan], meanwhile: Callable[[], None] | None = None, timeout_s: float = 120) -> list[Call]:
    """The calls of clients that work side by side, each in a process of its own, for as long as ``meanwhile`` takes if it is
    given. Raises RuntimeError if one fails."""
    command = [sys.executable, "-m", "tierstore.emulation.history"]
    pipe = subprocess.PIPE
    clients = [
        subprocess.Popen([*command, json.dumps(asdict(plan))], stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for plan in plans
    ]
    calls: list[Call] = []
    try:
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it is connected, or it has ended
        for client in clients:
            _tell(client, "go")
        if meanwhile is not None:
            meanwhile()
            for client in clients:
                _tell(client, "stop")
        for client in clients:
            output, errors = client.communicate(timeout=timeout_s)
            if client.returncode:
                raise RuntimeError(f"a client failed:\n{errors}")
            calls += [Call(*fields) for fields in json.loads(output)]
    finally:
        for client in clients:
            client.kill()
            client.communicate()
    return calls


def _tell(client: subprocess.Popen[str], word: str) -> None:
    assert client.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended; its exit code says how
        print(word, file=client.stdin, flush=True)


def main(options: str) -> None:
    """One client: says when it is connected, waits for a word, works (until the next word), and prints its calls."""
    client, stop = Client(Plan(**json.loads(options))), threading.Event()
    print("connected", flush=True)
    sys.stdin.readline()

    def listen() -> None:
        if sys.stdin.readline():
            stop.set()

    threading.Thread(target=listen, daemon=True).start()
    client.work(stop)
    client.store.close()
    print(json.dumps(client.calls))


if __name__ == "__main__":
    main(sys.argv[1])
