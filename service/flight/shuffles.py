"""Shuffles by Flight: attempts in, partitions of chosen attempts out, and the life of applications."""

from __future__ import annotations

import json
import threading
from typing import Any

import pyarrow as pa
from pyarrow import flight

from tierstore.cache.store import Store
from tierstore.ringbuf.errors import Conflict, NotFound
from tierstore.shuffle.handle import Shuffle
from tierstore.shuffle.late import Late
from tierstore.shuffle.names import Attempt, check_name, check_number, shuffle_key
from tierstore.shuffle.network import Network
from tierstore.shuffle.recovering import LEASE_S
from tierstore.shuffle.registry import digest_of
from tierstore.shuffle.writer import MapWriter

from .commands import BadCommand, Fields, GetShuffle, PutShuffle
from .streams import Call, Incoming, Outgoing


class Shuffles:
    """The shuffles of a store. Any thread."""

    def __init__(self, store: Store, late: Late, network: Network):
        self._store, self._late, self._network = store, late, network
        self._lock = threading.Lock()
        self._writing: set[Attempt] = set()

    # --- rows ---------------------------------------------------------------------------------------------------------

    def put(self, call: Call, command: PutShuffle, incoming: Incoming) -> dict[str, Any]:
        """Write one attempt; its receipt. Where the stream does not end well the attempt is aborted."""
        handle = self._open(call, command.app, command.number, command.partitions, command.secret, command.pool)
        name = handle.attempt(command.map_index, command.attempt)
        with self._lock:
            if name in self._writing:
                raise Conflict(f"attempt {name.attempt!r} of map {name.map_index} is being written by another stream")
            self._writing.add(name)
        try:
            writer = handle.writer(command.map_index, command.attempt, incoming.schema, command.durable)
            with writer:
                self._fill(writer, command, incoming)
                incoming.check_client()
            assert writer.receipt is not None
            return {"receipt": writer.receipt.to_dict()}
        finally:
            with self._lock:
                self._writing.discard(name)

    def _fill(self, writer: MapWriter, command: PutShuffle, incoming: Incoming) -> None:
        for batch, told in incoming:
            batch = batch.replace_schema_metadata(incoming.schema.metadata)
            if command.by is not None:
                writer.write(batch, by=command.by)
                partition = None
            elif command.partition is not None:
                partition = command.partition
            elif told is not None:
                partition = told.take("partition", int)
            else:
                raise BadCommand('rows need a partition: "by" or "partition" in the command, or metadata of the batch')
            if told is not None:
                told.end()
            if partition is not None:
                writer.write_partition(partition, batch)

    def reader(self, call: Call, command: GetShuffle) -> pa.RecordBatchReader:
        """The rows of a range of partitions of exactly the attempts that the receipts name."""
        count = command.partition_count or self._partition_count(command)
        handle = self._open(call, command.app, command.number, count, command.secret)
        first, last = command.partitions or (0, count)
        if last > count:
            raise BadCommand(f"partitions up to {last} cannot be read: the shuffle has {count}")
        return handle.read(range(first, last), command.receipts, verify=command.verify)

    def get(self, call: Call, command: GetShuffle) -> flight.FlightDataStream:
        """As a stream."""
        reader = self.reader(call, command)
        return flight.GeneratorStream(reader.schema, Outgoing(call, reader.schema, reader, command.message_bytes))

    def info(
        self, call: Call, command: GetShuffle, descriptor: flight.FlightDescriptor, raw: bytes
    ) -> flight.FlightInfo:
        """Schema and ticket, which is the command itself."""
        reader = self.reader(call, command)
        return flight.FlightInfo(reader.schema, descriptor, [flight.FlightEndpoint(raw, [])], -1, -1)

    def _open(self, call: Call, app: str, number: int, partitions: int, secret: str, pool: str = "default") -> Shuffle:
        handle = Shuffle(
            self._store, app, number, partitions, pool=pool, renew=False, secret=secret, network=self._network
        )
        call.at_end.append(handle.close)
        return handle

    def _partition_count(self, command: GetShuffle) -> int:
        """As the shuffle was opened with. Raises NotFound, Expired, Refused."""
        self._authorize(command.app, command.secret)
        try:
            terms = json.loads(bytes(self._store.get_bytes(shuffle_key(command.app, command.number))))
        except NotFound:
            raise NotFound(
                f"shuffle {command.number} of application {command.app!r} is not known here: open it first, or give "
                "partition_count"
            ) from None
        return int(terms["partitions"])

    def _authorize(self, app: str, secret: str) -> None:
        self._late.get().authorize(app, digest_of(secret))

    # --- actions ------------------------------------------------------------------------------------------------------

    def open(self, fields: Fields) -> dict[str, Any]:
        """Begin a shuffle, or find it."""
        terms = {
            "app": fields.take("app", str),
            "shuffle": fields.take("number", int),
            "partitions": fields.take("partitions", int),
            "lease_s": float(fields.take("lease_s", (int, float), LEASE_S)),
            "quota_bytes": check_number("quota_bytes", fields.take("quota_bytes", int, 0), 1 << 62),
            "secret": fields.take("secret", str, ""),
        }
        fields.end()
        return dict(self._store._control.call("shuffle_open", **terms))

    def touch(self, fields: Fields) -> dict[str, Any]:
        """Renew the lease of an application."""
        app = self._app(fields)
        fields.end()
        return dict(self._late.get().touch(app))

    def drop(self, fields: Fields) -> dict[str, Any]:
        """Delete a shuffle; how many attempts it had here."""
        number = fields.take("number", int)
        app = self._app(fields)
        fields.end()
        return {"attempts": self._late.get().drop(app, check_number("number", number))}

    def end(self, fields: Fields) -> dict[str, Any]:
        """Delete all an application has; how many shuffles that were here."""
        app = self._app(fields)
        fields.end()
        return {"shuffles": self._late.get().end(app)}

    def _app(self, fields: Fields) -> str:
        """The application that an action is about, if its secret is known."""
        app = check_name("app", fields.take("app", str))
        self._authorize(app, fields.take("secret", str, ""))
        return app
