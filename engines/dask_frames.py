"""pandas frames as Arrow batches and back, exactly: every dtype, the index, any column names.

What Arrow holds bit for bit goes as columns, mostly without a copy. A frame with anything else in it (objects, complex
numbers, sparse columns, intervals) goes as pickles of its rows, one for each partition.

A template is an empty frame that says what the rows become again. Frames of equal form (template and Arrow schema) are
read together.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

PICKLED = "pickled"
BLOBS = pa.schema([pa.field("rows", pa.large_binary(), nullable=False)])


MASKED = (
    *(pd.Int8Dtype, pd.Int16Dtype, pd.Int32Dtype, pd.Int64Dtype),
    *(pd.UInt8Dtype, pd.UInt16Dtype, pd.UInt32Dtype, pd.UInt64Dtype),
    *(pd.Float32Dtype, pd.Float64Dtype, pd.BooleanDtype),
)


class Encoded(NamedTuple):
    """A frame as columns. form: equal where frames can be read together; template: pickled."""

    form: str
    template: bytes
    batch: pa.RecordBatch


def encode(frame: pd.DataFrame) -> Encoded | None:
    """A frame as an Arrow batch; None if it has values that Arrow does not hold exactly. Most columns are not copied."""
    columns = [_values(frame.iloc[:, number]) for number in range(frame.shape[1])]
    levels = _levels(frame.index)
    names = [f"c{number}" for number in range(len(columns))] + [f"i{number}" for number in range(len(levels))]
    arrays = []
    for values in [*columns, *levels]:
        array = _to_arrow(values)
        if array is None:
            return None
        arrays.append(array)
    template = _template(frame)
    batch = pa.RecordBatch.from_arrays(arrays, names)
    return Encoded(_form(template, batch.schema), pickle.dumps(template, 5), batch)


def decode(table: pa.Table, template: pd.DataFrame) -> pd.DataFrame:
    """The frame of a table. All its values are copied, so it holds nothing of the store."""
    dtypes = list(template.dtypes)
    arrays = {number: _from_arrow(table.column(f"c{number}"), dtype) for number, dtype in enumerate(dtypes)}
    levels = [
        pd.Index(_from_arrow(table.column(f"i{number}"), level.dtype), dtype=level.dtype, name=level.name)
        for number, level in enumerate(_level_indexes(template.index))
    ]
    index = pd.MultiIndex.from_arrays(levels) if isinstance(template.index, pd.MultiIndex) else levels[0]
    if len(set(dtypes)) == 1 and isinstance(dtypes[0], np.dtype) and len(dtypes) > 1:
        frame = pd.DataFrame(_together(arrays, dtypes[0], table.num_rows), index=index, copy=False)
    else:
        frame = pd.DataFrame(arrays, index=index, copy=False)
    frame.columns = template.columns
    return frame


def pickles(frame: pd.DataFrame, numbers: np.ndarray) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of each partition that has any, in order, as a batch of one value."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.array([], int)
    for begin, end in zip(begins, [*begins[1:], len(ordered)], strict=True):
        rows = pickle.dumps(frame.iloc[order[begin:end]], 5)
        yield int(ordered[begin]), pa.RecordBatch.from_arrays([pa.array([rows], pa.large_binary())], schema=BLOBS)


def unpickled(table: pa.Table) -> list[pd.DataFrame]:
    """The frames of a table of pickles."""
    return [pickle.loads(value.as_buffer()) for value in table.column(0)]


# --- columns ----------------------------------------------------------------------------------------------------------------


def _values(column: pd.Series | pd.Index) -> Any:
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def _to_arrow(values: Any) -> pa.Array | None:
    """A column's values; None where they would not come back as they are."""
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return pa.array(values.codes)
    if isinstance(dtype, pd.DatetimeTZDtype | pd.PeriodDtype):
        return pa.array(values.asi8)
    if isinstance(dtype, pd.StringDtype) or _is_masked(dtype) or _is_plain_arrow(dtype):
        array = pa.array(values)
        return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    if not isinstance(dtype, np.dtype) or not dtype.isnative or dtype.itemsize > 8:
        return None
    if dtype.kind in "mM":
        return pa.array(np.asarray(values).view("i8"))
    return pa.array(np.asarray(values)) if dtype.kind in "iufb" else None


