"""The filters that Spark gives a Python data source, as terms; see spark_terms.py. Needs PySpark 4.1."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from pyspark.sql import datasource

from .spark_terms import exact

_COMPARISONS = {
    datasource.EqualTo: "=",
    datasource.GreaterThan: ">",
    datasource.GreaterThanOrEqual: ">=",
    datasource.LessThan: "<",
    datasource.LessThanOrEqual: "<=",
    datasource.In: "in",
}


def split(filters: Sequence[Any], schema: pa.Schema) -> tuple[Any, list[Any]]:
    """The conjunction of all filters that can be translated (None if there is none), and the other filters."""
    expression, left = None, []
    for one in filters:
        term = exact(_term(one), schema)
        if term is None:
            left.append(one)
        else:
            expression = term if expression is None else expression & term
    return expression, left


def _term(one: Any) -> list[Any] | None:
    """A filter as a term, or None."""
    if isinstance(one, datasource.Not):
        return ["not", _term(one.child)]
    attribute: Sequence[str] = getattr(one, "attribute", ())
    if len(attribute) != 1:
        return None
    if isinstance(one, datasource.IsNull | datasource.IsNotNull):
        return ["null" if isinstance(one, datasource.IsNull) else "valid", attribute[0]]
    op = _COMPARISONS.get(type(one))
    if op is None:
        return None
    value = getattr(one, "value", None)
    return [op, attribute[0], [_value(each) for each in value] if op == "in" else _value(value)]  # type: ignore[union-attr]


def _value(value: Any) -> Any:
    """A value of a term; None for one that is not compared here."""
    if type(value) is datetime.date:
        return {"date": value.toordinal() - datetime.date(1970, 1, 1).toordinal()}
    return value if isinstance(value, bool | int | str) else None
