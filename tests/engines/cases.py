"""Random tables and predicates for the tests of engines: written once, rendered for each engine.

A predicate is a tuple: its kind, then its operands; a literal is a Python value, of the kind of its column.
"""

from __future__ import annotations

import datetime
import math
import random
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.strategies import integers

Predicate = tuple[Any, ...]

EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
PREDICATES = 6

DAY, MOMENT = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 23, 59, 59, 999999)
FLOATS = [0.0, -0.0, 1.5, -1.5, math.nan, math.inf, -math.inf, 5e-324, 1e300]
MOMENTS = [MOMENT, datetime.datetime(1970, 1, 1), datetime.datetime(1969, 12, 31, 1), datetime.datetime(2200, 1, 1)]

# name: (Arrow type, values, SQL type of its literals)
COLUMNS: dict[str, tuple[pa.DataType, list[Any], str]] = {
    "i64": (pa.int64(), [-(2**63), -1, 0, 1, 7, 2**63 - 1], "BIGINT"),
    "i8": (pa.int8(), [-128, -1, 0, 5, 127], "TINYINT"),
    "u64": (pa.uint64(), [0, 1, 2**63, 2**64 - 1], "UBIGINT"),
    "f64": (pa.float64(), FLOATS, "DOUBLE"),
    "f32": (pa.float32(), [0.0, -0.0, 1.5, -1.5, math.nan, math.inf, -math.inf, 2.0**-149], "FLOAT"),
    "d9": (pa.decimal128(9, 2), [Decimal(t) for t in ("0.00", "1.25", "-1.25", "9999999.99")], "DECIMAL(9,2)"),
    "d15": (pa.decimal128(15, 2), [Decimal(t) for t in ("0.01", "-2.50", "9999999999999.99")], "DECIMAL(15,2)"),
    "d38": (pa.decimal128(38, 3), [Decimal(t) for t in ("0.001", "-7.000", "9" * 35 + ".999")], "DECIMAL(38,3)"),
    "day": (pa.date32(), [DAY, datetime.date(1969, 7, 20), datetime.date(9999, 12, 31)], "DATE"),
    "naive": (pa.timestamp("us"), MOMENTS, "TIMESTAMP"),
    "zoned": (pa.timestamp("us", "UTC"), [m.replace(tzinfo=datetime.UTC) for m in MOMENTS], "TIMESTAMPTZ"),
    "text": (
        pa.string(),
        ["", "a", "A", "ab", "ß → 𝄞", "100%", "a_b", "it's", "\\", "longer than twelve bytes"],
        "VARCHAR",
    ),
    "word": (pa.string(), ["red", "green", "blue"], "VARCHAR"),
    "flag": (pa.bool_(), [True, False], "BOOLEAN"),
    "raw": (pa.binary(), [b"", b"\0", b"a", b"\xff" * 13], "BLOB"),
}
PATTERNS = ["%", "a%", "%b", "_", "%→%", "a\\_b", "100\\%", "r%d", "%e%", "red", "", "A%", "%'%"]
COMPARISONS = ["=", "<>", "<", "<=", ">", ">="]


def table(rng: random.Random) -> pa.Table:
    """Up to 600 rows, numbered by ``id``; about every sixth value is null, and some columns have runs of one value."""
    rows = rng.choice([0, 1, 7, 40, 90, 400, 600, 600])
    columns: dict[str, pa.Array] = {"id": pa.array(range(rows), pa.int32())}
    for name, (kind, values, _) in COLUMNS.items():
        nulls = rng.choice([0.0, 0.15, 0.15, 0.5, 1.0])
        some = rng.sample(values, rng.randint(1, len(values)))
        drawn = [None if rng.random() < nulls else rng.choice(some) for _ in range(rows)]
        if rng.random() < 0.4:  # sorted, so that statistics exclude row groups
            drawn.sort(key=lambda value: (value is None, str(value)))
        columns[name] = pa.array(drawn, kind)
    return pa.table(columns)


