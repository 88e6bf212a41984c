"""How long does it take to find, pin and hand out an object that another process made?

Look-ups are timed over warm keys in random order, the empty loop over the same list subtracted. Batches are read by
this process for the first time after another one put them under new keys, in turns with LMDB whose values are Arrow IPC
streams (py-lmdb with ``buffers=True``, ``writemap``, its file in memory: its fastest way). 4 KiB values are read by one
process and by two.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import tierstore
from tierstore.ringbuf.native import batch_kernels

from .data import GIB, KIB, MIB, batch, put_in_one_block, same_sum, size_text, sum_table
from .harness import Bench, at_least, at_most, in_turns, ratios, seconds
from .node import MEMORY, Client, Node, clients, connected, folder, rate, serving, together

SEGMENT_BYTES = 32 * MIB
HEADER_ROOM = 64 * KIB  # a 32 MiB segment holds a block a little smaller than itself
VALUE_BYTES = 4 * KIB
Read = Callable[[str], Any]
MANY = 1000  # keys per get_many


def run(bench: Bench) -> None:
    """All figures, over one daemon."""
    dram = bench.parameter("dram_bytes", 512 * MIB, 3 * GIB)
    with serving("--dram", str(dram), "--segment", str(SEGMENT_BYTES)) as node, connected(node) as store:
        keys = value_keys(bench.parameter("key_count", 1000, 10_000))
        store.put_many([(key, key.encode() * (VALUE_BYTES // len(key))) for key in keys])
        random.Random(1).shuffle(keys)
        time_lookups(bench, store, keys)
        time_batches(bench, node, store)
        time_values(bench, node, keys)


def value_keys(count: int) -> list[str]:
    """Keys of 16 characters."""
    return [f"value/{number:010d}" for number in range(count)]


# --- look-ups -------------------------------------------------------------------------------------------------------------


def time_lookups(bench: Bench, store: tierstore.Store, keys: list[str]) -> None:
    """Nanoseconds per look-up and pin: the store's builtins from Python, and the kernel over many keys."""
    native, x, total = store._session.native, store._session.x, len(keys)
    raw = np.frombuffer("".join(keys).encode(), "u1")
    contains, lookup, get_view = native.contains, native.lookup, native.get_view
    pin_many = batch_kernels().pin_many
    assert all(contains(x, key) == 1 for key in keys) and pin_many(x, raw.ctypes.data, 16, total) == total

    def nothing() -> None:
        for _ in keys:
            pass

    def contains_all() -> None:
        for key in keys:
            contains(x, key)

    def lookup_all() -> None:
        for key in keys:
            lookup(x, key, 0, 0, 0, 1)

    def view_all() -> None:
        for key in keys:
            get_view(x, key)

    actions: dict[str, Callable[[], Any]] = {
        "loop": nothing,
        "contains": contains_all,
        "lookup": lookup_all,
        "view": view_all,
        "kernel": lambda: pin_many(x, raw.ctypes.data, 16, total),
    }
    turns = bench.parameter("lookup_rounds", 3, 101)
    timed = in_turns({name: partial(seconds, action) for name, action in actions.items()}, turns)
    samples = {name: [value / total * 1e9 for value in values] for name, values in timed.items()}
    loop = samples["loop"]
    for name, what in (
        ("contains", "look-up, pin, unpin from Python"),
        ("lookup", "look-up, pin and header fields as a tuple, from Python"),
        ("view", "look-up, pin and memoryview, from Python"),
    ):
        net = [value - empty for value, empty in zip(samples[name], loop, strict=True)]
        bench.report(
            what,
            net,
            "ns",
            at_most(250) if name != "view" else None,
            "the empty loop, subtracted",
            note=f"native {name if name != 'view' else 'get_view'}; loop {sorted(loop)[len(loop) // 2]:.1f} ns",
        )
    bench.report(
        "look-up, pin, unpin in a batch kernel, per key",
        samples["kernel"],
        "ns",
        at_most(50),
        f"{total} keys of 16 bytes in random order",
    )


# --- batches --------------------------------------------------------------------------------------------------------------


class Writer:
    """The other process: writes batches into the store and into LMDB."""

    def __init__(self) -> None:
        self._store: Any = None
        self._lmdb: Any = None
        self._keys: list[str] = []

    def open(self, socket: str, lmdb_path: str) -> None:
        """Connect to both."""
        self._store = tierstore.connect(socket)
        if lmdb_path:
            self._lmdb = open_lmdb(lmdb_path)

    def write(self, size: int, numbers: list[int], one_block: bool) -> list[float]:
        """Write batches under new keys, after deleting those of the last call; their sums."""
        self._forget()
        sums = []
        for number in numbers:
            data, key = batch(size, number), batch_key(size, number)
            if one_block:
                put_in_one_block(self._store, key, data)
            else:
                self._store.put(key, data)
            if self._lmdb is not None:
                with self._lmdb.begin(write=True, buffers=True) as transaction:
                    transaction.put(key.encode(), ipc_bytes(data))
            self._keys.append(key)
            sums.append(sum_table(data))
        return sums

    def _forget(self) -> None:
        for key in self._keys:
            self._store.delete(key)
            if self._lmdb is not None:
                with self._lmdb.begin(write=True) as transaction:
                    transaction.delete(key.encode())
        self._keys = []


