"""Reading from another node: what it has, and a stream of pieces that is received ahead of its reader.

Data frames, in order of the attempts asked for, then of their runs: head ``{"slices": [[position, sequence, rows], ...],
"checks": bytes}``; payload: for each slice, uint32 starts of its partitions and their end, then, at a multiple of 8,
uint64 checks of them; then, at a multiple of 64, one Arrow record batch message (or plain bytes) with the rows of all
slices one behind the other. Where the reader verifies, rows without offsets are sent without a check of the payload: the
checks of the partitions cover it, and nothing in it can lead outside of it. The result names what could not be sent:
``{"lost": [[position, kind, reason], ...]}``.
"""

from __future__ import annotations

import base64
import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from tierstore.cache.block import decode_batch, decode_stream, encoder_of
from tierstore.cache.buffers import Lent
from tierstore.ringbuf.errors import CorruptionError, Expired, NotFound, PeerLost, TierstoreError

from .checks import partition_checks
from .network import Peer
from .output import Piece
from .physical import fixed_width
from .receipt import Receipt
from .slices import BYTES_SCHEMA, byte_batch

if TYPE_CHECKING:
    from .handle import Shuffle

AHEAD_FRAMES = 4  # of at most a run each, per node
LOST = {"NotFound": NotFound, "Expired": Expired}


class Remote:
    """What another node has of some attempts. lost: those it cannot give, and why."""

    def __init__(self, shuffle: Shuffle, node: str, receipts: Sequence[Receipt]):
        self.shuffle, self.node = shuffle, node
        self.peer: Peer = shuffle.peer(node)
        self.lost: dict[Receipt, Exception] = {}
        self._schemas: dict[Receipt, pa.Schema | None] = {}
        answer = self.peer.call("shuffle_describe", **self.request([(receipt, 0) for receipt in receipts]))
        kinds = [self._schema(kind, message) for kind, message in answer["schemas"]]
        for receipt, number in zip(receipts, answer["outputs"], strict=True):
            self._schemas[receipt] = kinds[number] if number >= 0 else None
        for position, kind, reason in answer["lost"]:
            self.lost[receipts[position]] = LOST.get(kind, CorruptionReported)(f"{node}: {reason}")

    @staticmethod
    def _schema(kind: int, message: str) -> pa.Schema | None:
        if kind == 1:
            return BYTES_SCHEMA
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(message))) if message else None

    def request(self, outputs: Sequence[tuple[Receipt, int]]) -> dict[str, Any]:
        """Arguments that name attempts, each from one of its runs on."""
        shuffle = self.shuffle
        named = [[r.map_index, r.attempt, r.manifest_hash, begin] for r, begin in outputs]
        return {"app": shuffle.app, "shuffle": shuffle.number, "secret": shuffle.secret, "outputs": named}

    def schema_of(self, receipt: Receipt) -> pa.Schema | None:
        """The schema of an attempt's rows; None if it has none and was not told."""
        return self._schemas[receipt]

    def is_flat(self, receipt: Receipt) -> bool:
        """Whether its rows are plain values of fixed width."""
        schema = self._schemas[receipt]
        return schema is None or all(fixed_width(f.type) >= 0 or pa.types.is_boolean(f.type) for f in schema)


class CorruptionReported(NotFound):
    """Another node found damage."""


class _Frame(NamedTuple):
    slices: list[list[int]]
    pieces: list[Piece]


