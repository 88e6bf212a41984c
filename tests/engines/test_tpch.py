"""All 22 queries of TPC-H over our datasets answer as over the plain Parquet files, at scale factor 0.01."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import tierstore
from tierstore.cache.store import Store

TABLES = ("nation", "region", "part", "supplier", "partsupp", "customer", "orders", "lineitem")
GENERATOR = Path(sys.executable).with_name("tpcgen-cli")
TEXT = (Path(__file__).parents[2] / "bench" / "queries" / "tpch.sql").read_text()
_, *PARTS = re.split(r"^-- (\d+)$", TEXT, flags=re.MULTILINE)
QUERIES = {int(number): query.strip().rstrip(";") for number, query in zip(PARTS[::2], PARTS[1::2], strict=True)}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GENERATOR.exists(), reason="tpcgen-cli is not installed"),
]


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Parquet file for each table."""
    folder = tmp_path_factory.mktemp("tpch")
    command = [GENERATOR, "tpch", "parquet", "-s", "0.01", "--row-group-bytes=512KB", f"--output-dir={folder}"]
    subprocess.run(command, check=True, capture_output=True)
    return {name: str(next(folder.rglob(f"{name}*.parquet"))) for name in TABLES}


@pytest.fixture(scope="module")
def shared(tables: dict[str, str]) -> Iterator[Store]:
    """One store for all queries, so that each finds what others have filled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tierstore.cache.columns.files.DISTRUST_S", 0.0)
        with tierstore.open(dram="64MiB", segment="1MiB") as store:
            yield store
            report = store.verify(payloads=True)
            assert report["ok"], report["problems"]


def plain(value: Any) -> Any:
    """Decimals as floats: engines sum them in types of their own."""
    return float(value) if isinstance(value, Decimal) else value


def assert_same(ours: pa.Table, expected: pa.Table) -> None:
    """Same rows in the same order, floats to nine digits."""
    assert ours.column_names == expected.column_names and ours.num_rows == expected.num_rows
    for name in expected.column_names:
        for one, other in zip(ours[name].to_pylist(), expected[name].to_pylist(), strict=True):
            one, other = plain(one), plain(other)
            if isinstance(other, float):
                assert math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9), name
            else:
                assert one == other, name


def test_there_are_22() -> None:
    assert list(QUERIES) == list(range(1, 23))


@pytest.fixture(scope="module")
def duck(shared: Store, tables: dict[str, str]) -> Iterator[tuple[Any, Any]]:
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as ours, duckdb.connect() as expected:
        for name, path in tables.items():
            shared.dataset(path).to_duckdb(ours, name)
            expected.execute(f"create view {name} as from read_parquet('{path}')")
        yield ours, expected


@pytest.mark.parametrize("number", QUERIES)
def test_duckdb(duck: tuple[Any, Any], number: int) -> None:
    ours, expected = (connection.sql(QUERIES[number]).to_arrow_table() for connection in duck)
    assert_same(ours, expected)
    assert ours.schema.types == expected.schema.types


@pytest.fixture(scope="module")
def fusion(shared: Store, tables: dict[str, str]) -> tuple[Any, Any]:
    datafusion = pytest.importorskip("datafusion")
    ours, expected = datafusion.SessionContext(), datafusion.SessionContext()
    for name, path in tables.items():
        shared.dataset(path).to_datafusion(ours, name)
        expected.register_parquet(name, path)
    return ours, expected


@pytest.mark.parametrize("number", QUERIES)
def test_datafusion(fusion: tuple[Any, Any], number: int) -> None:
    ours, expected = (context.sql(QUERIES[number]).to_arrow_table() for context in fusion)
    assert_same(ours, expected)
