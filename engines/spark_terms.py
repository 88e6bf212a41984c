"""Conditions as Spark's JVM and its Python sources give them, as expressions of pyarrow.

A term is a list: ["=", COLUMN, VALUE] and so with <, <=, > and >=; ["in", COLUMN, [VALUE, ...]]; ["null", COLUMN];
["valid", COLUMN]; ["not", TERM]; ["and", TERM, TERM]; ["or", TERM, TERM]. A VALUE is a bool, int, float or str; or {"date": days},
{"us": microseconds} or {"decimal": text}.

Not the same in both: comparisons of floats (NaN equals NaN in Spark and is its greatest value), and whatever has a null among
its values. Where a condition only excludes row groups, and Spark applies it itself, more can be used: see pruning().
"""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": lambda field, value: field == value,
    ">": lambda field, value: field > value,
    ">=": lambda field, value: field >= value,
    "<": lambda field, value: field < value,
    "<=": lambda field, value: field <= value,
}
_FALSE_OF_NAN = ("=", "<", "<=")  # in Spark, too, unless compared with NaN
DEPTH_MAX = 50
_EPOCH = datetime.date(1970, 1, 1)


def exact(term: Any, schema: pa.Schema) -> Any:
    """The expression that is true of exactly the rows for which the term is; None where there is none."""
    return _Translation(schema, False).of(term, DEPTH_MAX)


def pruning(terms: Sequence[Any], schema: pa.Schema) -> Any:
    """An expression that is true of all rows for which all terms are, and perhaps of more; None where there is none.

    For what statistics exclude: Spark applies the terms itself.
    """
    expression = None
    for one in terms:
        found = _Translation(schema, True).of(one, DEPTH_MAX)
        if found is not None:
            expression = found if expression is None else expression & found
    return expression


class _Translation:
    def __init__(self, schema: pa.Schema, pruning: bool):
        self._schema, self._pruning = schema, pruning

    def of(self, term: Any, depth: int) -> Any:
        """The expression of a term, or None."""
        if not isinstance(term, list | tuple) or not term or depth == 0:
            return None
        op, *rest = term
        if op in ("and", "or") and len(rest) == 2:
            return self._both(op, [self.of(one, depth - 1) for one in rest])
        if op == "not" and len(rest) == 1:
            return self._negated(rest[0])
        position = self._schema.get_field_index(rest[0]) if rest and isinstance(rest[0], str) else -1
        if position < 0:
            return None
        field, kind = pc.field(rest[0]), self._schema.field(position).type
        if len(rest) == 1:
            return field.is_null() if op == "null" else field.is_valid() if op == "valid" else None
        if op == "in" and isinstance(rest[1], list | tuple):
            return self._among(field, kind, rest[1])
        compare = _COMPARISONS.get(op) if isinstance(op, str) else None
        value = None if compare is None else self._scalar(rest[1], kind, op)
        return None if compare is None or value is None else compare(field, value)

    def _both(self, op: str, found: list[Any]) -> Any:
        if any(one is None for one in found):
            return next((one for one in found if one is not None), None) if op == "and" and self._pruning else None
        return found[0] & found[1] if op == "and" else found[0] | found[1]

    def _negated(self, child: Any) -> Any:
        # What is true of more rows than it should must not be turned round.
        inner = _Translation(self._schema, False)
        found = None if _op(child) in ("not", "and", "or") else inner.of(child, 1)
        if found is None:
            return None
        # Of a null Spark does not know whether it is among values; pyarrow says that it is not.
        return ~found & pc.field(child[1]).is_valid() if _op(child) == "in" else ~found

    def _among(self, field: Any, kind: pa.DataType, values: Sequence[Any]) -> Any:
        found = [scalar for value in values if (scalar := self._scalar(value, kind, "=")) is not None]
        if not found or len(found) < len(values):
            return None
        return field.isin(pa.array([value.as_py() for value in found], found[0].type))

    def _scalar(self, value: Any, kind: pa.DataType, op: str) -> pa.Scalar | None:
        """A value to compare a column with; None where pyarrow would compare otherwise than Spark."""
        if isinstance(value, bool):
            return pa.scalar(value) if pa.types.is_boolean(kind) else None
        if isinstance(value, int) and pa.types.is_integer(kind):
            return pa.scalar(value, pa.int64()) if -(1 << 63) <= value < 1 << 63 else None
        if isinstance(value, str) and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return pa.scalar(value, kind)
        if isinstance(value, dict) and len(value) == 1:
            [(name, inner)] = value.items()
            if name == "date" and pa.types.is_date32(kind):
                return _date(inner, kind)
            return _more(name, inner, kind) if self._pruning else None
        if self._pruning and isinstance(value, float) and pa.types.is_floating(kind) and op in _FALSE_OF_NAN:
            return None if math.isnan(value) else pa.scalar(value, pa.float64())
        return None


def _op(term: Any) -> Any:
    return term[0] if isinstance(term, list | tuple) and term else None


def _date(days: Any, kind: pa.DataType) -> pa.Scalar | None:
    if (
        not isinstance(days, int)
        or not -_EPOCH.toordinal() < days <= datetime.date.max.toordinal() - _EPOCH.toordinal()
    ):
        return None
    return pa.scalar(datetime.date.fromordinal(_EPOCH.toordinal() + days), kind)


def _more(name: str, value: Any, kind: pa.DataType) -> pa.Scalar | None:
    """What is compared alike where the file has exactly Spark's type."""
    if name == "us" and isinstance(value, int) and pa.types.is_timestamp(kind) and kind.unit == "us":
        return pa.scalar(value, pa.int64()).cast(kind) if -(1 << 63) <= value < 1 << 63 else None
    if name == "decimal" and isinstance(value, str) and pa.types.is_decimal128(kind):
        try:
            return pa.scalar(decimal.Decimal(value), kind)
        except (decimal.InvalidOperation, pa.ArrowInvalid):  # more digits than the column has
            return None
    return None
