"""Orders of steps that were once wrong, brought about in a real store, one step after the other.

What follows each other here in one thread are steps of several. The models of tests/models try all orders; these are the ones
that found faults.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import tierstore
from tierstore.cache.record import Block
from tierstore.emulation.procs import Child, Daemon
from tierstore.ringbuf import core_state, layout
from tierstore.ringbuf.client import Lease, Session
from tierstore.service.client import SocketControl

pytestmark = pytest.mark.slow


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon(tmp_path, "--dram", "8MiB")
    try:
        yield made.start()
    finally:
        made.end()


def test_large_bytes_replaced_while_read(store: tierstore.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client's put comes between the look at the root and the look at its first piece."""
    find, put = store._reader.find, [False]

    def racing(key: str, index: int, version: int) -> object:
        if index == 1 and not put[0]:
            put[0] = True
            store.put_bytes("key", b"2" * 2_500_000, keep=True)
        return find(key, index, version)

    store.put_bytes("key", b"1" * 2_500_000, keep=True)
    monkeypatch.setattr(store._reader, "find", racing)
    assert bytes(store.get_bytes("key")) == b"2" * 2_500_000


def fill_until(store: tierstore.Store, name: str, reached: Callable[[], bool]) -> str:
    """Put one KEEP value after the other, each as large as a segment, until something is reached; the last one's key."""
    for number in range(64):
        store.put_bytes(f"{name} {number}", bytes(1_000_000), keep=True)
        if reached():
            return f"{name} {number}"
        store.delete(f"{name} {number}")
    raise RuntimeError("the segment did not come round")


def test_stale_lease_lets_two_write(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CACHE lease is taken back for lack of room, and its segment leased to the same client for KEEP. While a thread copies
    a value there, another puts CACHE, finds the old lease taken back, and gives it up: that must not end the new one."""
    with daemon.connect() as store, daemon.connect() as other:
        store.put_bytes("cache", bytes(600_000))
        stale, append, theirs = store._session.leases[0, 0, ""].segment, store._appender.append, []
        for number in range(6):
            store.put_bytes(f"keep {number}", bytes(1_000_000), keep=True)
        assert "cache" not in store, "the lease was not taken back"
        for number in range(6):
            store.delete(f"keep {number}")

        def copy(lease: Lease, offset: int, length: int, block: Block) -> int:
            if lease.segment == stale and not theirs:
                store.put_bytes("cache", b"again")
                theirs.append("nobody's")
                with contextlib.suppress(RuntimeError):  # it did not come round: it is still ours
                    theirs[0] = fill_until(other, "other", lambda: other._session.leases[0, 1, ""].segment == stale)
            return append(lease, offset, length, block)

        monkeypatch.setattr(store._appender, "append", copy)
        mine = fill_until(store, "mine", lambda: bool(theirs))
        assert theirs == ["nobody's"], "the segment that a put was filling was leased to another client"
        assert bytes(store.get_bytes(mine)) == bytes(1_000_000)
        report = other.verify(payloads=True)
    assert report["ok"], report["problems"]


def test_deleted_while_moved(tmp_path: Path) -> None:
    """A delete is acknowledged between the copy and the relink of a move; the process dies before the relink."""
    pmem = Path(f"/dev/shm/tierstore-test-{uuid.uuid4().hex[:12]}")
    options = {"dram": "8MiB", "pmem": f"{pmem}:16MiB", "segment": "1MiB"}
    try:
        with Child("deleted_while_moved", "key", *(f"{name}={value}" for name, value in options.items())) as child:
            acknowledged = child.line()
            died = child.wait()
        with tierstore.open(**options) as store:
            back = "key" in store
    finally:
        pmem.unlink(missing_ok=True)
    if acknowledged != "deleted True" or died != -signal.SIGKILL:
        pytest.skip(f"not brought about: {acknowledged}, {died}")
    assert not back, "the deleted key is there again"


def test_two_threads_after_a_restart(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread of the client maps the new index right after a look-up found that the old one is stale."""
    with daemon.connect() as store:
        store.put_bytes("key", b"value", keep=True)
        daemon.kill()
        daemon.start()
        native = store._reader._native

        class Racing:
            """The kernels, where another thread renews right after each look-up."""

            def lookup(self, *arguments: object) -> object:
                found = native.lookup(*arguments)
                store._control.renew(store._session)
                return found

        monkeypatch.setattr(store._reader, "_native", Racing())
        assert bytes(store.get_bytes("key")) == b"value"


def test_attached_while_the_daemon_restarts(daemon: Daemon) -> None:
    """A slot is granted, the daemon dies; the next one looks at the locks; then the client locks; then the slot is reaped."""
    control = SocketControl(daemon.socket)
    grant, _ = control.hello()
    daemon.kill()
    process = daemon.launch(TIERSTORE_STOP_AT="recover.indexed")
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)
    session = Session(grant)  # finds the slot locked by itself, and active
    os.kill(process.pid, signal.SIGCONT)
    daemon.answering()
    nonce = session._get(session.slot_address + layout.P_NONCE)
    state = session._get(session.slot_address + layout.P_STATE)
    session.close()
    control.close()
    del session
    assert (nonce, state) == (grant.nonce, layout.SLOT_ACTIVE), "a living client's slot was taken: nobody answers it"


def test_ring_full_of_messages_that_were_given_up(store: tierstore.Store) -> None:
    """What 256 calls leave behind that ended in PeerLost during an outage (11 seconds each): the next one waits for room."""
    session = store._session
    tail, mutator = session._get(session.slot_address + layout.P_TAIL), store._control.engine.mutator
    mutator.stop()
    for number in range(tail, tail + layout.MESSAGE_COUNT):
        message = session.slot_address + layout.SLOT_PAGE_BYTES + number % layout.MESSAGE_COUNT * layout.MESSAGE_BYTES
        ctypes.c_uint64.from_address(message + layout.M_OP).value = layout.OP_SEAL
        ctypes.c_uint64.from_address(message + layout.M_SEGMENT).value = layout.SEGMENT_MASK  # refused
    ctypes.c_uint64.from_address(session.slot_address + layout.P_TAIL).value = tail + layout.MESSAGE_COUNT
    asked = []

    def alive() -> None:
        """Called while there is no room: now a daemon is there again."""
        asked.append(len(asked))
        if len(asked) == 2:
            mutator._words[core_state.D_STOP // 8] = 0
            mutator._start()

    assert session.submit(alive, layout.OP_SEAL, layout.SEGMENT_MASK) == layout.RESULT_REFUSED
    assert len(asked) >= 2
    store.put_bytes("key", b"value")
    assert bytes(store.get_bytes("key")) == b"value"


def test_keep_takes_the_room_of_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A little CACHE in a segment of its own, and KEEP blocks of 86 to 94 % of a segment each."""
    monkeypatch.setattr("tierstore.ringbuf.client.LEASE_WAIT_S", 2.0)
    with tierstore.open(dram="6MiB", segment="1MiB") as store:
        store.put_bytes("cache", bytes(1000))
        for number in range(4):
            store.put_bytes(f"keep {number}", bytes(900_000), keep=True)
