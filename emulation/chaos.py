"""Shuffles under faults chosen at random, with an oracle: ``run(cluster, seed)`` is one of them.

Some maps run on each of three nodes, some twice at once, while writers are killed at steps of the protocol, daemons are
killed and started again (with their memory or without), links are cut, slow or down, bytes flip in memory. The reader
runs again what it is told is lost. In the end exactly the rows of rows_of() are read, and after the end of the
application nothing of it is left. Whatever else happens is raised: wrong rows, an error that names nothing, a hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tierstore.ringbuf.errors import LostMaps, TierstoreError
from tierstore.ringbuf.steps import SHUFFLE_CLIENT_STEPS
from tierstore.shuffle.receipt import Receipt

from .links import Link
from .mapper import PARTITIONS, expected, found
from .procs import Daemon

MAPS = 12
NODES = 3
ROUNDS_MAX = 12
PATIENCE_S = 60.0  # for everything that waits
KILL_STEPS = ("put.claimed", "put.filled", "put.appended", "message.pushed", *SHUFFLE_CLIENT_STEPS)
FAULTS = ("none", "writer", "daemon", "daemon", "memory", "link", "link", "flip", "speculation")


class Node:
    """A daemon behind a link."""

    def __init__(self, folder: Path, port: int, seed: int):
        folder.mkdir(exist_ok=True)
        self.folder, self.port = folder, port
        self.link = Link(("127.0.0.1", port), seed)
        self.daemon: Daemon | None = None

    def start(self, others: list[str], replicas: int) -> None:
        """Start the daemon; returns at once."""
        nodes = [part for name in others if name != self.link.address for part in ("--node", name)]
        network = ["--listen", f"127.0.0.1:{self.port}", "--advertise", self.link.address, *nodes]
        self.daemon = Daemon(self.folder, "--dram", "48MiB", *network, "--replicas", str(replicas))
        self.daemon.launch()

    @property
    def running(self) -> Daemon:
        """The daemon, which was started."""
        assert self.daemon is not None
        return self.daemon


class Cluster:
    """Nodes that know each other. end() removes all they left."""

    def __init__(self, folder: Path, ports: list[int], seed: int, replicas: int):
        self.nodes = [Node(folder / f"node-{number}", port, seed + number) for number, port in enumerate(ports)]
        self.folder, self.replicas = folder, replicas
        self.start(self.nodes)

    def start(self, nodes: list[Node]) -> None:
        """Start some daemons."""
        names = [node.link.address for node in self.nodes]
        for node in nodes:
            node.start(names, self.replicas)
        for node in nodes:
            node.running.answering()

    def lose(self, node: Node) -> None:
        """Kill a daemon and remove its memory, as if the machine had been started again."""
        node.running.kill()
        node.running.end()
        self.start([node])

    def end(self) -> None:
        """Stop everything."""
        for node in self.nodes:
            node.running.end()
            node.link.close()


def mapper(node: Node, app: str, seed: int, maps: range, said: Path, kill_at: str = "") -> subprocess.Popen[bytes]:
    """A process that runs maps on a node."""
    command = [sys.executable, "-m", "tierstore.emulation.mapper", node.running.socket, app, str(seed)]
    with open(said, "wb") as out, open(f"{said}.errors", "wb") as errors:
        environment = {**os.environ, "TIERSTORE_KILL_AT": kill_at}
        return subprocess.Popen([*command, str(maps.start), str(maps.stop)], stdout=out, stderr=errors, env=environment)


def receipts_in(said: Path) -> list[Receipt]:
    """Those that a mapper said whole."""
    text = said.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [Receipt.from_dict(json.loads(line)) for line in lines if line != "end"]


def run(cluster: Cluster, seed: int) -> str:
    """One shuffle with one kind of fault; which. Raises AssertionError, and whatever should not have been raised."""
    generator = random.Random(seed)
    fault = generator.choice(FAULTS)
    app, folder = f"chaos-{seed}", cluster.folder
    parts = [range(number * MAPS // NODES, (number + 1) * MAPS // NODES) for number in range(NODES)]
    jobs = [(generator.choice(cluster.nodes), maps) for maps in parts]
    if fault == "speculation":
        jobs += [(generator.choice(cluster.nodes), maps) for maps in parts]
    running = []
    for number, (node, maps) in enumerate(jobs):
        step = f"{generator.choice(KILL_STEPS)}:{generator.randrange(1, 8)}"
        kill_at = step if fault == "writer" and generator.random() < 0.7 else ""
        said = folder / f"said-{seed}-{number}"
        running.append((mapper(node, app, seed + number, maps, said, kill_at), said))
    disturb(cluster, generator, fault, writing=True)
    receipts: dict[int, Receipt] = {}
    for process, said in running:
        process.wait(PATIENCE_S)
        for receipt in receipts_in(said):
            if receipt.map_index not in receipts or generator.random() < 0.5:
                receipts[receipt.map_index] = receipt
    disturb(cluster, generator, fault, writing=False)
    _read(cluster, generator, app, receipts)
    _end(cluster, app)
    if fault == "flip":  # what is left may be damaged anywhere
        for node in cluster.nodes:
            cluster.lose(node)
    return fault


def disturb(cluster: Cluster, generator: random.Random, fault: str, writing: bool) -> None:
    """Bring a fault about."""
    node = generator.choice(cluster.nodes)
    if generator.random() < 0.3:
        return
    if writing:
        time.sleep(generator.random())
    if fault == "daemon":
        node.running.kill()
        cluster.start([node])
    elif fault == "memory":
        cluster.lose(node)
    elif fault == "link":
        node.link.mode = generator.choice(["whole", "slow", "slow", "down"])
        node.link.cut_soon()
    elif fault == "flip" and not writing:
        _flip(node, generator)


def _flip(node: Node, generator: random.Random) -> None:
    """Change some bytes of a node's memory, anywhere."""
    with node.running.connect() as store:
        path = store.stats()["tiers"]["dram"]["paths"][0]
    with open(path, "r+b") as arena:
        size = os.fstat(arena.fileno()).st_size
        for _ in range(200):
            at = generator.randrange(size)
            arena.seek(at)
            byte = arena.read(1)
            arena.seek(at)
            arena.write(bytes([byte[0] ^ 1 << generator.randrange(8)]))


