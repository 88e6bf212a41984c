"""Types between Arrow and Spark, without PySpark: an agent may run where there is none."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from tierstore.ringbuf.errors import ConfigError

DECIMAL_DIGITS_MAX = 38


def known(kind: pa.DataType) -> pa.DataType:
    """A type that Spark has, with room for all values; the type itself where there is none, which Spark then refuses."""
    if pa.types.is_dictionary(kind):
        return known(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("us")
    if pa.types.is_time(kind):
        return pa.time64("ns")
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if _is_list(kind):
        return pa.list_(kind.value_field.with_type(known(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(known(kind.key_type), known(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([entry.with_type(known(entry.type)) for entry in kind])
    return _WIDENED.get(kind, kind)


_WIDENED = {
    pa.uint8(): pa.int16(),
    pa.uint16(): pa.int32(),
    pa.uint32(): pa.int64(),
    pa.uint64(): pa.decimal128(20, 0),
    pa.float16(): pa.float32(),
    pa.date64(): pa.date32(),
    pa.large_string(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.string_view(): pa.string(),
    pa.binary_view(): pa.binary(),
}
_NAMES = {
    pa.null(): "void",
    pa.bool_(): "boolean",
    pa.int8(): "byte",
    pa.int16(): "short",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.string(): "string",
    pa.binary(): "binary",
    pa.date32(): "date",
    pa.time64("ns"): "time(6)",  # since Spark 4.1
    pa.duration("us"): "interval day to second",
}


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def spark_schema(schema: pa.Schema) -> dict[str, Any]:
    """A schema as Spark writes one in JSON. Raises ConfigError for a type that Spark does not have.

    Everything may be null: a file that lacks a column gives nulls, whatever the others declare.
    """
    return {"type": "struct", "fields": [_field(entry, entry.name) for entry in schema]}


def _field(entry: pa.Field, path: str) -> dict[str, Any]:
    return {"name": entry.name, "type": _type(known(entry.type), path), "nullable": True, "metadata": {}}


def _type(kind: pa.DataType, path: str) -> Any:
    if kind in _NAMES:
        return _NAMES[kind]
    if pa.types.is_timestamp(kind):
        return "timestamp" if kind.tz else "timestamp_ntz"
    if pa.types.is_decimal128(kind) and 0 <= kind.scale <= kind.precision <= DECIMAL_DIGITS_MAX:
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_list(kind):
        return {"type": "array", "elementType": _type(kind.value_type, f"{path}.element"), "containsNull": True}
    if pa.types.is_map(kind):
        key, value = _type(kind.key_type, f"{path}.key"), _type(kind.item_type, f"{path}.value")
        return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": True}
    if pa.types.is_struct(kind):
        return {"type": "struct", "fields": [_field(entry, f"{path}.{entry.name}") for entry in kind]}
    raise ConfigError("columns", path, f"columns of types that Spark has; it has none for {kind}: name the others")


def is_in_place(kind: pa.DataType) -> bool:
    """Whether the jar reads values of a type where they lie (Column.java); others are made into known() ones."""
    if pa.types.is_dictionary(kind):
        return kind.index_type in _CODES and kind.value_type in (pa.string(), pa.large_string())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_in_place_within(kind.value_type)
    if pa.types.is_map(kind):
        return _is_in_place_within(kind.key_type) and _is_in_place_within(kind.item_type)
    if pa.types.is_struct(kind):
        return all(_is_in_place_within(entry.type) for entry in kind)
    if pa.types.is_timestamp(kind):
        return bool(kind.unit == "us")
    if pa.types.is_decimal(kind):
        return bool(kind.bit_width <= 128)
    return kind in _NAMES or kind in (pa.large_string(), pa.large_binary())


def _is_in_place_within(kind: pa.DataType) -> bool:
    """The same of what is nested: nobody looks there whether a dictionary has a null among its words."""
    return not pa.types.is_dictionary(kind) and is_in_place(kind)


_CODES = (pa.int8(), pa.int16(), pa.int32())
