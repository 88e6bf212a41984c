"""A stopped client or daemon holds up nobody but itself."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

import tierstore
from tierstore.emulation.procs import Child, Daemon

pytestmark = pytest.mark.slow
MIB = 1 << 20
SEED = int(os.environ.get("TIERSTORE_TEST_SEED", "1"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="takes root: it mounts a tmpfs, or becomes another user")
SMALL = {"dram": "8MiB", "segment": "1MiB"}


def sound(store: tierstore.Store) -> None:
    """Everything in the store adds up."""
    report = store.verify(payloads=True)
    assert report["ok"], report["problems"]


# --- a stopped client -------------------------------------------------------------------------------------------------------------


def test_a_stopped_client_holds_nobody_up(node: Daemon) -> None:
    """SIGSTOP at any moment of a client's work; others put three times the store's size meanwhile, each put within seconds."""
    generator = random.Random(SEED)
    with (
        node.connect() as store,
        Child("busy", node.socket, "stopped") as stopped,
        Child("busy", node.socket, "other") as other,
    ):
        assert stopped.line() == other.line() == "busy"
        for round_ in range(3):
            time.sleep(generator.random() * 0.2 + 0.05)
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                slowest = 0.0
                for number in range(100):
                    began = time.monotonic()
                    store.put_bytes(f"mine/{number % 40}", bytes([round_]) * 900_000)
                    slowest = max(slowest, time.monotonic() - began)
                assert slowest < 5, f"a put took {slowest:.1f} s"
                assert bytes(store.get_bytes("mine/19")) == bytes([round_]) * 900_000
                assert store.stats()["connected"] >= 3 and len(store.keys("mine/")) > 5
            finally:
                stopped.process.send_signal(signal.SIGCONT)
        for child in (stopped, other):
            child.go()
            assert child.line().startswith("done") and child.wait() == 0
        sound(store)


def test_a_client_stopped_for_long_is_not_taken_for_dead(node: Daemon) -> None:
    """Nor are its views: what it read before stays as it was."""
    with node.connect() as store, Child("reader", node.socket, "k") as reader:
        store.put_bytes("k", b"kept value", keep=True)
        assert reader.line() in ("read kept val", "")
        reader.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)  # more than two rounds of looking for the dead
        assert store.stats()["connected"] >= 2
        reader.process.send_signal(signal.SIGCONT)
        reader.go()
        assert reader.line() == "read kept val"


def test_the_daemon_stopped_and_continued(node: Daemon) -> None:
    """Readers need it for nothing; a writer waits for it and goes on."""
    with node.connect() as store, Child("busy", node.socket, "other") as other:
        assert other.line() == "busy"
        store.put_bytes("k", b"x" * 100_000, keep=True)
        node.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(100):
                assert bytes(store.get_bytes("k")) == b"x" * 100_000
            time.sleep(1.5)
        finally:
            node.process.send_signal(signal.SIGCONT)
        store.put_bytes("l", b"y", keep=True)
        other.go()
        assert other.line().startswith("done") and other.wait() == 0
        sound(store)
