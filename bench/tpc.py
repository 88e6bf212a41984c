"""TPC-H and TPC-DS: data from tpcgen-cli, queries of the specification, and answers that can be compared."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Sequence[Any]]

_QUERIES = Path(__file__).parent / "queries"


def make_data(suite: str, folder: Path, scale: float) -> dict[str, Path]:
    """All tables of a suite ("tpch", "tpcds") as Parquet files of this scale factor (1: a gigabyte as text), by name."""
    folder.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).parent / "tpcgen-cli"), suite, "parquet", "-s", str(scale)]
    subprocess.run([*command, f"--output-dir={folder}"], check=True, capture_output=True)
    return {path.stem: path for path in sorted(folder.glob("*.parquet"))}


def queries(suite: str) -> dict[int, str]:
    """The queries of a suite by number. Four of TPC-DS are two statements each: statements() tells them apart."""
    texts = [path.read_text() for path in sorted(_QUERIES.glob(f"{suite}*.sql"))]
    found = [pair for text in texts for pair in re.findall(r"^-- (\d+)\n(.*?);\s*(?=^-- \d+\n|\Z)", text, re.S | re.M)]
    return {int(number): query for number, query in found}


def statements(query: str) -> list[str]:
    """The statements of a query, without semicolons."""
    return re.split(r";\s*\n\s*", query)


def uncut(statement: str) -> str:
    """A statement without its limit. What a limit leaves of rows that sort alike is the engine's choice at each run."""
    return re.sub(r"\nlimit \d+\s*\Z", "", statement)


def same_answer(one: Rows, other: Rows) -> bool:
    """Whether two results have the same rows in the same order; floats to nine digits."""
    return len(one) == len(other) and all(
        len(a) == len(b) and all(map(_same, a, b)) for a, b in zip(one, other, strict=True)
    )


def same_rows(one: Rows, other: Rows) -> bool:
    """Whether two results have the same rows, as often, in any order; floats to nine digits."""
    return same_answer(sorted(one, key=_place), sorted(other, key=_place))


def _place(row: Sequence[Any]) -> tuple[list[str], list[float]]:
    """Where a row stands among others: by what is exact, then by floats, which may differ between results."""
    exact = ["" if isinstance(value, float) else repr(value) for value in row]
    return exact, [value for value in row if isinstance(value, float)]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) or isinstance(b, float):
        return a is not None and b is not None and _close(float(a), float(b))
    return bool(a == b)


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
