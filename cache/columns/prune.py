"""Which row groups may hold rows that a filter keeps, by their statistics; pyarrow decides, where it decides exactly."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import acero

from .footers import Footer

# Statistics leave NaN out, so whatever can be true of NaN must not be pruned by them. Comparisons of a column are false
# for it; but the outcome of a comparison that goes into anything else than "and" and "or" may be turned round there.
_TRUE_OF_NAN = re.compile(r"!=|nan_is_null=true| and_not |\) (==|<|>)|(==|<|>|<=|>=) [^ \"]*\(")
_CALL = re.compile(r"(\w+)\(")
_HARMLESS_CALLS = {"is_null", "is_valid"}
_BY_POSITION = "FieldPath("


def comparable(schema: pa.Schema) -> pa.Schema:
    """A schema in types that pyarrow can compare: it cannot compare views."""
    return pa.schema([entry.with_type(_COMPARABLE.get(entry.type, entry.type)) for entry in schema])


_COMPARABLE = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def columns_of(expression: Any, schema: pa.Schema) -> list[str]:
    """The columns an expression reads, in the schema's order. Raises what pyarrow raises for one that cannot be evaluated."""
    if not isinstance(expression, pc.Expression):
        raise TypeError(
            f"a filter is a pyarrow.compute expression, not {type(expression).__name__} ({expression!r:.60})"
        )
    text = str(expression)
    empty = schema.empty_table()
    empty.filter(expression)
    if _BY_POSITION in text:
        return list(schema.names)  # without one of them, the others would be at other positions
    found = []
    for name in dict.fromkeys(schema.names):
        if name not in text:
            continue
        try:
            empty.drop_columns([name]).filter(expression)
        except (pa.ArrowInvalid, KeyError):
            found.append(name)
    return found


class Pruner:
    """One filter over one dataset schema."""

    def __init__(self, expression: Any, schema: pa.Schema):
        self.expression, self.schema = expression, comparable(schema)
        self.columns = columns_of(expression, self.schema)
        text = str(expression)
        floats = any(_holds_float(schema.field(name).type) for name in self.columns)
        self._exact = not (floats and _may_keep_nan(text))

    def row_groups(self, footer: Footer, partition: dict[str, Any]) -> list[int]:
        """Numbers of the row groups that must be read. Cost: microseconds a row group."""
        everything = list(range(len(footer.row_counts)))
        if not self._exact or not all(self._is_comparable(footer, name, partition) for name in self.columns):
            return everything
        try:
            kept = footer.fragment.subset(self.expression, schema=self.schema).row_groups
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            return everything  # statistics of a type that it cannot compare
        return [group.id for group in kept]

    @property
    def asked(self) -> pa.Schema:
        """The filter's columns, in the types that mask() takes."""
        return pa.schema([self.schema.field(name) for name in self.columns])

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """For a table of the schema ``asked``: which rows are kept (null: not)."""
        if not self.columns:
            table = pa.table({"": pa.nulls(table.num_rows)})
        source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
        project = acero.Declaration("project", acero.ProjectNodeOptions([self.expression], ["keep"]))
        return acero.Declaration.from_sequence([source, project]).to_table(use_threads=False).column(0)

    def _is_comparable(self, footer: Footer, name: str, partition: dict[str, Any]) -> bool:
        """Whether a file has the column as the dataset has it."""
        if name in partition:
            return True
        position = footer.schema.get_field_index(name)
        if position < 0:
            return False
        kind = footer.schema.field(position).type
        return bool(_COMPARABLE.get(kind, kind) == self.schema.field(name).type)


def _may_keep_nan(text: str) -> bool:
    """Whether an expression, as text, could be true where a column is NaN. Doubts say yes."""
    return bool(_TRUE_OF_NAN.search(text) or set(_CALL.findall(text)) - _HARMLESS_CALLS)


def _holds_float(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or any(_holds_float(kind.field(i).type) for i in range(kind.num_fields))
