"""kill -9 at every named step of a client and of the daemon; afterwards everything acknowledged is there, and all adds up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tierstore
from tierstore.emulation.victim import number_of
from tierstore.ringbuf.steps import CLIENT_STEPS, DAEMON_STEPS

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("TEST_SEED", "1"))
DROPPING = {"drop.withdrawn", "evict.drop"}


# A start passes these steps before anybody can connect: die at a later pass, while there is work.
PASSED_AT_START = {"answer.stored": 200, "release.invalidated": 150}
ONCE = {"recover.indexed"}  # passed once in a start


class Node:
    """A daemon that can be killed and started again, and the clients that work on it."""

    def __init__(self, folder: Path, tiers: bool):
        self.socket, self.log = str(folder / "s"), folder / "daemon.log"
        self.arguments = ["--socket", self.socket, "--segment", "1MiB", "--dram", "24MiB" if tiers else "10MiB"]
        if tiers:
            (folder / "disk").mkdir()
            pmem = f"/dev/shm/tierstore-test-{os.getpid()}-{folder.name}"
            self.arguments += ["--pmem", f"{pmem}:24MiB", "--disk", f"{folder / 'disk'}:96MiB"]
            self.pmem: str | None = pmem
        else:
            self.pmem = None
        self.kinds = "btc" if tiers else "c"
        self.process: subprocess.Popen[bytes] | None = None
        self.folder, self.said = "", folder

    def start(self, kill_at: str = "") -> subprocess.Popen[bytes]:
        """Start the daemon; returns at once."""
        environment = {**os.environ, "TIERSTORE_KILL_AT": kill_at}
        command = [sys.executable, "-m", "tierstore.service.cli", "serve", *self.arguments]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, env=environment, stderr=log)
        return self.process

    def kill(self) -> int:
        """kill -9, if it has not died at its step by itself; how many kills that makes: 1."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        return 1

    def connect(self) -> tierstore.Store:
        """A store, once the daemon answers."""
        deadline = time.monotonic() + 60
        while True:
            try:
                store = tierstore.connect(self.socket)
                self.folder = os.path.dirname(store.stats()["tiers"]["dram"]["paths"][0])
                return store
            except tierstore.PeerLost as error:
                if time.monotonic() > deadline or (self.process is not None and self.process.poll() is not None):
                    raise RuntimeError(f"the daemon does not answer: {self.log.read_text()}") from error
                time.sleep(0.02)

    def victim(self, seed: int, seconds: float, kill_at: str = "", stop_at: str = "") -> subprocess.Popen[str]:
        """A client process that works at random."""
        command = [sys.executable, "-m", "tierstore.emulation.victim", self.socket, str(seed), str(seconds), self.kinds]
        environment = {**os.environ, "TIERSTORE_KILL_AT": kill_at, "TIERSTORE_STOP_AT": stop_at}
        # Not a pipe: nobody reads meanwhile, and a victim that waits for room in one does no work.
        self.said = Path(self.log.parent / f"victim-{seed}.txt")
        with open(self.said, "w") as said:
            return subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.PIPE, text=True)

    def end(self) -> None:
        """Stop everything and remove every file."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.process.wait()
        for name in os.listdir(self.folder) if self.folder and os.path.isdir(self.folder) else []:
            os.unlink(os.path.join(self.folder, name))
        if self.folder and os.path.isdir(self.folder):
            os.rmdir(self.folder)
        if self.pmem and os.path.exists(self.pmem):
            os.unlink(self.pmem)


@pytest.fixture
def node(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node with three tiers, or with memory only where the step is about dropping."""
    made = Node(tmp_path, tiers=request.node.callspec.params.get("step") not in DROPPING)
    yield made
    made.end()


def acknowledged(output: str) -> dict[str, tuple[set[int], bool]]:
    """Per KEEP key: the numbers it may hold, and whether it may be absent. A line without its end was not said."""
    state: dict[str, tuple[set[int], bool]] = {}
    for line in output[: output.rfind("\n") + 1].splitlines():
        word, *rest = line.split()
        if word == "end" or rest[0].startswith("c"):
            continue
        numbers, absent = state.get(rest[0], (set(), True))
        if word == "try":
            state[rest[0]] = (numbers | {int(rest[1])}, absent)
        elif word == "done":
            state[rest[0]] = ({int(rest[1])}, False)
        elif word == "drop":
            state[rest[0]] = (numbers, True)
        else:
            state[rest[0]] = (set(), True)
    return state


def check(store: tierstore.Store, output: str, clients: int) -> None:
    """All that was acknowledged is there, nothing foreign is, and segments, index and pins add up."""
    for key, (numbers, absent) in acknowledged(output).items():
        try:
            assert number_of(store, key) in numbers, f"{key} holds a put that was not made or was replaced"
        except KeyError:
            assert absent, f"{key} was acknowledged as {numbers} and is lost"
    deadline = time.monotonic() + 10
    while store.stats()["connected"] > clients and time.monotonic() < deadline:
        time.sleep(0.05)
    stats, report = store.stats(), store.verify(payloads=True)
    assert report["ok"], report["problems"]
    assert stats["connected"] == clients, "the slot of a killed client was not taken back"
    assert stats["lost_keep_blocks"] == 0


