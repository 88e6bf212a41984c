"""The read side: chosen partitions of exactly the named attempts, counted and checked, from this node and from others.

Attempts of this node are read in place. The others come from the nodes that hold them, all nodes at once, each ahead of
its reader by a bounded number of bytes. Where a node does not answer, or has not what a receipt says, its replicas are
asked; what nobody has is told at once and together, so that one round of re-runs mends it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from tierstore.ringbuf.errors import CorruptionError, Expired, LostMaps, NotFound, PeerLost, Refused

from .output import Output, Piece
from .receipt import Receipt
from .remote import Fetch, Remote
from .slices import joined
from .windows import by_partition

if TYPE_CHECKING:
    from .handle import Shuffle

NAMED_MAX = 20
HERE = "here"
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
        waiting = [receipt for receipt in receipts if not self._try_here(receipt, found)]
        while waiting:
            asked: dict[str, list[Receipt]] = {}
            for receipt in waiting:
                node = next((n for n in self._candidates(receipt) if n not in self._tried[receipt]), None)
                if node is None:
                    raise self._lost([r for r in waiting if not set(self._candidates(r)) - set(self._tried[r])])
                asked.setdefault(node, []).append(receipt)
            waiting = []
            for node, group in asked.items():
                waiting += self._ask(node, group, found)
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
        except (PeerLost, NotFound, Refused) as error:
            self._failed(node, receipts, error)
            return receipts
        for receipt in receipts:
            if receipt in remote.lost:
                self._failed(node, [receipt], remote.lost[receipt])
            else:
                found[receipt] = remote
        return list(remote.lost)

    def _failed(self, node: str, receipts: Sequence[Receipt], error: Exception) -> None:
        for receipt in receipts:
            self._tried[receipt][node] = error

    def _lost(self, receipts: Sequence[Receipt]) -> Exception:
        """The error for attempts that cannot be read from anywhere."""
        maps = sorted({receipt.map_index for receipt in receipts})
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
        """What its own node says, if it says anything; else the last that was asked."""
        errors = {node: error for node, error in self._tried[receipt].items() if error is not None}
        own = HERE if receipt.store_id == self._shuffle.store_id else receipt.node
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
        """Each partition from first to last with its batches; every run is opened once for all of them."""
        for partition, batches in by_partition(list(self.pieces(first, last)), last - first, self._shuffle.buffers):
            yield first + partition, batches

    def pieces(self, first: int, last: int) -> Iterator[Piece]:
        """The rows of a range of partitions, run by run. Those of one attempt are in order; of several, if ordered."""
        fetches: dict[Remote, Fetch] = {}
        self._read.clear()
        try:
            for remote in self._remotes():
                fetches[remote] = self._fetch(remote, first, last, {})
            for receipt in self._order():
                yield from self._pieces_of(receipt, first, last, fetches)
                self._read.add(receipt)
        finally:
            for fetch in fetches.values():
                fetch.stop()

    def _remotes(self) -> list[Remote]:
        return list(dict.fromkeys(source for source in self._sources.values() if isinstance(source, Remote)))

    def _fetch(self, remote: Remote, first: int, last: int, begins: dict[Receipt, int]) -> Fetch:
        """All that is still to be read from a node, in the order in which it will be read; from which runs on."""
        left = [r for r in self._order() if self._sources[r] is remote and r not in self._read]
        return Fetch(remote, [(r, begins.get(r, 0)) for r in left], first, last, self._verify)

    def _order(self) -> list[Receipt]:
        """Receipts in the order in which they are read: where that is free, this node's while others are on the way."""
        if self._ordered:
            return self._receipts
        return sorted(self._receipts, key=lambda receipt: isinstance(self._sources[receipt], Remote))

    def _pieces_of(self, receipt: Receipt, first: int, last: int, fetches: dict[Remote, Fetch]) -> Iterator[Piece]:
        """One attempt's pieces; from another source, where the first fails, from the run at which it did."""
        done = 0
        while True:
            source = self._sources[receipt]
            try:
                if isinstance(source, Output):
                    pieces = source.pieces(first, last, done, self._verify)
                else:
                    if source not in fetches:
                        fetches[source] = self._fetch(source, first, last, {receipt: done})
                    pieces = fetches[source].pieces(receipt)
                for piece in pieces:
                    yield piece
                    done = piece.sequence + 1
                return
            except (NotFound, CorruptionError, PeerLost) as error:
                gone = [receipt]
                if isinstance(source, Remote):  # what else was expected of it is asked for elsewhere at once
                    gone += [
                        r for r in self._receipts if self._sources[r] is source and r not in self._read and r != receipt
                    ]
                self._failed(HERE if isinstance(source, Output) else source.node, gone, error)
                self._sources.update(self._find(gone))
