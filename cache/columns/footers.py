"""Footers of Parquet files: schema, row groups and their statistics, kept parsed within a budget of their own."""

from __future__ import annotations

import datetime
import decimal
import math
import threading
from collections import OrderedDict
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds

from .files import Source, Version

BUDGET_BYTES = 64 << 20
# What a parsed footer is taken to need, against its encoded size: an estimate, as nobody can be asked.
PARSED_FACTOR = 6
# A text column's chunk with a dictionary is read as codes where it takes at most so many encoded bytes a value.
CODE_BYTES = 4


class Footer:
    """The footer of one version of a file."""

    def __init__(self, source: Source, known: Any):
        self.fragment = pds.ParquetFileFormat().make_fragment(
            source.inner, source.arrow_filesystem(), partition_expression=known
        )
        self.metadata = self.fragment.metadata  # reads the file
        self.schema: pa.Schema = self.fragment.physical_schema
        self.row_counts = [self.metadata.row_group(i).num_rows for i in range(self.metadata.num_row_groups)]
        self.nbytes = PARSED_FACTOR * self.metadata.serialized_size
        self._coded: dict[str, list[bool]] = {}
        self._bounds: dict[str, list[tuple[float, float]] | None] = {}
        self._leaves = _leaves(self.schema)
        self._lock = threading.Lock()

    def leaves(self, column: str) -> list[int]:
        """Numbers of the leaf columns below a top-level one."""
        return self._leaves.get(column, [])

    def is_coded(self, column: str, row_group: int | None = None) -> bool:
        """Whether a text column looks as if it were all codes of small dictionaries: in one row group, or in all."""
        with self._lock:
            known = self._coded.get(column)
        if known is None:
            known = [self._looks_coded(column, number) for number in range(len(self.row_counts))]
            with self._lock:
                self._coded[column] = known
        return all(known) if row_group is None else known[row_group]

    def bounds(self, column: str) -> list[tuple[float, float]] | None:
        """Smallest and largest value of a column in each row group, as numbers; None where that is not known."""
        with self._lock:
            if column in self._bounds:
                return self._bounds[column]
        found = _bounds(self.metadata, self.leaves(column))
        with self._lock:
            self._bounds[column] = found
        return found

    def _looks_coded(self, column: str, row_group: int) -> bool:
        leaves = self.leaves(column)
        if len(leaves) != 1:
            return False
        chunk = self.metadata.row_group(row_group).column(leaves[0])
        return bool(
            chunk.has_dictionary_page and chunk.total_uncompressed_size <= CODE_BYTES * max(1, chunk.num_values)
        )


def _leaves(schema: pa.Schema) -> dict[str, list[int]]:
    """Numbers of the leaf columns by top-level name. Counted, as Parquet joins paths by dots, which names may hold too."""
    found, start = {}, 0
    for entry in schema:
        end = start + _leaf_count(entry.type)
        found[entry.name] = list(range(start, end))
        start = end
    return found


def _leaf_count(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaf_count(kind.storage_type)
    if not pa.types.is_nested(kind):
        return 1
    return sum(_leaf_count(kind.field(position).type) for position in range(kind.num_fields))


def _bounds(metadata: Any, leaves: list[int]) -> list[tuple[float, float]] | None:
    if len(leaves) != 1:
        return None
    found = []
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(leaves[0]).statistics
        if statistics is None or not statistics.has_min_max:
            return None
        found.append((_number(statistics.min), _number(statistics.max)))
    return found


def _number(value: Any) -> float:
    """A bound as a number that lies as it does; NaN for text and whatever else has no distance."""
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    if isinstance(value, datetime.date):
        return float(value.toordinal())
    return float(value) if isinstance(value, (int, float, decimal.Decimal)) else math.nan


class Footers:
    """The parsed footers of a process; what was used longest ago goes first."""

    def __init__(self, budget_bytes: int = BUDGET_BYTES):
        self.budget_bytes, self.nbytes = budget_bytes, 0
        self._known: OrderedDict[tuple[str, str, str], Footer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, source: Source, version: Version, known: Any) -> Footer | None:
        """The footer of a version, read if need be; None if the file is of that version no more.

        known: an expression true of all rows (the hive values).  Raises: what pyarrow raises for what is no Parquet file.
        """
        # One file may be seen with and without the values of its path.
        name = (source.path, version.token, str(known))
        with self._lock:
            footer = self._known.get(name)
            if footer is not None:
                self._known.move_to_end(name)
                return footer
        try:
            footer = Footer(source, known)
        except (pa.ArrowException, OSError):
            if source.has_changed(version):
                return None
            raise
        if source.has_changed(version):
            return None
        if version.is_young():
            return footer
        with self._lock:
            if name not in self._known:
                self._known[name] = footer
                self.nbytes += footer.nbytes
            while self.nbytes > self.budget_bytes and len(self._known) > 1:
                self.nbytes -= self._known.popitem(last=False)[1].nbytes
        return footer
