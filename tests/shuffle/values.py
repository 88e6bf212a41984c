"""Arrays of every Arrow type, with nulls, cut out of longer ones. Loaded by conftest.py; no test itself."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

Make = Callable[[random.Random], Any]
LONG = "longer than the twelve bytes that a view holds in place, "


def _integer(bits: int, signed: bool) -> Make:
    low = -(1 << (bits - 1)) if signed else 0
    return lambda r: r.choice([low, low + (1 << bits) - 1, 0, 1, r.randrange(low, low + (1 << bits)), r.randrange(3)])


def _float(r: random.Random) -> float:
    return r.choice([0.0, -0.0, 1.5, -2.25, float("inf"), float("-inf"), float("nan"), r.uniform(-9, 9), 1e-3])


def _text(r: random.Random) -> str:
    return r.choice(["", "a", "ab", "ß → 𝄞", LONG * 3, LONG[: r.randrange(40)], "x" * r.randrange(140), "a\0", "a\0\0"])


def _bytes(r: random.Random) -> bytes:
    return r.choice([b"", b"\0", b"\xff" * 13, b"x" * 300, r.randbytes(r.randrange(30))])


def _decimal(digits: int, scale: int) -> Make:
    return lambda r: Decimal(
        r.randrange(-(10 ** r.randrange(1, digits + 1)) + 1, 10 ** r.randrange(1, digits + 1))
    ).scaleb(-scale)


def _moment(r: random.Random) -> datetime.datetime:
    return datetime.datetime(1960, 1, 1) + datetime.timedelta(seconds=r.randrange(10**9))


INTERVAL = pa.month_day_nano_interval()
FLAT: dict[str, tuple[pa.DataType, Make]] = {
    **{f"int{b}": (getattr(pa, f"int{b}")(), _integer(b, True)) for b in (8, 16, 32, 64)},
    **{f"uint{b}": (getattr(pa, f"uint{b}")(), _integer(b, False)) for b in (8, 16, 32, 64)},
    "float16": (pa.float16(), _float),
    "float32": (pa.float32(), _float),
    "float64": (pa.float64(), _float),
    "bool": (pa.bool_(), lambda r: r.random() < 0.5),
    "decimal32": (pa.decimal32(7, 2), _decimal(7, 2)),
    "decimal64": (pa.decimal64(15, 2), _decimal(15, 2)),
    "decimal128": (pa.decimal128(38, 2), _decimal(38, 2)),
    "decimal256": (pa.decimal256(76, 2), _decimal(76, 2)),
    "date32": (pa.date32(), lambda r: _moment(r).date()),
    "date64": (pa.date64(), lambda r: _moment(r).date()),
    "time32": (pa.time32("ms"), lambda r: _moment(r).time()),
    "time64": (pa.time64("ns"), lambda r: _moment(r).time()),
    "timestamp": (pa.timestamp("us", "Europe/Vienna"), _moment),
    "duration": (pa.duration("s"), lambda r: datetime.timedelta(seconds=r.randrange(-99, 99))),
    "string": (pa.string(), _text),
    "large_string": (pa.large_string(), _text),
    "string_view": (pa.string_view(), _text),
    "binary": (pa.binary(), _bytes),
    "large_binary": (pa.large_binary(), _bytes),
    "binary_view": (pa.binary_view(), _bytes),
    "fixed5": (pa.binary(5), lambda r: r.choice([b"12345", b"\0\0\0\0\0", r.randbytes(5)])),
    "fixed16": (pa.binary(16), lambda r: r.randbytes(16)),
    "fixed100": (pa.binary(100), lambda r: r.randbytes(100)),
    "interval": (
        pa.month_day_nano_interval(),
        lambda r: pa.scalar((r.randrange(3), -2, r.randrange(9)), INTERVAL).as_py(),
    ),
    "null": (pa.null(), lambda r: None),
}
NESTED: dict[str, tuple[pa.DataType, Make]] = {
    "list": (pa.list_(pa.int32()), lambda r: [r.choice([None, r.randrange(9)]) for _ in range(r.randrange(5))]),
    "large_list": (pa.large_list(pa.string()), lambda r: [_text(r) for _ in range(r.randrange(4))]),
    "list_view": (pa.list_view(pa.int64()), lambda r: [r.randrange(9) for _ in range(r.randrange(4))]),
    "list_of_views": (pa.list_(pa.string_view()), lambda r: [_text(r) for _ in range(r.randrange(4))]),
    "fixed_list": (pa.list_(pa.int16(), 3), lambda r: [r.randrange(9), None, r.randrange(9)]),
    "struct": (
        pa.struct([("a", pa.int64()), ("b", pa.string()), ("c", pa.list_(pa.bool_()))]),
        lambda r: {"a": r.choice([None, r.randrange(99)]), "b": _text(r), "c": [True] * r.randrange(3)},
    ),
    "plain_struct": (
        pa.struct([("a", pa.int16()), ("b", pa.struct([("c", pa.string()), ("d", pa.float32())]))]),
        lambda r: {"a": r.choice([None, r.randrange(99)]), "b": r.choice([None, {"c": _text(r), "d": 1.5}])},
    ),
    "map": (
        pa.map_(pa.string(), pa.float64()),
        lambda r: [(_text(r), r.choice([None, 1.5])) for _ in range(r.randrange(3))],
    ),
}
CODED = (
    "dictionary",
    "dictionary_with_null",
    "list_of_dictionaries",
    "run_ends",
    "sparse_union",
    "dense_union",
    "uuid",
)
KINDS = (*FLAT, *NESTED, *CODED)
IN_PLACE = tuple(
    name
    for name in (*FLAT, *NESTED, "uuid")
    if name not in ("string_view", "binary_view", "list_view", "list_of_views")
)


def make(name: str, rows: int, seed: int, nulls: float = 0.2) -> pa.Array:
    """An array of a kind, cut out of a longer one."""
    r = random.Random(f"{name} {seed}")
    total = rows + 16
    if name in CODED:
        return _coded(name, r, total, nulls).slice(11, rows)
    kind, value = {**FLAT, **NESTED}[name]
    values = [None if r.random() < nulls else value(r) for _ in range(total)]
    if kind == pa.float16():
        return pa.array(values, pa.float32()).cast(kind).slice(11, rows)
    return pa.array(values, kind).slice(11, rows)


def _coded(name: str, r: random.Random, total: int, nulls: float) -> pa.Array:
    """Arrays whose rows stand for values elsewhere."""
    pick = [None if r.random() < nulls else r.randrange(5) for _ in range(total)]
    words = [_text(r) + str(i) for i in range(5)]
    if name == "dictionary":
        return pa.DictionaryArray.from_arrays(pa.array(pick, pa.int8()), pa.array(words))
    if name == "dictionary_with_null":
        return pa.DictionaryArray.from_arrays(pa.array(pick, pa.uint16()), pa.array([*words[:4], None]))
    if name == "list_of_dictionaries":
        entries = pa.DictionaryArray.from_arrays(
            pa.array([p for p in pick for _ in range(2)], pa.int32()), pa.array(words)
        )
        return pa.ListArray.from_arrays(pa.array(range(0, 2 * total + 1, 2), pa.int32()), entries)
    if name == "run_ends":
        return pc.run_end_encode(pa.array(sorted(p or 0 for p in pick), pa.int64()))
    if name == "uuid":
        values = [None if p is None else r.randbytes(16) for p in pick]
        return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(values, pa.binary(16)))
    codes = pa.array([r.randrange(2) for _ in range(total)], pa.int8())
    if name == "sparse_union":
        children = [pa.array(pick, pa.int64()), pa.array([_text(r) for _ in range(total)])]
        return pa.UnionArray.from_sparse(codes, children)
    offsets = pa.array([codes.to_pylist()[:i].count(code) for i, code in enumerate(codes.to_pylist())], pa.int32())
    return pa.UnionArray.from_dense(codes, offsets, [pa.array(pick, pa.int64()), pa.array([_text(r) for _ in pick])])
