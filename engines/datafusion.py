"""DataFusion: a dataset as a table of a SessionContext.

DataFusion takes a pyarrow dataset: it asks for a scanner (for its schema alone) and for fragments, and scans each fragment
in a thread of its own. Nothing else of pyarrow is used, so no scanner of pyarrow's runs. Filters that it hands over are
not applied again, and mean something else to it than to pyarrow; ``Filter`` makes up for that. It is given the types that
its own reader gives: sums of decimals in 64 bits would overflow unnoticed, and 16-bit codes run out where it merges
dictionaries.

So it learns nothing of how many rows there are, and filters in Python. Columns that lie in memory it gets as a table of its
own instead: datafusion_catalog.py.
"""

from __future__ import annotations

import contextlib
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds

from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.tables import Snapshot, Unit

from .expressions import Call, Field, Literal, Node, fields, tree

BATCH_ROWS = 32_768
Note = Callable[[Iterable[str]], None]


def register(dataset: Dataset, context: Any, name: str) -> None:
    """See Dataset.to_datafusion()."""
    from .datafusion_catalog import add  # which needs what is below

    add(dataset, context, name)


class Table(pds.Dataset):  # type: ignore[misc]
    """What DataFusion takes for a pyarrow dataset. note: told which columns a query reads."""

    def __init__(self, dataset: Dataset, note: Note):  # not the base's, which makes no sense for a class of one's own
        self._dataset, self._note = dataset, note
        self._schema = dataset.snapshot().wide

    @property
    def schema(self) -> pa.Schema:
        """All columns. DataFusion takes no error here; of files that are gone, scanning tells."""
        with contextlib.suppress(Exception):
            self._schema = self._dataset.snapshot().wide
        return self._schema

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scanner:
        """Asked for its schema only."""
        snapshot = self._dataset.snapshot()
        self._note(
            [
                *(snapshot.wide.names if columns is None else columns),
                *(fields(tree(filter)) if filter is not None else ()),
            ]
        )
        return _Scanner(self._dataset, snapshot, [], columns, None)

    def get_fragments(self, filter: Any = None) -> list[_Fragment]:
        """The row groups that a filter leaves, shared out among the processors."""
        snapshot = self._dataset.snapshot()
        units = self._dataset.units(
            snapshot, None if filter is None else Filter(filter, snapshot.schema).for_statistics
        )
        shares = max(1, min(len(units), len(os.sched_getaffinity(0))))
        return [_Fragment(self._dataset, snapshot, part) for part in _shares(units, shares)]


