"""Objects by Flight: listings, tables and bytes out, tables in."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from pyarrow import flight

from tierstore.cache.inside import root_of
from tierstore.cache.requests import Requests
from tierstore.cache.store import Store
from tierstore.cache.streaming import ObjectStream
from tierstore.ringbuf.errors import Full, NotFound

from .commands import OBJECTS, Fields, GetObject, PutObject, check_users_key, is_reserved
from .streams import Call, Incoming, Outgoing

LISTED_MAX = 10_000


class Objects:
    """The objects of a store. Any thread."""

    def __init__(self, store: Store, requests: Requests):
        self._store, self._requests = store, requests

    def list(self, call: Call, prefix: str) -> list[flight.FlightInfo]:
        """All whose keys begin with the prefix. Cost: a walk over all blocks, and the root of each that is listed."""
        keys = [key for key in self._store.keys(prefix) if not is_reserved(key)]
        if len(keys) > LISTED_MAX:
            raise Full(
                f"{len(keys)} keys begin with {prefix!r:.60}; at most {LISTED_MAX} are listed: give a longer prefix"
            )
        found = []
        for key in keys:
            call.step()
            try:
                found.append(self.info(GetObject(key), flight.FlightDescriptor.for_path(OBJECTS, key)))
            except NotFound:  # gone since the walk
                continue
        return found

    def info(self, command: GetObject, descriptor: flight.FlightDescriptor) -> flight.FlightInfo:
        """Schema, size and ticket of one."""
        stream = ObjectStream(self._store, command.key, command.columns)
        root = root_of(self._requests, command.key)
        if root is None:
            raise NotFound(f"key {command.key!r:.200} is not in the store")
        ticket: dict[str, Any] = {"key": command.key}
        if command.columns is not None:
            ticket["columns"] = list(command.columns)
        return flight.FlightInfo(
            stream.schema,
            descriptor,
            [flight.FlightEndpoint(json.dumps({"object": ticket}).encode(), [])],
            root.rows if stream.kind == "table" else -1,
            root.size,
            app_metadata=json.dumps({"kind": stream.kind}),
        )

    def get(self, call: Call, command: GetObject) -> flight.FlightDataStream:
        """The rows of one."""
        stream = ObjectStream(self._store, command.key, command.columns)
        outgoing = Outgoing(call, stream.schema, stream.batches(), command.message_bytes)
        return flight.GeneratorStream(stream.schema, outgoing)

    def put(self, command: PutObject, incoming: Incoming) -> dict[str, Any]:
        """Store a table; nothing is visible before the stream has ended well, and nothing at all if it does not."""
        options: dict[str, Any] = {"keep": command.keep, "ttl": command.ttl, "pool": command.pool}
        with self._store.writer(command.key, incoming.schema, **options) as writer:
            for batch, told in incoming:
                if told is not None:
                    told.end()
                writer.write(_as(incoming.schema, batch))
            incoming.check_client()
        durability = self._store._acknowledge(command.key, command.durable)
        return {"object": {"key": command.key, "rows": incoming.rows, "durability": durability}}

    def delete(self, fields: Fields) -> dict[str, Any]:
        """Remove one."""
        key = check_users_key(fields.take("key", str))
        fields.end()
        self._store.delete(key)
        return {}


def _as(schema: pa.Schema, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the metadata of the stream's schema, which messages may lack."""
    return batch.replace_schema_metadata(schema.metadata)