def finish(node: Node, process: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
    """Output and errors of the node's victim that ends or is killed by itself."""
    try:
        errors = process.communicate(timeout=timeout)[1]
        return node.said.read_text(), errors
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise


@pytest.mark.parametrize("step", CLIENT_STEPS)
def test_client_killed_at(step: str, node: Node) -> None:
    """A client dies at a step: its slot, pins and leases come back, its acknowledged puts stay."""
    generator = random.Random(f"{SEED}/{step}")
    node.start()
    with node.connect() as store:
        for attempt in range(2):
            victim = node.victim(SEED + attempt, 20, f"{step}:{generator.randrange(1, 40)}")
            output, errors = finish(node, victim, 60)
            assert victim.returncode == -signal.SIGKILL, f"{step} was not reached: {errors}"
            check(store, output, clients=1)


@pytest.mark.parametrize("step", CLIENT_STEPS)
def test_client_stopped_at(step: str, node: Node) -> None:
    """A client stops at a step: the others go on, also past a restart; woken up, it goes on as if nothing had been."""
    node.start()
    with node.connect() as store:
        victim = node.victim(SEED, 3, stop_at=f"{step}:{random.Random(f'{SEED}/{step}').randrange(1, 40)}")
        while _state_of(victim.pid) != "T":
            assert victim.poll() is None, f"{step} was not reached: {finish(node, victim, 5)[1]}"
            time.sleep(0.01)
        _press(store, 30)
        node.kill()
        node.start()
        node.connect().close()
        _press(store, 30)
        os.kill(victim.pid, signal.SIGCONT)
        output, errors = finish(node, victim, 60)
        assert victim.returncode == 0, errors
        check(store, output, clients=1)


def _state_of(pid: int) -> str:
    """The state of a process, "T" when stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _press(store: tierstore.Store, count: int) -> None:
    """Put more than memory holds, and read it back where it is still there."""
    for number in range(count):
        store.put_bytes(f"cpress-{number}", bytes([number]) * 900_000)
    for number in range(count):
        try:
            assert store.get_bytes(f"cpress-{number}")[899_999] == number
        except KeyError:
            pass


@pytest.mark.parametrize("step", [name for name in DAEMON_STEPS if not name.startswith("recover")])
def test_daemon_killed_at(step: str, node: Node) -> None:
    """The daemon dies at a step: the next one has all that was acknowledged, and clients go on by themselves."""
    count = PASSED_AT_START.get(step, 0) + random.Random(f"{SEED}/{step}").randrange(1, 12)
    daemon = node.start(f"{step}:{count}")
    node.connect().close()
    victim = node.victim(SEED, 4)
    deadline = time.monotonic() + 30
    while daemon.poll() is None and time.monotonic() < deadline and victim.poll() is None:
        time.sleep(0.01)
    if daemon.poll() is None:
        victim.kill()
        victim.communicate()
        pytest.fail(f"step {step} was not reached {count} times")
    assert daemon.returncode == -signal.SIGKILL
    node.start()
    output, errors = finish(node, victim, 60)
    assert victim.returncode == 0, errors
    with node.connect() as store:
        check(store, output, clients=1)


@pytest.mark.parametrize("step", [name for name in DAEMON_STEPS if name.startswith("recover")])
def test_daemon_killed_while_recovering(step: str, node: Node) -> None:
    """A recovery that dies is followed by one that finds the same."""
    node.start()
    with node.connect():
        output, errors = finish(node, node.victim(SEED, 2), 60)
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    for count in (1, 1 if step in ONCE else 3):
        recovering = node.start(f"{step}:{count}")
        assert recovering.wait(60) == -signal.SIGKILL
    node.start()
    with node.connect() as store:
        check(store, output, clients=1)


@pytest.mark.parametrize("kills", [12, pytest.param(1000, marks=pytest.mark.soak)])
def test_many_kills_on_one_store(kills: int, tmp_path: Path) -> None:
    """Clients and daemons die at random steps and moments, one after the other; the store stays whole all the time."""
    generator, node, made, round_ = random.Random(SEED), Node(tmp_path, tiers=True), 0, 0
    try:
        while made < kills:
            round_ += 1
            node.start(_some_step(generator, DAEMON_STEPS, 400))
            victim = node.victim(SEED * 10_000 + round_, 60, _some_step(generator, CLIENT_STEPS, 60))
            time.sleep(1 + generator.random())  # half of it goes by before the client works
            if generator.random() < 0.5:  # the client sees the restart
                made += node.kill()
                node.start()
                time.sleep(generator.random())
            victim.kill()
            made += node.kill() + 1
            output = finish(node, victim, 30)[0]
            node.start()
            with node.connect() as store:
                check(store, output, clients=1)
                for key in [key for key in acknowledged(output) if key in store]:
                    store.delete(key)
            made += node.kill()
    finally:
        node.end()


def _some_step(generator: random.Random, steps: tuple[str, ...], count: int) -> str:
    """Where to die: one time in three nowhere."""
    step, passes = generator.choice(steps), generator.randrange(1, count)
    return f"{step}:{passes}" if generator.random() < 0.67 else ""
