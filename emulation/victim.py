"""A client that works at random and is meant to be killed: ``python -m tierstore.emulation.victim SOCKET SEED SECONDS [KINDS]``.

It prints one line before and one after each change ("try KEY N", "done KEY N", "gone KEY"), so that whoever killed it knows
what was acknowledged. Every value says which key and which put it belongs to, so foreign or torn bytes give themselves away.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time

import numpy as np
import pyarrow as pa

import tierstore
from tierstore.cache.store import Store

KEY_COUNT = 24
PATIENCE_S = 10.0
SIZES = (10, 4096, 70_000, 300_000, 1_500_000)


def value_of(key: str, number: int) -> bytes:
    """The bytes of put ``number`` of a key: a header, then bytes that follow from it."""
    head = f"{key} {number} ".encode()
    generator = random.Random(f"{key}/{number}")
    return head + hashlib.shake_128(head).digest(64) * (generator.choice(SIZES) // 64 + 1)


def table_of(key: str, number: int) -> pa.Table:
    """The table of put ``number`` of a key; some are larger than a segment of 1 MiB."""
    generator = np.random.default_rng(abs(hash_of(f"{key}/{number}")))
    rows = int(generator.choice([10, 5_000, 100_000]))
    return pa.table(
        {"n": np.full(rows, number), "x": generator.random(rows)}, metadata={"key": key, "number": str(number)}
    )


def hash_of(text: str) -> int:
    """A hash that is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "little")


def number_of(store: Store, key: str) -> int:
    """Which put is stored under a key, after checking that all of it is there. Raises NotFound, AssertionError."""
    if key.startswith("t"):
        table = store.get(key)
        number = int(table.schema.metadata[b"number"])
        assert table.schema.metadata[b"key"].decode() == key and table.equals(table_of(key, number)), (
            f"foreign table at {key}"
        )
        return number
    value = bytes(store.get_bytes(key))
    found, text = value.split(b" ", 2)[:2]
    assert found.decode() == key and value == value_of(key, int(text)), f"foreign bytes at {key}"
    return int(text)


def say(*words: object) -> None:
    """One line, at once."""
    print(*words, flush=True)


def connect(socket: str) -> Store:
    """A store, once the daemon answers; whoever starts both need not wait for it."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return tierstore.connect(socket)
        except tierstore.PeerLost:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def work(socket: str, seed: int, seconds: float, kinds: str = "btc") -> None:
    """Put, read, and delete at random until the time is over."""
    store, generator = connect(socket), random.Random(seed)
    deadline, number = time.monotonic() + seconds, 0
    held: list[object] = []
    while time.monotonic() < deadline:
        number += 1
        kind = generator.choice(kinds)  # bytes and tables are KEEP, c is CACHE
        key = f"{kind}{seed}-{generator.randrange(KEY_COUNT)}"
        action = generator.random()
        if action < 0.5:
            say("try", key, number)
            if kind == "t":
                store.put(key, table_of(key, number), keep=True)
            else:
                store.put_bytes(key, value_of(key, number), keep=kind == "b")
            say("done", key, number)
        elif action < 0.85:
            try:
                number_of(store, key)
                held = [*held[-1:], store.get_bytes(key) if kind != "t" else None]
            except KeyError:
                pass
        else:
            try:
                say("drop", key)
                store.delete(key)
            except KeyError:
                pass
            say("gone", key)
    store.close()
    say("end")


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