def _read(cluster: Cluster, generator: random.Random, app: str, receipts: dict[int, Receipt]) -> None:
    """Read until all rows are there, running again what is lost."""
    deadline = time.monotonic() + PATIENCE_S
    lost = set(range(MAPS)) - set(receipts)
    for attempt in range(ROUNDS_MAX):
        for number in lost:
            _again(cluster, generator, app, number, attempt, receipts)
        reader = generator.choice(cluster.nodes)
        try:
            with reader.running.connect() as store:
                shuffle = store.shuffle(app, 0, PARTITIONS, lease_s=30.0)
                rows = found(shuffle, [receipts[number] for number in range(MAPS)])
            assert rows == expected(range(MAPS)), f"{rows} rows and sum, not {expected(range(MAPS))}"
            assert time.monotonic() < deadline, "it took too long"
            return
        except LostMaps as error:
            assert error.maps, error
            lost = set(error.maps)
        except KeyError:  # the application is not known any more at a node that lost its memory: all starts again
            lost = set(range(MAPS))
        for node in cluster.nodes:
            node.link.mode = "whole"
    raise AssertionError(f"maps {sorted(lost)} were lost {ROUNDS_MAX} times")


def _again(
    cluster: Cluster, generator: random.Random, app: str, number: int, attempt: int, receipts: dict[int, Receipt]
) -> None:
    for node in generator.sample(cluster.nodes, NODES):
        said = cluster.folder / f"again-{app}-{number}-{attempt}"
        process = mapper(node, app, generator.randrange(1 << 30), range(number, number + 1), said)
        process.wait(PATIENCE_S)
        done = receipts_in(said)
        if done:
            receipts[number] = done[0]
            return
        for other in cluster.nodes:  # a copy could not be stored: the links come back
            other.link.mode = "whole"
    raise AssertionError(f"map {number} could not be run on any node: {Path(f'{said}.errors').read_text()}")


def _end(cluster: Cluster, app: str) -> None:
    """The application ends; a little later nothing of it is anywhere."""
    for node in cluster.nodes:
        node.link.mode = "whole"
    for node in cluster.nodes:
        with node.running.connect() as store, contextlib.suppress(TierstoreError):
            store._control.call("shuffle_end", app=app)
    deadline = time.monotonic() + PATIENCE_S
    left: list[Any] = [True]
    while left:
        left = []
        for node in cluster.nodes:
            with node.running.connect() as store:
                left += store.keys(f"shuffle/{app}")
        assert time.monotonic() < deadline, f"left after the end: {left[:5]}"
        time.sleep(0.05)
    for name in cluster.folder.glob("said-*"):
        name.unlink()
    for name in cluster.folder.glob("again-*"):
        name.unlink()