def batch_key(size: int, index: int) -> str:
    """Key of one batch."""
    return f"batch/{size}/{index}"


def ipc_bytes(data: pa.RecordBatch) -> pa.Buffer:
    """A batch as an Arrow IPC stream in an exactly sized buffer."""
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, data.schema) as writer:
        writer.write_batch(data)
    target = pa.allocate_buffer(sink.size())
    with pa.FixedSizeBufferWriter(target) as fixed, pa.ipc.new_stream(fixed, data.schema) as writer:
        writer.write_batch(data)
    return target


def open_lmdb(path: str) -> Any:
    """LMDB without syncs on a file in memory."""
    import lmdb

    return lmdb.open(path, map_size=4 * GIB, writemap=True, sync=False, metasync=False, max_readers=16)


@contextlib.contextmanager
def lmdb_reader(bench: Bench) -> Iterator[tuple[str, Read | None]]:
    """Path of an LMDB file, and a function that reads a batch from it; nothing where LMDB is missing."""
    try:
        import lmdb  # noqa: F401
    except ImportError:
        bench.skip("the same batches from LMDB with Arrow IPC", "lmdb is not installed: pip install 'tierstore[bench]'")
        yield "", None
        return
    with folder(MEMORY) as path:
        environment = open_lmdb(str(Path(path) / "lmdb"))

        def read(key: str) -> pa.RecordBatch:
            with environment.begin(buffers=True) as transaction:
                return pa.ipc.open_stream(pa.py_buffer(transaction.get(key.encode()))).read_next_batch()

        try:
            yield str(Path(path) / "lmdb"), read
        finally:
            environment.close()


def time_batches(bench: Bench, node: Node, store: tierstore.Store) -> None:
    """Microseconds of store.get by the size of the batch; one block up to 32 MiB, several above."""
    sizes = bench.parameter(
        "batch_bytes",
        [64 * KIB, MIB, 4 * MIB, 40 * MIB],
        [64 * KIB, MIB, 4 * MIB, 16 * MIB, 32 * MIB, 256 * MIB],
    )
    rounds = bench.parameter("batch_rounds", 2, 25)
    with lmdb_reader(bench) as (path, read), clients("get.Writer", 1) as (writer,):
        writer.call("open", socket=node.socket, lmdb_path=path)
        readers: dict[str, Read] = {"ours": store.get} | ({"LMDB": read} if read else {})
        for nominal in sizes:
            size = nominal - HEADER_ROOM if nominal == SEGMENT_BYTES else nominal
            samples = time_one_size(writer, size, rounds, readers)
            last = batch_key(size, rounds * keys_of_round(size) - 1)
            report_batches(bench, nominal, store.info(last)["blocks"], samples)


