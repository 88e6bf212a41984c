"""TPC-H and TPC-DS: data from tpcgen-cli, queries of the specification, and answers that can be compared."""

from __future__ import annotations

import decimal
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_QUERIES = Path(__file__).parent / "queries"


def make_data(suite: str, folder: Path, scale: float) -> dict[str, Path]:
    """All tables of a suite ("tpch", "tpcds") as Parquet files of this scale factor (1: a gigabyte as text), by name."""
    folder.mkdir(exist_ok=True)
    command = [str(Path(sys.executable).parent / "tpcgen-cli"), suite, "parquet", "-s", str(scale)]
    subprocess.run([*command, f"--output-dir={folder}"], check=True, capture_output=True)
    return {path.stem: path for path in sorted(folder.glob("*.parquet"))}


def queries(suite: str) -> dict[int, str]:
    """The queries of a suite by number."""
    text = (_QUERIES / f"{suite}.sql").read_text()
    found = re.findall(r"^-- (\d+)\n(.*?);\s*(?=^-- \d+\n|\Z)", text, re.S | re.M)
    return {int(number): query for number, query in found}


def same_answer(one: Sequence[Sequence[Any]], other: Sequence[Sequence[Any]]) -> bool:
    """Whether two results have the same rows in the same order; numbers to nine digits."""
    return len(one) == len(other) and all(
        len(a) == len(b) and all(map(_same, a, b)) for a, b in zip(one, other, strict=True)
    )


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (float, decimal.Decimal)) and isinstance(b, (float, decimal.Decimal, int)):
        return math.isclose(float(a), float(b), rel_tol=1e-9, abs_tol=1e-9)
    return bool(a == b)