class Fetch:
    """One stream from a node, received by a thread of its own, at most AHEAD_FRAMES ahead. One reader.

    outputs: attempts, in the order in which they will be read, and from which of their runs on.
    """

    def __init__(self, remote: Remote, outputs: Sequence[tuple[Receipt, int]], first: int, last: int, verify: bool):
        self._remote, self._first, self._last, self._verify = remote, first, last, verify
        self._receipts = [receipt for receipt, _ in outputs]
        self._buffers = remote.shuffle.buffers
        self._frames: queue.Queue[_Frame | Exception | None] = queue.Queue(AHEAD_FRAMES)
        self._stopped = threading.Event()
        self._held: list[tuple[int, Piece]] = []
        self._over: Exception | bool = False
        self._memory: tuple[Lent, int] | None = None
        checked = verify and all(remote.is_flat(receipt) for receipt in self._receipts)
        arguments = {**remote.request(outputs), "first": first, "last": last, "checked": checked}
        self._thread = threading.Thread(target=self._run, args=[arguments], name="tierstore-fetch", daemon=True)
        self._thread.start()

    # --- the receiving thread ---------------------------------------------------------------------------------------------------

    def _run(self, arguments: dict[str, Any]) -> None:
        end: Exception | None = None
        try:
            answer = self._remote.peer.fetch("shuffle_fetch", arguments, self._sink, self._arrived)
            if answer["lost"]:
                _, kind, reason = answer["lost"][0]
                end = LOST.get(kind, CorruptionReported)(f"{self._remote.node}: {reason}")
        except _Stopped:
            return
        except Exception as error:
            end = error if isinstance(error, TierstoreError) else PeerLost(f"{self._remote.node}: {error}")
        with contextlib.suppress(_Stopped):
            self._put(end)

    def _put(self, item: _Frame | Exception | None) -> None:
        while not self._stopped.is_set():
            try:
                self._frames.put(item, timeout=0.2)
                return
            except queue.Full:
                continue
        raise _Stopped

    def _sink(self, _: dict[str, Any], size: int) -> memoryview:
        lent = self._buffers.take(size)
        self._memory = (lent, size)
        return memoryview(lent.memory)[:size]

    def _arrived(self, head: dict[str, Any]) -> None:
        assert self._memory is not None
        lent, size = self._memory
        self._memory = None
        try:
            frame = self._parse(head, pa.foreign_buffer(lent.address, size, lent))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise CorruptionError(self._remote.node, 0, "the rows that were written", str(error)) from error
        self._put(frame)

    def _parse(self, head: dict[str, Any], payload: pa.Buffer) -> _Frame:
        """A frame's pieces, checked. Raises CorruptionError, PeerLost."""
        slices, count = head.get("slices"), self._last - self._first
        if not isinstance(slices, list) or not all(self._is_slice(entry) for entry in slices):
            raise PeerLost(
                f"{self._remote.node} sent a frame that is none of a shuffle's; run the same tierstore on both sides"
            )
        each = frame_meta_bytes(1, count)
        at = frame_meta_bytes(len(slices), count)
        if payload.size < -(-at // 64) * 64:
            raise PeerLost(f"{self._remote.node} sent {payload.size} bytes, too few for {len(slices)} slices")
        body = payload.slice(-(-at // 64) * 64)
        schema = self._remote.schema_of(self._receipts[slices[0][0]])
        assert schema is not None
        rows = _rows(body, schema)
        rows.validate()  # buffers are as long as the rows need
        pieces, row = [], 0
        for number, (_, sequence, count_rows) in enumerate(slices):
            starts = np.frombuffer(payload, "<u4", count + 1, number * each)
            checks = np.frombuffer(payload, "<u8", count, number * each + checks_at(count))
            piece = rows.slice(row, count_rows)
            if int(starts[-1]) != count_rows or piece.num_rows != count_rows:
                raise CorruptionError(self._remote.node, 0, f"{int(starts[-1])} rows", f"{piece.num_rows}")
            if self._verify and (partition_checks(piece, starts) != checks).any():
                raise CorruptionError(self._remote.node, 0, "the rows that were written", "others")
            pieces.append(Piece(sequence, piece, starts))
            row += count_rows
        return _Frame(slices, pieces)

    def _is_slice(self, entry: Any) -> bool:
        """Whether it is [position, sequence, rows]."""
        whole = isinstance(entry, list) and len(entry) == 3 and all(type(value) is int for value in entry)
        return whole and 0 <= entry[0] < len(self._receipts) and min(entry) >= 0

    # --- the reader -------------------------------------------------------------------------------------------------------------

    def pieces(self, receipt: Receipt) -> Iterator[Piece]:
        """The pieces of one attempt; attempts in the order they were asked for. Raises what went wrong on the way."""
        wanted = self._receipts.index(receipt)
        while True:
            while self._held and self._held[0][0] <= wanted:
                position, piece = self._held.pop(0)
                if position == wanted:
                    yield piece
            if self._held:
                return
            if self._over is not False:
                if isinstance(self._over, Exception):
                    raise self._over
                return
            item = self._frames.get()
            if isinstance(item, _Frame):
                self._held = [(entry[0], piece) for entry, piece in zip(item.slices, item.pieces, strict=True)]
            else:
                self._over = item if item is not None else True

    def stop(self) -> None:
        """No more is wanted; the connection is given up if it is in the middle of something."""
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._frames.get_nowait()
            except queue.Empty:
                self._thread.join(0.05)


def _rows(body: pa.Buffer, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of a frame: bytes, a stream where there are dictionaries, else one message."""
    if schema.equals(BYTES_SCHEMA):
        return byte_batch(body)
    if encoder_of(schema).stream:
        return decode_stream(body).combine_chunks().to_batches()[0]
    return decode_batch(body, schema, 0)


class _Stopped(Exception):
    """The reader wants no more."""


def checks_at(count: int) -> int:
    """Where in a slice's part of a frame the checks of ``count`` partitions begin."""
    return -(-4 * (count + 1) // 8) * 8


def frame_meta_bytes(slices: int, count: int) -> int:
    """Bytes of starts and checks of a frame."""
    return slices * (checks_at(count) + 8 * count)