def keys_of_round(size: int) -> int:
    """How many batches the other process writes before this one reads them."""
    return max(3, min(17, 128 * MIB // size))


def time_one_size(writer: Client, size: int, rounds: int, readers: dict[str, Read]) -> dict[str, list[float]]:
    """Each round: the other process writes new keys to both stores, then each store's are read here, in turns.

    The first key of a reader's turn is read untimed: it would time a process and a core that have slept.
    """
    samples: dict[str, list[float]] = {name + again: [] for again in ("", " again") for name in readers}
    for turn in range(rounds):
        count = keys_of_round(size)
        numbers = list(range(turn * count, (turn + 1) * count))
        sums = writer.call("write", size=size, numbers=numbers, one_block=size < SEGMENT_BYTES)
        keys = [batch_key(size, number) for number in numbers]
        for again in ("", " again"):
            for name in sorted(readers, reverse=turn % 2 == 1):
                samples[name + again] += [microseconds(readers[name], key) for key in keys][1:]
        for read in readers.values() if turn == 0 else ():
            for key, expected in zip(keys, sums, strict=True):
                assert same_sum(sum_table(read(key)), expected), f"{key}: another sum than was written"
    return samples


def report_batches(bench: Bench, nominal: int, blocks: int, samples: dict[str, list[float]]) -> None:
    """Rows of one size: the first reads; those of the same keys once more are in the note."""
    again = {name: f"read once more: {statistics.median(times):.1f} us" for name, times in samples.items() if times}
    less = "less 64 KiB, to fit a segment; " if nominal == SEGMENT_BYTES else ""
    name = f"{size_text(nominal)}, 10 columns, {blocks} block{'s' if blocks > 1 else ''}, put by another process"
    bench.report(
        f"store.get of {name}",
        samples["ours"],
        "us",
        at_most(60 if nominal > SEGMENT_BYTES else 12),
        "LMDB + Arrow IPC, next row" if "LMDB" in samples else "",
        note=less + again["ours again"],
    )
    if "LMDB" in samples:
        times = statistics.median(samples["LMDB"]) / statistics.median(samples["ours"])
        compared = f"the row above: {times:.1f} times its time"
        bench.report(f"LMDB + Arrow IPC, {name}", samples["LMDB"], "us", None, compared, note=again["LMDB again"])


def microseconds(read: Read, key: str) -> float:
    """One read; what it returned is dropped outside the measured time."""
    began = time.perf_counter()
    found = read(key)
    elapsed = time.perf_counter() - began
    del found
    return elapsed * 1e6


# --- 4 KiB values -----------------------------------------------------------------------------------------------------------


class ValueReader:
    """A process that reads 4 KiB values as views."""

    def __init__(self) -> None:
        self._store: Any = None
        self._keys: list[str] = []
        self._lmdb: Any = None

    def open(self, socket: str, key_count: int, seed: int) -> None:
        """Connect, and check each value once."""
        self._store = tierstore.connect(socket)
        self._keys = value_keys(key_count)
        random.Random(seed).shuffle(self._keys)
        for key in self._keys:
            assert bytes(self._store.get_bytes(key)[:16]) == key.encode()

    def one_by_one(self, passes: int) -> dict[str, float]:
        """get_bytes in a loop."""
        get, keys = self._store.get_bytes, self._keys
        begin = time.perf_counter()
        for _ in range(passes):
            for key in keys:
                get(key)
        return {"begin": begin, "end": time.perf_counter(), "count": passes * len(keys)}

    def open_lmdb(self, path: str) -> None:
        """The same values in LMDB."""
        self._lmdb = open_lmdb(path)

    def lmdb_one_by_one(self, passes: int) -> dict[str, float]:
        """Views of LMDB's values, all in one transaction, which is the best that it can do."""
        keys = [key.encode() for key in self._keys]
        begin = time.perf_counter()
        with self._lmdb.begin(buffers=True) as transaction:
            get = transaction.get
            for _ in range(passes):
                for key in keys:
                    get(key)
        return {"begin": begin, "end": time.perf_counter(), "count": passes * len(keys)}

    def many(self, passes: int) -> dict[str, float]:
        """get_many, some keys at a time."""
        get, keys = self._store.get_many, self._keys
        parts = [keys[first : first + MANY] for first in range(0, len(keys), MANY)]
        begin = time.perf_counter()
        for _ in range(passes):
            for part in parts:
                get(part)
        return {"begin": begin, "end": time.perf_counter(), "count": passes * len(keys)}


def values_per_s(members: list[Client], command: str, passes: int) -> float:
    """Values that these processes read per second, together."""
    return rate(together(members, command, passes=passes))


def lmdb_values(path: str, keys: list[str]) -> bool:
    """Put the values into LMDB; False where it is missing."""
    try:
        import lmdb  # noqa: F401
    except ImportError:
        return False
    with open_lmdb(path) as environment, environment.begin(write=True) as transaction:
        for key in keys:
            transaction.put(key.encode(), key.encode() * (VALUE_BYTES // len(key)))
    return True


def time_values(bench: Bench, node: Node, keys: list[str]) -> None:
    """Values per second, by one client and by two, in turns with LMDB."""
    passes, rounds = bench.parameter("value_passes", 2, 200), bench.parameter("value_rounds", 2, 7)
    ways = {"many": f"get_many, {MANY} keys a call", "one_by_one": "get_bytes in a loop"}
    with folder(MEMORY) as place, clients("get.ValueReader", 2) as members:
        path = str(place / "lmdb")
        peer = lmdb_values(path, keys)
        for seed, member in enumerate(members):
            member.call("open", socket=node.socket, key_count=len(keys), seed=seed)
            if peer:
                member.call("open_lmdb", path=path)
        together(members, "many", passes=passes)
        for command, name in ways.items():
            variants = {
                "one": partial(values_per_s, members[:1], command, passes),
                "two": partial(values_per_s, members, command, passes),
            }
            if peer:
                variants["LMDB"] = partial(values_per_s, members[:1], "lmdb_one_by_one", passes)
            samples = in_turns(variants, rounds)
            million = {which: [value / 1e6 for value in values] for which, values in samples.items()}
            bench.report(f"4 KiB values as views, one client, {name}", million["one"], "million/s", at_least(3))
            bench.report(
                f"4 KiB values as views, two clients, {name}",
                ratios(samples["two"], samples["one"]),
                "x",
                at_least(1.8),
                "one client, in turns",
            )
            if peer:
                what = f"LMDB, one client, in turns: {statistics.median(million['LMDB']):.2f} million/s"
                bench.report(f"one client, {name} / LMDB", ratios(samples["one"], samples["LMDB"]), "x", None, what)
