"""Reading from another node: pieces that are asked for some at a time, and received ahead of their reader.

Each request ``shuffle_fetch`` names attempts, partitions ``first`` to ``last``, and after how many bytes to stop
(``most_bytes``). So no connection is held while nobody reads: a reader that pauses asks for nothing.

Data frames, in order of the attempts asked for, then of their runs: head ``{"slices": [[position, sequence, rows in its
earlier runs, rows], ...], "bytes": whether these are plain bytes, "ends": [...]}``; payload: for each slice, uint32 starts of
its partitions and their end, then, at a multiple of 8, uint64 checks of them; then, at a multiple of 64, one Arrow record
batch message (or plain bytes) with the rows of all slices one behind the other.

``ends`` says of attempts whose last slice came before: ``[position, rows]``, all rows it has in these partitions; or
``[position, kind, reason]`` where it cannot be sent (further). The result is ``{"ends": those not said yet, "next": [position,
sequence], where to go on, or null}``.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tierstore.cache.block import decode_batch, decode_stream, encoder_of
from tierstore.cache.buffers import Lent
from tierstore.ringbuf.errors import CorruptionError, Expired, PeerLost, Refused, TierstoreError

from .checks import partition_checks
from .elsewhere import Remote, patiently, reported
from .output import Piece
from .receipt import Receipt
from .slices import byte_batch
from .sound import check_layout, check_sound, pointing

ASK_BYTES = 16 << 20  # of one request; twice as much of one that a reader waits for, as each costs the node a pause
AHEAD_BYTES = 48 << 20  # received and not read, per node, and a frame
OUTPUTS_ASKED = 512  # in one request
STOP_S = 2.0


class _Entry(NamedTuple):
    """In order of positions: a piece; or the end of an attempt's pieces; or why there are no more.

    checks: of the piece's partitions.  held: bytes to give back.
    """

    position: int
    piece: Piece | None = None
    checks: np.ndarray | None = None
    error: Exception | None = None
    held: int = 0


class Fetch:
    """Pieces from a node, received by a thread of its own, at most AHEAD_BYTES and one frame ahead. One reader.

    outputs: attempts, in the order in which they will be read, and from which of their runs on.
    before:  rows of an attempt that were read from elsewhere, before that run.
    lost:    attempts that the node cannot give, as far as is known.
    """

    def __init__(
        self,
        remote: Remote,
        outputs: Sequence[tuple[Receipt, int]],
        first: int,
        last: int,
        verify: bool,
        before: Mapping[Receipt, int] = {},  # noqa: B006 (not changed)
    ):
        self._remote, self._first, self._last, self._verify = remote, first, last, verify
        self._outputs = list(outputs)
        self._receipts = [receipt for receipt, _ in outputs]
        self._places = {receipt: place for place, receipt in enumerate(self._receipts)}
        self._buffers = remote.shuffle.buffers
        self.lost: dict[Receipt, Exception] = {}
        # Of the receiving thread: the next slice that may come, rows so far of its attempt, where this request's names begin.
        self._next, self._base, self._ended = (0, self._outputs[0][1] if outputs else 0), 0, 0
        self._rows = [before.get(receipt, 0) for receipt in self._receipts]
        self._memory: tuple[Lent, int] | None = None
        self._turn = threading.Condition()  # of the two below
        self._entries: deque[_Entry] = deque()
        self._held, self._ask = 0, ASK_BYTES
        self._failure: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tierstore-fetch", daemon=True)
        self._thread.start()

    # --- the receiving thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Ask while there is room. What a node delivered something before is asked once more, from where it stopped."""
        tried: tuple[int, int] | None = None
        try:
            while self._ended < len(self._receipts):
                self._wait_for_room()
                begun = self._next
                try:
                    patiently(self._request, self._stopped)
                except (Refused, Expired):
                    raise
                except TierstoreError:
                    if self._next in (tried, (0, self._outputs[0][1])):
                        raise
                    tried = self._next
                    continue
                if self._next == begun and self._ended < len(self._receipts):
                    raise self._remote.confused("nothing")
        except _Stopped:
            pass
        except _Nonsense as nonsense:
            self._fail(nonsense.error)
        except Exception as error:
            self._fail(error if isinstance(error, TierstoreError) else PeerLost(f"{self._remote.node}: {error}"))

    def _fail(self, error: Exception) -> None:
        with self._turn:
            self._failure = error
            self._turn.notify_all()

    def _wait_for_room(self) -> None:
        with self._turn:
            self._ask = ASK_BYTES if self._held > ASK_BYTES else 2 * ASK_BYTES
            self._turn.wait_for(lambda: self._stopped.is_set() or self._held <= AHEAD_BYTES - self._ask)
        if self._stopped.is_set():
            raise _Stopped

    def _request(self) -> None:
        """Ask once, from the next slice on. Raises TierstoreError, _Stopped."""
        place, sequence = self._next
        self._base = place
        some = [(self._receipts[place], sequence), *self._outputs[place + 1 : place + OUTPUTS_ASKED]]
        # Checks of partitions cover plain values whole, and nothing in these can lead outside of them.
        checked = self._verify and all(self._remote.is_flat(receipt) for receipt, _ in some)
        wanted = {"first": self._first, "last": self._last, "most_bytes": self._ask, "checked": checked}
        arguments = {**self._remote.request(some), **wanted}
        answer = self._remote.peer.fetch("shuffle_fetch", arguments, self._sink, self._arrived)
        try:
            following = answer["next"]
            self._put(self._ends(answer["ends"]), 0)
            reached = self._base + following[0] if following is not None else place + len(some)
            goes_on = following is not None and reached < len(self._receipts)
            at = (reached, following[1] if goes_on else self._begin(reached))
            if self._ended != reached or at < self._next or not all(type(number) is int for number in at):
                raise _Nonsense(self._remote.confused(f"the end of {self._ended} attempts, and to go on at {at}"))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _Nonsense(self._remote.confused(error)) from None
        self._next = at

    def _begin(self, place: int) -> int:
        return self._outputs[place][1] if place < len(self._outputs) else 0

    def _sink(self, _: dict[str, Any], size: int) -> memoryview:
        if self._stopped.is_set():
            raise _Stopped
        lent = self._buffers.take(size)
        self._memory = (lent, size)
        return memoryview(lent.memory)[:size]

    def _arrived(self, head: dict[str, Any]) -> None:
        assert self._memory is not None
        lent, size = self._memory
        self._memory = None
        try:
            entries = self._parse(head, pa.foreign_buffer(lent.address, size, lent))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise _Nonsense(self._remote.confused(error)) from None
        except TierstoreError as error:
            raise _Nonsense(error) from None
        self._put(entries, size)

    def _put(self, entries: list[_Entry], size: int) -> None:
        if self._stopped.is_set():
            raise _Stopped
        if not entries:
            return
        entries[-1] = entries[-1]._replace(held=size)
        with self._turn:
            self._entries += entries
            self._held += size
            self._turn.notify_all()

    def _ends(self, told: Any) -> list[_Entry]:
        """What is told of attempts, one after the other, that have no more slices: all rows were there, or it is lost."""
        made: list[_Entry] = []
        for entry in told if isinstance(told, list) else []:
            place = self._base + entry[0]
            if place != self._ended or place >= len(self._receipts):
                raise self._remote.confused(f"the end of attempt {entry[0]}, which is not the next")
            self._ended += 1
            receipt = self._receipts[place]
            if len(entry) == 3:
                self.lost.setdefault(receipt, reported(self._remote.node, str(entry[1]), str(entry[2])))
            elif entry[1] != self._rows[place]:
                found = CorruptionError(self._remote.node, 0, f"{entry[1]} rows", f"{self._rows[place]}")
                self.lost.setdefault(receipt, found)
            made.append(_Entry(place, error=self.lost.get(receipt)))
            self._next = max(self._next, (place + 1, self._begin(place + 1)))
        return made

    def _parse(self, head: dict[str, Any], payload: pa.Buffer) -> list[_Entry]:
        """A frame's entries, checked. Raises PeerLost for what is no frame, CorruptionError for one whose rows none can touch."""
        slices, count = head.get("slices"), self._last - self._first
        if not isinstance(slices, list) or not slices or not all(self._is_slice(entry) for entry in slices):
            raise self._remote.confused("a frame that is none of a shuffle's")
        each = frame_meta_bytes(1, count)
        at = frame_meta_bytes(len(slices), count)
        if payload.size < -(-at // 64) * 64:
            raise self._remote.confused(f"{payload.size} bytes, too few for {len(slices)} slices")
        rows = self._decode(payload.slice(-(-at // 64) * 64), self._base + slices[0][0], head.get("bytes") is True)
        told, made, row = list(head.get("ends") or []), [], 0
        for number, (position, sequence, before, count_rows) in enumerate(slices):
            starts = np.frombuffer(payload, "<u4", count + 1, number * each)
            checks = np.frombuffer(payload, "<u8", count, number * each + checks_at(count))
            piece = rows.slice(row, count_rows)
            row += count_rows
            made += self._ends([entry for entry in told if entry[0] < position])
            told = [entry for entry in told if entry[0] >= position]
            place = self._base + position
            if (place, sequence) < self._next or place != self._ended:
                raise self._remote.confused(f"run {sequence} of attempt {position} where {self._next} was the next")
            self._next = (place, sequence + 1)
            wrong = self._misfit(piece, starts, count_rows)
            if self._rows[place] != before:
                wrong = CorruptionError(self._remote.node, 0, f"{before} rows before", f"{self._rows[place]}")
            self._rows[place] = before + piece.num_rows
            if wrong is not None:
                self.lost.setdefault(self._receipts[place], wrong)
            if self._receipts[place] not in self.lost:
                made.append(_Entry(place, Piece(sequence, piece, starts), checks if self._verify else None))
        return made + self._ends(told)

    def _misfit(self, piece: pa.RecordBatch, starts: np.ndarray, rows: int) -> Exception | None:
        """What is wrong with the extent of a slice."""
        if piece.num_rows != rows or starts[0] != 0 or int(starts[-1]) != rows or (starts[1:] < starts[:-1]).any():
            told = f"{rows} rows, partition by partition"
            return CorruptionError(self._remote.node, 0, told, f"{piece.num_rows}, or others")
        return None

    def _decode(self, body: pa.Buffer, place: int, plain: bool) -> pa.RecordBatch:
        """The rows of a frame: bytes, a stream where there are dictionaries, else one message."""
        if plain:
            return byte_batch(body)
        schema, node = self._remote.schema_of(self._receipts[place]), self._remote.node
        if schema is None:
            raise self._remote.confused("rows of an attempt without any")
        try:
            if encoder_of(schema).stream:
                (rows,) = decode_stream(body).to_batches()
            else:
                rows = decode_batch(body, schema, 0)
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise CorruptionError(node, 0, "rows", f"{type(error).__name__}: {str(error):.100}") from None
        check_layout(rows, schema, node)
        check_sound(rows, pointing(schema), node)
        return rows

    def _is_slice(self, entry: Any) -> bool:
        """Whether it is [position, sequence, rows before, rows]."""
        whole = isinstance(entry, list) and len(entry) == 4 and all(type(value) is int for value in entry)
        return whole and 0 <= entry[0] < len(self._receipts) - self._base and min(entry) >= 0

    # --- the reader -------------------------------------------------------------------------------------------------------------

    def pieces(self, receipt: Receipt) -> Iterator[Piece]:
        """The pieces of one attempt; attempts in the order they were asked for.

        Raises what is in ``lost`` for this attempt; else what went wrong with the node.
        """
        wanted = self._places[receipt]
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._entries or self._failure is not None or self._stopped.is_set())
                if not self._entries:
                    raise self._failure or PeerLost(f"{self._remote.node} is not read any more")
                if self._entries[0].position > wanted:
                    raise self._remote.confused(f"pieces of attempt {self._entries[0].position}, not {wanted}")
                entry = self._entries.popleft()
                self._held -= entry.held
                self._turn.notify_all()
            if entry.position < wanted:
                if self._receipts[entry.position] not in self.lost:  # others were read to their ends
                    raise self._remote.confused(f"pieces of attempt {entry.position} behind its end")
            elif entry.error is not None:
                raise entry.error
            elif entry.piece is None:
                return
            else:
                self._compare(receipt, entry)
                yield entry.piece

    def _compare(self, receipt: Receipt, entry: _Entry) -> None:
        """Compare a piece with its checks: here, not in the receiving thread, so that the node need not wait for it."""
        if entry.checks is None or entry.piece is None:
            return
        if (partition_checks(entry.piece.rows, entry.piece.starts) != entry.checks).any():
            wrong = CorruptionError(self._remote.node, 0, "the rows that were written", "others")
            raise self.lost.setdefault(receipt, wrong)

    def stop(self) -> None:
        """No more is wanted. The thread ends soon; its connection is given up if it is in the middle of something."""
        with self._turn:
            self._stopped.set()
            self._entries.clear()
            self._turn.notify_all()

    def join(self, seconds: float = STOP_S) -> None:
        """Wait for the thread, but not for a node that is silent."""
        with contextlib.suppress(RuntimeError):
            self._thread.join(max(0.0, seconds))


class _Stopped(Exception):
    """The reader wants no more."""


class _Nonsense(Exception):
    """A node said what cannot be; it is not asked again."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


def checks_at(count: int) -> int:
    """Where in a slice's part of a frame the checks of ``count`` partitions begin."""
    return -(-4 * (count + 1) // 8) * 8


def frame_meta_bytes(slices: int, count: int) -> int:
    """Bytes of starts and checks of a frame."""
    return slices * (checks_at(count) + 8 * count)