def _from_arrow(column: pa.ChunkedArray, dtype: Any) -> Any:
    """The values of a column, copied out of wherever they are."""
    if isinstance(dtype, pd.StringDtype) or _is_masked(dtype) or _is_plain_arrow(dtype):
        whole = pa.concat_arrays([*column.chunks, pa.array([], column.type)])
        return dtype.__from_arrow__(pa.chunked_array([whole]))
    parts = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
    values = np.concatenate(parts) if parts else column.to_numpy()
    if isinstance(dtype, pd.CategoricalDtype):
        return pd.Categorical.from_codes(values, dtype=dtype, validate=False)
    if isinstance(dtype, pd.DatetimeTZDtype):
        return pd.DatetimeIndex(values.view(f"M8[{dtype.unit}]"), tz="UTC").tz_convert(dtype.tz).array
    if isinstance(dtype, pd.PeriodDtype):
        return pd.arrays.PeriodArray(values, dtype=dtype)
    return values.view(dtype)


def _is_masked(dtype: Any) -> bool:
    return isinstance(dtype, MASKED)


def _is_plain_arrow(dtype: Any) -> bool:
    """Whether it is an Arrow type whose values are not shared between rows, as those of dictionaries are."""
    return isinstance(dtype, pd.ArrowDtype) and not any(
        isinstance(inner, pa.BaseExtensionType) or pa.types.is_dictionary(inner)
        for inner in _inner(dtype.pyarrow_dtype)
    )


def _inner(kind: pa.DataType) -> Iterator[pa.DataType]:
    yield kind
    for number in range(kind.num_fields):
        yield from _inner(kind.field(number).type)


def _together(arrays: dict[int, np.ndarray], dtype: np.dtype, rows: int) -> np.ndarray:
    """Columns of one type as one block, as pandas likes to have them."""
    block = np.empty((len(arrays), rows), dtype)
    for number in list(arrays):
        block[number] = arrays.pop(number)
    return block.T


# --- index and template ---------------------------------------------------------------------------------------------------


def _level_indexes(index: pd.Index) -> list[pd.Index]:
    if isinstance(index, pd.MultiIndex):
        return [index.get_level_values(number) for number in range(index.nlevels)]
    return [index]


def _levels(index: pd.Index) -> list[Any]:
    return [_values(level) for level in _level_indexes(index)]


def _template(frame: pd.DataFrame) -> pd.DataFrame:
    """No rows of a frame, and nothing that holds its rows."""
    levels = [
        pd.Index(_values(level)[:0].copy(), dtype=level.dtype, name=level.name) for level in _level_indexes(frame.index)
    ]
    index = pd.MultiIndex.from_arrays(levels) if isinstance(frame.index, pd.MultiIndex) else levels[0]
    columns = {number: _values(frame.iloc[:, number])[:0].copy() for number in range(frame.shape[1])}
    template = pd.DataFrame(columns, index=index)
    template.columns = frame.columns
    return template


def _form(template: pd.DataFrame, schema: pa.Schema) -> str:
    """The same text for frames that can be read together. A pickle would not do: equal objects may be pickled differently."""
    digest = hashlib.sha256(str(schema.remove_metadata()).encode())
    digest.update(f"{type(template.columns).__name__} {list(template.columns)!r} {template.columns.names!r}".encode())
    levels = _level_indexes(template.index)
    for name, dtype in [*zip(template.columns, template.dtypes), *((level.name, level.dtype) for level in levels)]:
        digest.update(f"{name!r} {dtype!r}".encode())
        if isinstance(dtype, pd.CategoricalDtype):
            digest.update(f"{dtype.ordered} {dtype.categories.dtype!r}".encode())
            if dtype.categories.dtype == object:
                digest.update(repr(list(dtype.categories)).encode())
            digest.update(pd.util.hash_pandas_object(pd.Series(dtype.categories)).to_numpy().tobytes())
    return digest.hexdigest()[:32]
