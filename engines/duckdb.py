"""DuckDB: a dataset as a table of a connection.

DuckDB is handed the columns in the form in which they are kept (64-bit decimals, dictionaries), which it takes without
copying, and the number of rows, without which it would plan every join for one row. It offers its filters one by
one; those that statistics turn into fewer row groups are accepted, and applied here; the others it applies itself, which
is faster and exact by definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds

from tierstore.cache.columns.dataset import BATCH_ROWS, Dataset
from tierstore.cache.columns.prune import Pruner, comparable
from tierstore.cache.columns.tables import Snapshot

# A filter is applied here if it leaves at most this share of the row groups.
PRUNED_SHARE = 0.75
ANSWERS_MAX = 4096
SCATTERED = 0.9

try:  # DuckDB 2: sources that know their rows and are asked about each filter
    from duckdb._sources import ArrowScanSource
    from duckdb._sources.nodes import Col, Untranslatable
    from duckdb._sources.to_arrow import nan_may_satisfy, to_arrow
except ImportError:  # another version: what every one can do
    ArrowScanSource = None


def register(dataset: Dataset, connection: Any, name: str) -> None:
    """See Dataset.to_duckdb()."""
    made = _Table(dataset) if ArrowScanSource is None else _Source(dataset)
    connection.register(name, made)


def _readable(kind: pa.DataType) -> pa.DataType:
    """The type itself; or, where that is unknown to DuckDB or to Parquet, the one that DuckDB gives to such a column of a file."""
    if pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal256(kind):
        return pa.float64()
    if pa.types.is_struct(kind):
        return pa.struct([_field(kind.field(i)) for i in range(kind.num_fields)])
    if pa.types.is_map(kind):
        return pa.map_(_field(kind.key_field), _field(kind.item_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_field(kind.value_field), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (pa.list_ if pa.types.is_list(kind) else pa.large_list)(_field(kind.value_field))
    return kind


def _field(entry: pa.Field) -> pa.Field:
    return entry.with_type(_readable(entry.type))


def _schema(schema: pa.Schema) -> pa.Schema:
    return pa.schema([_field(entry) for entry in schema])


class _Table(pds.Dataset):  # type: ignore[misc]
    """What DuckDB takes for a pyarrow dataset: it asks for a schema and for scanners, and for nothing else."""

    def __init__(self, dataset: Dataset):  # not the base's, which makes no sense for a class of one's own
        self._dataset = dataset

    @property
    def schema(self) -> pa.Schema:
        """The dataset's, as far as DuckDB knows its types."""
        return _schema(self._dataset.schema)

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scanner:
        """One scan."""
        snapshot = self._dataset.snapshot()
        schema = _schema(snapshot.schema)
        chosen = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        return _Scanner(self._dataset.reader(snapshot, chosen, filter))


class _Scanner:
    """What is left of a pyarrow scanner for DuckDB."""

    def __init__(self, reader: pa.RecordBatchReader):
        self._reader = reader

    def to_reader(self) -> pa.RecordBatchReader:
        """The batches."""
        return self._reader


class _Known:
    """What was found out of one snapshot: DuckDB asks several times for each query, and finding out costs up to a millisecond."""

    def __init__(self, snapshot: Snapshot):
        self.snapshot, self.schema = snapshot, _schema(snapshot.stored)
        self.accepted: dict[str, bool] = {}  # by the predicate's text


def _is_worth_applying(predicate: Any, snapshot: Snapshot) -> bool:
    """Whether statistics exclude row groups by a predicate, which is translated exactly."""
    if all(snapshot.spread(name) > SCATTERED for name in _columns(predicate)):
        return False  # every row group covers nearly all of their ranges: asking statistics is in vain
    schema = comparable(snapshot.schema)
    try:
        expression = to_arrow(predicate, schema)
        if nan_may_satisfy(predicate, schema):
            return False
        kept = snapshot.units(Pruner(expression, snapshot.schema))
    except (Untranslatable, pa.ArrowException, KeyError):
        return False
    return len(kept) <= PRUNED_SHARE * len(snapshot.units())


def _columns(predicate: Any) -> set[str]:
    """The columns of a predicate."""
    found, pending = set(), [predicate]
    while pending:
        node = pending.pop()
        if isinstance(node, Col):
            found.add(node.parts[0])
        pending += node._children()
    return found


if ArrowScanSource is not None:

    class _Source(_Table, ArrowScanSource):  # type: ignore[misc]
        """A dataset that says how many rows it has, and takes filters that help it."""

        pull_under_gil = False
        schema_is_stable = False
        one_shot = False

        def __init__(self, dataset: Dataset):
            _Table.__init__(self, dataset)
            self.obj = self
            self._known = _Known(dataset.snapshot())

        def _now(self) -> _Known:
            """What is known of the files that are there now. Racing threads at worst find it out twice."""
            known, snapshot = self._known, self._dataset.snapshot()
            if known.snapshot is not snapshot:
                self._known = known = _Known(snapshot)
            return known

        @property
        def schema(self) -> pa.Schema:
            """The form in which columns are kept."""
            return self._now().schema

        def __arrow_c_schema__(self) -> Any:
            return self.schema.__arrow_c_schema__()

        def rows(self) -> int:
            """For the planner."""
            return self._dataset.snapshot().rows

        def accepts(self, predicate: Any) -> bool:
            """Whether a predicate is worth applying here, and is applied exactly as DuckDB would."""
            known, text = self._now(), predicate.fragment()
            answer = known.accepted.get(text)
            if answer is None:
                answer = known.accepted[text] = _is_worth_applying(predicate, known.snapshot)
                if len(known.accepted) > ANSWERS_MAX:
                    known.accepted.clear()
            return answer

        def stream(self, columns: Sequence[int] | None, filters: Sequence[Any]) -> tuple[Any, bool]:
            """The rows that pass all accepted filters."""
            known = self._now()
            snapshot, schema = known.snapshot, known.schema
            chosen = schema if columns is None else pa.schema([schema.field(number) for number in columns])
            if not filters:
                table = self._dataset.mapped(snapshot, chosen)
                if table is not None:
                    return table.to_reader(max_chunksize=BATCH_ROWS).__arrow_c_stream__(), columns is not None
            asked = comparable(snapshot.schema)
            terms = [to_arrow(predicate, asked) for predicate in filters]
            expression = None
            for term in terms:
                expression = term if expression is None else expression & term
            return self._dataset.reader(snapshot, chosen, expression).__arrow_c_stream__(), columns is not None
