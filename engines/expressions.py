"""pyarrow's expressions taken apart: they can be made, bound and printed, but not looked into.

What can be done with them is to serialize them, as pickle does: calls, fields and literals in prefix order as metadata of a
schema, literals and options as columns of one row beside it. The metadata repeat names, so they are read by way of the C
data interface, which keeps all.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa


class Field(NamedTuple):
    """A column, by name."""

    name: str


class Literal(NamedTuple):
    """A value."""

    value: pa.Scalar


class Call(NamedTuple):
    """A function and what it is given. options: by name; a value set is a list scalar."""

    function: str
    arguments: list[Any]
    options: dict[str, Any]


Node = Field | Literal | Call


def tree(expression: Any) -> Node:
    """What an expression is made of. Raises NotImplementedError for a nested field."""
    _, (serialized,) = expression.__reduce__()
    with pa.ipc.open_file(serialized) as file:
        values = file.get_batch(0)
        words = _metadata(file.schema)
    name, word = next(words)
    return _node(name, word, words, values)


def fields(node: Node) -> Iterator[str]:
    """The columns that an expression reads, once for each time."""
    if isinstance(node, Field):
        yield node.name
    elif isinstance(node, Call):
        for argument in node.arguments:
            yield from fields(argument)


def _node(name: str, word: str, words: Iterator[tuple[str, str]], values: pa.RecordBatch) -> Node:
    if name == "field_ref":
        return Field(word)
    if name == "literal":
        return Literal(values.column(int(word))[0])
    if name != "call":
        raise NotImplementedError(f"an expression with {name} {word!r}")
    arguments: list[Node] = []
    options: dict[str, Any] = {}
    for inner, value in words:
        if inner == "end":
            break
        if inner == "options":
            options = dict(values.column(int(value))[0])
        else:
            arguments.append(_node(inner, value, words, values))
    return Call(word, arguments, options)


def _metadata(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    """Names and values in order: a count, then for each its length and its bytes."""
    exported = schema.__arrow_c_schema__()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    place = ctypes.cast(pointer(exported, b"arrow_schema"), ctypes.POINTER(ctypes.c_void_p))[
        2
    ]  # format, name, metadata
    if not place:
        return

    def number() -> int:
        nonlocal place
        (value,) = struct.unpack("i", ctypes.string_at(place, 4))
        place += 4
        return int(value)

    def text() -> str:
        nonlocal place
        size = number()
        value = ctypes.string_at(place, size)
        place += size
        return value.decode()

    for _ in range(number()):
        yield text(), text()
    del exported  # owns what was read until here
