"""The scan core: units of a snapshot in order, each with its columns, from the cache or filled on the way."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import pyarrow as pa

from .encoded import ENCODED
from .filling import Filler
from .forms import CODES, FORM, coded, widen
from .statistics import Counters
from .tables import Unit

Arrays = dict[str, list[pa.Array]]
# Row groups that are read ahead, per thread that fills.
AHEAD = 2
GROUP_ROWS = 1 << 20


class Scan:
    """One pass over units.

    columns: those of the dataset that are wanted.  look: whether cached chunks are used.  pool: where to admit others;
    None: nowhere.  form: that of the cached chunks; encoded ones cannot be read in place.
    """

    def __init__(
        self,
        filler: Filler,
        units: Sequence[Unit],
        columns: Sequence[str],
        look: bool,
        pool: str | None,
        counters: Counters,
        form: str = FORM,
    ):
        self._form = form
        self._filler, self._units, self._columns = filler, units, list(columns)
        self._look, self._pool, self._counters = look, pool, counters

    def mapped(self) -> list[Arrays] | None:
        """All units at once if every chunk lies in memory, else None. Cost: some microseconds a chunk."""
        found = []
        for unit in self._units:
            arrays = self._read(unit, self._keys(unit))
            if arrays is None:
                return None
            found.append(arrays)
        for arrays in found:
            self._counters.hit(arrays.values())
        return found

    def groups(self, schema: pa.Schema) -> Iterator[Group]:
        """All units, in order, in groups of about GROUP_ROWS; columns in the stored types of a schema."""
        group = Group(schema)
        for unit, arrays in self:
            group.add(unit, arrays)
            if group.rows >= GROUP_ROWS:
                yield group
                group = Group(schema)
        if group.rows:
            yield group

    def __iter__(self) -> Iterator[tuple[Unit, Arrays]]:
        """Unit by unit, in order; what is not in memory is read ahead by other threads."""
        waiting: deque[tuple[Unit, Arrays | Future[Arrays]]] = deque()
        ahead = AHEAD * len(os.sched_getaffinity(0))
        try:
            for unit in self._units:
                waiting.append((unit, self._begin(unit)))
                if len(waiting) > ahead:
                    yield self._end(*waiting.popleft())
            while waiting:
                yield self._end(*waiting.popleft())
        finally:
            for _, pending in waiting:
                if isinstance(pending, Future):
                    pending.cancel()

    def _keys(self, unit: Unit) -> dict[str, str]:
        return {name: unit.file.key(unit.row_group, name, self._form) for name in self._columns if unit.file.has(name)}

    def _read(self, unit: Unit, keys: dict[str, str]) -> Arrays | None:
        """All chunks of a unit if they can be read in place; nothing is read from disk for it."""
        if not self._look or unit.file.version.is_young() or self._form == ENCODED:
            return None if keys else {}
        chunks, found = self._filler.chunks, {}
        for name, key in keys.items():
            arrays = chunks.read(key) if chunks.is_mapped(key) else None
            if arrays is None:
                return None
            found[name] = arrays
        return found

    def _begin(self, unit: Unit) -> Arrays | Future[Arrays]:
        keys = self._keys(unit)
        found = self._read(unit, keys)
        if found is not None:
            self._counters.hit(found.values())
            return found
        if self._look and not unit.file.version.is_young():
            fill = self._filler.fill
            return self._filler.pool().submit(fill, unit, keys, self._pool, self._counters, self._form)
        self._counters.add(untrusted=int(self._look))
        return self._filler.pool().submit(self._filler.read_through, unit, list(keys), self._counters)

    def _end(self, unit: Unit, arrays: Arrays | Future[Arrays]) -> tuple[Unit, Arrays]:
        return unit, arrays.result() if isinstance(arrays, Future) else arrays


def column_of(unit: Unit, arrays: Arrays, entry: pa.Field) -> list[pa.Array]:
    """One column of a unit, in the type of a field: the dataset's own, or the stored form of it (then nothing is copied).

    A column that is not in the file comes from its path, or is null. A file whose type is narrower is cast.
    """
    name, kind = entry.name, entry.type
    if name in unit.file.partition:
        value = unit.file.partition[name]
        return [pa.nulls(unit.rows, kind) if value is None else pa.repeat(pa.scalar(value, kind), unit.rows)]
    if name not in arrays:
        return [pa.nulls(unit.rows, kind)]
    return in_type(arrays[name], kind)


def in_type(arrays: list[pa.Array], kind: pa.DataType) -> list[pa.Array]:
    """Arrays in another form; those that have it already are not copied."""
    if kind == CODES:
        return [piece for array in arrays for piece in ([array] if array.type == CODES else coded(array))]
    return [widen(array, kind) for array in arrays]


class Group:
    """Units whose columns are handled together, in the form in which they are stored: few units are too little work."""

    def __init__(self, schema: pa.Schema):
        self.schema, self.rows = schema, 0
        self.columns: Arrays = {name: [] for name in schema.names}

    def add(self, unit: Unit, arrays: Arrays) -> None:
        """One more unit."""
        self.rows += unit.rows
        for entry in self.schema:
            self.columns[entry.name] += column_of(unit, arrays, entry)

    def keep(self, mask: pa.ChunkedArray) -> None:
        """Only the rows for which a mask is true."""
        whole = pa.concat_arrays([*mask.chunks, pa.nulls(0, pa.bool_())]) if mask.num_chunks != 1 else mask.chunk(0)
        count = whole.true_count
        if count == self.rows:
            return
        for name, arrays in self.columns.items():
            starts = itertools.accumulate((len(array) for array in arrays), initial=0)
            self.columns[name] = [
                array.filter(whole.slice(start, len(array))) for array, start in zip(arrays, starts, strict=False)
            ]
        self.rows = count

    def table(self, schema: pa.Schema) -> pa.Table:
        """The columns of a schema, in its types."""
        if not len(schema):
            return pa.table({"": pa.nulls(self.rows)}).select([])
        columns = [pa.chunked_array(in_type(self.columns[entry.name], entry.type), entry.type) for entry in schema]
        return pa.Table.from_arrays(columns, schema=schema)
