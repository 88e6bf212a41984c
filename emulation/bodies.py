"""What the child processes of tests do: ``python -m tierstore.emulation.bodies NAME ARGUMENT...``; see procs.py.

They print what they have done and wait for a line before they go on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import sys
import threading
import time

import pyarrow as pa

import tierstore
from tierstore.cache import requests
from tierstore.cache.block import kernels
from tierstore.cache.store import Store
from tierstore.ringbuf import client
from tierstore.ringbuf.native import daemon_kernels
from tierstore.service import cli


def say(*words: object) -> None:
    """One line, at once."""
    print(*words, flush=True)


def pause() -> None:
    """Wait for the parent's word."""
    sys.stdin.readline()


def holder(socket: str, key: str) -> None:
    """Hold a view of a key and a half-filled lease until killed."""
    store = tierstore.connect(socket)
    view = store.get_bytes(key)
    store.put_bytes(f"{key}/of-holder", b"x" * 1000, keep=True)
    with store.writer(f"{key}/open", pa.schema([("a", "int64")])) as writer:
        writer.write(pa.record_batch({"a": [1, 2, 3]}))
        writer.write(pa.record_batch({"a": [4, 5, 6]}))
        say("holding", len(view))
        pause()


def reader_writer(socket: str, prefix: str) -> None:
    """Read one key; then, at each word, read it again and write another."""
    store, number = tierstore.connect(socket), 0
    while True:
        say("read", bytes(store.get_bytes(f"{prefix}/given"))[:8].decode())
        pause()
        number += 1
        store.put_bytes(f"{prefix}/{number}", f"value {number}".encode(), keep=True)
        say("wrote", number)
        pause()


def reader(socket: str, key: str) -> None:
    """Read one key again at each word."""
    store = tierstore.connect(socket)
    while True:
        say("read", bytes(store.get_bytes(key))[:8].decode())
        pause()


def forker(socket: str) -> None:
    """Fork with an open store and a view: the child's handle is closed, the parent's is not; the child may connect."""
    store = tierstore.connect(socket)
    store.put_bytes("parent", b"p" * 5000, keep=True)
    view = store.get_bytes("parent")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            say("child", _attempt(lambda: store.get_bytes("parent")), _attempt(lambda: store.put_bytes("x", b"x")))
            assert bytes(view) == b"p" * 5000
            del view
            with tierstore.connect(socket) as own:
                own.put_bytes("child", bytes(own.get_bytes("parent"))[:3], keep=True)
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert bytes(view) == b"p" * 5000
    store.put_bytes("after", b"a", keep=True)
    say(
        "parent",
        os.waitstatus_to_exitcode(status),
        bytes(store.get_bytes("child")).decode(),
        len(store.get_bytes("after")),
    )
    store.close()


def _attempt(call: object) -> str:
    try:
        call()  # type: ignore[operator]
    except Exception as error:
        return type(error).__name__
    return "nothing"


def crowd(socket: str, first: str, count: str) -> None:
    """Many clients in one process, some in threads: each puts one value and gets it."""
    numbers = range(int(first), int(first) + int(count))
    stores = {number: tierstore.connect(socket) for number in numbers}
    say("connected", len(stores))
    pause()

    def work(number: int) -> None:
        stores[number].put_bytes(f"crowd/{number}", str(number).encode() * 100, keep=True)
        assert bytes(stores[number].get_bytes(f"crowd/{number}")) == str(number).encode() * 100

    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("done", len(stores))
    pause()
    for store in stores.values():
        store.close()


def spawned(socket: str, key: str) -> int:
    """For multiprocessing's spawn: the length of a value, read by a client of its own."""
    with tierstore.connect(socket) as store:
        return len(store.get_bytes(key))


def opened(*options: str) -> None:
    """Open an embedded store with these options (name=value) and say what comes of it; descriptors die with us."""
    try:
        with tierstore.open(**dict(option.split("=", 1) for option in options)) as store:  # type: ignore[arg-type]
            sound = store.verify()["ok"]
        say("opened", sound)  # after close(): whoever reads this may end us at once
    except Exception as error:
        say(type(error).__name__, str(error))


def deleted_while_moved(key: str, *options: str) -> None:
    """Put a key, move it to pmem, delete it when it is copied and not yet relinked, and die of SIGKILL there."""
    store = tierstore.open(**dict(option.split("=", 1) for option in options))  # type: ignore[arg-type]
    store.put_bytes(key, b"x" * 1000, keep=True)

    def at_step(name: str) -> None:
        if name == "move.persisted":
            store.delete(key)
            say("deleted", key not in store)
            os.kill(os.getpid(), signal.SIGKILL)

    store._control.engine.cascade.mover._step = at_step  # type: ignore[attr-defined]
    store.pin(key, "pmem")


