"""Spark's filters as pyarrow's, where both mean exactly the same; the others are left to Spark.

Not the same: comparisons of floats (NaN equals NaN in Spark and is its greatest value) and of timestamps (a session's time zone
comes into it), and whatever has a null among its values.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import datasource

_COMPARISONS: dict[Any, Callable[[Any, Any], Any]] = {
    datasource.EqualTo: lambda field, value: field == value,
    datasource.GreaterThan: lambda field, value: field > value,
    datasource.GreaterThanOrEqual: lambda field, value: field >= value,
    datasource.LessThan: lambda field, value: field < value,
    datasource.LessThanOrEqual: lambda field, value: field <= value,
}


def split(filters: Sequence[Any], schema: pa.Schema) -> tuple[Any, list[Any]]:
    """The conjunction of all filters that can be translated (None if there is none), and the other filters."""
    expression, left = None, []
    for one in filters:
        term = _translated(one, schema)
        if term is None:
            left.append(one)
        else:
            expression = term if expression is None else expression & term
    return expression, left


def _translated(one: Any, schema: pa.Schema) -> Any:
    """One filter, or None."""
    if isinstance(one, datasource.Not):
        inner = None if isinstance(one.child, datasource.Not) else _translated(one.child, schema)
        if inner is None:
            return None
        # Of a null Spark does not know whether it is among values; pyarrow says that it is not.
        known = isinstance(one.child, datasource.In)
        return ~inner & pc.field(one.child.attribute[0]).is_valid() if known else ~inner
    attribute: Sequence[str] = getattr(one, "attribute", ())
    position = schema.get_field_index(attribute[0]) if len(attribute) == 1 else -1
    if position < 0:
        return None
    field, kind = pc.field(attribute[0]), schema.field(position).type
    if isinstance(one, datasource.IsNull):
        return field.is_null()
    if isinstance(one, datasource.IsNotNull):
        return field.is_valid()
    if isinstance(one, datasource.In):
        values = [found for value in one.value if (found := _scalar(value, kind)) is not None]
        if not values or len(values) < len(one.value):
            return None
        return field.isin(pa.array([value.as_py() for value in values], values[0].type))
    compare = _COMPARISONS.get(type(one))
    value = None if compare is None else _scalar(getattr(one, "value", None), kind)
    return None if compare is None or value is None else compare(field, value)


def _scalar(value: Any, kind: pa.DataType) -> pa.Scalar | None:
    """A value to compare a column with; None where pyarrow would compare otherwise than Spark."""
    if isinstance(value, bool):
        return pa.scalar(value) if pa.types.is_boolean(kind) else None
    if isinstance(value, int) and pa.types.is_integer(kind):
        return pa.scalar(value, pa.int64()) if -(1 << 63) <= value < 1 << 63 else None
    if isinstance(value, str) and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return pa.scalar(value, kind)
    if type(value) is datetime.date and pa.types.is_date32(kind):
        return pa.scalar(value, kind)
    return None
