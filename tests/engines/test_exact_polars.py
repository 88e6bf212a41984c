"""Polars over a dataset answers as Polars over the Parquet files: any table, any predicate."""

from __future__ import annotations

import operator
import random
import re
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from tierstore.cache.store import Store

pl = pytest.importorskip("polars")

OPERATORS = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def like(pattern: str) -> str:
    """An SQL pattern as a regular expression."""
    parts = re.findall(r"\\\\.|.", pattern, re.DOTALL)
    return "^" + "".join({"%": "(?s:.*)", "_": "(?s:.)"}.get(part, re.escape(part[-1])) for part in parts) + "$"


def expression(cases: ModuleType, node: tuple[Any, ...]) -> Any:
    """A predicate for Polars."""
    kind, *rest = node

    def literal(name: str, value: Any) -> Any:
        if name in ("id", "text", "word", "flag", "raw"):
            return pl.lit(value)
        return pl.lit(
            pl.from_arrow(pa.array([value], cases.COLUMNS[name][0])).item(),
            pl.Series(pa.array([], cases.COLUMNS[name][0])).dtype,
        )

    if kind == "cmp":
        return OPERATORS[rest[0]](pl.col(rest[1]), literal(rest[1], rest[2]))
    if kind == "in":
        made = pl.col(rest[0]).is_in(rest[1])
        return ~made if rest[2] else made
    if kind == "between":
        return pl.col(rest[0]).is_between(literal(rest[0], rest[1]), literal(rest[0], rest[2]))
    if kind == "null":
        return pl.col(rest[0]).is_not_null() if rest[1] else pl.col(rest[0]).is_null()
    if kind == "like":
        made = pl.col(rest[0]).str.contains(like(rest[1]))
        return ~made if rest[2] else made
    if kind == "not":
        return ~expression(cases, rest[0])
    left, right = expression(cases, rest[0]), expression(cases, rest[1])
    return left & right if kind == "and" else left | right


def rows(frame: Any, where: Any, columns: Any) -> pa.Table:
    return frame.filter(where).select(columns).collect().to_arrow()


@pytest.mark.slow
def test_any_predicate(store: Store, trusting: None, tmp_path: Path, cases: ModuleType) -> None:
    def run(rng: random.Random) -> None:
        paths = cases.write(rng, cases.table(rng), tmp_path / "data")
        ours, plain = store.dataset(paths).to_polars(), pl.scan_parquet(paths)
        assert ours.collect_schema() == plain.collect_schema()
        for _ in range(cases.PREDICATES):
            node = cases.predicate(rng)
            where = expression(cases, node)
            columns = rng.choice([[pl.all()], ["id"], [pl.len()], ["text", "id"]])
            cases.same(partial(rows, ours, where, columns), partial(rows, plain, where, columns), node)
        shutil.rmtree(tmp_path / "data")

    cases.each_seed(run)