def _shares(units: Sequence[Unit], count: int) -> Iterator[Sequence[Unit]]:
    for number in range(count):
        yield units[len(units) * number // count : len(units) * (number + 1) // count]


class _Fragment:
    """A share of the row groups."""

    def __init__(self, dataset: Dataset, snapshot: Snapshot, units: Sequence[Unit]):
        self._dataset, self._snapshot, self._units = dataset, snapshot, units

    def scanner(self, _schema: Any = None, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> Any:
        """One scan."""
        return _Scanner(self._dataset, self._snapshot, self._units, columns, filter)


class _Scanner:
    """What is left of a pyarrow scanner for DataFusion."""

    def __init__(
        self, dataset: Dataset, snapshot: Snapshot, units: Sequence[Unit], columns: Sequence[str] | None, filter: Any
    ):
        self._dataset, self._snapshot, self._units, self._filter = dataset, snapshot, units, filter
        schema = snapshot.wide
        self.dataset_schema = schema
        self.projected_schema = schema if columns is None else pa.schema([schema.field(name) for name in columns])

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        """The batches."""
        keep = None if self._filter is None else Filter(self._filter, self._snapshot.schema).for_rows
        schema = self.projected_schema
        for batch in self._dataset.batches(self._snapshot, self._units, schema, keep, in_total_order, wide=True):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}


class Filter:
    """A filter as DataFusion means it.

    It orders floats by their bits: NaN equals itself and is above (or, with a sign, below) all numbers. -0.0 equals 0.0 in
    comparisons, but not in lists. A null is neither in a list nor not in it.

    for_rows:       the filter over columns that went through in_total_order().
    for_statistics: what of it row groups may be excluded by: terms without floats, whose NaN statistics leave out. Or None.
    """

    def __init__(self, expression: Any, schema: pa.Schema):
        self._schema = schema
        root = tree(expression)
        self.for_rows = self._build(root, True)
        self.for_statistics = None
        for term in _terms(root):
            if not self._reads_floats(term):
                made = self._build(term, True)
                self.for_statistics = made if self.for_statistics is None else self.for_statistics & made

    def _is_float(self, node: Node) -> bool:
        return isinstance(node, Field) and pa.types.is_floating(self._schema.field(node.name).type)

    def _reads_floats(self, node: Node) -> bool:
        return self._is_float(node) or (isinstance(node, Call) and any(map(self._reads_floats, node.arguments)))

    def _build(self, node: Node, asserted: bool) -> Any:
        """An expression. asserted: null and false do the same to the result."""
        if isinstance(node, Field):
            return pc.field(node.name)
        if isinstance(node, Literal):
            return pc.scalar(_plain(node.value))
        function, arguments = node.function, node.arguments
        if function in ("and_kleene", "or_kleene"):
            left, right = (self._build(argument, asserted) for argument in arguments)
            return left & right if function == "and_kleene" else left | right
        if function == "invert":
            return ~self._build(arguments[0], False)
        if function == "is_valid":
            return self._build(arguments[0], False).is_valid()
        if function == "is_null" and not node.options["nan_is_null"].as_py():
            return self._build(arguments[0], False).is_null()
        if function in _COMPARISONS:
            for argument in arguments:
                self._check_comparable(argument)
            ordered = any(map(self._is_float, arguments))
            left, right = (self._ordered(one) if ordered else self._build(one, False) for one in arguments)
            return _COMPARISONS[function](left, right)
        if function == "is_in" and isinstance(arguments[0], Field):
            values = node.options["value_set"].values
            column, values = pc.field(arguments[0].name), _plain(values)
            if self._is_float(arguments[0]):  # the list was made of doubles, whatever the column's type is
                column, values = column.cast(pa.int64()), _keys(values.cast(self._schema.field(arguments[0].name).type))
            found = column.isin(values)
            return found if asserted else pc.if_else(column.is_valid(), found, pa.scalar(None, pa.bool_()))
        raise NotImplementedError(f"DataFusion handed over a filter with {function}(), which is not known here")

    def _check_comparable(self, node: Node) -> None:
        if isinstance(node, Field) and pa.types.is_nested(self._schema.field(node.name).type):
            raise NotImplementedError(
                f"{node.name!r} cannot be compared here; 'is [not] distinct from' instead of = or <> leaves it to DataFusion"
            )

    def _ordered(self, node: Node) -> Any:
        """One side of a comparison of floats, as a key; that of -0.0 is that of 0.0."""
        if self._is_float(node):
            key = pc.field(node.name).cast(pa.int64())  # type: ignore[union-attr]
            return pc.if_else(key == _MINUS_ZERO, pa.scalar(0, pa.int64()), key)
        if isinstance(node, Literal) and (pa.types.is_floating(node.value.type) or not node.value.is_valid):
            key = _keys(pa.array([node.value.as_py()], node.value.type))[0]
            return pc.scalar(pa.scalar(0, pa.int64()) if key.as_py() == _MINUS_ZERO else key)
        raise NotImplementedError(
            f"DataFusion handed over a comparison of a float with {node}, which is not known here"
        )


def _terms(node: Node) -> Iterator[Node]:
    """The terms of a conjunction."""
    if isinstance(node, Call) and node.function == "and_kleene":
        for argument in node.arguments:
            yield from _terms(argument)
    else:
        yield node


def _plain(value: pa.Scalar | pa.Array) -> pa.Scalar | pa.Array:
    """A literal that was made for a dictionary or a view, in a type that pyarrow compares; or a list of them."""
    kind = value.type.value_type if pa.types.is_dictionary(value.type) else value.type
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}.get(kind, kind)
    if plain == value.type:
        return value
    return value.cast(plain) if isinstance(value, pa.Array) else pa.scalar(value.as_py(), plain)


_MINUS_ZERO = -1  # the key of -0.0
_BITS = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}


def _keys(array: pa.Array) -> pa.Array:
    """Floats as integers in the order of their bits: these, with all but the sign flipped where it is set."""
    kind = _BITS.get(array.type)
    if kind is None:  # only nulls
        return array.cast(pa.int64())
    bits = array.view(kind)
    flipped = pc.bit_wise_xor(bits, pa.scalar((1 << (kind.bit_width - 1)) - 1, kind))
    return pc.if_else(pc.less(bits, pa.scalar(0, kind)), flipped, bits).cast(pa.int64())


def in_total_order(table: pa.Table) -> pa.Table:
    """A table with its floats as keys."""
    for position, entry in enumerate(table.schema):
        if entry.type in _BITS:
            keys = pa.chunked_array(map(_keys, table.column(position).chunks), pa.int64())
            table = table.set_column(position, entry.with_type(pa.int64()), keys)
    return table
