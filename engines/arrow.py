"""pyarrow: a dataset as a pyarrow.dataset.Dataset, for whatever takes one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds

from tierstore.cache.columns.dataset import Dataset
from tierstore.cache.columns.files import partition_expression

from .expressions import fields, tree


def dataset(inner: Dataset) -> pds.Dataset:
    """See Dataset.to_pyarrow()."""
    return _Dataset(inner)


class _Dataset(pds.FileSystemDataset):  # type: ignore[misc]
    """Scans go through the cache; what else a pyarrow dataset can do is done on their result.

    What takes it for what it derives from (another dataset's join, pickle, Scanner.from_dataset) gets the files themselves,
    as they were when this was made, past the cache: without such a base, pyarrow would crash there.
    """

    def __init__(self, inner: Dataset, filter: Any = None):
        snapshot, form = inner.snapshot(), pds.ParquetFileFormat()
        fragments = [
            form.make_fragment(file.source.inner, file.source.arrow_filesystem(), partition_expression(file.partition))
            for file in snapshot.files
        ]
        super().__init__(fragments, snapshot.schema, form, fragments[0].filesystem)
        self._inner, self._kept = inner, filter
        if filter is not None:
            self._scan_options = {"filter": filter}  # for those who take the files

    @property
    def schema(self) -> pa.Schema:
        """The dataset's."""
        return self._inner.schema

    def _both(self, filter: Any) -> Any:
        """A filter and the one that this was made with."""
        if self._kept is None or filter is None:
            return self._kept if filter is None else filter
        return self._kept & filter

    def __reduce__(self) -> Any:
        """For another process: the files, past the cache."""
        if self._kept is not None:
            raise TypeError("a filtered dataset cannot be pickled; filter it where it arrives")
        return pds.FileSystemDataset, (list(super().get_fragments()), self.schema, self.format, self.filesystem)

    def scanner(self, columns: Any = None, filter: Any = None, **options: Any) -> pds.Scanner:
        """A scanner for one scan. columns: names, or a dict of names and expressions; options: as pyarrow's."""
        made, names = None, columns
        if isinstance(columns, dict):
            made, names = columns, _columns_of(columns.values(), self.schema)
        reader = self._inner.scan(None if names is None else list(names), self._both(filter))
        rows = options.get("batch_size")
        if rows is not None:  # which pyarrow heeds only where it reads files itself
            reader = pa.RecordBatchReader.from_batches(reader.schema, _cut(reader, rows))
        return pds.Scanner.from_batches(reader, columns=made, **options)

    def to_batches(self, columns: Any = None, filter: Any = None, **options: Any) -> Iterator[pa.RecordBatch]:
        """The batches of a scan."""
        return self.scanner(columns, filter, **options).to_batches()  # type: ignore[no-any-return]

    def to_table(self, columns: Any = None, filter: Any = None, **options: Any) -> pa.Table:
        """The result of a scan."""
        return self.scanner(columns, filter, **options).to_table()

    def head(self, num_rows: int, columns: Any = None, filter: Any = None, **options: Any) -> pa.Table:
        """The first rows."""
        return self.scanner(columns, filter, **options).head(num_rows)

    def take(self, indices: Any, columns: Any = None, filter: Any = None, **options: Any) -> pa.Table:
        """Rows by number."""
        return self.to_table(columns, filter, **options).take(indices)

    def count_rows(self, filter: Any = None, **_: Any) -> int:
        """How many rows there are."""
        return self._inner.count_rows(self._both(filter))

    def _loaded(self) -> pds.InMemoryDataset:
        return pds.InMemoryDataset(self.to_table())

    def get_fragments(self, filter: Any = None) -> Iterator[pds.Fragment]:
        """One fragment, in memory: what asks for fragments is given everything."""
        return iter(pds.InMemoryDataset(self.to_table(filter=filter)).get_fragments())

    def replace_schema(self, schema: pa.Schema) -> pds.Dataset:
        """Not of this dataset, but of a copy in memory."""
        return pds.InMemoryDataset(self.to_table().cast(schema))

    def filter(self, expression: Any) -> pds.Dataset:
        """This dataset's rows for which an expression is true."""
        return _Dataset(self._inner, self._both(expression))

    def sort_by(self, sorting: Any, **options: Any) -> pds.Dataset:
        """A copy in memory, sorted."""
        return self._loaded().sort_by(sorting, **options)

    def join(self, right_dataset: Any, *arguments: Any, **options: Any) -> pds.Dataset:
        """A join, in memory; as pyarrow's."""
        return self._loaded().join(_in_memory(right_dataset), *arguments, **options)

    def join_asof(self, right_dataset: Any, *arguments: Any, **options: Any) -> pds.Dataset:
        """A join with what is nearest, in memory; as pyarrow's."""
        return self._loaded().join_asof(_in_memory(right_dataset), *arguments, **options)


def _cut(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, rows):
            yield batch.slice(start, rows)


def _columns_of(expressions: Iterable[Any], schema: pa.Schema) -> list[str]:
    """The columns that expressions read."""
    try:
        names = {name for expression in expressions for name in fields(tree(expression))}
    except NotImplementedError:  # a field of a column
        return list(schema.names)
    return [name for name in schema.names if name in names]


def _in_memory(other: Any) -> Any:
    return other._loaded() if isinstance(other, _Dataset) else other
