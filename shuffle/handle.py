"""A shuffle as its users see it: writers of map tasks, readers of partitions, and its end."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from tierstore.cache.lean import Lean
from tierstore.cache.store import Store
from tierstore.ringbuf.errors import NotFound, TierstoreError

from .knowing import Known
from .names import Attempt, check_attempt, check_name, check_number
from .network import Alone, Network, Peer
from .output import Output, load_output
from .reader import ShuffleReader
from .receipt import Receipt
from .recovering import LEASE_S
from .replication import ranked
from .tally import Tally
from .writer import MapWriter

log = logging.getLogger("tierstore")

LIKELY_MAX = 8  # nodes that are asked for what none of a receipt's has
RENEWALS = 4  # of a lease, in the time it lasts
TELL_S = 1.0  # how often the daemon is told what readers counted


class Shuffle:
    """One shuffle of one application. Callers: any thread; each writer and reader: one thread.

    Made by Store.shuffle(). While the handle is open its process renews the application's lease (unless told not to).
    """

    def __init__(
        self,
        store: Store,
        app: str,
        number: int,
        partitions: int,
        lease_s: float = LEASE_S,
        quota_bytes: int = 0,
        pool: str = "default",
        renew: bool = True,
        secret: str = "",
        network: Network | None = None,
    ):
        self.store, self.app, self.number, self.partitions, self.pool = store, app, number, partitions, pool
        self.secret, self._network, self.buffers = secret, network or Alone(), store._reader.buffers
        self._lean = Lean(store)
        check_name("app", app)
        check_number("shuffle", number)
        store._pool(pool)
        terms = {"partitions": partitions, "lease_s": lease_s, "quota_bytes": quota_bytes, "secret": secret}
        answer = self.call("shuffle_open", app=app, shuffle=number, **terms)
        self.store_id, self.node = str(answer["store_id"]), str(answer["node"])
        self.quota_bytes = int(answer["quota_bytes"])
        self._nodes = list(dict.fromkeys([*answer["nodes"], *self._network.names()]))
        self.manifests: Known[Receipt] = Known()
        self.tally, self._told = (
            Tally(),
            time.monotonic(),
        )  # of reads that the daemon was not told of yet, and since when
        self._stop = threading.Event()
        if renew:
            arguments = (weakref.ref(store), app, answer["lease_s"] / RENEWALS, self._stop)
            threading.Thread(target=_renew, args=arguments, name="tierstore-lease", daemon=True).start()
        end = weakref.WeakMethod(self.close)
        self._at_close = lambda: _call(end())
        store.at_close.append(self._at_close)

    def call(self, name: str, **arguments: Any) -> Any:
        """One request to the daemon."""
        self.store._check_open()
        return self.store._control.call(name, **arguments)

    def peer(self, node: str) -> Peer:
        """The connection to another node. Raises PeerLost, ConfigError."""
        return self._network.peer(node)

    def likely(self, name: Attempt) -> list[str]:
        """Nodes to which an attempt would have been copied or moved, the likeliest first."""
        return ranked(name.key, self._nodes)[:LIKELY_MAX]

    def output(self, receipt: Receipt) -> Output:
        """The output of an attempt on this node. Raises NotFound, CorruptionError."""
        output = load_output(self._lean, receipt, self.manifests.get(receipt))
        self.manifests.put(receipt, output.manifest)
        return output

    def attempt(self, map_index: int, attempt: str) -> Attempt:
        """The name of an attempt. Raises ValueError."""
        return check_attempt(self.app, self.number, map_index, attempt)

    def writer(
        self, map_index: int, attempt: str | None = None, schema: pa.Schema | None = None, durable: bool = False
    ) -> MapWriter:
        """Write the output of one map task; ``with`` commits it at the end, or drops it where the block raises.

        attempt: unique for each try; default: drawn at random.  schema: for attempts that may have no rows.
        durable: the commit is acknowledged when it would survive power loss (needs a pmem or disk tier).
        """
        return MapWriter(self, map_index, attempt or uuid.uuid4().hex, schema, durable)

    def read(
        self,
        partitions: range | Sequence[int] | int | None = None,
        receipts: Iterable[Receipt] = (),
        maps: range | None = None,
        verify: bool = True,
        schema: pa.Schema | None = None,
        ordered: bool = True,
    ) -> pa.RecordBatchReader:
        """Rows of partitions, of exactly the attempts that the receipts name.

        partitions: consecutive ones; default all.  maps: only receipts of these map indexes (a skewed partition is read
                    in parts by several tasks).  verify: compare each partition with its check.
        schema:     for when no attempt has rows.  ordered: False lets rows of this node come first.
        Order:      of the receipts; within one, as written; within each run, by partition.
        Lives:      batches are over the store's memory, which stays until they are gone; small ones are joined copies.
        Raises:     LostMaps (run its ``maps`` again), Expired, ValueError.
        """
        first, last = self._range(partitions)
        reader = self._reader(receipts, maps, verify, schema, ordered)
        return pa.RecordBatchReader.from_batches(reader.schema, reader.batches(first, last))

    def read_partitions(
        self,
        partitions: range | Sequence[int] | int | None = None,
        receipts: Iterable[Receipt] = (),
        maps: range | None = None,
        verify: bool = True,
        schema: pa.Schema | None = None,
    ) -> Iterator[tuple[int, pa.Table]]:
        """As read(), one partition after the other: (partition, table). Opens each run once for all of them."""
        first, last = self._range(partitions)
        reader = self._reader(receipts, maps, verify, schema)
        for partition, batches in reader.partitions(first, last):
            yield partition, pa.Table.from_batches(batches, reader.schema)

    def _reader(
        self,
        receipts: Iterable[Receipt],
        maps: range | None,
        verify: bool,
        schema: pa.Schema | None,
        ordered: bool = True,
    ) -> ShuffleReader:
        chosen = [receipt for receipt in receipts if maps is None or receipt.map_index in maps]
        for receipt in chosen:
            if (receipt.app, receipt.shuffle) != (self.app, self.number):
                raise ValueError(
                    f"the receipt of {receipt.name.key!r} is of another shuffle than {self.app}/{self.number}"
                )
        indexes = [receipt.map_index for receipt in chosen]
        if len(set(indexes)) != len(indexes):
            twice = sorted({index for index in indexes if indexes.count(index) > 1})
            raise ValueError(f"there are several receipts of maps {twice[:10]}: choose one attempt of each map")
        return ShuffleReader(self, chosen, verify, schema, ordered)

    def _range(self, partitions: range | Sequence[int] | int | None) -> tuple[int, int]:
        if partitions is None:
            return 0, self.partitions
        numbers = [partitions] if isinstance(partitions, int) else list(partitions)
        if not numbers or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            raise ValueError(f"partitions {partitions!r:.60} cannot be read at once: consecutive numbers are needed")
        if numbers[0] < 0 or numbers[-1] >= self.partitions:
            raise ValueError(f"partitions {partitions!r:.60} are not all there: 0 to {self.partitions - 1}")
        return numbers[0], numbers[-1] + 1

    def drop(self) -> None:
        """Delete this shuffle; readers get Expired. Views stay valid."""
        self.tell_counts(0.0)
        self.call("shuffle_drop", app=self.app, shuffle=self.number)
        self.close()

    def end_app(self) -> None:
        """Delete all shuffles of the application."""
        self.tell_counts(0.0)
        self.call("shuffle_end", app=self.app)
        self.close()

    def tell_counts(self, every_s: float = TELL_S) -> None:
        """Tell the daemon what readers counted, if that was not done lately."""
        if time.monotonic() - self._told < every_s:
            return
        self._told = time.monotonic()
        counts = self.tally.take()
        # A count is not worth an error, nor waiting for a daemon that is away.
        with contextlib.suppress(TierstoreError, OSError):
            if counts and not self.store._closed and self.store._control.answers():
                self.store._control.call("shuffle_count", counts=counts)

    def close(self) -> None:
        """Stop renewing the lease. The data stay until the lease ends, or they are dropped."""
        self.tell_counts(0.0)
        self._end()

    def _end(self) -> None:
        self._stop.set()
        self.manifests.clear()
        with contextlib.suppress(ValueError):
            self.store.at_close.remove(self._at_close)

    def __enter__(self) -> Shuffle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._end()  # tells nothing: whoever collects this may be in the middle of a call


def _call(function: Callable[[], None] | None) -> None:
    if function is not None:
        function()


def _renew(held: weakref.ref[Store], app: str, every_s: float, stop: threading.Event) -> None:
    """Renew an application's lease until told to stop, or until there is nothing to renew."""
    while not stop.wait(every_s):
        store = held()
        if store is None or store._closed:
            return
        try:
            store._control.call("shuffle_touch", app=app)
        except NotFound as error:
            log.warning("the lease of application %s cannot be renewed: %s", app, error)
            return
        except TierstoreError as error:
            log.warning("the lease of application %s was not renewed: %s", app, error)
        del store
