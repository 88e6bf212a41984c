"""One real daemon and clients in processes of their own: deaths, restarts, forks, threads and crowds."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import tierstore
from tierstore.emulation import bodies
from tierstore.emulation.procs import Child, Daemon
from tierstore.ringbuf import layout

pytestmark = pytest.mark.slow


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose data outlives it."""
    made = Daemon(tmp_path, "--dram", "32MiB", "--clients", "32")
    try:
        yield made.start()
    finally:
        made.end()


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def second_daemon(node: Daemon, *changed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierstore.service.cli", "serve", *node.arguments, *changed]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_two_clients_share_objects(node: Daemon) -> None:
    with node.connect() as store:
        store.put_bytes("two/given", b"shared bytes", keep=True)
        with Child("reader_writer", node.socket, "two") as child:
            assert child.line() == "read shared b"
            child.go()
            assert child.line() == "wrote 1"
            assert bytes(store.get_bytes("two/1")) == b"value 1"
            store.put_bytes("two/given", b"replaced", keep=True)
            child.go()
            assert child.line() == "read replaced"


def test_a_killed_client_gives_everything_back(node: Daemon) -> None:
    with node.connect() as store:
        # The daemon may not yet have noticed that the child of an earlier test is gone.
        wait_for(lambda: store.stats()["connected"] == 1, 10)
        store.put_bytes("held", b"x" * 300_000)
        before = store.verify()["segments"]
        with Child("holder", node.socket, "held") as child:
            assert child.line() == "holding 300000"
            assert store.stats()["connected"] == 2 and store.verify()["segments"]["leased"] > before["leased"]
            child.process.kill()
            child.process.wait()
            wait_for(lambda: store.stats()["connected"] == 1, 10)
            wait_for(lambda: store.verify()["segments"]["leased"] <= before["leased"], 3)
        assert len(store.get_bytes("held/of-holder")) == 1000 and "held/open" not in store
        store.delete("held")
        store.delete("held/of-holder")
        report = store.verify(payloads=True)
        assert report["ok"] and report["blocks"] == 0


def test_a_second_daemon_is_refused(node: Daemon) -> None:
    answer = second_daemon(node)
    assert answer.returncode == 1 and "serving it already" in answer.stderr and "Traceback" not in answer.stderr
    with node.connect() as store:
        store.put_bytes("still", b"works")


def test_the_socket_of_a_dead_daemon_is_replaced(kept: Daemon) -> None:
    kept.kill()
    assert stat.S_ISSOCK(os.stat(kept.socket).st_mode)
    with pytest.raises(tierstore.PeerLost, match="tierstore serve"):
        kept.connect()
    kept.start()
    with kept.connect() as store:
        assert store.verify()["ok"]


def test_keep_survives_a_killed_daemon_and_clients_go_on(kept: Daemon) -> None:
    with kept.connect() as store, Child("reader", kept.socket, "k0") as child:
        for number in range(20):
            store.put_bytes(f"k{number}", f"value {number}".encode() * 1000, keep=True)
        table = pa.table({"x": list(range(100_000))})
        store.put("table", table, keep=True)
        child.process.kill()
        with Child("reader", kept.socket, "k0") as child:
            assert child.line() == "read value 0v"
            view = store.get_bytes("k3")
            kept.kill()
            child.go()
            assert child.line() == "read value 0v", "reading needs no daemon"
            assert bytes(store.get_bytes("k7")) == b"value 7" * 1000 and store.get("table").equals(table)
            kept.start()
            child.go()
            assert child.line() == "read value 0v"
        assert all(bytes(store.get_bytes(f"k{n}")) == f"value {n}".encode() * 1000 for n in range(20))
        assert store.get("table").equals(table) and bytes(view) == b"value 3" * 1000
        store.put_bytes("after", b"restart", keep=True)
        assert bytes(store.get_bytes("after")) == b"restart" and store.stats()["lost_keep_blocks"] == 0
        with kept.connect() as other:
            assert bytes(other.get_bytes("after")) == b"restart" and len(other.keys("k")) == 20
            report = other.verify(payloads=True)
            assert report["ok"], report["problems"]


def test_keep_survives_a_stopped_daemon(kept: Daemon) -> None:
    with kept.connect() as store:
        store.put_bytes("k", b"kept", keep=True)
    assert kept.stop() == 0 and not os.path.exists(kept.socket)
    kept.start()
    with kept.connect() as store:
        assert bytes(store.get_bytes("k")) == b"kept"


def test_a_writer_without_a_daemon_fails_clearly(kept: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tierstore.service.client.RESTART_WAIT_S", 0.3)
    store = kept.connect()
    store.put_bytes("k", b"x", keep=True)
    kept.kill()
    for call in (lambda: store.put_bytes("k", b"y"), lambda: store.delete("k"), store.keys, store.stats):
        with pytest.raises(tierstore.PeerLost, match="tierstore serve"):
            call()
    assert bytes(store.get_bytes("k")) == b"x"
    store.close()


def test_a_client_of_another_layout_is_refused(node: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LAYOUT_VERSION", 99)
    with pytest.raises(
        tierstore.ConfigError, match="layout version of the daemon = 2 .*knows version 99; install the same"
    ):
        node.connect()
    monkeypatch.undo()
    with node.connect() as store:
        assert store.keys() == []


def test_fork(node: Daemon) -> None:
    with Child("forker", node.socket) as child:
        assert child.line() == "child Closed Closed"
        assert child.line() == "parent 0 ppp 1"
        assert child.wait() == 0


def test_spawn(node: Daemon) -> None:
    with node.connect() as store:
        store.put_bytes("k", b"12345", keep=True)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            assert pool.starmap(bodies.spawned, [(node.socket, "k")] * 3) == [5, 5, 5]


def test_many_threads_on_one_client(node: Daemon) -> None:
    failures: list[BaseException] = []

    def work(thread: int, store: tierstore.Store) -> None:
        try:
            for number in range(50):
                key, value = f"{thread}/{number % 5}", f"{thread} {number}".encode() * 3000
                store.put_bytes(key, value, keep=True)
                assert bytes(store.get_bytes(key)) == value
                assert len(store.keys(f"{thread}/")) == min(number + 1, 5)
        except BaseException as error:
            failures.append(error)

    with node.connect() as store:
        threads = [threading.Thread(target=work, args=(number, store)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures


def test_three_hundred_clients(node: Daemon) -> None:
    with node.connect() as store:
        children = [Child("crowd", node.socket, str(100 * i), "100") for i in range(3)]
        try:
            assert [child.line() for child in children] == ["connected 100"] * 3
            wait_for(lambda: store.stats()["connected"] == 301, 10)  # an earlier child may still count
            for child in children:
                child.go()
            assert [child.line() for child in children] == ["done 100"] * 3
            assert len(store.keys("crowd/")) == 300
            for child in children:
                child.go()
                assert child.wait() == 0
            wait_for(lambda: store.stats()["connected"] == 1, 10)
        finally:
            for child in children:
                child.__exit__()


def test_more_clients_than_slots_is_full(kept: Daemon) -> None:
    stores = [kept.connect() for _ in range(30)]
    with pytest.raises(tierstore.Full, match="client slots"):
        stores.append(kept.connect())
        stores.append(kept.connect())
    for store in stores:
        store.close()
    wait_for(lambda: kept.connect().close() is None, 5)


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"TSF1" + b"\xff" * 100, b"\0" * 100_000, b"TSF1\x01\0\x03\0"]
)
def test_garbage_on_the_socket_harms_nobody(garbage: bytes, node: Daemon) -> None:
    with node.connect() as store, socket.socket(socket.AF_UNIX) as raw:
        raw.connect(node.socket)
        raw.settimeout(5)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(1 << 16):
                pass
        store.put_bytes("k", b"x")
        assert store.verify()["ok"]


@pytest.mark.parametrize("name", ["/proc/nowhere/s", "/tmp/" + "x" * 120])
def test_a_socket_path_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tierstore.service.cli",
        "serve",
        "--dram",
        "8MiB",
        "--socket",
        name,
        "--ephemeral",
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 1 and name in answer.stderr and "Traceback" not in answer.stderr, answer.stderr
    with pytest.raises(tierstore.PeerLost):
        tierstore.connect(name)


@pytest.mark.slow
def test_a_client_of_a_daemon_that_comes_back_with_another_store(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, "--dram", "16MiB", "--ephemeral")
    try:
        daemon.start()
        store = daemon.connect()
        store.put_bytes("k", b"v")
        daemon.kill()
        daemon.start()
        with pytest.raises(tierstore.PeerLost, match="serves another store now"):
            for number in range(1000):  # what it has leased it may still fill: into memory that nobody looks at
                store.put_bytes(f"k{number}", bytes(100_000))
        store.close()
        with daemon.connect() as again:
            assert again.keys() == []
    finally:
        daemon.end()
