"""The read side: chosen partitions of exactly the named attempts, counted and checked, from this node and from others.

Attempts of this node are read in place. The others come from the nodes that hold them, all nodes at once, each ahead of
its reader by a bounded number of bytes. Where a node does not answer, or has not what a receipt says, its replicas are
asked; what nobody has is told at once and together, so that one round of re-runs mends it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError, CorruptionError, Expired, LostMaps, NotFound, Refused, TierstoreError

from .elsewhere import Remote
from .output import Output, Piece
from .receipt import Receipt
from .remote import STOP_S, Fetch
from .slices import joined
from .windows import by_partition, cut_at

if TYPE_CHECKING:
    from .handle import Shuffle

NAMED_MAX = 20
HERE = "here"
REMOTE_BYTES = 64 << 20  # of other nodes' rows that are in memory at once where partitions are read one after the other
Source = Output | Remote


class ShuffleReader:
    """Reads from chosen attempts. Callers: one thread.

    verify: compare each partition with its check.  ordered: pieces in the order of the receipts, else as they come.
    The blocks read stay where they are until the batches made of them are gone.
    """

    def __init__(
        self,
        shuffle: Shuffle,
        receipts: Sequence[Receipt],
        verify: bool = True,
        schema: pa.Schema | None = None,
        ordered: bool = True,
    ):
        self._shuffle, self._verify, self._ordered = shuffle, verify, ordered
        self._receipts = list(receipts)
        # Where each was looked for, and what went wrong there, if it did.
        self._tried: dict[Receipt, dict[str, Exception | None]] = {receipt: {} for receipt in receipts}
        self._read: set[Receipt] = set()
        self._sources = self._find(self._receipts)
        self.schema = self._schema(schema)

    # --- who has what ---------------------------------------------------------------------------------------------------------

    def _find(self, receipts: Sequence[Receipt]) -> dict[Receipt, Source]:
        """Where each attempt can be read. Raises LostMaps of all that cannot, Expired."""
        found: dict[Receipt, Source] = {}
        exhausted: list[Receipt] = []
        waiting = [receipt for receipt in receipts if not self._try_here(receipt, found)]
        while waiting:
            asked: dict[str, list[Receipt]] = {}
            for receipt in waiting:
                node = next((n for n in self._candidates(receipt) if n not in self._tried[receipt]), None)
                if node is None:
                    exhausted.append(receipt)
                else:
                    asked.setdefault(node, []).append(receipt)
            waiting = []
            for node, group in asked.items():
                waiting += self._ask(node, group, found)
        if exhausted:
            raise self._lost(exhausted)
        return found

    def _candidates(self, receipt: Receipt) -> list[str]:
        """Nodes to ask: those that the receipt names, then those to which it would have been copied or moved."""
        named = [receipt.node, *receipt.replicas, *self._shuffle.likely(receipt.name)]
        return [node for node in dict.fromkeys(named) if node and node != self._shuffle.node]

    def _try_here(self, receipt: Receipt, found: dict[Receipt, Source]) -> bool:
        """Whether an attempt is on this node: written, copied or moved here. Cost of a miss: a look-up."""
        if HERE in self._tried[receipt]:
            return False
        self._tried[receipt][HERE] = None
        try:
            found[receipt] = self._shuffle.output(receipt)
            return True
        except (NotFound, CorruptionError) as error:
            self._tried[receipt][HERE] = error
            return False

    def _ask(self, node: str, receipts: list[Receipt], found: dict[Receipt, Source]) -> list[Receipt]:
        """Ask a node for attempts; those that it does not have."""
        for receipt in receipts:
            self._tried[receipt][node] = None
        try:
            remote = Remote(self._shuffle, node, receipts)
        except TierstoreError as error:  # whatever a node answers, others may have what it has not
            self._failed(node, receipts, error)
            return receipts
        for receipt in receipts:
            if receipt in remote.lost:
                self._failed(node, [receipt], remote.lost[receipt])
            else:
                found[receipt] = remote
        return list(remote.lost)

    def _failed(self, node: str, receipts: Sequence[Receipt], error: Exception) -> None:
        self._shuffle.tally.add(sources_failed=len(receipts))
        for receipt in receipts:
            self._tried[receipt][node] = error

    def _lost(self, receipts: Sequence[Receipt]) -> Exception:
        """The error for attempts that cannot be read from anywhere."""
        maps = sorted({receipt.map_index for receipt in receipts})
        self._shuffle.tally.add(maps_lost=len(maps))
        first = receipts[0]
        error = self._reason(first)
        if isinstance(error, Expired):
            return error
        named = ", ".join(map(str, maps[:NAMED_MAX])) + (" and others" if len(maps) > NAMED_MAX else "")
        return LostMaps(
            f"shuffle {first.shuffle} of application {first.app!r}: the output of maps {named} cannot be read; "
            f"of map {first.map_index}: {error}; run these maps again",
            maps,
        )

    def _reason(self, receipt: Receipt) -> Exception:
        """What its own node says, if it says anything; what its user can mend; else the last that was asked."""
        errors = {node: error for node, error in self._tried[receipt].items() if error is not None}
        own = HERE if receipt.store_id == self._shuffle.store_id else receipt.node
        mended = [error for error in errors.values() if isinstance(error, (ConfigError, Refused))]
        if mended and not isinstance(errors.get(own), Expired):
            return mended[0]
        error = errors.get(own) or list(errors.values())[-1]
        if own != HERE or not isinstance(error, NotFound):
            return error
        try:
            why = self._shuffle.call("shuffle_why", **receipt.name._asdict())
        except Expired as expired:
            return expired
        return error if why == "it is there" else NotFound(why)

    def _schema(self, given: pa.Schema | None) -> pa.Schema:
        schema = given
        for receipt, source in self._sources.items():
            own = source.schema_of(receipt)
            if schema is None:
                schema = own
            if own is not None and schema is not None and not own.equals(schema):
                raise ValueError(
                    f"map {receipt.map_index} wrote another schema than the others:\n{own}\nagainst\n{schema}"
                )
        if schema is None:
            raise ValueError("no attempt that is read wrote any rows, so the schema is not known: give schema=")
        return schema

    # --- rows -----------------------------------------------------------------------------------------------------------------

    def batches(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """Rows of partitions first to last (one behind the last), small batches joined. Raises LostMaps, Expired."""
        return joined(piece.rows for piece in self.pieces(first, last))

    def partitions(self, first: int, last: int) -> Iterator[tuple[int, list[pa.RecordBatch]]]:
        """Each partition from first to last with its batches; every run is opened once for all that fit in memory together."""
        for begin, end in self._windows(first, last):
            pieces = list(self.pieces(begin, end))
            for partition, batches in by_partition(pieces, end - begin, self._shuffle.buffers):
                yield begin + partition, batches

    def _windows(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Ranges of partitions of which other nodes have about REMOTE_BYTES, or a single partition."""
        remotes = self._remotes()
        if not remotes:
            return iter([(first, last)])
        sizes = np.zeros(last - first)
        for remote in remotes:
            named = [receipt for receipt in self._receipts if self._sources[receipt] is remote]
            try:
                sizes += np.concatenate(list(remote.sizes(named, first, last)))
            except TierstoreError:  # if it cannot be read either, that is found out there
                sizes += sum(receipt.bytes for receipt in named) / self._shuffle.partitions
        return ((first + begin, first + end) for begin, end in cut_at(sizes, REMOTE_BYTES))

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The rows of a range of partitions, run by run. Those of one attempt are in order; of several, if ordered."""
        return (piece for _, piece in self.named_pieces(first, last))

    def named_pieces(self, first: int, last: int) -> Iterator[tuple[Receipt, Piece]]:
        """As pieces(), each with the receipt of its attempt."""
        fetches: dict[Remote, Fetch] = {}
        self._read.clear()
        try:
            for remote in self._remotes():
                fetches[remote] = self._fetch(remote, first, last, {})
            for receipt in self._order():
                for piece in self._pieces_of(receipt, first, last, fetches):
                    yield receipt, piece
                self._read.add(receipt)
        finally:
            for fetch in fetches.values():
                fetch.stop()
            deadline = time.monotonic() + STOP_S
            for fetch in fetches.values():
                fetch.join(deadline - time.monotonic())
        # Not in the clause above: it also runs where this is collected, perhaps in the middle of another call.
        self._shuffle.tell_counts()

    def _remotes(self) -> list[Remote]:
        return list(dict.fromkeys(source for source in self._sources.values() if isinstance(source, Remote)))

    def _fetch(self, remote: Remote, first: int, last: int, begins: dict[Receipt, tuple[int, int]]) -> Fetch:
        """All that is still to be read from a node, in the order in which it will be read; from which runs and rows on."""
        left = [r for r in self._order() if self._sources[r] is remote and r not in self._read]
        outputs = [(receipt, begins.get(receipt, (0, 0))[0]) for receipt in left]
        before = {receipt: rows for receipt, (_, rows) in begins.items()}
        return Fetch(remote, outputs, first, last, self._verify, before)

    def _order(self) -> list[Receipt]:
        """Receipts in the order in which they are read: where that is free, this node's while others are on the way."""
        if self._ordered:
            return self._receipts
        return sorted(self._receipts, key=lambda receipt: isinstance(self._sources[receipt], Remote))

    def _pieces_of(self, receipt: Receipt, first: int, last: int, fetches: dict[Remote, Fetch]) -> Iterator[Piece]:
        """One attempt's pieces; from another source, where the first fails, from the run at which it did."""
        done = rows = 0
        while True:
            source = self._sources[receipt]
            try:
                if isinstance(source, Output):
                    pieces = source.pieces(first, last, done, self._verify)
                else:
                    if source not in fetches:
                        fetches[source] = self._fetch(source, first, last, {receipt: (done, rows)})
                    pieces = fetches[source].pieces(receipt)
                where = "bytes_read_here" if isinstance(source, Output) else "bytes_read_elsewhere"
                for piece in pieces:
                    self._shuffle.tally.add(**{where: piece.rows.nbytes})
                    yield piece
                    done, rows = piece.sequence + 1, rows + piece.rows.num_rows
                return
            except TierstoreError as error:
                self._move(receipt, source, fetches, error)

    def _move(self, receipt: Receipt, source: Source, fetches: dict[Remote, Fetch], error: TierstoreError) -> None:
        """Find another source of an attempt whose source failed, and of what fails with it. Raises LostMaps, Expired."""
        if isinstance(source, Output):
            if not isinstance(error, (NotFound, CorruptionError)):
                raise error
            self._failed(HERE, [receipt], error)
            self._sources.update(self._find([receipt]))
            return
        lost = dict(fetches[source].lost)
        errors: dict[Receipt, Exception] = {receipt: error}
        for other in self._receipts:
            if self._sources[other] is source and other not in self._read and (receipt not in lost or other in lost):
                errors.setdefault(other, lost.get(other, error))
        for other, its in errors.items():
            self._failed(source.node, [other], its)
        self._sources.update(self._find(list(errors)))
