"""A scan of Parquet files cut into pieces that other processes do, each whenever and as often as it likes.

Who plans needs no store, only the footers. A plan and its pieces can be pickled. A piece is some neighbouring row groups of
one version of one file; it is read through the store of the node where it is done, and without one from the file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError, TierstoreError

from .dataset import BATCH_ROWS, FORMS, Dataset
from .files import Listing, PathLike
from .filling import FileChanged, Filler
from .footers import Footers
from .prune import Pruner
from .scanning import Arrays, Scan
from .statistics import Counters
from .tables import File, Snapshot, Tables, Unit

PIECE_BYTES = 128 << 20  # as much as Spark takes of a file for a task
# Handles that a process keeps for the files of its next pieces.
HANDLES_MAX = 256


@dataclass(frozen=True)
class FilePiece:
    """Row groups of one file. token: of its version; partition: what its path says of every row.

    rows, bytes: what the footer says of them, of the columns that were planned for, uncompressed.
    """

    path: str
    token: str
    row_groups: tuple[int, ...]
    partition: tuple[tuple[str, Any], ...]
    rows: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """What all pieces have in common.

    whole: the schema of all files together; schema: the columns that are wanted; options: those of Store.dataset().
    """

    name: str
    whole: pa.Schema
    schema: pa.Schema
    filter: Any
    options: tuple[tuple[str, Any], ...]

    def read(self, piece: FilePiece, store: Any | None) -> Iterator[pa.RecordBatch]:
        """The rows of one piece for which the filter is true, as Dataset.scan() gives them.

        store:  of this process; None: all is read from the file.
        Raises: FileChanged if the file is not the one that was planned for, and what pyarrow raises for one that cannot be read.
        """
        dataset, snapshot, units = self._located(piece, store)
        if dataset is not None:
            return dataset.batches(snapshot, units, self.schema, self.filter)
        return self._directly(snapshot, units)

    def kept(
        self, piece: FilePiece, store: Any | None, is_placed: Callable[[pa.Array], bool]
    ) -> Iterator[tuple[Unit, Arrays]]:
        """The row groups of one piece, all their rows, with those of the wanted columns that the file holds, in the form in
        which chunks are kept (forms.py). Arguments and errors as of read().

        is_placed: whether an array lies in the store's memory; what does not is looked for there after it was admitted.
        """
        (dataset, _, units), names = self._located(piece, store), self.schema.names
        if dataset is None:
            filler = Filler(None)
            try:
                yield from Scan(filler, units, names, False, None, Counters())
            finally:
                filler.close()
            return
        chunks = dataset._filler.chunks
        dataset.counters.add(scans=1)
        for unit, arrays in dataset._scan(units, names):
            for name, found in arrays.items():
                key = unit.file.key(unit.row_group, name)
                if not all(map(is_placed, found)) and chunks.is_mapped(key):
                    arrays[name] = chunks.read(key) or found
            yield unit, arrays
        dataset._finished(names)

    def _located(self, piece: FilePiece, store: Any | None) -> tuple[Dataset | None, Snapshot, list[Unit]]:
        """A piece's row groups as they are now. Raises FileChanged."""
        dataset = None if store is None else _handle(store, piece.path, self.options)
        if dataset is not None:
            found = dataset.snapshot()
        else:
            name = dict(self.options).get("snapshot")
            found = Tables(Listing(piece.path), _footers, "all", name).snapshot()
        file = replace(_only(found, piece), partition=dict(piece.partition))
        units = [Unit(file, number, file.footer.row_counts[number]) for number in piece.row_groups]
        return dataset, Snapshot([file], self.whole), units

    def _directly(self, snapshot: Snapshot, units: list[Unit]) -> Iterator[pa.RecordBatch]:
        """The same steps as a scan through a store, which is neither asked nor filled."""
        pruner = None if self.filter is None else Pruner(self.filter, snapshot.schema)
        names = dict.fromkeys([*self.schema.names, *([] if pruner is None else pruner.columns)])
        wanted = pa.schema([snapshot.stored.field(name) for name in names])
        filler = Filler(None)
        try:
            for group in Scan(filler, units, wanted.names, False, None, Counters()).groups(wanted):
                if pruner is not None:
                    group.keep(pruner.mask(group.table(pruner.asked)))
                yield from group.table(self.schema).to_batches(max_chunksize=BATCH_ROWS)
        finally:
            filler.close()


