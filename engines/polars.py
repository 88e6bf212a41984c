"""Polars: a dataset as a LazyFrame.

Polars does not apply a predicate or a row limit again that it handed to a source, so both are applied here: first the
limit, then the predicate, by Polars itself; and before, where it is a conjunction of plain comparisons, to statistics.

A source is one thread of Polars' query, and what it gives at once is not shared out among threads. So where all columns lie
in memory a second, streaming query of Polars filters them in all threads and hands on what passes in small frames.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections.abc import Iterator
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as pds
from polars.io.plugins import register_io_source

from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.forms import is_text
from tierstore.cache.columns.tables import Snapshot

# What Polars' threads share out among themselves: larger frames leave some without work, smaller ones cost more calls.
FRAME_ROWS = 1 << 16


def lazy_frame(dataset: Dataset) -> pl.LazyFrame:
    """See Dataset.to_polars()."""
    declared = _frame(dataset.schema.empty_table()).schema

    def source(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        wanted = with_columns if with_columns is not None else list(declared)
        asked = wanted if predicate is None else [*wanted, *predicate.meta.root_names()]
        names = [name for name in declared if name in asked]
        left = n_rows
        for table in _tables(dataset, names, predicate, n_rows):
            if left is not None:  # these rows are the first of all, not of those that pass
                table = table.slice(0, left)
                left -= table.num_rows
            yield from _passing(_frame(table), predicate, wanted)
            if left == 0:
                return

    return register_io_source(source, schema=declared, is_pure=True)


def _tables(dataset: Dataset, names: list[str], predicate: pl.Expr | None, limit: int | None) -> Iterator[pa.Table]:
    """Columns as Polars computes on them: of the row groups that hold the first rows, if only these are wanted, else of those
    that may hold rows that pass the predicate. One table if all of them lie in memory."""
    snapshot = dataset.snapshot()
    chosen = pa.schema([snapshot.wide.field(name) for name in names])
    everything = snapshot.units()
    if limit is not None:
        before = itertools.accumulate((unit.rows for unit in everything), initial=0)
        units = [unit for unit, rows in zip(everything, before, strict=False) if rows < limit]
    else:
        units = dataset.units(snapshot, None if predicate is None else _prunable(predicate, snapshot))
    table = dataset.mapped(snapshot, chosen, units, wide=True)
    if table is not None:
        yield table
        return
    for batch in dataset.batches(snapshot, units, chosen, None, wide=True):
        yield pa.Table.from_batches([batch])


def _frame(table: pa.Table) -> pl.DataFrame:
    """A frame over a table's memory."""
    if len({tuple(map(len, column.chunks)) for column in table.columns}) > 1:  # Polars would copy columns to align them
        table = pa.Table.from_batches(table.to_batches(), table.schema)
    return pl.from_arrow(table, rechunk=False)


def _passing(frame: pl.DataFrame, predicate: pl.Expr | None, wanted: list[str]) -> Iterator[pl.DataFrame]:
    """The rows for which a predicate is true, in order, in frames of no more than FRAME_ROWS or so."""
    if predicate is None:
        yield from (frame.slice(start, FRAME_ROWS) for start in range(0, max(1, frame.height), FRAME_ROWS))
    elif frame.height <= FRAME_ROWS:
        yield frame.filter(predicate).select(wanted)
    else:
        passing = frame.lazy().filter(predicate).select(wanted)
        yield from passing.collect_batches(chunk_size=FRAME_ROWS, maintain_order=True, engine="streaming")


_COMPARISONS = {"Eq": operator.eq, "Lt": operator.lt, "LtEq": operator.le, "Gt": operator.gt, "GtEq": operator.ge}
_MIRRORED = {"Eq": "Eq", "Lt": "Gt", "LtEq": "GtEq", "Gt": "Lt", "GtEq": "LtEq"}
_BOUNDS = {"Both": ("GtEq", "LtEq"), "Left": ("GtEq", "Lt"), "Right": ("Gt", "LtEq"), "None": ("Gt", "Lt")}
_UNITS = {"Milliseconds": "ms", "Microseconds": "us", "Nanoseconds": "ns"}


def _prunable(predicate: pl.Expr, snapshot: Snapshot) -> Any:
    """What of a predicate statistics can be asked: comparisons of columns with values, if all must be true."""
    expression = None
    try:
        for name, comparison, literal in _comparisons(json.loads(predicate.meta.serialize(format="json"))):
            position = snapshot.schema.get_field_index(name)
            value = None if position < 0 else _value(literal, snapshot.schema.field(position).type)
            if value is not None:
                term = _COMPARISONS[comparison](pds.field(name), value)
                expression = term if expression is None else expression & term
    except Exception:  # Polars says of this format that it may change; without it nothing is pruned
        return None
    return expression


def _comparisons(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Of a conjunction, the terms that compare a column with a literal: its name, how, and the literal."""
    ((kind, node),) = tree.items()
    if kind == "BinaryExpr":
        left, right, comparison = node["left"], node["right"], node["op"]
        if comparison == "And":
            yield from _comparisons(left)
            yield from _comparisons(right)
        elif comparison in _COMPARISONS and "Column" in left and "Literal" in right:
            yield left["Column"], comparison, right["Literal"]
        elif comparison in _COMPARISONS and "Literal" in left and "Column" in right:
            yield right["Column"], _MIRRORED[comparison], left["Literal"]
    elif kind == "Function" and "Column" in node["input"][0]:
        between = node["function"].get("Boolean") if isinstance(node["function"], dict) else None
        if isinstance(between, dict) and "IsBetween" in between:
            column, *limits = node["input"]
            for comparison, limit in zip(_BOUNDS[between["IsBetween"]["closed"]], limits, strict=True):
                if "Literal" in limit:
                    yield column["Column"], comparison, limit["Literal"]


def _value(literal: dict[str, Any], kind: pa.DataType) -> pa.Scalar | None:
    """A literal as a value of a column's type; None where it is of another kind."""
    (inner,) = literal.values()
    if not isinstance(inner, dict):
        return None
    ((name, value),) = inner.items()
    if name.startswith(("Int", "UInt")) and pa.types.is_integer(kind):
        return pa.scalar(value, pa.int64()) if -(1 << 63) <= value < 1 << 63 else None
    if name == "Date" and pa.types.is_date32(kind):
        return pa.scalar(value, pa.int32()).cast(pa.date32())
    if name == "Datetime" and pa.types.is_timestamp(kind):
        count, unit, zone = value
        same = _UNITS.get(unit) == kind.unit and (zone is None) == (kind.tz is None)
        return pa.scalar(count, pa.int64()).cast(kind) if same else None
    if name == "String" and is_text(kind):
        return pa.scalar(value, pa.string())
    return None
