"""One executor of the demo: a process that holds, maps or reads its share of the pieces and runs the kernel on them.

It obeys one pipe: a command with arguments in, a result (or the text of an exception) out. If the driver dies, the kernel
sends SIGTERM and the pipe ends: the executor stops what it does, and removes what that driver left behind.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tierstore.ringbuf.errors import Full

from . import datagen, demo_check, demo_input, kmeans
from .demo_folder import sweep
from .demo_guard import end_with_parent

DAEMON_GRACE_S = 1.0  # a daemon that got the same signal removes its own files first
PUT_PATIENCE_S = 60.0  # a full tier empties as fast as the next one takes its blocks


class Store(Protocol):
    """The part of the client that the demo uses."""

    def put(self, key: str, value: Any, *, keep: bool = False) -> Any: ...
    def get(self, key: str) -> pa.Table: ...
    def stats(self) -> Any: ...
    def close(self) -> None: ...


class Share(NamedTuple):
    """What one executor of a placement works on.

    kind: "arrays", "store" or "parquet"; pieces: their numbers; groups: row groups that contain them.
    """

    kind: str
    columns: tuple[str, ...]
    groups: tuple[demo_input.Group, ...]
    pieces: frozenset[int]
    socket: str = ""

    @property
    def row_count(self) -> int:
        numbered = (
            (group.first_piece + place, rows) for group in self.groups for place, rows in enumerate(group.piece_rows)
        )
        return sum(rows for piece, rows in numbered if piece in self.pieces)


class Steps(NamedTuple):
    """Partial results of one executor: pieces (n,), sums (n, k, d), counts (n, k)."""

    pieces: list[int]
    sums: kmeans.Floats
    counts: kmeans.Ints


class _Arrays:
    """An executor's rows as plain NumPy: one long array per column, as a job that fits in memory would have them."""

    def __init__(self, column_count: int = 0, row_count: int = 0):
        self._columns = [np.empty(row_count) for _ in range(column_count)]
        self._rows: dict[int, tuple[int, int]] = {}  # piece: first row and the row after its last
        self._filled = 0

    def add(self, piece: int, batch: pa.RecordBatch) -> None:
        first, self._filled = self._filled, self._filled + batch.num_rows
        self._rows[piece] = first, self._filled
        for target, column in zip(self._columns, batch.columns, strict=True):
            target[first : self._filled] = column.to_numpy()

    def pieces(self) -> Iterator[tuple[int, list[kmeans.Floats]]]:
        for piece, (first, end) in sorted(self._rows.items()):
            yield piece, [column[first:end] for column in self._columns]


def connect(socket: str) -> Store:
    """The client library, imported only by who uses a store."""
    import tierstore

    store: Store = tierstore.connect(socket)
    return store


def key_of(piece: int) -> str:
    return f"demo/{piece:06d}"


