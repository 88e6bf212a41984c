"""DataFusion: columns that lie in memory as a table of DataFusion's own, made anew for each query.

DataFusion asks a schema of a catalog for each table that a query names. A schema of our own answers with a view over a table in
memory: the columns that queries have read, over the store's memory, without a copy. That has statistics, and DataFusion itself
filters and scans it. The view is

    SELECT columns in memory, filled(place) AS another, ... FROM memory WHERE fresh(1)
    UNION ALL SELECT * FROM dataset WHERE stale(1)

The second half is for plans that are executed again: to DataFusion's optimizer both functions are constants, which it finds out
for each execution, and it leaves out the half that is not true. So a plan over files that have changed since reads them anew. A
column that no query has read yet is a function of a row's place, which fills the cache when it is called; from the next query
on it is one of those in memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from datafusion import Expr, SessionContext, lit, udf
from datafusion.catalog import Catalog, Schema, SchemaProvider, Table

from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.forms import is_text, widen
from tierstore.cache.columns.tables import Snapshot

from . import datafusion as arrow

# How many notes of which columns were read decide what is given in memory.
NOTES = 64
# After columns could not be kept wide, this is not tried again for so long.
WIDEN_AGAIN_S = 30.0
# Row groups of which a function keeps a column for the next of its calls, per processor: each works on one.
UNITS_KEPT = 2
# What each row has in the table in memory: its row group, and its number there.
PLACE = ("tierstore unit", "tierstore row")
# Types that a function cannot give: Arrow takes no rows of views (within lists or structs), DataFusion knows maps by another name.
UNFIT = ("_view", "map<")
UNIT = pa.dictionary(pa.int32(), pa.int32())

_numbers = itertools.count()


def add(dataset: Dataset, context: SessionContext, name: str) -> None:
    """Make a dataset a table of a context. Where its schema cannot be ours, it is one without statistics."""
    queried = Queried(dataset)
    catalog = _catalog(context)
    if catalog is None:
        context.register_dataset(name, queried.plain)
        return
    with catalog.registering(queried):
        context.register_dataset(name, queried.plain)


def _catalog(context: SessionContext) -> Tables | None:
    """The context's schema of tables, which becomes ours if it is DataFusion's own; None if it is somebody else's."""
    try:
        catalog = context.catalog()
        schema = catalog.schema()
    except KeyError:  # a context without them
        return None
    if isinstance(schema, Schema) and isinstance(catalog, Catalog):
        schema = Tables(schema)
        catalog.register_schema("public", schema)
    return schema if isinstance(schema, Tables) else None


class Tables(SchemaProvider):  # type: ignore[misc]
    """A schema as DataFusion's own is, but that tables of datasets are made for each query. Callers: any thread."""

    def __init__(self, before: Schema):
        self._tables: dict[str, Any] = {name: before.table(name) for name in before.table_names()}
        self._datasets: dict[str, Queried] = {}
        self._registering = threading.local()

    @contextlib.contextmanager
    def registering(self, queried: Queried) -> Iterator[None]:
        """What this thread registers within this is a dataset; under which name DataFusion decides."""
        self._registering.queried = queried
        try:
            yield
        finally:
            self._registering.queried = None

    @property
    def table_names(self) -> Names:
        """Of all tables."""
        return Names(self._tables)

    names = table_names

    def table_exist(self, name: str) -> bool:
        """Whether there is such a table."""
        return name in self._tables

    def table(self, name: str) -> Any:
        """A table for one query; None if there is none of that name."""
        queried = self._datasets.get(name)
        return self._tables.get(name) if queried is None else queried.table()

    def register_table(self, name: str, table: Any) -> None:
        """Add a table."""
        if name in self._tables:
            raise ValueError(f"the table {name} exists already")
        self._tables[name] = table
        queried = getattr(self._registering, "queried", None)
        if queried is not None:
            self._datasets[name] = queried

    def deregister_table(self, name: str, cascade: bool = True) -> None:
        """Remove a table."""
        self._datasets.pop(name, None)
        self._tables.pop(name, None)