_footers = Footers()
_handles: OrderedDict[tuple[int, str, tuple[tuple[str, Any], ...]], tuple[Any, Dataset]] = OrderedDict()


def _handle(store: Any, path: str, options: tuple[tuple[str, Any], ...]) -> Dataset | None:
    """A dataset of one file, kept for the next piece of it; None if the store cannot make one now."""
    name = (id(store), path, options)
    known = _handles.get(name)
    if known is not None and known[0] is store:
        _handles.move_to_end(name)
        return known[1]
    try:
        dataset: Dataset = store.dataset(path, prefetch=False, **dict(options))
    except ConfigError:
        raise
    except TierstoreError:  # a cache that cannot be reached is one without anything in it
        return None
    _handles[name] = (store, dataset)
    while len(_handles) > HANDLES_MAX:
        _handles.popitem(last=False)
    return dataset


def forget(store: Any) -> None:
    """Let go of what is kept for a store that will be closed."""
    for name in [name for name, (owner, _) in _handles.items() if owner is store]:
        del _handles[name]


def _only(found: Snapshot, piece: FilePiece) -> File:
    (file,) = found.files
    if file.version.token != piece.token:
        raise FileChanged(f"{piece.path} is not the file any more that was planned for; run the job again")
    return file


def plan(
    source: Dataset | PathLike | Sequence[PathLike],
    columns: Sequence[str] | None = None,
    filter: Any = None,
    piece_bytes: int = PIECE_BYTES,
) -> tuple[Plan, list[FilePiece]]:
    """Cut a scan into pieces: neighbouring row groups of a file up to piece_bytes (uncompressed, of the columns wanted).

    Arguments and errors are those of Dataset.scan(). Cost: reads the footers of all files.
    """
    if isinstance(source, Dataset):
        snapshot, name = source.snapshot(), source.name
        schema, options = source._schema_of(snapshot, columns), _options_of(source)
    else:
        listing = Listing(source)
        snapshot, name = Tables(listing, _footers, "all", None).snapshot(), listing.name
        schema, options = _chosen(snapshot.schema, columns), ()
    pruner = None if filter is None else Pruner(filter, snapshot.schema)
    names = {*schema.names, *([] if pruner is None else pruner.columns)}
    pieces = _cut(snapshot.units(pruner), names, piece_bytes)
    return Plan(name, snapshot.schema, schema, filter, options), pieces


def _chosen(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    for name in columns or ():
        if schema.get_field_index(name) < 0:
            raise ConfigError("columns", name, f"these files have {', '.join(schema.names)}")
    return schema if columns is None else pa.schema([schema.field(name) for name in columns])


def _options_of(dataset: Dataset) -> tuple[tuple[str, Any], ...]:
    """What another process has to say to get the same dataset, for one of its files."""
    given: dict[str, Any] = {
        "snapshot": dataset._tables._snapshot_id,
        "form": next(name for name, form in FORMS.items() if form == dataset._form),
        "pool": dataset._pool or "default",
        "hint": "once" if dataset._look and dataset._pool is None else "",
    }
    return tuple(given.items())


def _cut(units: Sequence[Unit], names: set[str], piece_bytes: int) -> list[FilePiece]:
    pieces: list[FilePiece] = []
    last = None
    for unit in units:
        file, more = unit.file, _bytes_of(unit, names)
        before = pieces[-1] if last is not None and last.file is file else None
        if before is not None and before.bytes + more <= piece_bytes:
            numbers, rows = (*before.row_groups, unit.row_group), before.rows + unit.rows
            pieces[-1] = replace(before, row_groups=numbers, rows=rows, bytes=before.bytes + more)
        else:
            place = (file.source.path, file.version.token, (unit.row_group,), tuple(file.partition.items()))
            pieces.append(FilePiece(*place, unit.rows, more))
        last = unit
    return pieces


def _bytes_of(unit: Unit, names: set[str]) -> int:
    footer = unit.file.footer
    group = footer.metadata.row_group(unit.row_group)
    leaves = [leaf for name in names for leaf in footer.leaves(name)]
    return 1 + sum(int(group.column(leaf).total_uncompressed_size) for leaf in leaves)