class Worker:
    """The executor without its process, so that a test can be one."""

    def __init__(self, connect: Callable[[str], Store] = connect):
        self._connect = connect
        self._share: Share | None = None
        self._store: Store | None = None
        self._arrays = _Arrays()

    def handle(self, command: str, arguments: tuple[Any, ...]) -> Any:
        """Run one command by its name."""
        commands: dict[str, Callable[..., Any]] = {
            "warm_up": kmeans.warm_up,
            "write": self.write,
            "survey": self.survey,
            "open": self.open,
            "load": self.load,
            "step": self.step,
            "close": self.close,
            "check": demo_check.run,
        }
        return commands[command](*arguments)

    def write(self, folder: str, spec: datagen.ClusterSpec, files: list[int]) -> list[str]:
        return [str(datagen.write_file(Path(folder), spec, index)) for index in files]

    def survey(self, groups: list[demo_input.Group], columns: tuple[str, ...], seed: int) -> list[demo_input.Survey]:
        return [demo_input.survey(group, columns, seed) for group in groups]

    def open(self, share: Share) -> None:
        self._share = share
        if share.kind == "store":
            self._store = self._connect(share.socket)
        elif share.kind == "arrays":
            self._arrays = _Arrays(len(share.columns), share.row_count)

    def load(self, groups: list[demo_input.Group]) -> int:
        """Bring pieces of these groups to where they are worked on; the bytes brought.

        Into a store go all pieces of the groups, as any executor may read them; into memory only the own ones.
        """
        assert self._share is not None, "open comes before load"
        loaded = 0
        for group in groups:
            for piece, batch in demo_input.read_pieces(group, self._share.columns):
                if self._store is not None:
                    _put_patiently(self._store, key_of(piece), batch)
                    loaded += batch.nbytes
                elif piece in self._share.pieces:
                    self._arrays.add(piece, batch)
                    loaded += batch.nbytes
        return loaded

    def step(self, centroids: kmeans.Floats) -> Steps:
        """One pass over the own pieces; partial results per piece, in order of their numbers."""
        model, (k, dimension_count) = kmeans.pack(centroids), centroids.shape
        results: dict[int, kmeans.Partial] = {}
        for piece, blocks in self._pieces():
            results[piece] = kmeans.partial(blocks, model, (k, dimension_count))
        pieces = sorted(results)
        sums, counts = np.empty((len(pieces), k, dimension_count)), np.empty((len(pieces), k), np.int64)
        for index, piece in enumerate(pieces):
            sums[index], counts[index] = results[piece]
        return Steps(pieces, sums, counts)

    def _pieces(self) -> Iterator[tuple[int, Iterable[kmeans.Block]]]:
        """Own pieces, each as blocks of columns in place: in arrays, in the store's mapping, or just decoded."""
        share = self._share
        assert share is not None, "open comes before step"
        if share.kind == "parquet":
            for group in share.groups:
                for piece, batch in demo_input.read_pieces(group, share.columns):
                    yield piece, [kmeans.block_of_batch(batch)]
        elif self._store is not None:
            for piece in sorted(share.pieces):
                yield piece, [kmeans.block_of_batch(batch) for batch in self._store.get(key_of(piece)).to_batches()]
        else:
            for piece, columns in self._arrays.pieces():
                yield piece, [kmeans.block_of_arrays(columns)]

    def close(self) -> None:
        """Forget the share and give its memory back."""
        if self._store is not None:
            self._store.close()
        self._share, self._store, self._arrays = None, None, _Arrays()
        pa.default_memory_pool().release_unused()


def _put_patiently(store: Store, key: str, batch: pa.RecordBatch) -> None:
    """Put; while the store is full because blocks still move to the next tier, wait and try again."""
    deadline = time.monotonic() + PUT_PATIENCE_S
    while True:
        try:
            store.put(key, batch, keep=True)
            return
        except Full:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def serve(pipe: Connection, worker: Worker) -> bool:
    """Obey the pipe; True if it ended with a goodbye, False if the driver vanished."""
    while True:
        try:
            command, arguments = pipe.recv()
        except (EOFError, OSError):
            return False
        if command == "goodbye":
            return True
        try:
            answer = ("result", worker.handle(command, arguments))
        except Exception:
            answer = ("error", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            return False


def main() -> None:
    """Arguments DESCRIPTOR ROOT...: an inherited pipe, and where folders of dead runs may be."""
    signal.signal(signal.SIGTERM, _leave)
    end_with_parent()
    pa.set_cpu_count(1)  # one core each: two executors must not fight over cores with pools of threads
    pa.set_io_thread_count(1)
    if not serve(Connection(int(sys.argv[1])), Worker()):
        _leave(0, None)


def _leave(number: int, frame: object) -> None:
    """Sweep after a dead driver and exit at once: closing a store whose daemon is gone would wait for its return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(DAEMON_GRACE_S)
    sweep([Path(root) for root in sys.argv[2:]])
    os._exit(1)