def truncated(socket: str) -> None:
    """Read a key, and again at each word, saying what comes of it; somebody truncates the file meanwhile."""
    store = tierstore.connect(socket)
    view = store.get_bytes("key")
    say("read", bytes(view)[:8].decode())
    pause()
    for call in (lambda: bytes(view), lambda: store.get_bytes("key")):
        say(_attempt(call))
    os._exit(0)  # nothing can be given back in order


def reopened(count: str, *options: str) -> None:
    """Open and close an embedded store again and again, whether it is refused or not; then use memory, and say so."""
    last = ""
    for _ in range(int(count)):
        try:
            tierstore.open(**dict(option.split("=", 1) for option in options)).close()  # type: ignore[arg-type]
            last = "opened"
        except Exception as error:
            last = f"{type(error).__name__} {error}"
        gc.collect()
    used = [bytearray(os.urandom(100_000)) for _ in range(300)]
    time.sleep(0.5)
    say("alive", len(used), last)


def closed(folder: str, count: str, *options: str) -> None:
    """Open, use and close an embedded store some times without a garbage collection; say what a tmpfs then holds in use."""
    gc.disable()
    for _ in range(int(count)):
        with tierstore.open(**dict(option.split("=", 1) for option in options)) as store:  # type: ignore[arg-type]
            store.put_bytes("k", b"x" * 3_000_000)
        del store
    status = os.statvfs(folder)
    say((status.f_blocks - status.f_bfree) * status.f_frsize)


def pressed(*options: str) -> None:
    """Open an embedded store; after a word fill it with KEEP values until it is full, then read and check all of them."""
    client.LEASE_WAIT_S = requests.MOVE_WAIT_S = 1.0
    with tierstore.open(**dict(option.split("=", 1) for option in options)) as store:  # type: ignore[arg-type]
        found = "".join(sorted(store.keys("k")))
        say("ready", found)
        pause()
        say("put", fill(store, 900_000), store.verify(payloads=True)["ok"])
    say("closed")


def filled(socket: str) -> None:
    """A client that fills the store with KEEP values until it is full, then reads and checks all of them."""
    client.LEASE_WAIT_S = 1.0
    with tierstore.connect(socket) as store:
        say("put", fill(store, 300_000), store.verify(payloads=True)["ok"])


def fill(store: Store, size: int) -> int:
    """Put KEEP values until there is no room; how many. Raises AssertionError if one reads back differently."""
    count = 0
    with contextlib.suppress(tierstore.Full):
        while True:
            store.put_bytes(f"fill/{count}", count.to_bytes(4, "little") * (size // 4), keep=True)
            count += 1
    for number in range(count):
        assert bytes(store.get_bytes(f"fill/{number}")) == number.to_bytes(4, "little") * (size // 4)
    return count


def busy(socket: str, name: str) -> None:
    """Put, get and delete without a pause until a word comes; hold some views all the while."""
    store, number = tierstore.connect(socket), 0
    views: list[memoryview] = []
    say("busy")
    while not select.select([sys.stdin], [], [], 0)[0]:
        number += 1
        made = f"{name} {number} ".encode() * (number * 997 % 30_000)
        store.put_bytes(f"{name}/{number % 5}", made, keep=True)
        assert bytes(store.get_bytes(f"{name}/{number % 5}")) == made
        store.put_bytes(f"{name}/cache/{number % 50}", made)
        views = [*views[-3:], store.get_bytes(f"{name}/{number % 5}")]
        if number % 7 == 0:
            store.delete(f"{name}/{number % 5}")
            store.put(f"{name}/table", pa.table({"n": list(range(number % 1000))}), keep=True)
    say("done", number)
    store.close()


def stranger(user: str, what: str, *words: str) -> None:
    """Become another user, then open a store, connect to one or serve; say what comes of it."""
    for module in ("gettext", "tierstore.service.daemon"):  # that user may not be allowed to read them later
        importlib.import_module(module)
    kernels()
    daemon_kernels()
    os.setgroups([])
    os.setgid(int(user))
    os.setuid(int(user))
    say("now")
    if what == "open":
        opened(*words)
    elif what == "serve":
        cli.main(["serve", *words])
    else:
        try:
            with tierstore.connect(words[0]) as store:
                say("connected", store.keys())
        except Exception as error:
            say(type(error).__name__, str(error))


BODIES = {
    body.__name__: body
    for body in (
        truncated,
        holder,
        reader_writer,
        reader,
        forker,
        crowd,
        opened,
        deleted_while_moved,
        reopened,
        closed,
        pressed,
        filled,
        busy,
        stranger,
    )
}


if __name__ == "__main__":
    BODIES[sys.argv[1]](*sys.argv[2:])
