"""Filters give the rows that pyarrow gives without statistics, cold and cached; and skip row groups where they can."""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tierstore.cache.columns.prune import Pruner, columns_of
from tierstore.cache.store import Store

pytestmark = pytest.mark.usefixtures("trusting")

ZONED = pa.timestamp("us", "Europe/Vienna")
MOMENT = datetime.datetime(2024, 3, 31, 1, tzinfo=datetime.UTC)  # the hour that Vienna skips
# Few values each, so that comparisons hit and row groups hold but one.
COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "i": (pa.int32(), [-(2**31), -1, 0, 1, 2, 2**31 - 1]),
    "f": (pa.float64(), [math.nan, -0.0, 0.0, 1.5, math.inf, -math.inf]),
    "g": (pa.float32(), [math.nan, -0.0, 0.0, 1.5]),
    "d": (pa.decimal128(9, 2), [Decimal("-9999999.99"), Decimal(0), Decimal("1.25")]),
    "e": (pa.decimal128(25, 2), [Decimal("1e22"), Decimal("1.25"), Decimal("-0.01")]),
    "t": (ZONED, [MOMENT + datetime.timedelta(hours=h) for h in (-1, 0, 1, 5000)]),
    "y": (pa.date32(), [datetime.date(1969, 12, 31), datetime.date(2024, 2, 29)]),
    "s": (pa.string(), ["", "a", "ab", "b", "ß", "x" * 50]),
    "c": (pa.dictionary(pa.int32(), pa.string()), ["", "a", "ab", "b"]),
    "b": (pa.bool_(), [False, True]),
}
COMPARISONS: list[Callable[[Any, Any], Any]] = [
    pc.equal,
    pc.not_equal,
    pc.less,
    pc.less_equal,
    pc.greater,
    pc.greater_equal,
]
NUMBERS = ["i", "f", "g"]


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Up to 20 rows; often runs of one value."""
    rows = draw(st.integers(0, 20))
    columns = {}
    for name, (kind, values) in COLUMNS.items():
        chosen = draw(st.lists(st.sampled_from([None, *values]), min_size=1, max_size=3))
        spread = draw(st.integers(1, 4))
        flat = pa.array([chosen[i // spread % len(chosen)] for i in range(rows)], pa.string() if name == "c" else kind)
        columns[name] = flat.dictionary_encode() if name == "c" else flat
    return pa.table(columns)


def operand(name: str) -> st.SearchStrategy[Any]:
    """A value to compare a column with, or another column of its type."""
    kind, values = COLUMNS[name]
    plain = pa.string() if name == "c" else kind
    scalars = st.sampled_from([*values, None]).map(lambda value: pc.scalar(pa.scalar(value, plain)))
    return scalars | (st.sampled_from(NUMBERS).map(pc.field) if name in NUMBERS else st.nothing())


@st.composite
def terms(draw: st.DrawFn) -> Any:
    name = draw(st.sampled_from([*COLUMNS, *["f"] * 6]))  # most traps are in NaN
    column, (kind, values) = pc.field(name), COLUMNS[name]
    what = draw(st.sampled_from(["compare", "compare", "turned", "null", "valid", "in", "sum", "between", "odd"]))
    if what == "compare":
        return draw(st.sampled_from(COMPARISONS))(column, draw(operand(name)))
    if what == "turned":
        return draw(st.sampled_from(COMPARISONS))(draw(operand(name)), column)
    if what in ("null", "valid"):
        return column.is_null(nan_is_null=draw(st.booleans())) if what == "null" else column.is_valid()
    if what == "in":
        some = draw(st.lists(st.sampled_from([*values, None]), max_size=3))
        return column.isin(pa.array(some, pa.string() if name == "c" else kind))
    if what == "sum" and name in NUMBERS:
        return draw(st.sampled_from(COMPARISONS))(
            column.cast("float64") * 2 + 1, pc.field(draw(st.sampled_from(NUMBERS)))
        )
    if what == "between":
        return (column >= draw(operand(name))) & (column < draw(operand(name)))
    if what == "odd":  # what a comparison says, turned round
        told = draw(st.sampled_from(COMPARISONS))(column, draw(operand(name)))
        other = pc.field("b")
        return draw(
            st.sampled_from(
                [
                    told == pc.scalar(False),
                    told != other,
                    pc.xor(told, other),
                    pc.if_else(told, False, True),
                    pc.and_not_kleene(other, told),
                    pc.coalesce(~told, other),
                ]
            )  # fmt: skip
        )
    return column.is_valid()


FILTERS = st.recursive(
    terms(),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: two[0] & two[1]),
        st.tuples(inner, inner).map(lambda two: two[0] | two[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=5,
)


def outcome(ask: Callable[[], pa.Table]) -> list | type:
    """Rows, as text, for NaN is unequal to itself and -0.0 equal to 0.0; or the error."""
    try:
        return [repr(row) for row in ask().to_pylist()]
    except (pa.ArrowException, TypeError, KeyError, ValueError) as error:
        return type(error)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [60, pytest.param(3000, marks=pytest.mark.soak)])
def test_filters_are_exact(examples: int, store: Store) -> None:
    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=examples < 100,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(tables(), FILTERS, st.none() | st.lists(st.sampled_from(list(COLUMNS)), unique=True), st.integers(1, 6))
    def check(table: pa.Table, keep: Any, columns: list[str] | None, group: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "f.parquet"
            pq.write_table(table, path, row_group_size=group)
            # In memory: statistics know nothing of NaN, and pyarrow's reader trusts them all the same.
            expected = outcome(lambda: pds.dataset(pq.read_table(path)).to_table(columns, filter=keep))
            dataset = store.dataset(path)
            for warmth in ("cold", "warm", "cached"):
                assert outcome(lambda: dataset.to_table(columns, keep)) == expected, f"{warmth}: {keep}"
                if warmth == "warm":
                    dataset.preload()
            assert dataset.stats()["misses"] == dataset.stats()["chunks"]
            assert dataset.evict() == dataset.stats()["chunks"]  # else so many small ones fill the index

    check()


def test_nothing_but_the_filter_is_read(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"a": range(100), "b": range(100), "c": range(100)}), path, row_group_size=10)
    dataset = store.dataset(path)
    assert dataset.to_table(["a"], pc.field("b") == 55)["a"].to_pylist() == [55]
    assert (dataset.stats()["misses"], dataset.stats()["pruned"]) == (2, 9)
    assert dataset.to_table(["a"], pc.field("b") > 1000).num_rows == 0
    assert (dataset.stats()["misses"], dataset.stats()["pruned"]) == (2, 19)
    dataset.preload()
    misses = dataset.stats()["misses"]
    assert dataset.to_table(["a"], pc.field("b") == 55)["a"].to_pylist() == [55]
    assert (dataset.stats()["misses"], dataset.stats()["pruned"]) == (misses, 28), "also of what is cached"


PRUNED = {
    "int": (pa.array(range(100)), pc.field("v") < 10),
    "int in": (pa.array(range(100)), pc.field("v").isin([3, 4])),
    "not": (pa.array(range(100)), ~(pc.field("v") >= 10)),
    "float": (pa.array([float(i) for i in range(100)]), (pc.field("v") < 10.0) & (pc.field("v") > -1.0)),
    "decimal": (pa.array([Decimal(i) for i in range(100)], pa.decimal128(9, 2)), pc.field("v") < Decimal(10)),
    "text": (pa.array([f"{i:03}" for i in range(100)]), pc.field("v") < "010"),
    "zoned": (pa.array(range(100), ZONED), pc.field("v") < pa.scalar(10, ZONED)),
    "date": (pa.array(range(100), pa.date32()), pc.field("v") < pa.scalar(10, pa.date32())),
    "null": (pa.array([None] * 10 + list(range(90))), pc.field("v").is_null()),
    "or": (pa.array(range(100)), (pc.field("v") < 5) | (pc.field("v") == 7)),
}


@pytest.mark.parametrize("name", PRUNED)
def test_what_statistics_exclude_is_skipped(name: str, store: Store, tmp_path: Path) -> None:
    values, keep = PRUNED[name]
    path = tmp_path / "f.parquet"
    with pq.ParquetWriter(path, pa.schema([("v", values.type)])) as writer:
        for start in range(0, 100, 10):
            writer.write_table(pa.table({"v": pa.array(values.slice(start, 10).to_pylist(), values.type)}))
    dataset = store.dataset(path)
    assert dataset.to_table(filter=keep).num_rows in (2, 6, 10)
    assert dataset.stats()["pruned"] == 9


@pytest.mark.parametrize(
    "keep",
    [
        ~(pc.field("v") > 1.0),
        pc.field("v") != 2.0,
        pc.field("v").is_null(nan_is_null=True),
        pc.is_nan(pc.field("v")),
        ~pc.is_finite(pc.field("v")),
        (pc.field("v") > 1.0) == pc.scalar(False),
        pc.scalar(False) == (pc.field("v") > 1.0),
        pc.xor(pc.field("v") > 1.0, True),
        pc.if_else(pc.field("v") > 1.0, False, True),
        pc.field("v").isin([math.nan, 9.0]),
        pc.field("v").cast("bool") == pc.scalar(True),
        pc.and_not_kleene(pc.scalar(True), pc.field("v") > 1.0),
        pc.case_when(pc.make_struct(pc.field("v") > 1.0), False, True),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
def test_what_is_true_of_nan_is_not_skipped(keep: Any, kind: pa.DataType, store: Store, tmp_path: Path) -> None:
    """Statistics say that all lies from 2 to 2, for they leave NaN out."""
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"v": pa.array([2.0, math.nan], kind)}), path)
    table = store.dataset(path).to_table(filter=keep)
    assert any(math.isnan(value) for value in table["v"].to_pylist())


def test_zeros_of_either_sign(store: Store, tmp_path: Path) -> None:
    """Statistics of zeros say -0.0 to 0.0, whichever are there."""
    path = tmp_path / "f.parquet"
    for zero in (0.0, -0.0):
        pq.write_table(pa.table({"v": [zero] * 3}), path)
        for keep in (pc.field("v") == 0.0, pc.field("v") == -0.0, pc.field("v").isin([zero]), pc.field("v") <= -0.0):
            assert store.dataset(path).to_table(filter=keep).num_rows == 3


NESTED = pa.table(
    {"n": [{"x": 1, "y": 1.5}, {"x": 2, "y": math.nan}, None], "a": [1, 2, 3], "ab": [1, 5, 5], "n.x": [7, 8, 9]}
)


@pytest.mark.parametrize(
    ("keep", "columns"),
    [
        (pc.field("a") == 2, ["a"]),
        (pc.field("ab") == 5, ["ab"]),
        (pc.field("n", "x") == 2, ["n"]),
        (~(pc.field("n", "y") > 1.0), ["n"]),
        (pc.field("n.x") == 8, ["n.x"]),
        (pc.field(1) == 2, ["n", "a", "ab", "n.x"]),
        (pc.scalar(True), []),
        (pc.scalar(False), []),
        (pc.field("a") < pc.field("ab"), ["a", "ab"]),
    ],
    ids=str,
)
def test_columns_of_a_filter(keep: Any, columns: list[str], store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(NESTED, path)
    assert columns_of(keep, NESTED.schema) == columns
    expected = pds.dataset(NESTED).to_table(["a"], filter=keep)
    for _ in range(2):
        assert store.dataset(path).to_table(["a"], keep).equals(expected)


@pytest.mark.parametrize(
    "keep",
    [
        pc.field("none") == 1,
        pc.field("a") == "text",
        pc.field("a") + 1,
        pc.field("a"),
        pc.field("n") == 1,
        pc.field("n", "z") == 1,
        pc.field(9) == 1,
        [("a", "=", 1)],
        "a = 1",
    ],
    ids=str,
)
def test_bad_filters_are_the_readers_own_errors(keep: Any, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(NESTED, path)
    expected = outcome(lambda: pds.dataset(path).to_table(filter=keep))
    assert isinstance(expected, type)
    assert outcome(lambda: store.dataset(path).to_table(filter=keep)) is expected


def test_a_pruner_knows_when_it_cannot(store: Store, tmp_path: Path) -> None:
    """A file whose column has another type than the dataset's is read, whatever its statistics say."""
    pq.write_table(pa.table({"v": pa.array([1, 2], pa.int32())}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"v": pa.array([3, 4], pa.int64())}), tmp_path / "1.parquet")
    snapshot = store.dataset(tmp_path).snapshot()
    pruner = Pruner(pc.field("v") > 100, snapshot.schema)
    assert [pruner.row_groups(file.footer, file.partition) for file in snapshot.files] == [[0], []]
