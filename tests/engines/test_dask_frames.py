"""Frames come back from their Arrow form bit for bit, or are not given one."""

from __future__ import annotations

import datetime
import decimal
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tierstore.engines.dask_frames import decode, encode, pickles, unpickled

ROWS = 40
N = range(ROWS)


def arrow(kind: pa.DataType) -> Any:
    return pd.ArrowDtype(kind)


EXACT: dict[str, Any] = {
    "int8": pd.array([n - 20 for n in N], "i1").to_numpy(),
    "uint64": np.array([2**64 - 1 - n for n in N], "u8"),
    "float16": np.array([n / 8 for n in N], "f2"),
    "float64": np.array([np.nan if n % 7 == 1 else -0.0 if n % 7 == 2 else n / 3 for n in N]),
    "bool": np.array([n % 3 == 0 for n in N]),
    "datetime": np.array([None if n % 5 == 0 else f"2020-01-{1 + n % 28:02}T01:02:03.000000001" for n in N], "M8[ns]"),
    "seconds": np.array(list(N), "M8[s]"),
    "timedelta": np.array([n - 5 for n in N], "m8[us]"),
    "zone": pd.date_range("2020-10-25", periods=ROWS, freq="15min", tz="Europe/Berlin"),
    "offset": pd.date_range("2020", periods=ROWS, freq="h", tz=datetime.timezone(datetime.timedelta(hours=5))),
    "period": pd.period_range("2020", periods=ROWS, freq="M"),
    "text": pd.array([None if n % 4 == 0 else f"text {n}" for n in N], "str"),
    "string": pd.array([None if n % 4 == 0 else f"text {n}" for n in N], "string[pyarrow]"),
    "python": pd.array([None if n % 4 == 0 else f"text {n}" for n in N], "string[python]"),
    "masked": pd.array([None if n % 4 == 0 else n for n in N], "Int16"),
    "masked_float": pd.array([None if n % 4 == 0 else n / 2 for n in N], "Float64"),
    "boolean": pd.array([None if n % 4 == 0 else n % 3 == 0 for n in N], "boolean"),
    "arrow": pd.array([None if n % 4 == 0 else n for n in N], arrow(pa.int32())),
    "list": pd.array([[n] * (n % 3) for n in N], arrow(pa.list_(pa.int8()))),
    "decimal": pd.array([decimal.Decimal(n) / 4 for n in N], arrow(pa.decimal128(12, 2))),
    "category": pd.Categorical([None if n % 6 == 0 else f"c{n % 5}" for n in N], [f"c{n}" for n in range(9)]),
    "ordered": pd.Categorical([n % 5 for n in N], [4, 3, 2, 1, 0], ordered=True),
}
INEXACT: dict[str, Any] = {
    "object": np.array([None, np.nan, 1, "one"] * (ROWS // 4), object),
    "complex": np.array([n + 1j for n in N]),
    "sparse": pd.arrays.SparseArray([n % 9 == 0 for n in N]),
    "interval": pd.interval_range(0, ROWS),
    "dictionary": pd.array([f"c{n % 5}" for n in N], arrow(pa.dictionary(pa.int8(), pa.string()))),
}


def back(frame: pd.DataFrame) -> pd.DataFrame:
    encoded = encode(frame)
    assert encoded is not None
    table = pa.Table.from_batches([encoded.batch.slice(0, 7), encoded.batch.slice(7)])
    return decode(table, pickle.loads(encoded.template))


@pytest.mark.parametrize("name", EXACT)
def test_column_and_index_come_back(name: str) -> None:
    values = EXACT[name]
    frame = pd.DataFrame({"a": values, "b": np.arange(ROWS)})
    pd.testing.assert_frame_equal(back(frame), frame, check_freq=False)
    if name not in ("list", "float16"):  # no index can be of these
        frame.index = pd.Index(values, name="i")
        pd.testing.assert_frame_equal(back(frame), frame, check_freq=False)


@pytest.mark.parametrize("name", INEXACT)
def test_what_arrow_does_not_hold_is_pickled(name: str) -> None:
    frame = pd.DataFrame({"a": INEXACT[name], "b": np.arange(ROWS)}, index=pd.Index([f"r{n}" for n in N], name="i"))
    assert encode(frame) is None
    numbers = np.array([n * 7 % 4 for n in N])
    found = dict(pickles(frame, numbers))
    assert sorted(found) == [0, 1, 2, 3]
    for number, batch in found.items():
        (rows,) = unpickled(pa.Table.from_batches([batch]))
        pd.testing.assert_frame_equal(rows, frame[numbers == number])


def test_all_together() -> None:
    frame = pd.DataFrame(EXACT)
    pd.testing.assert_frame_equal(back(frame), frame, check_freq=False)
    assert len(back(frame[:0])) == 0
    pd.testing.assert_frame_equal(back(frame[:0]), frame[:0], check_freq=False)


def test_names_need_not_be_text_or_unique() -> None:
    frame = pd.DataFrame(np.arange(12.0).reshape(3, 4), columns=[0, "x", "x", (1, 2)])
    pd.testing.assert_frame_equal(back(frame), frame, check_index_type=False)
    frame.columns = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1), ("b", 2)], names=["p", "q"])
    pd.testing.assert_frame_equal(back(frame), frame, check_index_type=False)


def test_indexes_of_several_levels() -> None:
    index = pd.MultiIndex.from_arrays([EXACT["text"], EXACT["zone"], EXACT["category"]], names=["a", None, "c"])
    frame = pd.DataFrame({"x": np.arange(ROWS)}, index=index)
    pd.testing.assert_frame_equal(back(frame), frame, check_freq=False)


def test_columns_may_be_none() -> None:
    frame = pd.DataFrame(index=[f"r{n}" for n in N])
    pd.testing.assert_frame_equal(back(frame), frame)


def test_result_holds_nothing_of_the_batch() -> None:
    frame = pd.DataFrame({"x": np.arange(ROWS), "s": EXACT["string"]})
    encoded = encode(frame)
    assert encoded is not None
    found = decode(pa.Table.from_batches([encoded.batch]), pickle.loads(encoded.template))
    assert not np.shares_memory(found["x"].to_numpy(), frame["x"].to_numpy())
    before = {buffer.address for buffer in pa.array(frame["s"].array).buffers() if buffer}
    after = {buffer.address for buffer in pa.array(found["s"].array).buffers() if buffer}
    assert not before & after


def test_forms_differ_where_templates_do() -> None:
    def form(values: Any, name: Any = "a", index: Any = None) -> str:
        encoded = encode(pd.DataFrame({name: values}, index=index))
        assert encoded is not None
        return encoded.form

    one = form(pd.Categorical(["x", "y"]))
    assert one == form(pd.Categorical(["y", "x"], ["x", "y"]))
    assert len({one, form(pd.Categorical(["x", "y"], ["y", "x"])), form(pd.Categorical(["x", "y"], ordered=True))}) == 3
    assert form(pd.Categorical(["1", 1], ["1", 1])) != form(pd.Categorical([1, "1"], [1, "1"]))
    assert form([1, 2]) == form([3, 4]) != form([1, 2], index=pd.Index([1, 2], name="i"))
    assert form([1, 2], name=1) != form([1, 2], name="1")
