"""A dataset: Parquet files read through the store's column cache."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError, NotFound

from .chunks import PREFIX, place_of
from .encoded import ENCODED
from .files import Listing, PathLike
from .filling import FileChanged
from .forms import FORM, WIDE
from .holding import Held
from .prefetch import Prefetcher
from .prune import Pruner
from .scanning import Scan, column_of
from .statistics import Counters
from .tables import Snapshot, Tables, Unit

if TYPE_CHECKING:
    from .shared import ColumnCache

HINTS = ("", "once")
FORMS = {"decoded": FORM, "encoded": ENCODED}
# Rows in what engines are handed at once: enough to amortize the hand-over, few enough to share out among threads.
BATCH_ROWS = 122_880
TELL_S = 1.0
# How often a scan that has given nothing yet begins again because a file changed under it.
CHANGED_RETRIES = 3


class Dataset:
    """Parquet files as one table, whose columns are kept decoded in the store as they are read.

    Made by ``Store.dataset()``. Callers: any thread. It holds no data: results own what they refer to.
    """

    def __init__(
        self,
        store: Any,
        shared: ColumnCache,
        paths: PathLike | Sequence[PathLike],
        *,
        validate: str = "all",
        snapshot: str | None = None,
        hint: str = "",
        pool: str = "default",
        prefetch: bool = True,
        form: str = "decoded",
    ):
        if form not in FORMS:
            raise ConfigError("form", form, f"one of {', '.join(FORMS)}")
        if hint not in HINTS:
            raise ConfigError("hint", hint, "'once' (what is read is not kept), or nothing")
        store._pool(pool)  # refuses an unknown one
        self._store, self._shared, self._filler = store, shared, shared.filler
        self._listing, self._form = Listing(paths), FORMS[form]
        self._tables = Tables(self._listing, shared.footers, validate, snapshot)
        self.counters, self._held = Counters(), Held(shared.budget)
        self._told, self._told_at, self._telling = Counters().as_dict(), time.monotonic(), threading.Lock()
        self._prefetcher = Prefetcher(self, store) if prefetch else None
        self._look = all(shared.rules.admit(path) for path in self.files)
        self._pool = pool if self._look and not hint else None

    @property
    def name(self) -> str:
        """What it was made of, as text."""
        return self._listing.name

    @property
    def schema(self) -> pa.Schema:
        """Columns and types of all files together, as pyarrow reads them, then those of the path (key=value folders)."""
        return self._tables.snapshot().schema

    @property
    def files(self) -> list[str]:
        """The files there are now, in the order in which they are read."""
        return [file.source.path for file in self._tables.snapshot().files]

    def count_rows(self, filter: Any = None) -> int:
        """How many rows there are (that a filter keeps). Cost without a filter: the footers alone."""
        if filter is None:
            return self._tables.snapshot().rows
        return sum(batch.num_rows for batch in self.scan([], filter))

    # --- reading ------------------------------------------------------------------------------------------------------------

    def scan(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.RecordBatchReader:
        """Rows in file order, as record batches of at most BATCH_ROWS.

        columns: only these, in this order.  filter: a pyarrow.compute expression; rows for which it is true are given.
        Lives:   batches may refer to the store's memory, which stays until they are gone.
        Cost:    columns in memory are not copied, except decimals and text with few values, which are kept in a narrower
                 form (see forms.py). Statistics exclude row groups, whether cached or not. What is missing is read once.
        Raises:  ConfigError (no such column); what pyarrow raises for the filter, or for a file that cannot be read;
                 FileChanged.
        """
        snapshot = self._tables.snapshot()
        schema = self._schema_of(snapshot, columns)
        return self.reader(snapshot, schema, filter)

    def to_table(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:
        """As scan(), all at once."""
        return self.scan(columns, filter).read_all()

    def reader(self, snapshot: Snapshot, schema: pa.Schema, filter: Any = None) -> pa.RecordBatchReader:
        """For engines: the columns of a schema (in its types: the dataset's, or those of ``snapshot.stored``)."""
        batches = self._batches(snapshot, schema, filter)
        first = next(batches, None)  # errors in what was asked are raised here, not at the first batch
        rest = batches if first is None else _chain(first, batches)
        return pa.RecordBatchReader.from_batches(schema, rest)

    def mapped(
        self, snapshot: Snapshot, schema: pa.Schema, units: Sequence[Unit] | None = None, wide: bool = False
    ) -> pa.Table | None:
        """For engines: the columns of a schema as one table, without copying, if all lie in memory in that form.

        units: only these row groups.  wide: the schema is one of ``snapshot.wide``, not of ``snapshot.stored``.
        """
        everything = snapshot.units()
        hold = units is None or len(units) == len(everything)
        units = everything if units is None else units
        owner, columns, held_bytes = snapshot.files, {}, 0
        for entry in schema if hold else ():
            held = self._held.get(owner, entry)
            if held is not None:
                columns[entry.name] = held[0]
                held_bytes += held[1]
        missing = [entry for entry in schema if entry.name not in columns]
        found = self._scan(units, [entry.name for entry in missing], wide).mapped() if missing else []
        if found is None:
            return None
        self.counters.add(scans=1, hits=len(units) * len(columns), hit_bytes=held_bytes)
        for entry in missing:
            arrays = [array for unit, some in zip(units, found, strict=True) for array in column_of(unit, some, entry)]
            columns[entry.name] = column = pa.chunked_array(arrays, entry.type)
            if hold and not self._store._session.injecting:  # a slowed-down tier is paid for by every scan
                self._held.put(owner, entry, column, column.get_total_buffer_size())
        self._finished(schema.names)
        return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

    def held(self, snapshot: Snapshot, schema: pa.Schema, make: Callable[[], Any]) -> Any:
        """For engines: what is made of the columns that mapped() gives, made once while these are held."""
        owner, name = snapshot.files, ("made of", *schema)
        found = self._held.get(owner, name)
        if found is not None:
            return found[0]
        made = make()
        if all(self._held.get(owner, entry) is not None for entry in schema):
            self._held.put(owner, name, made, 0)
        return made

    def snapshot(self) -> Snapshot:
        """For engines: files and schema now."""
        return self._tables.snapshot()

    def _schema_of(self, snapshot: Snapshot, columns: Sequence[str] | None) -> pa.Schema:
        if columns is None:
            return snapshot.schema
        for name in columns:
            if snapshot.schema.get_field_index(name) < 0:
                raise ConfigError("columns", name, f"this dataset has {', '.join(snapshot.schema.names)}")
        return pa.schema([snapshot.schema.field(name) for name in columns])

    def _batches(self, snapshot: Snapshot, schema: pa.Schema, filter: Any) -> Iterator[pa.RecordBatch]:
        """All batches; from the beginning again if a file changed before the first was given."""
        for attempt in range(CHANGED_RETRIES + 1):
            given, pruner = False, _pruner(snapshot, filter)
            try:
                for batch in self._kept(snapshot, self._units(snapshot, pruner), schema, pruner, None):
                    yield batch
                    given = True
                return
            except FileChanged:
                self._tables.forget()
                snapshot = self._tables.snapshot()
                same = all(entry in [*snapshot.schema, *snapshot.stored] for entry in schema)
                if given or not same or attempt == CHANGED_RETRIES:
                    raise

    def units(self, snapshot: Snapshot, filter: Any) -> list[Unit]:
        """For engines: the row groups that may hold rows a filter keeps."""
        return self._units(snapshot, _pruner(snapshot, filter))

    def _units(self, snapshot: Snapshot, pruner: Pruner | None) -> list[Unit]:
        everything = snapshot.units()
        if pruner is None:
            return everything
        left = snapshot.units(pruner)
        self.counters.add(pruned=len(everything) - len(left))
        return left

    def batches(
        self,
        snapshot: Snapshot,
        units: Sequence[Unit],
        schema: pa.Schema,
        filter: Any,
        prepare: Callable[[pa.Table], pa.Table] | None = None,
        wide: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        """For engines: the columns of a schema, of some row groups, of the rows for which a filter is true.

        prepare: what is done to the filter's columns before it sees them.  wide: the schema is one of ``snapshot.wide``.
        Raises:  FileChanged.
        """
        return self._kept(snapshot, units, schema, _pruner(snapshot, filter), prepare, wide)

    def _kept(
        self,
        snapshot: Snapshot,
        units: Sequence[Unit],
        schema: pa.Schema,
        pruner: Pruner | None,
        prepare: Callable[[pa.Table], pa.Table] | None,
        wide: bool = False,
    ) -> Iterator[pa.RecordBatch]:
        names = dict.fromkeys([*schema.names, *([] if pruner is None else pruner.columns)])
        wide = wide and pruner is None  # Arrow neither compares nor filters views
        wanted = schema if wide else pa.schema([snapshot.stored.field(name) for name in names])
        self.counters.add(scans=1)
        for group in self._scan(units, wanted.names, wide).groups(wanted):
            if pruner is not None:
                seen = group.table(pruner.asked)
                group.keep(pruner.mask(seen if prepare is None else prepare(seen)))
            yield from group.table(schema).to_batches(max_chunksize=BATCH_ROWS)
        self._finished(wanted.names)

    def _scan(self, units: Sequence[Unit], names: Sequence[str], wide: bool = False) -> Scan:
        form = WIDE if wide and self._form == FORM else self._form
        return Scan(self._filler, units, names, self._look, self._pool, self.counters, form)

    # --- engines ------------------------------------------------------------------------------------------------------------

    def to_duckdb(self, connection: Any, name: str) -> None:
        """Make this dataset a table of a DuckDB connection. Nothing is read until a query asks, and then only its columns."""
        import_module("tierstore.engines.duckdb").register(self, connection, name)

    def to_polars(self) -> Any:
        """A Polars LazyFrame over this dataset, with projection and predicates pushed down."""
        return import_module("tierstore.engines.polars").lazy_frame(self)

    def to_datafusion(self, context: Any, name: str) -> None:
        """Make this dataset a table of a DataFusion SessionContext."""
        import_module("tierstore.engines.datafusion").register(self, context, name)

    def to_pyarrow(self) -> Any:
        """A pyarrow.dataset.Dataset over this dataset, for whatever takes one. The others above are faster."""
        return import_module("tierstore.engines.arrow").dataset(self)

    def to_pandas(self, columns: Sequence[str] | None = None, filter: Any = None, **options: Any) -> Any:
        """A pandas frame; options are those of pyarrow.Table.to_pandas."""
        return self.to_table(columns, filter).to_pandas(**options)

    # --- what is cached -----------------------------------------------------------------------------------------------------

    def preload(self, columns: Sequence[str] | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Fill the cache. progress(done, all) is called after each row group."""
        snapshot = self._tables.snapshot()
        schema, units = self._schema_of(snapshot, columns), snapshot.units()
        for done, _ in enumerate(self._scan(units, schema.names), 1):
            if progress is not None:
                progress(done, len(units))

    def pin(self, columns: Sequence[str] | None = None, tier: str = "dram") -> None:
        """Fill these columns and keep them in a tier, whatever else needs room, until unpin() or until the files change.

        Raises: Full (no room in that tier), ConfigError (no such tier or column).
        """
        self.preload(columns)
        self._held.clear()
        for key in self.cached_keys(columns):
            with contextlib.suppress(NotFound):
                self._store.pin(key, tier=tier)

    def unpin(self, columns: Sequence[str] | None = None) -> None:
        """Let pinned columns be moved and evicted again."""
        for key in self.cached_keys(columns):
            with contextlib.suppress(NotFound):
                self._store.unpin(key)

    def evict(self, columns: Sequence[str] | None = None) -> int:
        """Drop what is cached of these columns, of this and older versions of the files; how many chunks that was."""
        self._schema_of(self._tables.snapshot(), columns)
        self._held.clear()
        paths, names, gone = set(self.files), None if columns is None else set(columns), 0
        for key in self._store.keys(PREFIX):
            place = place_of(key)
            if place is not None and place.path in paths and (names is None or place.column in names):
                with contextlib.suppress(NotFound):
                    self._store.delete(key)
                    gone += 1
        return gone

    def background(self, work: Callable[[], None]) -> None:
        """Do something in a thread that fills. Raises Closed or RuntimeError once they were ended."""
        self._filler.pool().submit(work)

    def fill_one(self, names: Sequence[str]) -> bool:
        """Fill the first row group of which one of these columns is not cached; whether there was one."""
        snapshot = self._tables.snapshot()
        for unit in snapshot.units() if self._pool else ():
            missing = {name: key for name, key in self._keys_of(unit, names) if not self._is_there(unit, name, key)}
            if missing and not unit.file.version.is_young():
                refused = self.counters.refused
                self._filler.fill(unit, missing, self._pool, self.counters, self._form)
                self.counters.add(prefetched=len(missing))
                return self.counters.refused == refused
        return False

    def cached_keys(self, columns: Sequence[str] | None = None) -> list[str]:
        """The keys of the chunks of these columns (all, if none are named) that are cached now."""
        snapshot = self._tables.snapshot()
        names = self._schema_of(snapshot, columns).names
        keys = (key for unit in snapshot.units() for _, key in self._keys_of(unit, names))
        return [key for key in keys if self._filler.chunks.is_there(key)]

    def _keys_of(self, unit: Unit, names: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Names and keys of a unit's chunks; a column that is not in the file has none."""
        return ((name, unit.file.key(unit.row_group, name, self._form)) for name in names if unit.file.has(name))

    def _is_there(self, unit: Unit, name: str, key: str) -> bool:
        """Whether a chunk is cached, under its key or in the wide form of the same values."""
        there = self._filler.chunks.is_there
        return there(key) or (self._form == FORM and there(unit.file.key(unit.row_group, name, WIDE)))

    def can_widen(self, snapshot: Snapshot, columns: Sequence[str]) -> bool:
        """For engines: whether these columns can come to lie in memory in the wide form without reading the files."""
        return (
            self._form == FORM
            and self._pool is not None
            and all(self._is_there(unit, *pair) for unit in snapshot.units() for pair in self._keys_of(unit, columns))
        )

    def stats(self) -> dict[str, Any]:
        """What this handle's scans did (hits, misses, fills, seconds saved), and how much is cached now."""
        snapshot = self._tables.snapshot()
        keys = [(unit, *pair) for unit in snapshot.units() for pair in self._keys_of(unit, snapshot.schema.names)]
        cached = sum(self._is_there(*key) for key in keys)
        return {
            "table": self.name,
            "files": len(snapshot.files),
            "rows": snapshot.rows,
            "chunks": len(keys),
            "cached_chunks": cached,
            **self.counters.as_dict(),
        }

    def _finished(self, names: Sequence[str]) -> None:
        """A scan has read these columns."""
        if self._prefetcher is not None and self._pool is not None:
            self._prefetcher.note(names)
        self._tell()

    def _tell(self, now: bool = False) -> None:
        """Tell the daemon, at most every TELL_S, what was counted."""
        with self._telling:
            if not now and time.monotonic() - self._told_at < TELL_S:
                return
            self._told_at = time.monotonic()
            changed = self._untold()
        if changed:
            self._shared.tell(self.name, self._listing.patterns, changed)

    def _untold(self) -> dict[str, float]:
        """What was counted since this was asked last."""
        counted, told = self.counters.as_dict(), self._told
        self._told = counted
        return {name: value - told[name] for name, value in counted.items() if value != told[name]}

    def __del__(self) -> None:
        # Collection may come in the middle of a request, so nothing is sent now.
        with contextlib.suppress(Exception):
            self._shared.left.append((self.name, self._listing.patterns, self._untold()))

    def close(self) -> None:
        """Let go of what is held, and tell what was counted; when the store closes."""
        self._held.clear()
        self._tell(now=True)

    def __repr__(self) -> str:
        return f"<tierstore dataset {self.name!r}: {len(self._tables.snapshot().files)} files>"


def _pruner(snapshot: Snapshot, filter: Any) -> Pruner | None:
    return None if filter is None else Pruner(filter, snapshot.schema)


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest
