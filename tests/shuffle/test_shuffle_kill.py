"""kill -9 at every step of writing, committing and dropping: what has a receipt is whole, the rest is as if it never was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tierstore.emulation.mapper import PARTITIONS, expected, found
from tierstore.emulation.procs import Daemon
from tierstore.ringbuf.steps import SHUFFLE_CLIENT_STEPS, SHUFFLE_DAEMON_STEPS
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.receipt import Receipt

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("TEST_SEED", "1"))
MAPS = 24
CLIENT_STEPS = ("put.claimed", "put.committed", "put.appended", "message.pushed", *SHUFFLE_CLIENT_STEPS)


class Mapper:
    """A process that runs map tasks."""

    def __init__(self, socket: str, folder: Path, seed: int, maps: range, kill_at: str = ""):
        self.said = folder / f"said-{seed}-{maps.start}"
        command = [sys.executable, "-m", "tierstore.emulation.mapper", socket, "app", str(seed)]
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(
                [*command, str(maps.start), str(maps.stop)],
                stdout=said,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "TIERSTORE_KILL_AT": kill_at},
            )

    def end(self, timeout: float = 60) -> int:
        """Its exit code, once it ended."""
        try:
            self.errors = self.process.communicate(timeout=timeout)[1]
        finally:
            self.process.kill()
            self.process.wait()
        return self.process.returncode

    def receipts(self) -> list[Receipt]:
        """Those it said whole."""
        text = self.said.read_text()
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [Receipt.from_dict(json.loads(line)) for line in lines if line != "end"]


def check(store: Store, shuffle: Shuffle, receipts: list[Receipt], folder: Path, socket: str) -> None:
    """Run again what has no receipt; then exactly all rows are there; after the end nothing is."""
    missing = sorted(set(range(MAPS)) - {receipt.map_index for receipt in receipts})
    while missing:  # a process for each row of numbers
        end = next((n for n in range(missing[0], MAPS) if n not in missing), MAPS)
        again = Mapper(socket, folder, SEED + 1000, range(missing[0], end))
        assert again.end() == 0, again.errors
        receipts, missing = receipts + again.receipts(), [n for n in missing if n >= end]
    assert len(receipts) == MAPS
    assert found(shuffle, receipts) == expected(range(MAPS))
    shuffle.end_app()
    assert store.keys("shuffle/app") == []
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


@pytest.mark.parametrize("step", CLIENT_STEPS)
def test_map_task_killed_at(step: str, lasting: Daemon, tmp_path: Path) -> None:
    generator = random.Random(f"{SEED}/{step}")
    with lasting.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS)
        victim = Mapper(lasting.socket, tmp_path, SEED, range(MAPS), f"{step}:{generator.randrange(2, 20)}")
        assert victim.end() == -signal.SIGKILL, f"{step} was not reached: {victim.errors}"
        receipts = victim.receipts()
        assert len(receipts) < MAPS
        check(store, shuffle, receipts, tmp_path, lasting.socket)


@pytest.mark.parametrize("step", [step for step in SHUFFLE_DAEMON_STEPS if step != "shuffle.dropping"])
def test_daemon_killed_at(step: str, lasting: Daemon, tmp_path: Path) -> None:
    """The map tasks go on by themselves, and commit once what was committed before the answer was lost."""
    lasting.stop()
    count = random.Random(f"{SEED}/{step}").randrange(2, 12)
    lasting.launch(TIERSTORE_KILL_AT=f"{step}:{count}")
    lasting.answering()
    mapper = Mapper(lasting.socket, tmp_path, SEED, range(MAPS))
    assert lasting.process is not None
    assert lasting.process.wait(60) == -signal.SIGKILL
    lasting.start()
    assert mapper.end() == 0, mapper.errors
    with lasting.connect() as store:
        check(store, store.shuffle("app", 0, PARTITIONS), mapper.receipts(), tmp_path, lasting.socket)


def test_daemon_killed_while_dropping(lasting: Daemon, tmp_path: Path) -> None:
    """Who asked for the drop asks the next daemon again, and what was left of it goes."""
    lasting.stop()
    lasting.launch(TIERSTORE_KILL_AT="shuffle.dropping:5")
    lasting.answering()
    with lasting.connect() as store:
        shuffle = store.shuffle("app", 0, PARTITIONS)
        mapper = Mapper(lasting.socket, tmp_path, SEED, range(MAPS))
        assert mapper.end() == 0, mapper.errors
        with ThreadPoolExecutor(1) as pool:
            dropped = pool.submit(shuffle.drop)
            assert lasting.process is not None
            assert lasting.process.wait(60) == -signal.SIGKILL
            lasting.start()
            dropped.result()
        assert store.keys("shuffle/app") == ["shuffle/app"]
        assert store.verify(payloads=True)["ok"]