def write(rng: random.Random, whole: pa.Table, folder: Path) -> list[str]:
    """One to three Parquet files with small row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    count = rng.randint(1, 3)
    paths = []
    for number in range(count):
        start = whole.num_rows * number // count
        piece = whole.slice(start, whole.num_rows * (number + 1) // count - start)
        path = str(folder / f"part-{number}.parquet")
        compression = rng.choice(["snappy", "none"])
        group = rng.choice([4, 11, 40] if whole.num_rows < 100 else [50, 200])
        pq.write_table(piece, path, row_group_size=group, use_dictionary=rng.random() < 0.7, compression=compression)
        paths.append(path)
    return paths


def literal(rng: random.Random, name: str) -> Any:
    """A value to compare a column with."""
    if name == "id":
        return rng.randint(-2, 110)
    return rng.choice(COLUMNS[name][1])


def predicate(rng: random.Random, depth: int = 2) -> Predicate:
    """Any predicate, nested as deep."""
    kind = rng.choice(["cmp", "cmp", "in", "between", "null", "like", *(["not", "and", "or", "and"] if depth else [])])
    name = rng.choice(["id", *COLUMNS])
    if kind == "cmp":
        return kind, rng.choice(COMPARISONS), name, literal(rng, name)
    if kind == "in":
        return kind, name, [literal(rng, name) for _ in range(rng.choice([1, 2, 5, 9]))], rng.random() < 0.4
    if kind == "between":
        return kind, name, literal(rng, name), literal(rng, name)
    if kind == "null":
        return kind, name, rng.random() < 0.5
    if kind == "like":
        return kind, rng.choice(["text", "word"]), rng.choice(PATTERNS), rng.random() < 0.3
    if kind == "not":
        return kind, predicate(rng, depth - 1)
    return kind, predicate(rng, depth - 1), predicate(rng, depth - 1)


def sql(node: Predicate, write_literal: Callable[[str, Any], str]) -> str:
    """A predicate as SQL; write_literal(column, value) writes its literals."""
    kind, *rest = node
    if kind == "cmp":
        return f"({rest[1]} {rest[0]} {write_literal(rest[1], rest[2])})"
    if kind == "in":
        values = ", ".join(write_literal(rest[0], value) for value in rest[1])
        return f"({rest[0]} {'not ' * rest[2]}in ({values}))"
    if kind == "between":
        return f"({rest[0]} between {write_literal(rest[0], rest[1])} and {write_literal(rest[0], rest[2])})"
    if kind == "null":
        return f"({rest[0]} is {'not ' * rest[1]}null)"
    if kind == "like":
        pattern = rest[1].replace("'", "''")
        return f"({rest[0]} {'not ' * rest[2]}like '{pattern}' escape '\\')"
    if kind == "not":
        return f"(not {sql(rest[0], write_literal)})"
    return f"({sql(rest[0], write_literal)} {kind} {sql(rest[1], write_literal)})"


def columns_of(node: Predicate) -> Iterator[str]:
    """The columns a predicate reads."""
    kind, *rest = node
    if kind in ("not", "and", "or"):
        for inner in rest:
            yield from columns_of(inner)
    else:
        yield rest[1] if kind == "cmp" else rest[0]


def canonical(found: pa.Table) -> list[str]:
    """Rows as text, sorted: NaN equals itself, and -0.0 is not 0.0."""
    columns = [[repr(value) for value in column.to_pylist()] for column in found.columns]
    return sorted(map(", ".join, zip(*columns)))


def outcome(query: Callable[[], pa.Table]) -> list[str] | type[BaseException]:
    """The rows of a query, or the class of what it raises."""
    try:
        return canonical(query())
    except Warning:
        raise
    except Exception as error:
        return type(error)


def each_seed(run: Callable[[random.Random], None]) -> None:
    """Run with generators of EXAMPLES different seeds, named when it fails."""

    @EXAMPLES
    @given(integers(0, 1 << 32))
    def seeded(seed: int) -> None:
        run(random.Random(seed))

    seeded()


def same(ours: Callable[[], pa.Table], plain: Callable[[], pa.Table], about: object) -> None:
    """Both give the same rows, or fail alike; ours both cold and warm."""
    expected = outcome(plain)
    for state in ("cold", "warm"):
        found = outcome(ours)
        if found != expected:
            alone = [found, expected]
            if isinstance(found, list) and isinstance(expected, list):
                alone = [[row for row in found if row not in expected], [row for row in expected if row not in found]]
            texts = [str(each)[:600] for each in alone]
            raise AssertionError(f"{state}: {about}: ours alone {texts[0]}, plain alone {texts[1]}")


def every_type() -> dict[str, pa.Array]:
    """Three hundred values of each type that Parquet files hold, some null, by name of the type."""
    count = 300
    point = pa.struct([("x", pa.int32()), ("y", pa.list_(pa.string()))])
    some: list[tuple[pa.DataType, list[Any]]] = [
        *((kind, [0, 1, 100]) for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
        *((kind, [0, 1, 200]) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
        (pa.float16(), [0.5, -0.0]),
        (pa.float32(), [0.5, -0.0, math.nan]),
        (pa.float64(), [0.5, -0.0, math.nan]),
        (pa.bool_(), [True, False]),
        *((pa.decimal128(digits, 2), [Decimal("1.25"), Decimal("-9.99")]) for digits in (4, 9, 10, 18, 19, 38)),
        (pa.decimal32(5, 1), [Decimal("1.5")]),
        (pa.decimal64(12, 3), [Decimal("1.125")]),
        (pa.decimal256(50, 2), [Decimal("1.25")]),
        (pa.date32(), [DAY]),
        (pa.date64(), [DAY]),
        *(
            (kind, [datetime.time(23, 59, 59)])
            for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns"))
        ),
        *((pa.timestamp(unit), [MOMENT.replace(microsecond=0)]) for unit in ("s", "ms", "us", "ns")),
        *((pa.timestamp(unit, "Europe/Vienna"), [MOMENT.replace(microsecond=0)]) for unit in ("ms", "us", "ns")),
        (pa.duration("us"), [datetime.timedelta(days=-1, seconds=5)]),
        *((kind, ["", "ß", "longer than twelve bytes"]) for kind in (pa.string(), pa.large_string(), pa.string_view())),
        *(
            (kind, [b"", b"\0", b"longer than twelve bytes"])
            for kind in (pa.binary(), pa.large_binary(), pa.binary_view())
        ),
        (pa.binary(3), [b"abc", b"\0\0\0"]),
        (pa.dictionary(pa.int32(), pa.string()), ["red", "green"]),
        (pa.dictionary(pa.int32(), pa.large_string()), ["red", "green"]),
        (pa.list_(pa.int16()), [[], [1, None]]),
        (pa.large_list(pa.string()), [[], ["a", None]]),
        (pa.list_(pa.int64(), 2), [[1, 2]]),
        (point, [{"x": 1, "y": ["a"]}, {"x": None, "y": []}]),
        (pa.list_(point), [[], [{"x": 1, "y": None}]]),
        (pa.map_(pa.string(), pa.int32()), [[("a", 1)], []]),
        (pa.null(), [None]),
    ]
    return {
        str(kind): pa.array([None if i % 7 == 3 else of[i % len(of)] for i in range(count)], kind) for kind, of in some
    }