class Names(list[str]):
    """Names, as an attribute and as what a method gives: DataFusion 55 documents the one and reads the other."""

    def __call__(self) -> set[str]:
        return set(self)


class Queried:
    """A dataset that queries of DataFusion read. Callers: any thread.

    plain: it, as what DataFusion takes for a pyarrow dataset.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._notes: deque[frozenset[str]] = deque(maxlen=NOTES)
        self._widen_at = 0.0
        self.plain = arrow.Table(dataset, self.note)

    def note(self, names: Iterable[str]) -> None:
        """A query reads these columns."""
        self._notes.append(frozenset(names))

    def table(self) -> Any:
        """For one query: a view over the columns in memory if all that queries have read are there, else the dataset."""
        snapshot = self._dataset.snapshot()
        if any(unfit in str(entry.type) for entry in snapshot.stored for unfit in UNFIT):
            return self.plain
        asked = set().union(*list(self._notes))
        schema = pa.schema([entry for entry in snapshot.wide if entry.name in asked])
        memory = self._in_memory(snapshot, schema) if len(schema) else None
        if memory is None or not memory.num_rows:
            return self.plain
        return self._dataset.held(snapshot, schema, lambda: self._view(snapshot, memory))

    def _in_memory(self, snapshot: Snapshot, schema: pa.Schema) -> pa.Table | None:
        """Columns that are in memory, or come there now because they are cached in another form."""
        dataset, now = self._dataset, time.monotonic()
        memory = dataset.mapped(snapshot, schema, wide=True)
        if memory is None and now >= self._widen_at and dataset.can_widen(snapshot, schema.names):
            for _ in dataset.batches(snapshot, snapshot.units(), schema, None, wide=True):
                pass
            memory = dataset.mapped(snapshot, schema, wide=True)
            self._widen_at = 0.0 if memory is not None else now + WIDEN_AGAIN_S
        return memory

    def _view(self, snapshot: Snapshot, memory: pa.Table) -> Table:
        with ThreadPoolExecutor(1) as other:  # DataFusion makes no plan in a thread that is making one
            return other.submit(self._make_view, snapshot, memory).result()

    def _make_view(self, snapshot: Snapshot, memory: pa.Table) -> Table:
        context, name = SessionContext(), f"tierstore_{next(_numbers)}"
        frame = context.create_dataframe(_partitions(snapshot, memory), name)
        columns = [
            _column(entry.name) if entry.name in memory.column_names else self._filled(snapshot, entry)
            for entry in snapshot.wide
        ]
        switch = Switch(lambda: self._dataset.snapshot().files is snapshot.files)
        anew = context.read_table(self.plain)
        return Table(frame.filter(switch.fresh).select(*columns).union(anew.filter(switch.stale)))

    def _filled(self, snapshot: Snapshot, entry: pa.Field) -> Expr:
        filled = Filled(self._dataset, snapshot, entry, self.note)
        made = udf(filled, [UNIT, pa.int32()], entry, "stable", "tierstore_filled")
        return made(*map(_column, PLACE)).alias(entry.name)


def _column(name: str) -> Expr:
    escaped = name.replace('"', '""')
    return Expr.column(f'"{escaped}"')


def _partitions(snapshot: Snapshot, memory: pa.Table) -> list[list[pa.RecordBatch]]:
    """The rows with their places, shared out among the processors."""
    units = snapshot.units()
    zeros, numbers = _places(1 << max(unit.rows for unit in units).bit_length())
    places: list[list[pa.Array]] = [[], []]
    for number, unit in enumerate(units):
        word = pa.array([number], pa.int32())
        places[0].append(pa.DictionaryArray.from_arrays(zeros[: unit.rows], word))
        places[1].append(numbers[: unit.rows])
    for name, kind, arrays in zip(PLACE, (UNIT, pa.int32()), places, strict=True):
        memory = memory.append_column(pa.field(name, kind, nullable=False), pa.chunked_array(arrays, kind))
    shares = len(os.sched_getaffinity(0))
    rows = -(-memory.num_rows // shares)
    return [batches for start in range(0, memory.num_rows, rows) if (batches := memory.slice(start, rows).to_batches())]


@lru_cache(maxsize=1)
def _places(rows: int) -> tuple[pa.Array, pa.Array]:
    """As many zeros, and numbers from 0 on: all row groups of all tables use the same."""
    return pa.array(np.zeros(rows, np.int32)), pa.array(np.arange(rows, dtype=np.int32))


class Switch:
    """Two conditions of which one is true: fresh or stale. DataFusion asks for both, one after the other in one thread.

    The first one asked decides for both, so that a file that changes in between does not give two halves, or none.
    """

    def __init__(self, is_fresh: Callable[[], bool]):
        self._is_fresh, self._decided = is_fresh, threading.local()
        self.fresh, self.stale = self._condition(True), self._condition(False)

    def _condition(self, wanted: bool) -> Expr:
        def function(ones: pa.Array) -> pa.Array:
            return pa.array([self._decide(wanted) == wanted] * len(ones))

        return udf(function, [pa.int64()], pa.bool_(), "immutable", "fresh" if wanted else "stale")(lit(1))

    def _decide(self, asker: bool) -> bool:
        before: tuple[bool, bool] | None = getattr(self._decided, "last", None)
        if before is not None and before[0] != asker:
            self._decided.last = None
            return before[1]
        try:
            answer = self._is_fresh()
        except Exception:  # reading it anew says what is wrong
            answer = False
        self._decided.last = (asker, answer)
        return answer


class Filled:
    """A column as a function of rows' places: read from the cache, or filled into it, a row group at a time.

    Memory: UNITS_KEPT row groups of the column for each processor, and one more while it is read.
    """

    def __init__(self, dataset: Dataset, snapshot: Snapshot, entry: pa.Field, note: arrow.Note):
        self._dataset, self._snapshot, self._entry, self._note = dataset, snapshot, entry, note
        self._noted = False
        # Arrow does not take rows from views.
        self._schema = pa.schema([entry.with_type(pa.string()) if is_text(entry.type) else entry])
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, units: pa.Array, rows: pa.Array) -> pa.Array:
        """The values of some rows."""
        if not self._noted:
            self._noted = True
            self._note(self._schema.names)
        numbers = units.dictionary_decode().to_numpy(zero_copy_only=False)
        order = np.argsort(numbers, kind="stable")
        numbers, rows = numbers[order], rows.take(pa.array(order))
        found, starts = np.unique(numbers, return_index=True)
        ends = [*starts[1:], len(numbers)]
        parts = [
            self._unit(int(unit)).take(rows[start:end]) for unit, start, end in zip(found, starts, ends, strict=True)
        ]
        chunks = [chunk for part in parts for chunk in part.chunks]
        column = pa.chunked_array(chunks, self._schema.field(0).type).unify_dictionaries()
        whole = pa.concat_arrays(column.chunks or [pa.nulls(0, column.type)])
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return widen(whole.take(pa.array(back)), self._entry.type)

    def _unit(self, number: int) -> pa.ChunkedArray:
        column = self._kept.get(number)
        if column is None:
            unit = self._snapshot.units()[number]
            batches = self._dataset.batches(self._snapshot, [unit], self._schema, None)
            column = pa.Table.from_batches(batches, self._schema).column(0)
        with self._lock:
            self._kept[number] = column
            self._kept.move_to_end(number)
            while len(self._kept) > UNITS_KEPT * len(os.sched_getaffinity(0)):
                self._kept.popitem(last=False)
        return column
