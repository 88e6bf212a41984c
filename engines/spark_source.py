"""A data source of Spark in Python: ``spark.read.format("tierstore")``; see spark.register().

It works without a jar and is slower than map_batches(): Spark has its batches copied through a socket into the JVM, and tells
a Python data source neither which columns a query wants nor where its tasks run. Both have to be said as options.
"""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyspark.sql.datasource import (
    DataSource,
    DataSourceArrowWriter,
    DataSourceReader,
    InputPartition,
    WriterCommitMessage,
)
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from tierstore.ringbuf.errors import ConfigError, NotFound

from .spark_plan import options_of, plan_of
from .spark_types import known
from .spark_worker import read, store_at

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

PYTHON_NAME = "tierstore_python"
# What a task wrote vanishes by itself after this long if its job neither ended nor gave up.
PART_TTL_S = 6 * 3600.0


class Source(DataSource):  # type: ignore[misc]
    """Options: path or paths (files) or key (a table in the store), columns ("a,b"), piece (a size), socket."""

    def __init__(self, options: MutableMapping[str, str]):
        super().__init__(options)
        self._told = options_of(options)
        self._socket = self._told.socket

    @classmethod
    def name(cls) -> str:
        """What format() takes."""
        return "tierstore"

    def planned(self, filter: Any) -> tuple[Any, list[Any]]:
        """As spark.plan_of()."""
        told = self._told
        return plan_of(told.target, told.columns, filter, told.piece_bytes, lambda: store_at(told.socket))

    def schema(self) -> StructType:
        """The columns in Spark's types."""
        plan, _ = self.planned(None)
        known_schema = pa.schema([entry.with_type(known(entry.type)) for entry in plan.schema])
        return from_arrow_schema(known_schema, prefer_timestamp_ntz=True)  # as Spark reads Parquet

    def reader(self, schema: StructType) -> DataSourceReader:
        """One scan."""
        return Reader(self, schema)

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        """One job that makes a table under a key."""
        if self._told.key is None:
            raise ConfigError("option", "path", 'a key: tables are written into the store, .option("key", ...)')
        return Writer(self._told.key, self._socket, to_arrow(schema), overwrite)


class PrunedSource(Source):
    """The same for sessions that hand filters down: Spark refuses such a reader in the others."""

    def reader(self, schema: StructType) -> DataSourceReader:
        """One scan."""
        return PrunedReader(self, schema)


class PythonSource(Source):
    """The same under a name that is this source's also where the jar has the other."""

    @classmethod
    def name(cls) -> str:
        """What format() takes."""
        return PYTHON_NAME


class PrunedPythonSource(PrunedSource):
    """The same."""

    @classmethod
    def name(cls) -> str:
        """What format() takes."""
        return PYTHON_NAME


# By name: for sessions that hand no filters down, and for those that do.
NAMED = {PYTHON_NAME: (PythonSource, PrunedPythonSource), "tierstore": (Source, PrunedSource)}


class Reader(DataSourceReader):  # type: ignore[misc]
    """One scan; a partition is a plan and a piece of it."""

    def __init__(self, source: Source, schema: StructType):
        self._source, self._target, self._filter = source, to_arrow(schema), None
        self._socket = source._socket

    def partitions(self) -> Sequence[InputPartition]:
        """The pieces there are now."""
        plan, planned = self._source.planned(self._filter)
        return [InputPartition((plan, piece)) for piece in planned]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """One piece, in the types that Spark expects."""
        if partition.value is None:  # there are no pieces
            return
        plan, piece = partition.value
        for batch in read(plan, piece, self._socket):
            table = pa.Table.from_batches([batch]).select(self._target.names)
            yield from table.cast(self._target).to_batches()


class PrunedReader(Reader):
    """Takes the filters that mean the same here as in Spark."""

    def pushFilters(self, filters: list[Any]) -> list[Any]:  # noqa: N802 (Spark's name)
        """Keep what can be applied here, and give back the rest, which Spark then applies."""
        from .spark_filters import split  # Spark 4.0 has no filters to import

        plan, _ = self._source.planned(None)
        self._filter, left = split(filters, plan.schema)
        return left


@dataclass
class Part(WriterCommitMessage):  # type: ignore[misc]
    """What one task has written: the key of its rows."""

    key: str


class Writer(DataSourceArrowWriter):  # type: ignore[misc]
    """Tasks write parts; the end of the job copies them, in their order, into one table, which then appears at once.

    All on one node: parts are looked for in the store of the driver's.
    """

    def __init__(self, key: str, socket: str | None, schema: pa.Schema, overwrite: bool):
        self._key, self._socket, self._schema = key, socket, schema
        self._overwrite, self._job = overwrite, uuid.uuid4().hex

    def write(self, iterator: Iterator[pa.RecordBatch]) -> WriterCommitMessage:
        """One task's rows. Another attempt of it writes others; only one of them is named to commit()."""
        from pyspark import TaskContext

        context = TaskContext.get()
        number = 0 if context is None else context.partitionId()
        key = f"{self._key}.parts/{self._job}/{number:08}-{uuid.uuid4().hex}"
        with store_at(self._socket).writer(key, self._schema, keep=True, ttl=PART_TTL_S) as stream:
            for batch in iterator:
                for one in pa.Table.from_batches([batch]).cast(self._schema).to_batches():
                    stream.write(one)
        return Part(key)

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """All tasks are done."""
        store, keys = store_at(self._socket), sorted(part.key for part in messages if isinstance(part, Part))
        try:
            if self._key in store and not self._overwrite:
                raise ConfigError(
                    "mode", "append", f"overwrite: key {self._key!r} is there, and tables are not added to"
                )
            with store.writer(self._key, self._schema, keep=True) as stream:
                for key in keys:
                    for batch in store.get(key).to_batches():
                        stream.write(batch)
        finally:
            self.abort(list(messages))

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """Remove the parts, those of attempts that Spark did not ask for among them."""
        store = store_at(self._socket)
        for key in store.keys(f"{self._key}.parts/{self._job}/"):
            try:
                store.delete(key)
            except NotFound:  # expired
                pass


def to_arrow(schema: StructType) -> pa.Schema:
    """The Arrow schema that Spark expects batches of a Python data source to have."""
    if "timezone" in inspect.signature(to_arrow_schema).parameters:
        return to_arrow_schema(schema, timezone="UTC")
    return to_arrow_schema(schema)
