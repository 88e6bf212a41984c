"""What a Dask worker holds, in the store where it is more than fits: in place of files in the worker's directory.

Values are pickled with their buffers out of band (NumPy arrays, the blocks of pandas frames, Arrow buffers), and each
buffer is put where it will be read. A value that was moved is read in place, and stays where it is: a scan over more than
fits moves each value once, where Dask's own mapping writes and reads nearly all of it in every round.

What is moved belongs to an application of shuffles, one for each worker, so it goes when the worker's lease does.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import zict
from distributed.metrics import context_meter
from distributed.protocol import pickle
from distributed.sizeof import safe_sizeof
from distributed.spill import MaxSpillExceeded, PickleError, SpillBuffer, SpilledSize

from tierstore.cache.lean import Lean
from tierstore.cache.spread import Piece, get_pieces, piece_bytes, put_piece
from tierstore.ringbuf.errors import Closed, Expired, Full, NotFound, PeerLost, TierstoreError
from tierstore.service.store import Store
from tierstore.shuffle.handle import Shuffle

# Buffers from here on have pieces of their own; others of a value share some.
LARGE_BYTES = 1 << 20
LEASE_S = 60.0
# A full store is not asked again for so long: asking waits for room, and holds the worker up meanwhile.
FULL_S = 10.0
ATTEMPT = "value"
NONCE = "0" * 16  # each attempt has one writer
KEY_BYTES = 512


class Entry(NamedTuple):
    """One value. parts: of its bytes, each in pieces; frames: (part, offset, size) of the pickle and of each buffer."""

    number: int
    parts: list[list[Piece]]
    frames: list[tuple[int, int, int]]
    weight: SpilledSize


class TierSlow(MutableMapping[Any, Any]):
    """Values in the store, by key. Callers: any thread.

    store: makes it, when the first value comes.  max_weight: bytes that it may hold; False: no limit.
    Values: read-only and in place; they stay valid after they are deleted, as long as they are held.
    Raises: OSError (ENOSPC) when the store is full or gone, MaxSpillExceeded, PickleError.
    """

    def __init__(self, store: Callable[[], Store], max_weight: int | bool = False, pool: str = "default"):
        self._make, self.max_weight, self._pool = store, max_weight, pool
        self.app = f"dask-data-{uuid.uuid4().hex}"
        self.total_weight = SpilledSize(0, 0)
        self._entries: dict[Any, Entry] = {}
        self._numbers = 0
        self._full_until = 0.0
        self._turn = threading.RLock()
        self.relieve: Callable[[], object] = lambda: None  # called after each value: many pages may be mapped now
        self.lost: Callable[[], object] = lambda: None  # called where a value cannot be read any more
        self._shuffle: Shuffle | None = None
        self._lean: Lean | None = None

    @property
    def weight_by_key(self) -> dict[Any, SpilledSize]:
        """What each value takes: as it was in memory, and in the store."""
        return {key: entry.weight for key, entry in list(self._entries.items())}

    def _open(self) -> tuple[Shuffle, Lean]:
        with self._turn:
            if self._shuffle is None or self._lean is None:
                store = self._make()
                self._shuffle = Shuffle(store, self.app, 0, 1, LEASE_S, 0, self._pool)
                self._lean = Lean(store)
            return self._shuffle, self._lean

    # --- writing --------------------------------------------------------------------------------------------------------------

    def __setitem__(self, key: Any, value: Any) -> None:
        frames = self._frames(key, value)
        sizes = [frame.nbytes for frame in frames]
        if self.max_weight is not False and self.total_weight.disk + sum(sizes) > self.max_weight:
            raise MaxSpillExceeded(key)
        if time.monotonic() < self._full_until:
            raise OSError(errno.ENOSPC, "the store was full a moment ago")
        with self._turn:
            number, self._numbers = self._numbers, self._numbers + 1
        with context_meter.meter("disk-write", "seconds"):
            try:
                parts, places = self._write(number, frames)
            except (Full, PeerLost, Expired, NotFound, Closed) as error:
                with contextlib.suppress(TierstoreError):
                    self._drop(number)
                self._full_until = time.monotonic() + FULL_S
                raise OSError(errno.ENOSPC, f"the store took no value: {error}") from error
        context_meter.digest_metric("disk-write", 1, "count")
        context_meter.digest_metric("disk-write", sum(sizes), "bytes")
        weight = SpilledSize(safe_sizeof(value), sum(sizes))
        with self._turn:
            if key in self._entries:
                del self[key]
            self._entries[key] = Entry(number, parts, places, weight)
            self.total_weight += weight
        self.relieve()

    @staticmethod
    def _frames(key: Any, value: Any) -> list[memoryview]:
        buffers: list[Any] = []
        try:
            head = pickle.dumps(value, buffer_callback=buffers.append, protocol=5)
            return [memoryview(head), *(buffer.raw() for buffer in buffers)]
        except Exception as error:
            raise PickleError(key) from error

    def _write(self, number: int, frames: list[memoryview]) -> tuple[list[list[Piece]], list[tuple[int, int, int]]]:
        """Large frames as parts of their own, the others together."""
        small = [frame for frame in frames if frame.nbytes < LARGE_BYTES]
        packed = bytearray()
        places: list[tuple[int, int, int]] = []
        parts: list[list[Piece]] = []
        sequence = 0
        for frame in small:
            packed += bytes(-len(packed) % 64)
            packed += frame
        if packed:
            sequence = self._write_part(number, parts, memoryview(packed), sequence)
        at = 0
        for frame in frames:
            if frame.nbytes < LARGE_BYTES:
                at += -at % 64
                places.append((0, at, frame.nbytes))
                at += frame.nbytes
            else:
                places.append((len(parts), 0, frame.nbytes))
                sequence = self._write_part(number, parts, frame, sequence)
        return parts, places

    def _write_part(self, number: int, parts: list[list[Piece]], frame: memoryview, sequence: int) -> int:
        """Store bytes as pieces; the number of the next."""
        shuffle, _ = self._open()
        store, group = shuffle.store, self.app
        step = piece_bytes(store, KEY_BYTES, self._pool, group)
        address = np.frombuffer(frame, "u1").ctypes.data
        pieces = []
        for start in range(0, frame.nbytes, step):
            size = min(step, frame.nbytes - start)
            name = {"map_index": number, "attempt": ATTEMPT, "nonce": NONCE}
            shuffle.call("shuffle_reserve", app=self.app, shuffle=0, sequence=sequence, size=size, **name)
            key = shuffle.attempt(number, ATTEMPT).run(sequence, NONCE)
            pieces.append(put_piece(store, key, address + start, size, pool=self._pool, group=group))
            sequence += 1
        parts.append(pieces)
        return sequence

    # --- reading --------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        entry = self._entries[key]
        with context_meter.meter("disk-read", "seconds"):
            try:
                _, lean = self._open()
                buffers = [get_pieces(lean, pieces) for pieces in entry.parts]
            except TierstoreError:
                self.lost()
                raise
            frames = [memoryview(buffers[part].slice(start, size)) for part, start, size in entry.frames]
        context_meter.digest_metric("disk-read", 1, "count")
        context_meter.digest_metric("disk-read", entry.weight.disk, "bytes")
        return pickle.loads(frames[0], buffers=frames[1:])

    def reads(self, store: Store) -> bool:
        """Whether values lie in this store."""
        return bool(self._entries) and self._shuffle is not None and self._shuffle.store is store

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    # --- the end --------------------------------------------------------------------------------------------------------------

    def __delitem__(self, key: Any) -> None:
        with self._turn:
            entry = self._entries.pop(key)
            self.total_weight -= entry.weight
        with contextlib.suppress(TierstoreError):
            self._drop(entry.number)

    def _drop(self, number: int) -> None:
        if self._shuffle is not None:
            self._shuffle.call("shuffle_abort", app=self.app, shuffle=0, map_index=number, attempt=ATTEMPT)

    def close(self) -> None:
        """Delete all values."""
        with self._turn:
            self._entries.clear()
            self.total_weight = SpilledSize(0, 0)
            if self._shuffle is not None:
                with contextlib.suppress(TierstoreError):
                    self._shuffle.end_app()
                self._shuffle.close()
                self._shuffle = self._lean = None


class TierBuffer(SpillBuffer):  # type: ignore[misc]
    """A worker's data: values of its own up to ``target`` bytes, the others in the store, where they are read in place.

    All that Dask's own buffer does (eviction at the limits, errors, metrics, figures of what was spilled) is Dask's code.
    """

    def __init__(self, slow: TierSlow, target: int):
        cached = zict.Cache(slow, zict.WeakValueMapping())
        zict.Buffer.__init__(self, fast={}, slow=cached, n=target, weight=lambda _, value: safe_sizeof(value))
        self.logged_pickle_errors: set[Any] = set()
        self.cumulative_metrics: defaultdict[tuple[str, str], float] = defaultdict(float)

    def __str__(self) -> str:
        return f"{type(self).__name__}<{len(self.fast)} of the worker's own, {len(self.slow)} in the store>"

    __repr__ = __str__

    def __getitem__(self, key: Any) -> Any:
        """A value; one that was moved stays where it is."""
        with self._capture_metrics():
            try:
                size = self.fast.weights[key]
                value = self.fast[key]
            except KeyError:
                return self.slow[key]
            context_meter.digest_metric("memory-read", 1, "count")
            context_meter.digest_metric("memory-read", size, "bytes")
            return value
